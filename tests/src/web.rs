//! A small client of HTTP, in any network namespace.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks from a network namespace; returns the status and the body.
///
/// # Errors
/// Nobody serves there, or not HTTP.
pub fn ask(
    from: &Netns,
    to: SocketAddr,
    method: &str,
    path: &str,
    accept: &str,
) -> Result<(u16, String)> {
    let answer = from.run(|| exchange(to, method, path, accept))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Asks for a text.
///
/// # Errors
/// As [`ask`].
pub fn get(from: &Netns, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(from, to, "GET", path, "*/*")
}

fn exchange(to: SocketAddr, method: &str, path: &str, accept: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nAccept: {accept}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
