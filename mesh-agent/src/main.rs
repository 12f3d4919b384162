//! The node agent of Mesh CNI.

fn main() {}
