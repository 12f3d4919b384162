//! Follows a cluster as the agent does and tells what comes of it: how long until all is told, at what cost in memory, and
//! every change from then on.
//!
//! `cargo run --release --example kubernetes_source -- KUBECONFIG STATE-DIRECTORY [SECONDS]`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use mesh_agent::cluster::kubernetes::Access;
use mesh_agent::cluster::{Health, Source};
use mesh_agent::model::{Event, Settings, Snapshot};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter("info,kube_client=off")
        .with_writer(std::io::stderr)
        .init();
    let mut args = std::env::args().skip(1);
    let kubeconfig = PathBuf::from(args.next().context("name a kubeconfig")?);
    let state = PathBuf::from(args.next().context("name a directory")?);
    let seconds = args.next().map_or(Ok(u64::MAX), |it| it.parse())?;
    let (told, events) = mpsc::channel(1024);
    let (health, reports) = Source::Kubernetes.health();
    let shutdown = CancellationToken::new();
    let access = Access::Kubeconfig(kubeconfig);
    let source = Source::Kubernetes.run(access, state, told, health, shutdown.clone());
    tokio::select! {
        ended = source => ended?,
        () = tell(events, reports) => {}
        () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
    }
    Ok(())
}

async fn tell(mut events: mpsc::Receiver<Event>, reports: watch::Receiver<Health>) {
    let begun = Instant::now();
    let mut world = Snapshot::new(Settings::for_node("n1"));
    while let Some(event) = events.recv().await {
        if world.is_synced() || !matches!(event, Event::Upsert(_)) {
            let what = match &event {
                Event::Upsert(object) => format!("{:?} is told", object.reference()),
                other => format!("{other:?}"),
            };
            println!("{:8.3} s  {what}", begun.elapsed().as_secs_f64());
        }
        let is_first = event == Event::Synced;
        world.apply(event);
        if is_first {
            println!("{}; {:?}", memory(), reports.borrow().objects);
        }
    }
}

/// What the kernel says of the memory of this process.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status
        .lines()
        .filter(|it| it.starts_with("VmRSS") || it.starts_with("VmHWM"));
    lines.collect::<Vec<_>>().join("; ")
}
