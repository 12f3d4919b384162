//! EDGE: the one owner of the snapshot and of the kernel's side; applies what happens, in order.
//!
//! Invariant: a snapshot is published before the maps follow it. The agent may know of an enrolment before the kernel
//! captures for it, never the other way round: a captured connection is always decided on a world that has its reasons.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::mem;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ipnet::IpNet;
use mesh_common::addr::Addr;
use mesh_common::cni::{Attachment, Reason, Refusal, Wiring};
use mesh_common::maps::Slot;
use mesh_common::traffic::{TrafficKey, Way};
use nix::net::if_::if_nametoindex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::attachments::{self, Record, Store};
use crate::causes::causes;
use crate::clock;
use crate::dataplane::plan::{Interface, Interfaces};
use crate::dataplane::{self, Carried, Connection, Dataplane};
use crate::handover::{Followed, Ownership};
use crate::ipam::Ipam;
use crate::model::{Attached, Change, Event, Snapshot, Workload};
use crate::netns;
use crate::network::{self, Network, Uplink};
use crate::revocation::{ByNetns, Revocations};
use crate::status::{self, Addresses, Map, Node, Problem};
use crate::telemetry::{Carriage, Counters, Direction, Measured, Pair, Totals};

/// How often the world looks after what no event tells.
const TICK: Duration = Duration::from_secs(1);
/// Events that are applied before the result is published.
const BATCH: usize = 1024;

/// Totals of pods that are gone, kept until somebody asks for metrics.
const DEPARTED: usize = 4096;

/// MTU of an uplink that names none.
const ETHERNET_MTU: u32 = 1500;

/// Where the answer to a command goes.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// What the CNI server asks of the world; every answer comes once everything is in place.
#[derive(Debug)]
pub enum Command {
    /// Choose addresses for an attachment. One that is known keeps those it has.
    Reserve(Attachment, Reply<Wiring>),
    /// Give back the addresses that were reserved for an attachment and never attached.
    Cancel(Attachment, Vec<IpAddr>),
    /// The pod is wired: capture it.
    Attach(Box<Wired>, Reply<()>),
    /// The interface is gone.
    Release(Attachment, Reply<()>),
    /// Release every attachment of a network but these.
    Collect(String, Vec<Attachment>, Reply<()>),
    /// The addresses of an attachment.
    Check(Attachment, Reply<Wiring>),
    /// Whether an attachment could be made now.
    Status(Reply<()>),
    /// How the node's network is doing.
    Describe(oneshot::Sender<Node>),
    /// What the kernel's side has counted; less to find out than [`Command::Describe`].
    Measure(oneshot::Sender<Measured>),
    /// The connections that the kernel carries by itself, or has carried lately.
    Connections(oneshot::Sender<Vec<(Pair, Connection)>>),
    /// What keeps the agent from serving its node.
    Pending(oneshot::Sender<Vec<Problem>>),
}

/// A wired attachment.
#[derive(Debug)]
pub struct Wired {
    /// What is kept of it; the sequence number is the world's to set.
    pub record: Record,
    /// Interface index of the host's end.
    pub host_ifindex: u32,
}

/// Settings of the node's network.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interfaces that lead to other nodes; empty for those that have an address of the Node.
    pub uplinks: Vec<String>,
    /// MTU of pod interfaces in bytes; `None` for the smallest of the uplinks'.
    pub mtu: Option<u32>,
    /// Whether pods leave the cluster with the node's address, and to which networks they do not.
    pub masquerade: Option<Vec<IpNet>>,
    /// Whether something may translate services on this node, which captured connections are to be kept from.
    pub has_proxy: bool,
}

/// A listening socket of the agent and the slot it is meant for.
#[derive(Debug)]
pub struct Listener {
    /// The slot.
    pub slot: Slot,
    /// Whether it is the slot's IPv6 entry.
    pub v6: bool,
    /// The socket.
    pub socket: OwnedFd,
}

