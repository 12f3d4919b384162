//! EDGE: the client of the agent's socket; messages in [`mesh_common::cni`].
//!
//! One request and one answer at a time, each within a deadline. Dropping a [`Session`] closes the connection, which
//! gives back what was reserved on it and not attached.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh_common::cni::{Envelope, MAX_LINE, Refusal, Request, Response, VERSION, Wiring};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Deserialize;

use crate::command::Command;
use crate::error::Error;

/// A connection to the agent, for one command.
#[derive(Debug)]
pub struct Session {
    command: Command,
    path: PathBuf,
    stream: UnixStream,
}

impl Session {
    /// Connects to the agent.
    ///
    /// # Errors
    /// [`Error::AgentUnreachable`] if nothing listens there, or whoever does takes no connection in time.
    pub fn connect(command: Command, path: &Path) -> Result<Self, Error> {
        let stream = open(path).map_err(|source| Error::AgentUnreachable {
            command,
            socket: path.to_owned(),
            source: timed_out(source),
        })?;
        Ok(Self {
            command,
            path: path.to_owned(),
            stream,
        })
    }

    /// Asks for something that is answered with addresses.
    pub fn wiring(&mut self, request: Request) -> Result<Wiring, Error> {
        match self.ask(request)? {
            Response::Reserved(wiring) => Ok(wiring),
            Response::Done => Err(self.nonsense("answered Done where addresses were asked for")),
            Response::Refused(refusal) => Err(self.refused(refusal)),
        }
    }

    /// Asks for something that is answered with nothing.
    pub fn done(&mut self, request: Request) -> Result<(), Error> {
        match self.ask(request)? {
            Response::Done => Ok(()),
            Response::Reserved(_) => Err(self.nonsense("answered addresses where none were asked")),
            Response::Refused(refusal) => Err(self.refused(refusal)),
        }
    }

    /// An error about an answer that breaks the protocol.
    pub fn nonsense(&self, what: impl Into<String>) -> Error {
        Error::AgentAnswer {
            socket: self.path.clone(),
            what: what.into(),
        }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        Error::Refused {
            command: self.command,
            refusal,
        }
    }

    fn ask(&mut self, message: Request) -> Result<Response, Error> {
        let deadline = Instant::now() + DEADLINE;
        let envelope = Envelope {
            version: VERSION,
            message,
        };
        let mut line = serde_json::to_vec(&envelope).expect("messages always become JSON");
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(self.nonsense("cannot take a request of that many attachments"));
        }
        let answer = self
            .exchange(&line, deadline)
            .map_err(|source| Error::AgentSilent {
                command: self.command,
                socket: self.path.clone(),
                source: timed_out(source),
            })?;
        decode(&answer).map_err(|what| self.nonsense(what))
    }

    fn exchange(&mut self, line: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
        // Nearly every request fits the socket's buffer at once, so a timeout of each write is as good as a deadline.
        self.stream.set_write_timeout(Some(left(deadline)?))?;
        self.stream.write_all(line)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            self.stream.set_read_timeout(Some(left(deadline)?))?;
            let length = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            answer.extend_from_slice(&chunk[..length]);
            if answer.last() == Some(&b'\n') {
                return Ok(answer);
            }
            if answer.len() > MAX_LINE {
                return Err(io::Error::other("the answer is too long"));
            }
        }
    }
}

/// Reads an answer: its version first, as the rest may be of another shape in another version.
///
/// # Errors
/// What the agent did, for [`Session::nonsense`].
pub fn decode(line: &[u8]) -> Result<Response, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let garbled = |error| format!("answered what cannot be decoded: {error}");
    let Versioned { version } = serde_json::from_slice(line).map_err(garbled)?;
    if version != VERSION {
        return Err(format!(
            "speaks version {version} of the protocol, not {VERSION}"
        ));
    }
    let envelope: Envelope<Response> = serde_json::from_slice(line).map_err(garbled)?;
    Ok(envelope.message)
}

/// `UnixStream::connect` would wait forever for an agent that accepts nothing and whose backlog is full.
fn open(path: &Path) -> io::Result<UnixStream> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let timeout = TimeVal::new(CONNECT_SECONDS, 0);
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// The kernel tells of a socket's timeout as "resource temporarily unavailable".
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock {
        return io::ErrorKind::TimedOut.into();
    }
    error
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

/// How long the agent may take for one request: an ADD of a pod that the cluster has not told of yet waits for it.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the agent may take to accept.
const CONNECT_SECONDS: i64 = 30;
