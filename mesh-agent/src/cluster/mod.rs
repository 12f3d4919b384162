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
pub mod health;
pub mod kubernetes;
mod network_policy;
mod peer_authentication;
mod pod;
mod resource;
mod shape;
mod slim;
mod source;
#[cfg(test)]
mod tests;

pub use field::Invalid;
pub use health::Health;
pub use source::{Error, Source};
