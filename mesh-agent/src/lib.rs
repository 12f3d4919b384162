//! The node agent of Mesh CNI.

pub mod args;
pub mod attachments;
pub mod clock;
pub mod cni_server;
pub mod dataplane;
pub mod ipam;
pub mod model;
pub mod network;
pub mod proxy;
pub mod route;
pub mod world;
