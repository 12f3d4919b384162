//! The composition root: builds every part, and decides the order of start and drain.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::{self, AdminServer};
use crate::allocator;
use crate::args::Run;
use crate::attachments::Store;
use crate::carrier::{Carrier, Listeners};
use crate::cluster::kubernetes::Access;
use crate::cluster::{Health, Source};
use crate::cni_server::CniServer;
use crate::confine;
use crate::dataplane::{self, Dataplane};
use crate::handover::{self, Ownership};
use crate::http::{self, Metrics, Ports};
use crate::install::{Installer, untaint};
use crate::logging::Logging;
use crate::model::{Event, Identity, Settings, Snapshot};
use crate::network::Network;
use crate::pki::{Certificates, DirectoryCa, Remote, RemoteCa, Signer, TrustDomains};
use crate::proxy::Allowed;
use crate::revocation;
use crate::telemetry::{self, Counters, Exporter, Exports, Scraper, Telemetry};
use crate::world::{self, Ending, World};

/// How long open connections have to end when no other agent has taken over: a restart waits for that.
const ALONE: Duration = Duration::from_secs(5);
/// How long a collector has to take the last of what it is told.
const FLUSH: Duration = Duration::from_secs(3);
/// Events and commands that may wait for the world.
const QUEUE: usize = 1024;

/// Runs the agent of a node until it is told to stop or a part of it fails. It tells of its `flags` and its log to who asks.
///
/// # Errors
///
/// What kept it from starting, or what ended it.
pub async fn run(
    config: Run,
    flags: BTreeMap<String, String>,
    logging: Logging,
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let ending = Ending::default();
    let Ending {
        shutdown, retired, ..
    } = &ending;
    let mut parts = JoinSet::new();

    let domains = TrustDomains::new(&config.trust_domain, []);
    let certificates = Arc::new(Certificates::new(signer(&config)?, domains));
    let installer = Installer::new((&config).into())?;
    let ownership = Ownership::take(&config.state).await.context("--state")?;
    let store = Store::open(&config.state).context("--state")?;

    let network = Network::open(&config.state)?;
    network.prepare(&[]).await?;
    let mut dataplane = dataplane(&config)?;
    let refused = dataplane.events()?;

    let (listeners, slots) = Listeners::open()?;
    let options = options(&config);
    let snapshot = Snapshot::new(Settings {
        trust_domain: config.trust_domain.clone(),
        ..Settings::for_node(config.node.as_str())
    });
    let (revocations, revoker) = revocation::revocations();
    let (world, snapshots) = World::restore(
        snapshot,
        dataplane,
        network,
        revocations,
        store,
        options,
        slots,
    )
    .await?;

    let counters = Arc::new(Counters::default());
    let world = world.counting(counters.clone());
    let cluster = config.remote_ca.ca_cluster.as_str();
    let sampling = config.otlp.sampling();
    let telemetry = Telemetry::new(snapshots.clone(), cluster, counters.clone(), sampling);

    let (events, told) = mpsc::channel(QUEUE);
    let (commands, asked) = mpsc::channel(QUEUE);
    parts.spawn(part(installer.run(commands.clone(), shutdown.clone())));
    if config.source == Source::Kubernetes {
        let node = config.node.clone();
        let untaint = untaint(access(&config), node, commands.clone(), shutdown.clone());
        parts.spawn(part(untaint));
    }
    let (health, how) = config.source.health();
    let reported = certificates.clone();
    let scraper = Scraper {
        telemetry: telemetry.clone(),
        snapshots: snapshots.clone(),
        world: commands.clone(),
        health: how,
        certificates: Arc::new(move || reported.report()),
    };
    let ports = Ports::default();
    let sources = sources(&config, scraper, flags, &logging, &ports);
    let servers = Servers::new(&config, &sources, &ports, logging);
    let (tunnels, allowed) = (sources.tunnels.clone(), sources.connections.clone());
    let admin = AdminServer::bind(&config.admin_socket, sources)?;
    let cni = CniServer::bind(&config.cni_socket, commands, snapshots.clone(), counters)?;
    // Before there are threads that give up more: all are to have the same until then.
    confine::running()?;
    let carrier = Carrier::start(
        config.workers,
        &snapshots,
        &certificates,
        tunnels,
        allowed,
        &telemetry,
    )?;
    carrier.serve(listeners, &mut parts, retired);
    // Open connections outlive the order to stop; everything else ends with it.
    let stopped = &ending.stopped;
    parts.spawn(part(carrier.allowed().run(stopped.clone())));
    let (world_of, to) = (snapshots.clone(), telemetry.clone());
    let refusals = telemetry::refusals(refused, world_of, to, shutdown.clone());
    parts.spawn(part(refusals));
    // Ends by itself, after it has told of the last connection.
    let mut log = JoinSet::new();
    let exporter = exporter(&config, &telemetry);
    log.spawn(tell(exporter, telemetry, stopped.clone()));
    parts.spawn(part(certificates.clone().run(stopped.clone())));
    let trim = allocator::run(snapshots.clone(), shutdown.clone());
    parts.spawn(part(trim));
    parts.spawn(part(prefetch(snapshots, certificates, stopped.clone())));
    parts.spawn(part(revoker.run(stopped.clone())));
    parts.spawn(part(world.run(told, asked, ownership, ending.clone())));
    parts.spawn(part(cni.run(shutdown.clone())));
    parts.spawn(part(admin.run(shutdown.clone())));
    servers.spawn(&mut parts, shutdown);
    parts.spawn(source(config.clone(), events, health, stopped.clone()));
    info!(node = config.node, "agent started");

    let ended = until_told(&mut parts).await;
    info!("stopping");
    shutdown.cancel();
    let deadline = retire(&config, ended.is_ok(), retired).await;
    carrier.drain(deadline).await;
    stopped.cancel();
    log.join_next().await;
    parts.shutdown().await;
    ended
}

