//! The composition root of `mesh-agent ca`.

use std::sync::Arc;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::args::Ca;
use crate::authority::{Keeper, Rules, Service, Settings, Timing, health, serve};
use crate::cluster::authority::Kubernetes;

/// Runs one replica of the authority until it is told to stop or a part of it fails.
///
/// # Errors
///
/// What kept it from starting, or what ended it.
pub async fn run(config: Ca) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let kubernetes = Kubernetes::connect(
        config.kubeconfig.as_deref(),
        &config.namespace,
        &config.secret,
        &config.config_map,
    );
    let kubernetes = Arc::new(kubernetes.await?);
    let listener = TcpListener::bind(config.listen).await.context("--listen")?;
    let probed = TcpListener::bind(config.health).await.context("--health")?;
    let (keeper, current) = Keeper::new(kubernetes.clone(), settings(&config));
    let rules = Rules {
        audience: config.audience.clone(),
        allowed: config.allow.clone(),
        trust_domain: config.trust_domain.clone(),
    };
    let service = Arc::new(Service::new(kubernetes, rules, current.clone()));

    let mut parts = JoinSet::new();
    let agents = serve(service.clone(), listener, current, shutdown.clone());
    parts.spawn(async move { agents.await.context("--listen") });
    let probes = health(service, probed, shutdown.clone());
    parts.spawn(async move { probes.await.context("--health") });
    let kept = keeper.run(shutdown.clone());
    parts.spawn(async move {
        kept.await;
        Ok(())
    });
    info!(listen = %config.listen, "authority started");

    let ended = until_told(&mut parts).await;
    info!("stopping");
    shutdown.cancel();
    // What is being signed is answered; connections that stay open are cut.
    let drain = async { while parts.join_next().await.is_some() {} };
    if timeout(config.drain_deadline, drain).await.is_err() {
        parts.shutdown().await;
    }
    ended
}

fn settings(config: &Ca) -> Settings {
    let names = if config.san.is_empty() {
        vec![format!("mesh-ca.{}.svc", config.namespace)]
    } else {
        config.san.clone()
    };
    Settings {
        trust_domain: config.trust_domain.clone(),
        names,
        timing: Timing {
            lifetime: config.leaf_lifetime,
            overlap: config.root_overlap,
        },
        secret: format!("{}/{}", config.namespace, config.secret),
    }
}

/// Waits for the order to stop, or for the first part that ends by itself.
async fn until_told(parts: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = parts.join_next() => {
            ended.context("a part of the authority panicked")??;
            anyhow::bail!("a part of the authority ended by itself")
        }
    }
}
