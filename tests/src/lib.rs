//! The test harness of Mesh CNI: packets made by hand, and nodes and pods as network namespaces.

#![forbid(unsafe_code)]

pub mod frames;
pub mod vectors;
pub mod world;
