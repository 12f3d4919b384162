//! CORE: the world as the agent knows it.

pub mod identity;

pub use identity::Identity;
pub struct Node {
    pub name: String,
    pub pod_cidrs: Vec<ipnet::IpNet>,
    pub addresses: Vec<std::net::IpAddr>,
}
pub struct Snapshot;
impl Snapshot {
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::empty()
    }
}
