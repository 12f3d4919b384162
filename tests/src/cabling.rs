//! What the links of a lab are like. The environment says so, hence for all scenarios alike: `MESH_LAB_MTU` and
//! `MESH_LAB_OFFLOADS=off`.

use std::env;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Offloads of a veth: without them, every packet is as small as on the wire, and has its checksum.
const OFFLOADS: [&str; 6] = ["tx", "rx", "sg", "tso", "gso", "gro"];

/// MTU and offloads of links.
#[derive(Clone, Copy, Debug)]
pub struct Cabling {
    /// Bytes of a packet between nodes.
    pub mtu: u32,
    offloads: bool,
}

impl Cabling {
    /// As the environment says: 1500 bytes and all offloads, unless it says otherwise.
    pub fn of_environment() -> Result<Self> {
        let mtu = match env::var("MESH_LAB_MTU") {
            Ok(text) => text.parse().context("MESH_LAB_MTU is no number")?,
            Err(_) => 1500,
        };
        let offloads = env::var("MESH_LAB_OFFLOADS").is_ok_and(|it| it == "off");
        Ok(Self {
            mtu,
            offloads: !offloads,
        })
    }

    /// Makes an interface between nodes like that.
    pub(crate) fn uplink(self, netns: &Netns, ifname: &str) -> Result<()> {
        netns.ip(&format!("link set {ifname} mtu {}", self.mtu))?;
        self.pod(netns, ifname)
    }

    /// As [`Self::uplink`], an end of a pod's veth: its MTU is for the agent to choose.
    pub(crate) fn pod(self, netns: &Netns, ifname: &str) -> Result<()> {
        if self.offloads {
            return Ok(());
        }
        let off = OFFLOADS.iter().flat_map(|it| [*it, "off"]);
        netns.exec("ethtool", ["-K", ifname].into_iter().chain(off))?;
        Ok(())
    }
}
