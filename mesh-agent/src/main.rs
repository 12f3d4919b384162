//! The node agent of Mesh CNI.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use mesh_agent::admin::{self, Asked};
use mesh_agent::args::{Cli, Command, Format};
use mesh_agent::{agent, ca, causes, check, confine, prepare, uninstall};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

/// Threads that follow the world; connections have theirs.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let Cli {
        log_format,
        command,
    } = Cli::parse();
    match command {
        Command::Run(config) => match confine::privileges() {
            Ok(()) => run(log_format, agent::run(*config)),
            Err(error) => failed(&error),
        },
        Command::Ca(config) => run(log_format, ca::run(config)),
        Command::Trace(args) => asked(admin::trace(args)),
        Command::Policies(args) => asked(admin::policies(args)),
        Command::Status(args) => asked(admin::status(&args)),
        Command::Flows(args) => asked(admin::flows(&args)),
        Command::Metrics(args) => asked(admin::metrics(&args)),
        Command::Log(args) => asked(admin::log(&args)),
        Command::Check(args) => once(async {
            let findings = check::run(&args).await;
            print!("{}", check::render(&findings, args.common.output));
            Ok::<_, Infallible>(check::passes(&findings))
        }),
        Command::Prepare(args) => once(async { prepare::prepare(args).await.map(|()| true) }),
        Command::Uninstall(args) => once(uninstall::uninstall(&args, |line| println!("{line}"))),
        Command::Pause => once(agent::until_stopped()),
    }
}

fn run(log: Format, part: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    // The client of Kubernetes calls every attempt an error; the source tells once what is wrong.
    let default = "info,kube_client=off";
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match log {
        Format::Text => subscriber.init(),
        Format::Json => subscriber.json().flatten_event(true).init(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build();
    let ended = runtime
        .map_err(anyhow::Error::from)
        .and_then(|it| it.block_on(part));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what has an end of its own; `false` is exit code 1, too.
fn once<E: std::error::Error>(work: impl Future<Output = Result<bool, E>>) -> ExitCode {
    let runtime = Runtime::new().expect("a thread and a descriptor can be had at the start");
    match runtime.block_on(work) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("mesh-agent: {}", causes::causes(error));
    ExitCode::FAILURE
}

fn asked(asked: Result<Asked, admin::ClientError>) -> ExitCode {
    match asked {
        Ok(Asked::Yes) => ExitCode::SUCCESS,
        Ok(Asked::No) => ExitCode::from(1),
        Err(error) => {
            eprintln!("mesh-agent: {}", causes::causes(&error));
            ExitCode::from(2)
        }
    }
}
