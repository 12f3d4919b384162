//! What is done to the mesh, one file for what is alike. Every fault heals itself, or leaves nothing to heal.

mod agents;
mod cluster;
mod network;
mod pods;
mod state;

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;

use crate::draw::Draw;
use crate::stage::Stage;
use crate::traffic::Class;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// An agent is told to stop, and started.
    Restart,
    /// A new agent is started beside one that is told to stop.
    Upgrade,
    /// An agent is killed, and started.
    Kill,
    /// The agents of both nodes are killed, and started.
    KillBoth,
    /// An agent is killed while it starts, and started.
    KillAtStart,
    /// An agent is held, and let go.
    Freeze,
    /// A pod comes, speaks and goes.
    Pod,
    /// A pod goes while the agent is away, and another one comes.
    PodWithoutAgent,
    /// A runtime calls in parallel, kills calls and repeats them.
    Calls,
    /// A pod joins the mesh and leaves it.
    Enrol,
    /// A policy is put and taken.
    Policy,
    /// A policy is put while the agent is away, and taken.
    PolicyWithoutAgent,
    /// A file of the source is half written.
    TornFile,
    /// A file of the source is half written while an agent is killed and started.
    TornFileAtStart,
    /// The uplink goes down and comes up.
    Uplink,
    /// The uplink loses its carrier.
    Carrier,
    /// The links between nodes get another MTU.
    Mtu,
    /// A node gets another address.
    NodeAddress,
    /// Somebody removes rules, routes and tables.
    Flush,
    /// The record of a wired pod is damaged while the agent is away.
    TornRecord,
    /// The record of changed kernel settings is damaged while the agent is away.
    TornSettings,
    /// All pins are removed while the agent is away.
    PinsLost,
    /// The same, but the kernel still has what was pinned.
    PinsHidden,
    /// The disk of an agent's state is full.
    DiskFull,
    /// An agent has no descriptors left.
    Descriptors,
    /// A file of the certificate authority is away while an agent starts.
    CaAway,
}

/// A fault as it was drawn.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// The node it happens to.
    node: &'static str,
    /// What happens at the same time, and to which node. Open streams of every class outlive it.
    also: Option<(Kind, &'static str)>,
    /// How long it lasts.
    lasts: Duration,
    /// For whatever else is to be chosen.
    draw: Draw,
}

const NODES: [&str; 2] = ["n1", "n2"];
/// What may come with another fault.
const COMPANY: [Kind; 3] = [Kind::Uplink, Kind::Carrier, Kind::Flush];

/// Pods beside those of the stage that had addresses at the same time.
pub(crate) type Guests = Vec<(String, Vec<IpAddr>)>;

impl Fault {
    /// That of a step.
    pub(crate) fn draw(seed: u64, step: u64, only: &[Kind]) -> Self {
        let mut draw = Draw::of(seed, step);
        let kinds = if only.is_empty() {
            Kind::value_variants()
        } else {
            only
        };
        let (kind, node) = (*draw.one(kinds), *draw.one(&NODES));
        let comes = kind.bears_company() && draw.below(3) == 0;
        let also = comes.then(|| (*draw.one(&COMPANY), *draw.one(&NODES)));
        Self {
            kind,
            node,
            also,
            lasts: draw.millis(400),
            draw,
        }
    }

    /// Does it, and what comes at the same time, and heals it.
    pub(crate) fn apply(&self, stage: &Stage<'_>) -> Result<Guests> {
        let Some((kind, node)) = self.also else {
            return self.apply_one(stage);
        };
        let other = Self {
            kind,
            node,
            ..self.clone()
        };
        thread::scope(|scope| {
            let other = scope.spawn(move || other.apply_one(stage));
            let guests = self.apply_one(stage);
            other.join().expect("it does not panic")?;
            guests
        })
    }

