//! EDGE: where the world comes from. Every source ends in [`crate::model::Event`]s; nothing behind it knows which one runs.

pub mod convert;
pub mod crd;
mod directory;
pub mod document;
mod field;
pub mod files;
mod pod;
#[cfg(test)]
mod tests;

pub use field::Invalid;
