//! The table of packets: what arrives where, and where it must go.
//!
//! The table states every decision in full. The host test holds `mesh_common::steer` against it, the kernel test the object.

mod datagrams;
mod headers;
mod policy;
mod resets;
mod rows;
#[cfg(test)]
mod sockets;
mod steering;
#[cfg(test)]
mod tests;

pub use rows::{Vector, all, is_outward};
