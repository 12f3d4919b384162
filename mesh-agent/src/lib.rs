//! The node agent of Mesh CNI.

pub mod dataplane;
pub mod model;
pub mod network;
pub mod route;
