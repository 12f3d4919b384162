//! The messages between `mesh-cni` and the agent: one JSON document a line over a Unix stream socket.
//!
//! The binary speaks first, every request gets one [`Response`]. An ADD is two requests on one connection: the agent
//! [`Request::Reserve`]s addresses, the binary wires the pod, the agent [`Request::Attach`]es its programs. A connection
//! that ends between the two gives the reservation back.

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Version of the messages below; both sides refuse any other.
pub const VERSION: u32 = 1;

/// Longest line either side accepts, in bytes: a GC of a node with thousands of attachments fits.
pub const MAX_LINE: usize = 4 << 20;

/// A message with its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`VERSION`].
    pub version: u32,
    /// The message.
    pub message: T,
}

/// One interface of one container: what CNI operations are about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl Attachment {
    /// Name of the host's end of the veth, a function of the attachment alone: `mesh` and 11 base-32 digits of its hash.
    ///
    /// DEL finds the device without the agent, and a repeated ADD finds what a killed one left.
    pub fn host_ifname(&self) -> String {
        // FNV-1a, 64 bits; 55 of them make the name.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let separated = self
            .container
            .bytes()
            .chain([b'/'])
            .chain(self.ifname.bytes());
        for byte in separated {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut name = String::from("mesh");
        for digit in 0..11 {
            let index = (hash >> (digit * 5)) & 31;
            name.push(char::from(
                b"abcdefghijklmnopqrstuvwxyz234567"[index as usize],
            ));
        }
        name
    }

    /// Whether an interface is named as [`Self::host_ifname`] names them.
    pub fn is_host_ifname(name: &str) -> bool {
        let digits = name.strip_prefix("mesh").unwrap_or_default();
        let is_digit = |it: u8| it.is_ascii_lowercase() || (b'2'..=b'7').contains(&it);
        digits.len() == 11 && digits.bytes().all(is_digit)
    }

    /// A file name that is unique to the attachment and safe in any directory.
    pub fn file_name(&self) -> String {
        format!("{}@{}", self.container, self.ifname)
    }
}

/// The Kubernetes pod an attachment belongs to, from `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, where the runtime sends it.
    pub uid: Option<String>,
}

/// What the binary asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// ADD, first half: choose addresses. Answered by [`Response::Reserved`].
    Reserve {
        /// The interface to be made.
        attachment: Attachment,
        /// The pod; without one the attachment is an ordinary, unenrolled endpoint.
        pod: Option<PodRef>,
        /// `CNI_NETNS`.
        netns: String,
        /// The `name` of the network configuration.
        network: String,
    },
    /// ADD, second half, on the same connection: the pod is wired. Answered by [`Response::Done`] once the programs are
    /// attached and the maps are written.
    Attach {
        /// Interface index of the host's end of the veth.
        host_ifindex: u32,
        /// MAC address of the host's end.
        host_mac: [u8; 6],
        /// MAC address of the pod's end.
        mac: [u8; 6],
    },
    /// DEL: give everything back. Unknown attachments are fine.
    Release {
        /// The interface that is gone.
        attachment: Attachment,
    },
    /// CHECK: is the attachment known, with these addresses? Answered by [`Response::Reserved`] with what is in force.
    Check {
        /// The interface to check.
        attachment: Attachment,
    },
    /// GC: release every attachment of the network that is not listed.
    Collect {
        /// The `name` of the network configuration.
        network: String,
        /// The attachments that are still in use.
        keep: Vec<Attachment>,
    },
    /// STATUS: can an ADD succeed now?
    Status,
}

/// How the binary is to wire the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// The pod's addresses, at most one a family, each a host prefix (/32, /128).
    pub addresses: Vec<IpAddr>,
    /// MTU of both ends of the veth, in bytes.
    pub mtu: u32,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The addresses and MTU of the attachment.
    Reserved(Wiring),
    /// The request is carried out.
    Done,
    /// The request is not carried out, and nothing of it is left.
    Refused(Refusal),
}

/// Why the agent refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The class of the refusal, from which the binary takes the CNI error code.
    pub reason: Reason,
    /// What is wrong, and with which field or object.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

/// Classes of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The message is of another version (CNI error 100).
    Version,
    /// A field of the request is not acceptable (CNI error 7).
    Invalid,
    /// The agent does not know the attachment (CNI error 3).
    Unknown,
    /// It may work in a moment: starting, or the pod is not known yet (CNI error 11).
    TryAgain,
    /// No address is left, or the node has no pod CIDR (CNI error 50 for STATUS, 11 otherwise).
    Unavailable,
    /// The kernel refused (CNI error 100).
    Kernel,
}