/// What tells a collector of connections, and where it is told, if there is one.
fn exporter(config: &Run, telemetry: &Telemetry) -> Option<(Exporter, Exports)> {
    let resource = telemetry::Resource {
        node: config.node.clone(),
        cluster: config.remote_ca.ca_cluster.clone(),
    };
    let collector = config.otlp.otlp_endpoint.as_ref()?;
    Some(Exporter::new(collector, resource, telemetry))
}

/// Writes the access log, and tells a collector if there is one, until `stopped` and of what there is then.
async fn tell(
    exporter: Option<(Exporter, Exports)>,
    telemetry: Arc<Telemetry>,
    stopped: CancellationToken,
) {
    let (exporter, exports) = exporter.unzip();
    let mut collector = JoinSet::new();
    if let Some(exporter) = exporter {
        collector.spawn(exporter.run());
    }
    telemetry.run(exports, stopped).await;
    if timeout(FLUSH, collector.join_next()).await.is_err() {
        warn!("the collector has not taken the last of what it is told");
    }
}

/// Waits until new connections are another agent's, or wait for one; says how long open ones have.
async fn retire(config: &Run, in_order: bool, retired: &CancellationToken) -> Duration {
    let retiring = timeout(config.drain_deadline, retired.cancelled());
    if in_order && retiring.await.is_err() {
        warn!("the next agent does not serve yet");
    }
    retired.cancel();
    if handover::is_owned(&config.state) {
        config.drain_deadline
    } else {
        config.drain_deadline.min(ALONE)
    }
}

/// Tells the world to `events`, and to `health` how it goes.
async fn source(
    config: Run,
    events: mpsc::Sender<Event>,
    health: watch::Sender<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let access = access(&config);
    let source = config.source;
    let told = source.run(access, config.state, events, health, shutdown);
    told.await.context("--source")
}

fn access(config: &Run) -> Access {
    match &config.kubeconfig {
        Some(path) => Access::Kubeconfig(path.clone()),
        None => Access::InCluster,
    }
}

/// Who signs: the authority in a directory, or the cluster's.
fn signer(config: &Run) -> anyhow::Result<Arc<dyn Signer>> {
    let given = &config.remote_ca;
    match (&config.ca, &given.ca_address, &given.ca_root) {
        (Some(directory), None, _) => {
            let ca = DirectoryCa::open(directory, &config.trust_domain).context("--ca")?;
            Ok(Arc::new(ca))
        }
        (None, Some(address), Some(root)) => {
            let ca = RemoteCa::new(Remote {
                address: address.clone(),
                root: root.clone(),
                token: given.ca_token.clone(),
                server_name: given.ca_san.clone(),
                cluster: given.ca_cluster.clone(),
            });
            Ok(Arc::new(ca.context("--ca-address")?))
        }
        _ => anyhow::bail!("give either --ca DIR, or --ca-address HOST:PORT with --ca-root FILE"),
    }
}

