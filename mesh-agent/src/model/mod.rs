//! CORE: the world as the agent knows it.

pub mod identity;

pub use identity::Identity;
