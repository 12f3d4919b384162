//! The CNI plugin of Mesh CNI: a one-shot binary that wires a pod's network namespace and tells the agent.
//!
//! [`run`] is the whole program: the runtime's variables and standard input become a [`request::Request`] (pure),
//! [`plan`] makes steps of it (pure), [`apply`] carries them out, and everything that fails ends as one [`Error`]
//! with a code of the CNI specification. Addresses, programs and maps are the agent's; this binary owns the veth pair.

#![forbid(unsafe_code)]

mod add;
pub mod agent;
pub mod apply;
mod check;
pub mod command;
mod config;
mod del;
mod error;
pub mod netlink;
pub mod netns;
pub mod plan;
pub mod request;
pub mod result;
mod version;

use std::io::Read;

use mesh_common::cni;
use serde::Serialize;

use agent::Session;
use command::{Command, Env};
pub use error::Error;
use request::Request;
pub use version::Version;

/// What the process prints on standard output, and exits with.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A JSON document, or nothing.
    pub stdout: String,
    /// The exit code.
    pub code: u8,
}

/// Carries out what the runtime asks; `stdin` is only read if there is a command that says what to do with it.
pub fn run(env: Env<'_>, stdin: impl Read) -> Outcome {
    let mut config = Vec::new();
    match answer(env, stdin, &mut config) {
        Ok(stdout) => Outcome { stdout, code: 0 },
        Err(error) => Outcome {
            stdout: error.to_json(config::readable_version(&config).as_deref()),
            code: 1,
        },
    }
}

fn answer(env: Env<'_>, stdin: impl Read, config: &mut Vec<u8>) -> Result<String, Error> {
    let command = Command::read(env)?;
    let mut stdin = stdin.take(MAX_CONFIG);
    stdin.read_to_end(config).map_err(Error::ReadConfig)?;
    match Request::parse(command, env, config)? {
        Request::Add(add) => add::run(add).map(|result| to_json(&result)),
        Request::Del(del) => {
            del::run(&del);
            Ok(String::new())
        }
        Request::Check(check) => check::run(&check).map(|()| String::new()),
        Request::Gc {
            socket,
            network,
            keep,
        } => {
            let request = cni::Request::Collect { network, keep };
            Session::connect(command, &socket)?.done(request)?;
            Ok(String::new())
        }
        Request::Status { socket } => {
            Session::connect(command, &socket)?.done(cni::Request::Status)?;
            Ok(String::new())
        }
        Request::Version { asked } => Ok(to_json(&Versions {
            cni_version: asked,
            supported_versions: Version::ALL,
        })),
    }
}

/// Tells an error that cannot be returned, as the command goes on.
fn warn(error: &Error) {
    eprintln!("mesh-cni: {}", error.with_causes());
}

fn to_json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("strings and numbers always become JSON")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    cni_version: String,
    supported_versions: [Version; 5],
}

/// Most that is read of standard input, in bytes: a GC of thousands of attachments fits, and what is longer ends as
/// JSON that is cut short.
const MAX_CONFIG: u64 = 16 << 20;
