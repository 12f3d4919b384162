//! What passes between the nodes, where this machine can see it.

use anyhow::{Context, Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_tests::capture::{Capture, Recording};
use mesh_tests::netns::Netns;

/// A device of this machine that the traffic between nodes passes.
#[derive(Debug)]
pub(crate) struct Link {
    netns: Netns,
    device: String,
}

impl Link {
    /// From `NETNS:DEVICE`, a name below /run/netns and a device there.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (netns, device) = text
            .split_once(':')
            .context("--link is NETNS:DEVICE, such as k8sfab:n1")?;
        Ok(Self {
            netns: Netns::open(netns)?,
            device: device.to_owned(),
        })
    }

    /// What passes while something is done.
    pub(crate) fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<Recording> {
        let capture = Capture::start(&self.netns, &self.device)?;
        let outcome = work();
        let recording = capture.stop()?;
        outcome?;
        Ok(recording)
    }
}

/// A secret is not readable on the wire, and something went through a tunnel.
pub(crate) fn encrypted(recording: &Recording, secret: &str) -> Result<String> {
    let tunnelled = recording.tcp(HBONE_PORT);
    ensure!(
        !recording.contains(secret.as_bytes()),
        "{secret} is readable on the wire"
    );
    ensure!(tunnelled > 0, "nothing on port {HBONE_PORT}");
    Ok(format!(
        "{tunnelled} packets of port {HBONE_PORT}, nothing readable"
    ))
}
