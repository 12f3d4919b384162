//! EDGE: makes the node's container runtime call our plugin, and keeps it so.
//!
//! Two files: the plugin binary, and the network configuration that names it. The second one tells the kubelet that the
//! node has a network, so it appears only once this agent can wire pods, and stays when the agent stops: what starts
//! meanwhile is told "try again" by the plugin and is retried.

mod conflist;
mod keep;
mod place;
mod portmap;
mod taint;

pub use conflist::{CONFLIST, shadowing};
pub use keep::{Error, Installer, Options};
pub use place::place;
pub use taint::untaint;

/// File name of the plugin, and the `type` by which the configuration names it.
pub const PLUGIN: &str = "mesh-cni";
