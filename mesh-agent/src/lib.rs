//! The node agent of Mesh CNI.

pub mod admin;
pub mod agent;
pub mod args;
pub mod attachments;
pub mod causes;
pub mod clock;
pub mod cluster;
pub mod cni_server;
pub mod dataplane;
pub mod hbone;
pub mod inspect;
pub mod ipam;
pub mod model;
pub mod netns;
pub mod network;
pub mod pki;
pub mod policy;
pub mod proxy;
pub mod refusals;
pub mod revocation;
pub mod route;
pub mod unix_socket;
pub mod world;
