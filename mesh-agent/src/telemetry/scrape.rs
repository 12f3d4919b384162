//! EDGE: what a scrape asks of the agent's parts.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use super::{
    Batch, Exposition, Graph, Measured, RoundTrips, Since, State, Telemetry, Told, Wanted,
};
use crate::clock;
use crate::cluster::Health;
use crate::model::Snapshot;
use crate::pki::Report;
use crate::world::Command;

/// Everything that metrics tell of; cheap to clone.
#[derive(Clone)]
pub struct Scraper {
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// The world as it is.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Its owner.
    pub world: mpsc::Sender<Command>,
    /// How its source is doing.
    pub health: watch::Receiver<Health>,
    /// The certificates of this node.
    pub certificates: Arc<dyn Fn() -> Vec<Report> + Send + Sync>,
}

/// How often the kernel is asked for its connections by whoever follows them, in microseconds.
const KERNEL: u32 = 1_000_000;

impl Scraper {
    /// Flows, as [`Telemetry::flows`], with those of the kernel.
    pub async fn flows(&self, wanted: &Wanted, since: Option<Since>, most: usize) -> Batch {
        let now = clock::kernel_micros();
        let told = since.and_then(|it| it.kernel);
        let is_due = told.is_none_or(|told| now.wrapping_sub(told) >= KERNEL);
        let kernel = if is_due { self.kernel(now).await } else { None };
        self.telemetry.flows(wanted, since, most, kernel.as_ref())
    }

    async fn kernel(&self, now: u32) -> Option<Told> {
        let (reply, told) = oneshot::channel();
        self.world.send(Command::Connections(reply)).await.ok()?;
        Some(Told {
            now,
            instant: clock::now(),
            wall: clock::wall(),
            connections: told.await.ok()?,
        })
    }

    /// The metrics as they are now.
    pub async fn scrape(&self, exposition: Exposition) -> String {
        let measured = self.measure().await;
        let snapshot = self.snapshots.borrow().clone();
        let health = self.health.borrow().clone();
        let state = State {
            snapshot: &snapshot,
            health: &health,
            certificates: &(self.certificates)(),
            measured: measured.as_ref(),
            now: clock::unix_seconds(),
        };
        self.telemetry.metrics(exposition, &state)
    }

    /// Who speaks with whom, as it is now.
    pub async fn graph(&self, round_trips: RoundTrips) -> Graph {
        self.measure().await;
        let telemetry = self.telemetry.clone();
        // Of thousands of workloads it takes a moment, in which nobody is to wait.
        let graph = spawn_blocking(move || telemetry.graph(&round_trips)).await;
        graph.unwrap_or_default()
    }

    /// Asks the kernel, and takes up what it has carried; none from an agent that stops, which has let go of it.
    async fn measure(&self) -> Option<Measured> {
        let (reply, told) = oneshot::channel();
        self.world.send(Command::Measure(reply)).await.ok()?;
        let measured = told.await.ok()?;
        for (pair, totals) in &measured.traffic {
            self.telemetry.kernel(pair, *totals);
        }
        Some(measured)
    }
}
