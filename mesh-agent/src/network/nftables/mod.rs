//! EDGE: one nftables table of ours, written over netlink as a whole.
//!
//! No crate writes nftables without either the C library or the `nft` program; what we need of the protocol is a dozen
//! attributes (`include/uapi/linux/netfilter/nf_tables.h`).

mod attributes;
mod batch;
mod socket;

pub(super) use batch::{masquerading, removal};
pub(super) use socket::{chains, commit, has_table};

/// Name of our table, of family inet.
pub const TABLE: &str = "mesh-cni";
