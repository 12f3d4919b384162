//! The node agent of Mesh CNI.

pub mod model;
