//! EDGE: asks the running agent and prints what it answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mesh_common::cni::Envelope;
use serde::Serialize;

use super::protocol::{Refusal, Request, Response, VERSION};
use super::render;
use crate::args::{Asking, Flows, Format, Log, Metrics, Policies, Trace, Workloads};
use crate::inspect::{Outcome, Question};
use crate::listing;
use crate::pki::Report;
use crate::status::Status;
use crate::telemetry::{Filter, Flow, Wanted};

/// How long the agent may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is asked for connections that come.
const FOLLOW: Duration = Duration::from_millis(200);
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

/// Asks for the metrics, and prints them.
pub fn metrics(args: &Metrics) -> Result<Asked, Error> {
    let request = Request::Metrics(args.format.into());
    let Response::Metrics(text) = ask(&args.admin_socket, &request)? else {
        return Err(Error::Other);
    };
    write(&text).map(|_| Asked::Yes)
}

/// Asks for connections and prints them, one a line; follows them until nobody reads, if told so.
pub fn flows(args: &Flows) -> Result<Asked, Error> {
    let mut since = None;
    loop {
        let request = Request::Flows {
            wanted: Wanted::from(args),
            since,
            most: args.last,
        };
        let Response::Flows(batch) = ask(&args.common.admin_socket, &request)? else {
            return Err(Error::Other);
        };
        if batch.lost > 0 {
            eprintln!(
                "mesh-agent: {} connections were not told in time",
                batch.lost
            );
        }
        let lines: Result<String, _> = batch.flows.iter().map(|it| line(it, args)).collect();
        if !write(&lines?)? || !args.follow {
            return Ok(Asked::Yes);
        }
        since = Some(batch.next);
        thread::sleep(FOLLOW);
    }
}

fn line(flow: &Flow, args: &Flows) -> Result<String, Error> {
    match args.common.output {
        Format::Text => Ok(flow.line()),
        Format::Json => {
            let text = serde_json::to_string(flow).map_err(Error::Unreadable)?;
            Ok(text + "\n")
        }
    }
}

/// Asks what the access log tells, or has it tell something else, and prints that.
pub fn log(args: &Log) -> Result<Asked, Error> {
    let answer = ask(&args.common.admin_socket, &Request::Log(args.filter()))?;
    let Response::Log(filter) = answer else {
        return Err(Error::Other);
    };
    print(args.common.output, &filter, Filter::line)?;
    Ok(Asked::Yes)
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
    write(&text).map(|_| ())
}

/// Prints; false when the reader has seen enough.
fn write(text: &str) -> Result<bool, Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::Print(error)),
    }
}
