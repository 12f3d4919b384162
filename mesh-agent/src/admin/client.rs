//! EDGE: asks the running agent and prints what it answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_common::cni::Envelope;
use serde::Serialize;

use super::protocol::{Refusal, Request, Response, VERSION};
use super::render;
use crate::args::{Asking, Format, Policies, Trace, Workloads};
use crate::inspect::{Outcome, Question};
use crate::listing;
use crate::pki::Report;
use crate::status::Status;

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read, in bytes: policies of a large cluster.
const MAX_ANSWER: u64 = 256 << 20;

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or the caller may not ask.
    #[error(
        "cannot ask the agent at {path}; run this as root where the agent runs, or mend --admin-socket"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent broke off.
    #[error("the agent at {path} did not answer; ask again")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent is of another version.
    #[error(
        "the answer cannot be read; ask with the mesh-agent of the same version as the running agent"
    )]
    Unreadable(#[source] serde_json::Error),
    /// The agent has no answer to the question.
    #[error("{}; {}", .0.message, .0.remedy)]
    Refused(Refusal),
    /// The answer is to another question.
    #[error("the agent answered another question; ask with the mesh-agent of the same version")]
    Other,
    /// The answer could not be printed.
    #[error("cannot write the answer")]
    Print(#[source] io::Error),
}

/// How the question was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// With yes, or with what there is.
    Yes,
    /// With no, or not always.
    No,
}

/// Asks what would become of a connection, and prints it.
pub fn trace(args: Trace) -> Result<Asked, Error> {
    let question = Question {
        source: args.source,
        destination: args.destination.end,
        port: args.destination.port,
        protocol: args.proto,
    };
    let answer = ask(&args.common.admin_socket, &Request::Trace(question))?;
    let Response::Trace(trace) = answer else {
        return Err(Error::Other);
    };
    print(args.common.output, &trace, render::trace)?;
    Ok(match trace.outcome {
        Outcome::Allowed => Asked::Yes,
        Outcome::Partly | Outcome::Denied => Asked::No,
    })
}

/// Asks what is in force, and prints it.
pub fn policies(args: Policies) -> Result<Asked, Error> {
    let answer = ask(&args.common.admin_socket, &Request::Policies(args.pod))?;
    let Response::Policies(report) = answer else {
        return Err(Error::Other);
    };
    print(args.common.output, &report, render::policies)?;
    Ok(Asked::Yes)
}

/// Asks how the node is doing.
pub fn ask_status(socket: &Path) -> Result<Status, Error> {
    let Response::Status(status) = ask(socket, &Request::Status)? else {
        return Err(Error::Other);
    };
    Ok(*status)
}

/// Asks how the node is doing, and prints it: yes is healthy.
pub fn status(args: &Asking) -> Result<Asked, Error> {
    let status = ask_status(&args.admin_socket)?;
    print(args.output, &status, crate::status::render)?;
    Ok(match status.problems[..] {
        [] => Asked::Yes,
        [..] => Asked::No,
    })
}

/// Asks for workloads, and prints them.
pub fn workloads(args: Workloads) -> Result<Asked, Error> {
    let answer = ask(&args.common.admin_socket, &Request::Workloads(args.pods))?;
    let Response::Workloads(list) = answer else {
        return Err(Error::Other);
    };
    print(args.common.output, &list, listing::render_workloads)?;
    Ok(Asked::Yes)
}

/// Asks for services, and prints them.
pub fn services(args: &Asking) -> Result<Asked, Error> {
    let Response::Services(list) = ask(&args.admin_socket, &Request::Services)? else {
        return Err(Error::Other);
    };
    print(args.output, &list, listing::render_services)?;
    Ok(Asked::Yes)
}

/// Asks for the tunnels that are open, and prints them.
pub fn tunnels(args: &Asking) -> Result<Asked, Error> {
    let Response::Tunnels(list) = ask(&args.admin_socket, &Request::Tunnels)? else {
        return Err(Error::Other);
    };
    print(args.output, &list, listing::tunnels)?;
    Ok(Asked::Yes)
}

/// Asks for the node's certificates, and prints them: yes is that all were issued, and none waits to be renewed.
pub fn certificates(args: &Asking) -> Result<Asked, Error> {
    let Response::Certificates(list) = ask(&args.admin_socket, &Request::Certificates)? else {
        return Err(Error::Other);
    };
    print(args.output, &list, |it: &Vec<Report>| {
        listing::certificates(it)
    })?;
    let is_well = |it: &Report| it.certificate.is_some() && it.last_error.is_none();
    Ok(if list.iter().all(is_well) {
        Asked::Yes
    } else {
        Asked::No
    })
}

/// Asks the agent that listens at a path.
///
/// # Errors
/// There is no answer.
pub fn ask(path: &Path, request: &Request) -> Result<Response, Error> {
    let connect = |source| Error::Connect {
        path: path.to_owned(),
        source,
    };
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(connect)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    let message = Envelope {
        version: VERSION,
        message: request,
    };
    let mut line = serde_json::to_vec(&message).map_err(Error::Unreadable)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(io)?;
    stream.shutdown(Shutdown::Write).map_err(io)?;
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream.take(MAX_ANSWER));
    reader.read_until(b'\n', &mut answer).map_err(io)?;
    if answer.is_empty() {
        return Err(io(io::ErrorKind::UnexpectedEof.into()));
    }
    let envelope: Envelope<Response> =
        serde_json::from_slice(&answer).map_err(Error::Unreadable)?;
    match envelope.message {
        Response::Refused(refusal) => Err(Error::Refused(refusal)),
        _ if envelope.version != VERSION => Err(Error::Other),
        response => Ok(response),
    }
}

fn print<T: Serialize>(format: Format, answer: &T, text: fn(&T) -> String) -> Result<(), Error> {
    let text = match format {
        Format::Text => text(answer),
        Format::Json => serde_json::to_string_pretty(answer).map_err(Error::Unreadable)? + "\n",
    };
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match printed {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Error::Print),
    }
}