/// A failure that ends the agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's side.
    #[error("the kernel's side")]
    Dataplane(#[from] dataplane::Error),
    /// The node's network.
    #[error("the node's network")]
    Network(#[from] network::Error),
    /// The state directory.
    #[error("the state directory")]
    Attachments(#[from] attachments::Error),
}

/// The steps of an agent's end, in their order; each is cancelled when it is reached.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// The order to stop was given.
    pub shutdown: CancellationToken,
    /// New connections are another agent's, or wait for one.
    pub retired: CancellationToken,
    /// The last connection has ended, or had its time.
    pub stopped: CancellationToken,
}

/// The world of a node.
pub struct World {
    snapshot: Snapshot,
    published: watch::Sender<Snapshot>,
    dataplane: Dataplane,
    network: Network,
    interfaces: Interfaces,
    revocations: Revocations,
    store: Store,
    reserved: HashMap<Attachment, Vec<IpAddr>>,
    /// Hosts' ends of veths that no record is about, and the addresses of the pods behind them.
    lost: HashMap<String, Vec<IpAddr>>,
    ipam: Ipam,
    options: Options,
    /// Interfaces that lead to other nodes; empty until the Node is known.
    uplinks: Vec<Uplink>,
    /// Listeners that wait for the first whole world.
    listeners: Vec<Listener>,
    /// Whether pods have our programs, and not those of an earlier agent still.
    is_attached: bool,
    /// Whether the kernel may lag behind the snapshot because it refused something.
    behind: bool,
    /// How often it did.
    failures: u64,
    /// Whether this agent was told to stop: the kernel is the next one's.
    draining: bool,
    counters: Arc<Counters>,
    /// What pods have carried that are gone, since somebody asked.
    departed: Vec<(Pair, Totals)>,
}

impl World {
    /// Takes up what an earlier agent left: attachments keep their addresses, and their interfaces get this agent's
    /// programs in place of the old ones.
    pub async fn restore(
        snapshot: Snapshot,
        dataplane: Dataplane,
        network: Network,
        revocations: Revocations,
        store: Store,
        options: Options,
        listeners: Vec<Listener>,
    ) -> Result<(Self, watch::Receiver<Snapshot>), Error> {
        let (published, receiver) = watch::channel(snapshot.clone());
        let is_attached = !dataplane.leaves_earlier();
        let mut world = Self {
            snapshot,
            published,
            dataplane,
            network,
            interfaces: Interfaces::default(),
            revocations,
            store,
            reserved: HashMap::new(),
            lost: HashMap::new(),
            ipam: Ipam::new(),
            options,
            uplinks: Vec::new(),
            listeners,
            is_attached,
            behind: false,
            failures: 0,
            draining: false,
            counters: Arc::default(),
            departed: Vec::new(),
        };
        let links: HashMap<_, _> = world
            .network
            .links()
            .await?
            .into_iter()
            .map(|link| (link.name, link.index))
            .collect();
        let records: Vec<_> = world.store.in_order().into_iter().cloned().collect();
        let told: HashSet<_> = records.iter().map(|it| &*it.host_ifname).collect();
        for (name, index) in &links {
            if Attachment::is_host_ifname(name) && !told.contains(&**name) {
                world.restore_lost(name, *index).await?;
            }
        }
        for record in &records {
            world.restore_one(record, links.get(&record.host_ifname).copied())?;
        }
        world
            .dataplane
            .retain_pods(|ifname| links.contains_key(ifname))?;
        world.published.send_replace(world.snapshot.clone());
        Ok((world, receiver))
    }

    /// Its programs stay as they are, and know no such pod any more; its addresses stay its own until the runtime tells us
    /// with DEL or GC.
    async fn restore_lost(&mut self, host_ifname: &str, index: u32) -> Result<(), Error> {
        let addresses = self.network.hosts_behind(index).await?;
        warn!(
            interface = host_ifname,
            ?addresses,
            "a pod's interface has no record, and the pod no network; delete the pod"
        );
        for address in &addresses {
            self.ipam.take(*address);
        }
        self.lost.insert(host_ifname.to_owned(), addresses);
        Ok(())
    }

    fn restore_one(&mut self, record: &Record, index: Option<u32>) -> Result<(), Error> {
        for address in &record.addresses {
            self.ipam.take(*address);
        }
        if let Some(index) = index {
            self.interfaces
                .insert(record.attachment.clone(), interface(record, index));
            if self.is_attached {
                match self.dataplane.attach_pod(&record.host_ifname) {
                    // Deleted since the interfaces were listed.
                    Err(_) if if_nametoindex(record.host_ifname.as_str()).is_err() => {
                        self.interfaces.remove(&record.attachment);
                    }
                    other => other?,
                }
            }
        }
        if self.interfaces.get(&record.attachment).is_some() {
            self.snapshot.apply(Event::Attached(attached(record)));
        } else {
            // The runtime still has to tell us with DEL or GC; until then the address stays taken.
            info!(
                interface = record.host_ifname,
                "attachment without its interface"
            );
        }
        Ok(())
    }

    /// The same, counting in `counters` how long it takes.
    #[must_use]
    pub fn counting(mut self, counters: Arc<Counters>) -> Self {
        self.counters = counters;
        self
    }

    /// Applies events and commands until `shutdown`; from then on, until `stopped`, events reach only the snapshot.
    ///
    /// The kernel's side is the next agent's as soon as this one is told to stop. New connections are, too, once that one
    /// serves them, or at once if there is none: then `retired` is cancelled.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut commands: mpsc::Receiver<Command>,
        mut ownership: Ownership,
        ending: Ending,
    ) {
        let Ending {
            shutdown,
            retired,
            stopped,
        } = ending;
        let mut batch = Vec::new();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped.cancelled() => return,
                () = shutdown.cancelled(), if !self.draining => {
                    self.draining = true;
                    commands.close();
                }
                followed = ownership.followed(), if self.draining && !retired.is_cancelled() => {
                    self.retire(followed);
                    ownership.let_go();
                    retired.cancel();
                }
                count = events.recv_many(&mut batch, BATCH), if !events.is_closed() || !events.is_empty() => {
                    if count > 0 {
                        self.apply(batch.drain(..)).await;
                    }
                }
                Some(command) = commands.recv(), if !self.draining => self.serve(command).await,
                () = self.network.changed(), if !self.draining => self.follow_network().await,
                _ = tick.tick(), if !self.draining => self.look_after().await,
            }
            if self.listeners.is_empty() {
                ownership.established();
            }
        }
    }

    /// Ends taking new connections, after another agent has begun to, or there is none.
    fn retire(&mut self, followed: io::Result<Followed>) {
        match followed {
            Ok(Followed::BySuccessor) => return info!("another agent has taken over"),
            Ok(Followed::ByNobody) => {}
            Err(error) => warn!(%error, "cannot tell whether there is another agent"),
        }
        // Who connects from here on waits for the next agent.
        if let Err(error) = self.dataplane.retire() {
            warn!(
                error = &error as &dyn std::error::Error,
                "the listeners stay in their slots"
            );
        }
    }

    /// Applies events to the snapshot, publishes it, then brings kernel and routes in step.
    async fn apply(&mut self, events: impl Iterator<Item = Event>) {
        let mut change = Change::default();
        for event in events {
            change.merge(self.snapshot.apply(event));
        }
        if change.is_empty() {
            return;
        }
        let published = clock::now();
        self.published.send_replace(self.snapshot.clone());
        let counters = &self.counters;
        counters.published.store(clock::unix_seconds(), Relaxed);
        // Half a world would take pods out of the maps that a whole one has.
        if self.draining || !self.snapshot.is_synced() {
            return;
        }
        if change.synced || self.behind {
            self.catch_up().await;
            return;
        }
        let updated = self
            .dataplane
            .update(&self.snapshot, &self.interfaces, &change);
        let settled = self.settle().await;
        self.kept_up(updated.and(settled).map_err(Error::from));
        if !change.nodes.is_empty() {
            self.follow_nodes().await;
        }
        self.counters.update.observe(published.elapsed());
    }

    /// Takes up what has changed about the node's network, be it by others: a link that went down took routes with it, and
    /// there are managers that remove what is not theirs.
    async fn follow_network(&mut self) {
        if !self.snapshot.is_synced() {
            return;
        }
        if self.behind {
            self.catch_up().await;
        } else {
            self.follow_nodes().await;
        }
    }

    /// Looks after what no event tells: writes to be made again, a table that somebody removed.
    async fn look_after(&mut self) {
        if !self.snapshot.is_synced() {
            return;
        }
        if self.behind {
            self.catch_up().await;
        } else if !self.network.has_masquerade().await {
            warn!("somebody removed our nftables table");
            self.follow_masquerade().await;
        }
    }

    /// Notes a failure, to be made good at the next tick; told once, not each time.
    fn kept_up(&mut self, result: Result<(), Error>) {
        let Err(error) = result else {
            return;
        };
        if !self.behind {
            error!(
                error = &error as &dyn std::error::Error,
                "the kernel is behind the world, trying again every second"
            );
        }
        self.behind = true;
        self.failures += 1;
    }

    /// Brings everything in step with the whole snapshot.
    async fn catch_up(&mut self) {
        let failures = self.failures;
        let replaced = self.replace().await;
        let published = self.publish();
        let attached = self.attach_restored();
        self.kept_up(replaced.and(published).and(attached).map_err(Error::from));
        self.follow_nodes().await;
        self.behind = self.failures != failures;
    }

    /// Gives the pods of an earlier agent our programs, once our maps hold the world.
    fn attach_restored(&mut self) -> Result<(), dataplane::Error> {
        if self.is_attached {
            return Ok(());
        }
        for record in self.store.in_order() {
            let ifname = &record.host_ifname;
            let attached = self.dataplane.attach_pod(ifname);
            if if_nametoindex(ifname.as_str()).is_ok() {
                attached?;
            }
        }
        self.is_attached = true;
        Ok(())
    }

    async fn replace(&mut self) -> Result<(), dataplane::Error> {
        let replaced = self.dataplane.replace(&self.snapshot, &self.interfaces);
        replaced.and(self.settle().await)
    }

    /// Holds open connections against policy that is in force for new ones: ends those it does not allow, while their
    /// resets still pass, then has the programs judge whatever sends.
    async fn settle(&mut self) -> Result<(), dataplane::Error> {
        if !self.dataplane.has_changed_over() {
            return Ok(());
        }
        let start = clock::now();
        let refused = self.dataplane.refused();
        debug!(took = ?start.elapsed(), "open connections judged");
        let interfaces = self.interfaces.iter();
        let netns: HashMap<_, _> = interfaces.map(|(_, it)| (it.index, &it.netns)).collect();
        let mut by_netns = ByNetns::new();
        for refused in refused.iter().flatten() {
            if let Some(netns) = netns.get(&refused.flow.ifindex) {
                let here = by_netns.entry(PathBuf::clone(netns)).or_default();
                here.push(*refused);
            }
        }
        let gone = self.revocations.end(by_netns).await;
        refused.map(drop).and(self.dataplane.settle(&gone))
    }

    /// Puts the listeners into their slots, once: from here on captured connections are this agent's.
    fn publish(&mut self) -> Result<(), dataplane::Error> {
        for listener in &self.listeners {
            self.dataplane
                .publish(listener.slot, listener.v6, &listener.socket)?;
        }
        self.listeners.clear();
        Ok(())
    }

    async fn follow_nodes(&mut self) {
        let name = self.snapshot.settings().node.clone();
        if let Some(node) = self.snapshot.node(&name).cloned() {
            self.ipam.set_ranges(&node.pod_cidrs);
            let attached = self.attach_uplinks(&node.addresses).await;
            self.kept_up(attached);
        }
        let prepared = self.network.prepare(&self.uplinks).await;
        self.kept_up(prepared.map_err(Error::from));
        let routes = network::wanted(&self.snapshot, &name);
        let synced = self.network.sync_routes(&routes).await;
        self.kept_up(synced.map_err(Error::from));
        self.follow_masquerade().await;
    }

    async fn follow_masquerade(&mut self) {
        let node = self.snapshot.settings().node.clone();
        let spared = self.options.masquerade.as_deref();
        let wanted = match spared {
            Some(spared) => Some(network::masquerade(&self.snapshot, &node, spared)),
            // The same table, which masquerades nothing.
            None => self.options.has_proxy.then(network::Masquerade::default),
        };
        let synced = self.network.sync_masquerade(wanted).await;
        self.kept_up(synced.map_err(Error::from));
    }

    async fn attach_uplinks(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let found = self.network.uplinks(&self.options.uplinks, addresses).await;
        if found.as_ref().is_ok_and(|found| *found == self.uplinks) {
            return Ok(());
        }
        self.uplinks.clear();
        let uplinks = found?;
        for uplink in &uplinks {
            self.dataplane.attach_uplink(&uplink.name)?;
            info!(uplink = uplink.name, mtu = uplink.mtu, "uplink attached");
        }
        self.dataplane.detach_strays();
        self.uplinks = uplinks;
        Ok(())
    }

    async fn serve(&mut self, command: Command) {
        // A caller that no longer listens is gone; what it asked for is undone by its connection's end.
        match command {
            Command::Reserve(attachment, reply) => {
                let _ = reply.send(self.reserve(attachment).await);
            }
            Command::Cancel(attachment, addresses) => {
                if self.holds(&attachment, &addresses) {
                    self.cancel(&attachment);
                }
            }
            Command::Attach(wired, reply) => {
                let _ = reply.send(self.attach(*wired).await);
            }
            Command::Release(attachment, reply) => {
                self.release(&attachment).await;
                let _ = reply.send(Ok(()));
            }
            Command::Collect(network, keep, reply) => {
                self.collect(&network, &keep).await;
                let _ = reply.send(Ok(()));
            }
            Command::Check(attachment, reply) => {
                let _ = reply.send(self.check(&attachment));
            }
            Command::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Command::Connections(reply) => {
                let _ = reply.send(self.connections());
            }
            Command::Measure(reply) => {
                let _ = reply.send(self.measure());
            }
            Command::Describe(reply) => {
                let _ = reply.send(self.describe().await);
            }
            Command::Pending(reply) => {
                let _ = reply.send(self.pending());
            }
        }
    }

    async fn reserve(&mut self, attachment: Attachment) -> Result<Wiring, Refusal> {
        self.ready()?;
        let Attachment { container, ifname } = &attachment;
        if self.reserved.contains_key(&attachment) {
            // Two would make the host's end under one name, and each take the other's away.
            let message = format!("an ADD of {ifname} of container {container} is under way");
            return Err(refusal(
                Reason::TryAgain,
                message,
                "wait until it has ended",
            ));
        }
        let addresses = match self.store.get(&attachment) {
            // The binary takes a host interface of this name for a leftover and removes it.
            Some(record) if self.is_wired(&record.host_ifname).await? => {
                let message = format!("container {container} has interface {ifname} already");
                return Err(refusal(Reason::Invalid, message, "DEL it first"));
            }
            Some(record) => record.addresses.clone(),
            None => self.ipam.allocate().map_err(unavailable)?,
        };
        self.reserved.insert(attachment, addresses.clone());
        Ok(self.wiring(addresses))
    }

    async fn is_wired(&self, host_ifname: &str) -> Result<bool, Refusal> {
        let links = self
            .network
            .links()
            .await
            .map_err(|error| refusal(Reason::TryAgain, causes(&error), "try again"))?;
        Ok(links.iter().any(|link| link.name == host_ifname))
    }

    /// Whether the reservation stands: a DEL takes it away from an ADD that is under way.
    fn holds(&self, attachment: &Attachment, addresses: &[IpAddr]) -> bool {
        let reserved = self.reserved.get(attachment);
        reserved.is_some_and(|reserved| reserved == addresses)
    }

    fn cancel(&mut self, attachment: &Attachment) {
        let addresses = self.reserved.remove(attachment);
        if self.store.get(attachment).is_none() {
            for address in addresses.into_iter().flatten() {
                self.ipam.release(address);
            }
        }
    }

    async fn attach(&mut self, wired: Wired) -> Result<(), Refusal> {
        let Wired {
            record,
            host_ifindex,
        } = wired;
        if !self.holds(&record.attachment, &record.addresses) {
            let message = format!(
                "container {} was released during its ADD",
                record.attachment.container
            );
            return Err(refusal(
                Reason::TryAgain,
                message,
                "ADD it again if it still runs",
            ));
        }
        let captured = self.capture(&record, host_ifindex).await;
        let kept = captured.map_err(Error::from).and_then(|()| {
            self.store.put(record.clone())?;
            Ok(())
        });
        if let Err(error) = kept {
            error!(error = &error as &dyn std::error::Error, pod = ?record.pod, "cannot attach");
            let refusal = refusal(
                Reason::Kernel,
                format!("interface {}: {}", record.host_ifname, causes(&error)),
                "see the agent's log",
            );
            self.forget(&record).await;
            return Err(refusal);
        }
        self.reserved.remove(&record.attachment);
        Ok(())
    }

    /// The maps first, then the programs: a packet that meets a program meets its pod's entry.
    async fn capture(&mut self, record: &Record, index: u32) -> Result<(), dataplane::Error> {
        self.interfaces
            .insert(record.attachment.clone(), interface(record, index));
        self.apply([Event::Attached(attached(record))].into_iter())
            .await;
        if self.behind {
            self.replace().await?;
        }
        self.dataplane.attach_pod(&record.host_ifname)
    }

    async fn release(&mut self, attachment: &Attachment) {
        self.cancel(attachment);
        let mut addresses = Vec::new();
        if let Some(record) = self.store.get(attachment).cloned() {
            self.forget(&record).await;
            addresses.extend(record.addresses);
        }
        addresses.extend(self.abandon(&attachment.host_ifname()).await);
        if let Err(error) = self.store.remove(attachment) {
            // The address is not given again while the file says that it is taken.
            warn!(
                error = &error as &dyn std::error::Error,
                "an attachment's file stays behind"
            );
            return;
        }
        for address in addresses {
            self.ipam.release(address);
        }
    }

    /// Takes an attachment out of the world and of the kernel; its addresses stay taken.
    async fn forget(&mut self, record: &Record) {
        self.unwire(&record.host_ifname).await;
        if let Some(index) = self.interfaces.get(&record.attachment).map(|it| it.index) {
            let last = self.traffic(Some(index));
            // Whoever asks for metrics takes them away.
            let room = DEPARTED.saturating_sub(self.departed.len());
            self.departed.extend(last.into_iter().take(room));
        }
        let interface = self.interfaces.remove(&record.attachment);
        self.apply([Event::Detached(record.attachment.clone())].into_iter())
            .await;
        if let Some(interface) = interface
            && let Err(error) = self.dataplane.remove_pod(interface.index)
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "a pod's kernel state stays behind"
            );
        }
    }

    /// Takes an interface without a record away; returns the addresses that are free then.
    async fn abandon(&mut self, host_ifname: &str) -> Vec<IpAddr> {
        let Some(addresses) = self.lost.remove(host_ifname) else {
            return Vec::new();
        };
        self.unwire(host_ifname).await;
        addresses
    }

    /// Takes the host's end of a pod's veth away, and with it the pod's; fine when there is none.
    async fn unwire(&mut self, host_ifname: &str) {
        let removed = self.network.remove_link(host_ifname).await;
        let detached = self.dataplane.detach_pod(host_ifname);
        if let Err(error) = removed
            .map_err(Error::from)
            .and(detached.map_err(Error::from))
        {
            warn!(
                error = &error as &dyn std::error::Error,
                "a pod's interface stays behind"
            );
        }
    }

    async fn collect(&mut self, network: &str, keep: &[Attachment]) {
        let garbage: Vec<_> = self
            .store
            .in_order()
            .into_iter()
            .filter(|record| record.network == network && !keep.contains(&record.attachment))
            .map(|record| record.attachment.clone())
            .collect();
        for attachment in garbage {
            info!(
                container = attachment.container,
                "released by garbage collection"
            );
            self.release(&attachment).await;
        }
        // Of whatever network: nobody can tell.
        let kept: HashSet<_> = keep.iter().map(Attachment::host_ifname).collect();
        let lost: Vec<_> = self.lost.keys().cloned().collect();
        for host_ifname in lost.iter().filter(|it| !kept.contains(*it)) {
            for address in self.abandon(host_ifname).await {
                self.ipam.release(address);
            }
        }
    }

    fn check(&self, attachment: &Attachment) -> Result<Wiring, Refusal> {
        let record = self.store.get(attachment).ok_or_else(|| {
            refusal(
                Reason::Unknown,
                format!(
                    "container {} has no interface {}",
                    attachment.container, attachment.ifname
                ),
                "ADD it first",
            )
        })?;
        Ok(self.wiring(record.addresses.clone()))
    }

    fn status(&self) -> Result<(), Refusal> {
        self.ready()?;
        self.ipam.peek().map(|_| ()).map_err(unavailable)
    }

    /// An interface as it is now, and which of its programs it is without.
    async fn interface(
        &self,
        name: &str,
        index: u32,
        missing: impl FnOnce(&[String]) -> Vec<String>,
    ) -> status::Interface {
        let filters = self.network.bpf_filters(index).await;
        // An interface that is gone misses nothing: a pod's DEL is under way, or an uplink's successor is looked for.
        let missing = filters.map(|it| missing(&it)).unwrap_or_default();
        let name = name.to_owned();
        status::Interface { name, missing }
    }

    async fn describe(&self) -> Node {
        let not_ready = self.not_ready();
        let mut uplinks = Vec::new();
        for Uplink { name, index, .. } in &self.uplinks {
            let missing = |filters: &[String]| self.dataplane.missing_at_uplink(name, filters);
            uplinks.push(self.interface(name, *index, missing).await);
        }
        let mut pods = Vec::new();
        for (_, Interface { name, index, .. }) in self.interfaces.iter() {
            let missing = |filters: &[String]| self.dataplane.missing_at_pod(name, filters);
            pods.push(self.interface(name, *index, missing).await);
        }
        let families = ["IPv4", "IPv6"].into_iter().zip(self.ipam.usage());
        let at_most = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
        let addresses = families.filter_map(|(family, usage)| {
            let (taken, free) = usage?;
            Some(Addresses {
                family: family.to_owned(),
                taken: at_most(taken),
                free: at_most(free),
            })
        });
        Node {
            not_ready,
            uplinks,
            pods,
            mtu: self.wiring(Vec::new()).mtu,
            addresses: addresses.collect(),
            masquerades: self.options.masquerade.is_some(),
            maps: self.maps(),
            without: self.dataplane.without().to_vec(),
            lost: self.lost.keys().cloned().collect(),
            is_behind: self.behind,
            failures: self.failures,
        }
    }

    fn maps(&self) -> Vec<Map> {
        let map = |it: dataplane::Fill| Map {
            name: it.map.to_owned(),
            held: it.held,
            room: it.room,
        };
        let maps = self.dataplane.fill();
        maps.into_iter().map(map).collect()
    }

    /// What the kernel has carried by itself, of the pod at an interface or of all.
    fn traffic(&self, of: Option<u32>) -> Vec<(Pair, Totals)> {
        let carried = self.dataplane.traffic(of).unwrap_or_else(|error| {
            warn!(
                error = &error as &dyn std::error::Error,
                "what the kernel has carried cannot be read"
            );
            BTreeMap::new()
        });
        let pods = self.pods_by_interface();
        let pair = |(key, carried): (TrafficKey, Carried)| Some((self.pair(&pods, &key)?, carried));
        carried.into_iter().filter_map(pair).collect()
    }

    /// The connections that the kernel carries by itself, and whom they are between.
    fn connections(&self) -> Vec<(Pair, Connection)> {
        let connections = self.dataplane.connections().unwrap_or_else(|error| {
            warn!(
                error = &error as &dyn std::error::Error,
                "the kernel's connections cannot be read"
            );
            Vec::new()
        });
        let pods = self.pods_by_interface();
        let pair = |it: Connection| Some((self.pair(&pods, &it.key)?, it));
        connections.into_iter().filter_map(pair).collect()
    }

    fn pods_by_interface(&self) -> HashMap<u32, Arc<Workload>> {
        let interfaces = self.interfaces.iter();
        let pod = |(attachment, interface): (&Attachment, &Interface)| {
            let pod = self.snapshot.workload_by_attachment(attachment)?;
            Some((interface.index, pod.clone()))
        };
        interfaces.filter_map(pod).collect()
    }

    fn pair(&self, pods: &HashMap<u32, Arc<Workload>>, key: &TrafficKey) -> Option<Pair> {
        let pod = Some(pods.get(&key.ifindex)?.clone());
        let peer = Some(key.peer).filter(|it| *it != Addr::NONE);
        let peer = peer.map(IpAddr::from);
        let known = peer.and_then(|it| self.snapshot.workload_by_addr(it).cloned());
        let (carriage, direction) = match key.way {
            way if way == Way::Local as u32 => (Carriage::SameNode, Direction::Outbound),
            way if way == Way::PlainFromPod as u32 => (Carriage::Plain, Direction::Outbound),
            _ => (Carriage::Plain, Direction::Inbound),
        };
        let (source, destination) = match direction {
            Direction::Outbound => (pod, known),
            Direction::Inbound => (known, pod),
        };
        Some(Pair {
            interface: key.ifindex,
            peer,
            source,
            destination,
            carriage,
            direction,
        })
    }

    /// What cannot be read is absent.
    fn measure(&mut self) -> Measured {
        let mut traffic = mem::take(&mut self.departed);
        traffic.extend(self.traffic(None));
        Measured {
            traffic,
            packets: self.dataplane.packets().unwrap_or_default(),
            maps: self.maps(),
            is_behind: self.behind,
            failures: self.failures,
        }
    }

    fn not_ready(&self) -> Option<Problem> {
        self.ready().err().map(|refusal| Problem {
            what: refusal.message,
            remedy: refusal.remedy,
        })
    }

    fn pending(&self) -> Vec<Problem> {
        let mut pending: Vec<_> = self.not_ready().into_iter().collect();
        let mut wait = |what: &str| {
            pending.push(Problem {
                what: what.to_owned(),
                remedy: "wait a moment; if it stays so, see the agent's log".to_owned(),
            });
        };
        if !self.listeners.is_empty() {
            wait("the listeners for captured connections are not in their slots yet");
        }
        if !self.is_attached {
            wait("pods have the programs of an earlier agent still");
        }
        pending
    }

    fn ready(&self) -> Result<(), Refusal> {
        let node = &self.snapshot.settings().node;
        if !self.snapshot.is_synced() {
            let doubts = doubts(&self.snapshot);
            let message = format!("the agent has not read its source yet{doubts}");
            return Err(refusal(
                Reason::TryAgain,
                message,
                "wait a moment, or correct what is left out",
            ));
        }
        if self.snapshot.node(node).is_none() {
            let message = format!("the source has no Node {node}{}", doubts(&self.snapshot));
            return Err(refusal(
                Reason::TryAgain,
                message,
                "create it, or mend --node",
            ));
        }
        if self.uplinks.is_empty() {
            let message = format!("no interface has an address of Node {node}");
            return Err(refusal(
                Reason::TryAgain,
                message,
                "mend status.addresses, or pass --uplink",
            ));
        }
        Ok(())
    }

    fn wiring(&self, addresses: Vec<IpAddr>) -> Wiring {
        let smallest = self.uplinks.iter().map(|uplink| uplink.mtu).min();
        let mtu = self.options.mtu.or(smallest).unwrap_or(ETHERNET_MTU);
        Wiring { addresses, mtu }
    }
}

