//! The node agent of Mesh CNI.

pub mod attachments;
pub mod cluster;
pub mod ipam;
pub mod model;
pub mod route;
