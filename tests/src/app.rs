//! Small applications that run in pods, each connection in a thread of its own with deadlines.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::pattern;
use crate::pod::Pod;
use crate::wait::uninterrupted;

/// How long an application waits for its client: longer than a test leaves a connection alone on a machine that is busy.
const IDLE: Duration = Duration::from_mins(1);

/// What an application does with a connection.
#[derive(Clone, Copy, Debug)]
pub enum App {
    /// HTTP/1.1: answers with its name, the client's address, and the body of the request.
    Http(&'static str),
    /// Sends back what it gets, until the client ends its side.
    Echo,
    /// Speaks first: sends this, then echoes.
    Greet(&'static str),
    /// Reads until the client ends its side, then answers with what it read in reverse, and only then ends.
    AfterEnd,
    /// Sends and expects a [`pattern`] of so many bytes at the same time.
    Bulk(u64),
}

/// An application that listens. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts an application in a pod.
    pub fn start(pod: &Pod<'_>, port: u16, app: App) -> io::Result<Self> {
        Ok(Self::run(pod.listen(port)?, app))
    }

    /// Starts an application on a listener.
    pub fn run(listener: TcpListener, app: App) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (told, told_seen) = (stop.clone(), seen.clone());
        let acceptor = thread::spawn(move || accept(&listener, app, &told, &told_seen));
        Self {
            stop,
            seen,
            acceptor: Some(acceptor),
        }
    }

    /// Addresses of the clients so far, in the order of their connections.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for as long as the application runs: for ever.
    pub fn wait(mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Sends bytes through an [`App::Echo`], and expects them back.
///
/// # Errors
/// Of the connection; `InvalidData` when something else comes back.
pub fn echoes(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    let mut echoed = vec![0; bytes.len()];
    stream.read_exact(&mut echoed)?;
    if echoed == bytes {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the echo is another",
        ))
    }
}

/// Sends so many bytes to an [`App::Echo`], ends its side, and reads them back until the other end does.
///
/// # Errors
/// Of the connection, or what comes back is something else.
pub fn echoes_to_the_end(client: &Pod<'_>, to: SocketAddr, bytes: u64) -> anyhow::Result<()> {
    let mut stream = client.connect(to)?;
    let sent = vec![7; usize::try_from(bytes)?];
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    anyhow::ensure!(back == sent, "{} bytes came back", back.len());
    Ok(())
}

/// Tries to speak, which is not to work.
///
/// # Panics
/// When the other end answers.
pub fn refused(from: &Pod<'_>, to: SocketAddr) {
    let spoken = from.connect(to).and_then(|it| echoes(&it, b"may I?"));
    assert!(spoken.is_err(), "{to} answers");
}

/// Allows as many open descriptors as the system does: hundreds of connections have both ends in this process.
pub fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

fn accept(listener: &TcpListener, app: App, stop: &AtomicBool, seen: &Mutex<Vec<SocketAddr>>) {
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::from(50_u8)), Ok(1..)) {
            continue;
        }
        let Ok((stream, client)) = listener.accept() else {
            continue;
        };
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(client);
        thread::spawn(move || {
            // What goes wrong shows at the client.
            let _ = serve(stream, client, app);
        });
    }
}

fn serve(mut stream: TcpStream, client: SocketAddr, app: App) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    match app {
        App::Http(name) => http(&stream, client, name),
        App::Echo => echo(&stream),
        App::Greet(greeting) => {
            stream.write_all(greeting.as_bytes())?;
            echo(&stream)
        }
        App::AfterEnd => {
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            all.reverse();
            stream.write_all(&all)?;
            stream.shutdown(Shutdown::Write)
        }
        App::Bulk(bytes) => pattern::exchange(&stream, bytes),
    }
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        match uninterrupted(|| stream.read(&mut buffer))? {
            0 => return stream.shutdown(Shutdown::Write),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn http(mut stream: &TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        if let Some((field, value)) = line.split_once(':')
            && field.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut answer = format!("{name} saw {}\n", client.ip()).into_bytes();
    answer.extend(body);
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        answer.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&answer)?;
    stream.shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn interrupted_reads_end_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let _server = Server::run(listener, App::Echo);
        let stream = TcpStream::connect(to).unwrap();
        echoes(&stream, b"before").unwrap();
        // Whoever is held and let go has its reads interrupted.
        let hold = "kill -STOP $PPID; sleep 0.1; kill -CONT $PPID";
        let held = Command::new("sh").args(["-c", hold]).status().unwrap();
        assert!(held.success());
        echoes(&stream, b"after").unwrap();
    }
}
