//! `mesh-cni`: environment and standard input in, JSON and an exit code out.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let env = |name: &str| Some(std::env::var_os(name)?.to_string_lossy().into_owned());
    let outcome = mesh_cni::run(&env, io::stdin().lock());
    match io::stdout().write_all(outcome.stdout.as_bytes()) {
        Ok(()) => ExitCode::from(outcome.code),
        // The runtime will never know the result: it must take the command as failed.
        Err(_) => ExitCode::FAILURE,
    }
}
