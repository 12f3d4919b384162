//! EDGE: what takes more rights than the agent needs for the rest of its life: `mesh-agent prepare`, for an init container.

use std::fs;
use std::io;

use crate::args::Prepare;
use crate::dataplane::{self, bpffs};
use crate::network::{self, Network};

/// What keeps a node from being made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The BPF file system.
    #[error("the BPF file system")]
    Bpffs(#[from] dataplane::Error),
    /// The state directory cannot be made.
    #[error("--state")]
    State(#[source] io::Error),
    /// Kernel settings and rules.
    #[error("the node's network")]
    Network(#[from] network::Error),
}

/// Mounts a BPF file system where there is none, and makes the node forward; what is as it should be is not touched.
pub async fn prepare(args: Prepare) -> Result<(), Error> {
    bpffs::prepare(&args.bpffs)?;
    fs::create_dir_all(&args.state).map_err(Error::State)?;
    let network = Network::open(&args.state)?;
    // Every interface that takes router advertisements goes on to, not only the uplinks, which are not known yet.
    let links = network.links().await?;
    Ok(network.prepare(&links).await?)
}
