//! EDGE: what the agent tells over HTTP: metrics, whether it is ready, and on loopback what it knows.
//!
//! Invariant: no answer has a key, a token or the content of a Secret in it, and whoever is slow, or many, costs no more than
//! the places of its own address.

mod address;
mod admin;
mod health;
mod metrics;
mod ports;
mod server;
#[cfg(test)]
mod tests;

pub use address::{Address, Unreadable};
pub use admin::Admin;
pub use health::Health;
pub use metrics::Metrics;
pub use ports::Ports;
pub use server::{Answer, Asked, Endpoints, Server};
