//! What the kernel programs, the agent and the CNI binary must agree on, byte for byte or decision for decision.
//!
//! Invariant: no I/O, no allocation (outside `cni`), no dependency on any other crate of ours. Everything the
//! eBPF object uses compiles for `bpfel-unknown-none` and passes the verifier; the same functions run in host tests.

#![no_std]

#[macro_use]
mod abi;
pub mod addr;
#[cfg(feature = "cni")]
pub mod cni;
pub mod event;
pub mod maps;
pub mod names;
pub mod packet;
pub mod policy;
pub mod reset;
pub mod steer;
pub mod traffic;
pub mod verdict;

/// Version of every type in [`maps`] and of the map set in [`names`]; kept in the `CONFIG` map.
///
/// Bump it whenever one of them changes: an agent replaces pinned maps of an older version, and refuses those of a newer one.
pub const ABI_VERSION: u32 = 3;

/// The oldest version whose records of flows mean what they do today: with maps replaced, these are kept, so that what is open
/// stays open.
pub const FLOWS_SINCE: u32 = 3;

/// The HBONE port: inbound tunnels of an enrolled pod arrive on `<pod address>:15008`.
pub const HBONE_PORT: u16 = 15008;
