//! The test harness of Mesh CNI: packets made by hand, and nodes and pods as network namespaces.

#![forbid(unsafe_code)]

pub mod bpffs;
pub mod counters;
pub mod frames;
pub mod netns;
pub mod object;
pub mod vectors;
pub mod world;
