//! EDGE: Unix sockets that only root may speak to.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

/// A socket that serves root and whoever the agent runs as.
#[derive(Debug)]
pub struct Listener(UnixListener);

impl Listener {
    /// Waits for a caller; others than those it serves are turned away.
    ///
    /// # Errors
    /// The kernel has no descriptor or memory.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.0.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if [0, geteuid().as_raw()].contains(&uid) {
                return Ok(stream);
            }
            // The mode of the socket keeps others away, until somebody changes it.
            warn!(uid, "a caller who is not root was turned away");
        }
    }
}

/// Listens at a path, and takes it over from an agent that is gone.
///
/// # Errors
/// The path or its directory cannot be made.
pub fn bind(path: &Path) -> io::Result<Listener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    // Bound beside and renamed: there is no moment at which a caller finds a socket that nobody serves.
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(source),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(Listener(listener))
}
