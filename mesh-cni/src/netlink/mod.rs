//! EDGE: blocking route netlink, one socket for one network namespace, one request at a time.
//!
//! A socket belongs to the namespace in which it was opened, wherever it is used from. Messages: rtnetlink(7).

mod inet;
mod link;
mod socket;

pub use inet::Found;
pub use link::Link;
pub use socket::Netlink;
