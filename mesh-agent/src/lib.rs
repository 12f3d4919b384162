//! The node agent of Mesh CNI.

pub mod model;
pub mod route;
