//! Waiting for what must come, with a deadline.

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

/// How many times slower than others the machine is, such as an emulated one: `MESH_PATIENCE`.
pub fn patience() -> u32 {
    let told = std::env::var("MESH_PATIENCE").ok();
    let times: Option<u32> = told.and_then(|it| it.parse().ok());
    times.unwrap_or(1).max(1)
}
