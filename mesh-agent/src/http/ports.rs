//! Which servers serve, for whoever asks how the node is doing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Address;
use crate::status::Port;

/// Where each server is to listen, and what keeps it from that.
#[derive(Clone, Debug, Default)]
pub struct Ports(Arc<Mutex<BTreeMap<&'static str, Port>>>);

impl Ports {
    /// All servers that are not switched off, by their flags.
    pub fn report(&self) -> Vec<Port> {
        self.ports().values().cloned().collect()
    }

    /// Notes how a server is doing: an error is why it does not listen.
    pub(super) fn set(&self, flag: &'static str, address: Address, error: Option<String>) {
        let port = Port {
            flag: flag.to_owned(),
            address: address.to_string(),
            error,
        };
        self.ports().insert(flag, port);
    }

    fn ports(&self) -> MutexGuard<'_, BTreeMap<&'static str, Port>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
