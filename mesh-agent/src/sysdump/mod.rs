//! EDGE: one archive about a node, for whoever works on a problem of it from afar.
//!
//! Invariant: nothing of a key, of a token or of the environment gets in: it is not collected, and what all the same looks
//! like it is taken out (`secrets`, which is CORE).

mod collect;
mod secrets;
mod write;

pub use write::{Error, run};
