//! CORE: how a node is doing, for whoever operates it.

mod document;
mod render;
#[cfg(test)]
mod tests;

pub use document::{
    Addresses, Certificate, Interface, Map, Node, Pods, Policies, Port, Problem, Source, Status,
    Told,
};
pub use render::render;
