//! The demo: two nodes and some pods in network namespaces, and a story told with proofs.
//!
//! The story runs in a child process. This one waits for it and for signals, and removes the lab whatever became of it.

#![forbid(unsafe_code)]

mod chapters;
mod report;
mod stage;

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use mesh_tests::app::{App, Server};
use mesh_tests::lab::Lab;
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;
use mesh_tests::site;
use mesh_tests::supervise;
use mesh_tests::world::Family;
use socket2::{Domain, Socket, Type};

use stage::Cast;

/// The name of the demo's lab.
const LAB: &str = "demo";

/// Shows Mesh CNI at work: two nodes, pods, encrypted and refused connections.
#[derive(Parser)]
#[command(name = "mesh-demo")]
struct Args {
    /// Leave the nodes and pods up at the end, and print how to use them
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove what `--keep`, or a run that was killed, left
    #[arg(long)]
    down: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program runs as beside the demo itself.
#[derive(Subcommand)]
enum Part {
    /// The story, under the eyes of a parent
    #[command(hide = true)]
    Story,
    /// An application in a pod: HTTP on port 8080, echo on port 7
    #[command(hide = true)]
    Serve {
        /// What it calls itself
        name: String,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.part {
        Some(Part::Story) => story(args.keep),
        Some(Part::Serve { name }) => serve(name),
        None if args.down => {
            down();
            Ok(ExitCode::SUCCESS)
        }
        None => supervise(args.keep),
    };
    result.unwrap_or_else(|error| {
        eprintln!("demo: error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs the story in a child.
fn supervise(keep: bool) -> Result<ExitCode> {
    let mut command = Command::new(std::env::current_exe()?);
    if keep {
        command.arg("--keep");
    }
    supervise::supervise(command.arg("story"), &[LAB], keep)
}

fn story(keep: bool) -> Result<ExitCode> {
    supervise::begin()?;
    println!("Mesh CNI: setting up the demo ...");
    let lab = Lab::new(LAB)?;
    let cast = stage::set(&lab)?;
    let held = chapters::tell(&lab, &cast);
    if !held {
        lab.print_logs();
    }
    if keep {
        how_to_use(&cast);
        cast.servers.into_iter().for_each(Process::keep);
        lab.keep();
    }
    Ok(if held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn how_to_use(cast: &Cast<'_>) {
    let enter = |pod: &Pod<'_>| format!("nsenter --net={}", pod.netns().path().display());
    let to = cast.web.at(Family::V4, stage::HTTP);
    println!(
        "\nLeft up. Call a server from a pod:      {} curl http://{to}/",
        enter(&cast.client)
    );
    println!(
        "Run your own server in a pod:           {} YOUR-COMMAND",
        enter(&cast.web)
    );
    println!("Edit the cluster's objects, at once:    /run/mesh-lab/{LAB}/source/*.yaml");
    println!("Read what an agent says:                /run/mesh-lab/{LAB}/n1/agent.log");
    println!("Remove it all:                          cargo xtask demo --down");
}

fn serve(name: String) -> Result<ExitCode> {
    let listen = |port: u16| -> Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&std::net::SocketAddr::from(([0_u16; 8], port)).into())?;
        socket.listen(128)?;
        Ok(socket.into())
    };
    let echo = Server::run(listen(stage::ECHO)?, App::Echo);
    Server::run(listen(stage::HTTP)?, App::Http(name.leak())).wait();
    drop(echo);
    Ok(ExitCode::SUCCESS)
}

/// Removes what an earlier run left, unless it still runs.
fn down() {
    match site::down(LAB) {
        Ok(()) => eprintln!("removed the lab {LAB}"),
        Err(error) => eprintln!("left alone: {error:#}"),
    }
}
