//! EDGE: where the world comes from. Every source ends in [`crate::model::Event`]s; nothing behind it knows which one runs.

pub mod authority;
mod authorization_policy;
mod authorization_rule;
pub mod convert;
pub mod crd;
mod directory;
pub mod document;
mod field;
pub mod files;
mod network_policy;
mod pod;
mod shape;
#[cfg(test)]
mod tests;

pub use field::Invalid;