    fn apply_one(&self, stage: &Stage<'_>) -> Result<Guests> {
        let node = stage.lab.node(self.node);
        let draw = &mut self.draw.clone();
        match self.kind {
            Kind::Restart => agents::restart(node, self.lasts),
            Kind::Upgrade => agents::upgrade(node),
            Kind::Kill => agents::kill(&[node], self.lasts),
            Kind::KillBoth => {
                agents::kill(&stage.lab.nodes().iter().collect::<Vec<_>>(), self.lasts)
            }
            Kind::KillAtStart => agents::kill_at_start(node, draw),
            Kind::Freeze => agents::freeze(node, self.lasts),
            Kind::Pod => pods::comes_and_goes(stage, node, draw),
            Kind::PodWithoutAgent => pods::without_agent(stage, node),
            Kind::Calls => pods::calls(stage, node, draw),
            Kind::Enrol => cluster::enrol(stage),
            Kind::Policy => cluster::policy(stage, draw),
            Kind::PolicyWithoutAgent => cluster::policy_without_agent(stage, node, draw),
            Kind::TornFile => cluster::torn(stage, self.lasts, draw),
            Kind::TornFileAtStart => cluster::torn_at_start(stage, node, self.lasts, draw),
            Kind::Uplink => network::uplink(node, self.lasts),
            Kind::Carrier => network::carrier(stage, node, self.lasts),
            Kind::Mtu => network::mtu(stage, self.lasts, draw),
            Kind::NodeAddress => network::address(stage, node, self.lasts),
            Kind::Flush => network::flush(node),
            Kind::TornRecord => state::torn_record(stage, node, draw),
            Kind::TornSettings => state::torn_settings(node, draw),
            Kind::PinsLost => state::pins_lost(node),
            Kind::PinsHidden => state::pins_hidden(node),
            Kind::DiskFull => state::disk_full(stage, node),
            Kind::Descriptors => state::descriptors(node, self.lasts),
            Kind::CaAway => state::ca_away(stage, node, draw),
        }
    }

    /// Whether open streams of a class outlive it.
    pub(crate) fn spares(&self, class: Class) -> bool {
        match self.kind {
            Kind::Pod
            | Kind::Calls
            | Kind::Enrol
            | Kind::Policy
            | Kind::TornFile
            | Kind::Uplink
            | Kind::Carrier
            | Kind::Mtu
            | Kind::NodeAddress
            | Kind::Flush
            | Kind::Freeze
            | Kind::Descriptors => true,
            // A tunnel ends with its agent.
            Kind::Restart
            | Kind::Upgrade
            | Kind::Kill
            | Kind::KillBoth
            | Kind::KillAtStart
            | Kind::PodWithoutAgent
            | Kind::PolicyWithoutAgent
            | Kind::TornFileAtStart
            | Kind::TornRecord
            | Kind::TornSettings
            | Kind::DiskFull
            | Kind::CaAway => class != Class::Far,
            // With the records of flows.
            Kind::PinsLost | Kind::PinsHidden => false,
        }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, node, lasts) = (self.kind, self.node, self.lasts.as_millis());
        let also = self.also.map(|(kind, node)| format!(", {kind} {node}"));
        let also = also.unwrap_or_default();
        f.pad(&format!("{kind} {node}{also}, {lasts} ms"))
    }
}

impl Kind {
    /// Whether the network may fail meanwhile: the fault itself needs none.
    fn bears_company(self) -> bool {
        matches!(
            self,
            Self::Restart
                | Self::Upgrade
                | Self::Kill
                | Self::KillBoth
                | Self::KillAtStart
                | Self::Freeze
                | Self::TornFileAtStart
                | Self::TornSettings
                | Self::PinsLost
                | Self::Descriptors
                | Self::CaAway
        )
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", |it| it.get_name()))
    }
}

/// Kills an agent, does something, starts it.
fn around(node: &Node, work: impl FnOnce() -> Result<()>) -> Result<()> {
    node.agent().kill()?;
    work()?;
    node.agent().start()
}

fn last(lasts: Duration) {
    sleep(lasts);
}

fn guest(pod: &Pod<'_>) -> (String, Vec<IpAddr>) {
    (pod.name().to_owned(), pod.addresses().to_vec())
}
