//! CORE: what there is, as lists: workloads, services, tunnels, certificates, and all of it as Istio's tools read it.
//!
//! Invariant: lists are made from a [`Snapshot`](crate::model::Snapshot) and from what others tell; no key is among that.

mod columns;
mod config_dump;
mod document;
mod render;
mod services;
#[cfg(test)]
mod tests;
mod workloads;

pub use config_dump::{About, config_dump};
pub use document::{Service, Services, Tunnel, Tunnels, Workload, Workloads};
pub use render::{
    certificates, services as render_services, tunnels, workloads as render_workloads,
};
pub use services::services;
pub use workloads::workloads;
