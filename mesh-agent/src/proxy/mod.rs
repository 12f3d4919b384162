//! EDGE: carries captured connections.

mod access_log;
mod copy;
pub mod socket;