fn interface(record: &Record, index: u32) -> Interface {
    Interface {
        name: record.host_ifname.clone(),
        index,
        host_mac: record.host_mac,
        mac: record.mac,
        addresses: record.addresses.clone(),
        netns: PathBuf::from(&record.netns),
        netns_cookie: netns::cookie(record.netns.as_ref())
            .inspect_err(|error| debug!(error = error as &dyn std::error::Error, "no cookie"))
            .ok(),
    }
}

fn attached(record: &Record) -> Attached {
    Attached {
        attachment: record.attachment.clone(),
        pod: record.pod.clone(),
        addresses: record.addresses.clone(),
    }
}

fn unavailable(error: crate::ipam::Unavailable) -> Refusal {
    refusal(
        Reason::Unavailable,
        error.to_string(),
        "delete pods or add a pod CIDR to the Node",
    )
}

/// What the source leaves out, for messages about what it does not tell; empty when it is all understood.
pub(crate) fn doubts(snapshot: &Snapshot) -> String {
    const TOLD: usize = 3;
    let mut parts: Vec<_> = snapshot
        .left_out()
        .take(TOLD)
        .map(|(part, reason)| format!("; {part} is left out: {reason}"))
        .collect();
    let more = snapshot.left_out().count().saturating_sub(TOLD);
    if more > 0 {
        parts.push(format!("; and {more} more"));
    }
    parts.concat()
}

pub(crate) fn refusal(reason: Reason, message: String, remedy: &str) -> Refusal {
    Refusal {
        reason,
        message,
        remedy: remedy.to_owned(),
    }
}