/// The kernel's side, with what the node itself needs attached.
fn dataplane(config: &Run) -> Result<Dataplane, dataplane::Error> {
    let mut dataplane = Dataplane::load(dataplane::Options {
        bpffs: config.bpffs.clone(),
        mode: config.attach,
        cgroup: config.cgroup.clone(),
    })?;
    dataplane.attach_node()?;
    Ok(dataplane)
}

/// What answers questions about this agent.
fn sources(
    config: &Run,
    scraper: Scraper,
    flags: BTreeMap<String, String>,
    logging: &Logging,
    ports: &Ports,
) -> admin::Sources {
    let (logging, ports) = (logging.clone(), ports.clone());
    let (health, certificates) = (scraper.health.clone(), scraper.certificates.clone());
    let counters = scraper.telemetry.counters.clone();
    let connections = Arc::new(Allowed::new(scraper.snapshots.clone(), counters));
    admin::Sources {
        snapshots: scraper.snapshots.clone(),
        world: scraper.world.clone(),
        source: Arc::new(move || Some((&*health.borrow()).into())),
        certificates,
        scraper,
        tunnels: Arc::default(),
        connections,
        ports: Arc::new(move || ports.report()),
        log: Arc::new(move || logging.recent()),
        cluster: config.remote_ca.ca_cluster.clone(),
        flags,
    }
}

/// The servers of HTTP.
struct Servers {
    metrics: http::Server<Metrics>,
    health: http::Server<http::Health>,
    admin: http::Server<http::Admin>,
}

impl Servers {
    fn new(config: &Run, sources: &admin::Sources, ports: &Ports, logging: Logging) -> Self {
        let at = &config.http;
        let health = http::Health::new(&config.node, sources.world.clone(), sources.source.clone());
        let dumped = sources.clone();
        let drawn = sources.clone();
        let admin = http::Admin::new(
            Arc::new(move || dumped.config_dump()),
            Arc::new(move || {
                let drawn = drawn.clone();
                Box::pin(async move { drawn.graph().await })
            }),
            logging,
        );
        Self {
            metrics: http::Server::new(
                "--metrics-address",
                at.metrics_address,
                Metrics(sources.scraper.clone()),
                ports,
            ),
            health: http::Server::new("--health-address", at.health_address, health, ports),
            admin: http::Server::new("--admin-address", at.admin_address, admin, ports),
        }
    }

    fn spawn(self, parts: &mut JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) {
        parts.spawn(part(self.metrics.run(shutdown.clone())));
        parts.spawn(part(self.health.run(shutdown.clone())));
        parts.spawn(part(self.admin.run(shutdown.clone())));
    }
}

fn options(config: &Run) -> world::Options {
    world::Options {
        uplinks: config.uplink.clone(),
        mtu: config.mtu,
        masquerade: config.masquerade.then(|| config.no_masquerade.clone()),
        has_proxy: config.source == Source::Kubernetes,
    }
}

/// Waits for the order to stop, or for the first part that ends by itself.
async fn until_told(parts: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        stopped = until_stopped() => Ok(stopped.map(drop)?),
        Some(ended) = parts.join_next() => {
            ended.context("a part of the agent panicked")??;
            anyhow::bail!("a part of the agent ended by itself")
        }
    }
}

/// Waits for the order to stop.
pub async fn until_stopped() -> io::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(true)
}

async fn part(run: impl Future<Output = ()>) -> anyhow::Result<()> {
    run.await;
    Ok(())
}

/// Keeps the certificates those of the enrolled pods of this node, fetched before their first connection.
async fn prefetch(
    mut snapshots: watch::Receiver<Snapshot>,
    certificates: Arc<Certificates>,
    shutdown: CancellationToken,
) {
    let mut wanted = HashSet::new();
    loop {
        let now = identities(&snapshots.borrow_and_update());
        if now != wanted {
            certificates.prefetch(now.iter());
            certificates.retain(&now);
            wanted = now;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}

fn identities(snapshot: &Snapshot) -> HashSet<Identity> {
    let node = snapshot.settings().node.clone();
    let enrolled = snapshot
        .workloads_on(&node)
        .filter(|workload| workload.enrolled);
    enrolled
        .filter_map(|workload| workload.identity.clone())
        .collect()
}

/// Every connection is two descriptors; the hard limit is the operator's word.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "the descriptor limit stays as it is");
    }
}
