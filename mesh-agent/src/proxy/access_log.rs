//! EDGE: one line a connection, with the fields that ambient users know.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tracing::{Level, event};

use crate::model::{Identity, Snapshot, Workload};
use crate::route::Route;

/// What is known of a connection when it begins, and what became of it.
pub(super) struct AccessLog {
    began: Instant,
    direction: &'static str,
    source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// The workload that opened it, where known.
    pub(super) source_workload: Option<Arc<Workload>>,
    /// The workload it ends at, where known.
    pub(super) destination_workload: Option<Arc<Workload>>,
    /// Identity of the opener: proved by certificate inbound, by address and interface outbound.
    pub(super) source_identity: Option<Identity>,
    /// Identity of the other end.
    pub(super) destination_identity: Option<Identity>,
    /// The tunnel's inner destination, when it has one.
    pub(super) hbone: Option<SocketAddr>,
    /// The service that was asked for.
    pub(super) service: Option<String>,
}

impl AccessLog {
    /// A connection that a local pod opened.
    pub(super) fn outbound(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new("outbound", source, destination)
    }

    /// A connection that reaches a local pod.
    pub(super) fn inbound(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::new("inbound", source, destination)
    }

    fn new(direction: &'static str, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            began: crate::clock::now(),
            direction,
            source,
            destination,
            source_workload: None,
            destination_workload: None,
            source_identity: None,
            destination_identity: None,
            hbone: None,
            service: None,
        }
    }

    /// Notes whom a snapshot knows at the source, and where the connection goes.
    pub(super) fn decided(&mut self, snapshot: &Snapshot, route: &Route) {
        self.source_workload = snapshot.workload_by_addr(self.source.ip()).cloned();
        let identity = |it: &Arc<Workload>| it.identity.clone();
        self.source_identity = self.source_workload.as_ref().and_then(identity);
        let (address, service) = match route {
            Route::Tunnel {
                authority, host, ..
            } => (Some(*authority), host.clone()),
            Route::Local { address } | Route::Plain { address, .. } => (Some(*address), None),
            Route::Refuse { .. } => (None, None),
        };
        let tunnelled = matches!(route, Route::Tunnel { .. });
        self.hbone = address.filter(|_| tunnelled);
        self.service = service;
        self.destination_workload =
            address.and_then(|it| snapshot.workload_by_addr(it.ip()).cloned());
    }

    /// Writes the line; `sent` and `received` are bytes as the opener sees them.
    pub(super) fn complete(&self, sent: u64, received: u64, error: Option<&str>) {
        let duration = format!("{}ms", self.began.elapsed().as_millis());
        event!(
            target: "access",
            Level::INFO,
            src.addr = %self.source,
            src.workload = name(self.source_workload.as_deref()),
            src.namespace = namespace(self.source_workload.as_deref()),
            src.identity = self.source_identity.as_ref().map(tracing::field::display),
            dst.addr = %self.destination,
            dst.hbone_addr = self.hbone.map(tracing::field::display),
            dst.service = self.service,
            dst.workload = name(self.destination_workload.as_deref()),
            dst.namespace = namespace(self.destination_workload.as_deref()),
            dst.identity = self.destination_identity.as_ref().map(tracing::field::display),
            direction = self.direction,
            bytes_sent = sent,
            bytes_recv = received,
            duration,
            error,
            "connection complete"
        );
    }
}

fn name(workload: Option<&Workload>) -> Option<&str> {
    workload?.pod_key().map(|key| &*key.name)
}

fn namespace(workload: Option<&Workload>) -> Option<&str> {
    workload?.pod_key().map(|key| &*key.namespace)
}
