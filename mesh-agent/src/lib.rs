//! The node agent of Mesh CNI.

pub mod hbone;
pub mod model;
pub mod pki;
