//! Waiting for what must come, with a deadline.

use std::io::{self, ErrorKind};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long the mesh may take to follow a change of the world.
pub const SOON: Duration = Duration::from_secs(10);

/// Asks again and again until the answer is yes.
///
/// # Errors
/// When it still is no, or an error, at the deadline, which [`patience`] puts off.
pub fn eventually(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let within = within * patience();
    let deadline = Instant::now() + within;
    loop {
        let answer = ask();
        match answer {
            Ok(true) => return Ok(()),
            _ if Instant::now() < deadline => sleep(Duration::from_millis(10)),
            Ok(false) => bail!("not within {within:?}: {what}"),
            Err(error) => {
                return Err(error).with_context(|| format!("not within {within:?}: {what}"));
            }
        }
    }
}

/// Does a call again when a signal has interrupted it.
///
/// A process that has children gets a signal when one of them ends. Mostly it is dropped, as nobody wants it; while the thread
/// that is told holds signals back, which one that starts a thread or a process does, another one takes it. If that one waits
/// at a socket with a timeout, or for one of several, its call fails, whatever is set for the signal (signal(7)).
///
/// # Errors
/// Those of the call but [`ErrorKind::Interrupted`].
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// How many times slower than others the machine is, such as an emulated one: `MESH_PATIENCE`.
pub fn patience() -> u32 {
    let told = std::env::var("MESH_PATIENCE").ok();
    let times: Option<u32> = told.and_then(|it| it.parse().ok());
    times.unwrap_or(1).max(1)
}
