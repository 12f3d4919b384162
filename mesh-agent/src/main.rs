//! The node agent of Mesh CNI.

use std::convert::Infallible;
use std::process::ExitCode;

use mesh_agent::admin::{self, Asked};
use mesh_agent::args::{Cli, Command};
use mesh_agent::logging::Logging;
use mesh_agent::{agent, ca, causes, check, confine, map, prepare, sysdump, uninstall};
use tokio::runtime::Runtime;

/// Threads that follow the world; connections have theirs.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let (cli, flags) = Cli::read();
    let log = cli.log_format;
    match cli.command {
        Command::Run(config) => match confine::privileges() {
            Ok(()) => run(agent::run(*config, flags, Logging::start(log))),
            Err(error) => failed(&error),
        },
        Command::Ca(config) => {
            Logging::start(log);
            run(ca::run(config))
        }
        Command::Trace(args) => asked(admin::trace(args)),
        Command::Policies(args) => asked(admin::policies(args)),
        Command::Status(args) => asked(admin::status(&args)),
        Command::Flows(args) => asked(admin::flows(&args)),
        Command::Metrics(args) => asked(admin::metrics(&args)),
        Command::Log(args) => asked(admin::log(&args)),
        Command::Workloads(args) => asked(admin::workloads(args)),
        Command::Services(args) => asked(admin::services(&args)),
        Command::Tunnels(args) => asked(admin::tunnels(&args)),
        Command::Certs(args) => asked(admin::certificates(&args)),
        Command::Map(args) => run(map::run(args)),
        Command::Sysdump(args) => once(async { sysdump::run(&args).await.map(|()| true) }),
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

fn run(part: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build();
    let ended = runtime
        .map_err(anyhow::Error::from)
        .and_then(|it| it.block_on(part));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
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
