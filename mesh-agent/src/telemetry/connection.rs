//! CORE: what is known of one connection, and what became of it.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_common::verdict::{Hook, Outcome};

use crate::causes::causes;
use crate::model::{Identity, Service, Snapshot, Workload};
use crate::policy::{self, IpProtocol, Layer, PolicyRef, Verdict};
use crate::trace_context::Span;

/// From which end this node sees a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From where it starts: Istio's reporter `source`.
    Outbound,
    /// From where it ends: Istio's reporter `destination`.
    Inbound,
}

impl Direction {
    /// The name in logs and flows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }

    /// The name in Istio's metrics.
    pub const fn reporter(self) -> &'static str {
        match self {
            Self::Outbound => "source",
            Self::Inbound => "destination",
        }
    }
}

/// How a connection's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carriage {
    /// Nobody has decided yet, or it was refused before.
    Undecided,
    /// As a stream of a mutual TLS tunnel.
    Tunnel,
    /// Within this node, between two enrolled pods that are proved by their interfaces; nothing is on a wire.
    SameNode,
    /// As without the mesh.
    Plain,
}

impl Carriage {
    /// The name in metrics (`mesh_carriage`) and flows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Undecided => "unknown",
            Self::Tunnel => "tunnel",
            Self::SameNode => "same_node",
            Self::Plain => "plain",
        }
    }

    /// Istio's `connection_security_policy`. Of its two values the dashboards take this for secure: both ends are proved, and
    /// nobody between them can read.
    pub const fn security_policy(self) -> &'static str {
        match self {
            Self::Tunnel | Self::SameNode => "mutual_tls",
            Self::Undecided | Self::Plain => "unknown",
        }
    }
}

/// Istio's `response_flags`: in a word, why a connection was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flag {
    /// It was.
    None,
    /// An `AuthorizationPolicy` or a `PeerAuthentication` denies it.
    Deny,
    /// The other end could not be reached, or there is none.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// TLS stood, HTTP/2 did not.
    Http2,
    /// A `NetworkPolicy` denies it.
    NetworkPolicy,
    /// There is no identity or no certificate to speak with.
    Identity,
    /// The certificate was revoked.
    Revoked,
}

impl Flag {
    /// As Istio writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::Tls => "TLS_FAILURE",
            Self::Http2 => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Identity => "IDENTITY_ERROR",
            Self::Revoked => "CERT_REVOKED",
        }
    }

    /// For a layer of policy that denies.
    pub const fn of_layer(layer: Layer) -> Self {
        match layer {
            Layer::NetworkPolicy => Self::NetworkPolicy,
            Layer::PeerAuthentication | Layer::AuthorizationPolicy => Self::Deny,
        }
    }
}

/// What is known of a connection when it opens.
#[derive(Clone, Debug)]
pub struct Connection {
    /// When it was seen first.
    pub began: Instant,
    /// From which end.
    pub direction: Direction,
    /// What it speaks.
    pub protocol: IpProtocol,
    /// Who opened it.
    pub source: SocketAddr,
    /// Where it was opened to.
    pub destination: SocketAddr,
    /// The tunnel's inner destination, when it has one.
    pub hbone: Option<SocketAddr>,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
    /// The workload that opened it, where known.
    pub source_workload: Option<Arc<Workload>>,
    /// The workload it ends at, where known.
    pub destination_workload: Option<Arc<Workload>>,
    /// Identity of the opener: proved by certificate inbound, by address and interface outbound.
    pub source_identity: Option<Identity>,
    /// Identity of the other end.
    pub destination_identity: Option<Identity>,
    /// How its bytes travel.
    pub carriage: Carriage,
    /// This end's part in a trace; boxed, as few have one.
    pub span: Option<Box<Span>>,
}

impl Connection {
    /// A TCP connection of which only the addresses are known, at an instant.
    pub fn new(
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        began: Instant,
    ) -> Self {
        Self {
            began,
            direction,
            protocol: IpProtocol::Tcp,
            source,
            destination,
            hbone: None,
            service: None,
            source_workload: None,
            destination_workload: None,
            source_identity: None,
            destination_identity: None,
            carriage: Carriage::Undecided,
            span: None,
        }
    }

    /// The same, with whom a snapshot knows at both addresses.
    #[must_use]
    pub fn known_to(mut self, snapshot: &Snapshot) -> Self {
        let at = |it: SocketAddr| snapshot.workload_by_addr(it.ip()).cloned();
        let identity = |it: &Option<Arc<Workload>>| it.as_ref()?.identity.clone();
        self.source_workload = at(self.source);
        self.destination_workload = at(self.destination);
        self.service = snapshot.service_by_addr(self.destination.ip()).cloned();
        self.source_identity = identity(&self.source_workload);
        self.destination_identity = identity(&self.destination_workload);
        self
    }
}

/// Why a connection was not, or ended otherwise than by its ends.
#[derive(Debug)]
pub struct Failure {
    /// In a word.
    pub flag: Flag,
    /// The hook of the kernel that refused its packet, and what it did.
    pub hook: Option<(Hook, Outcome)>,
    /// The verdict behind it as this node knows it, and the end that gave it.
    pub verdict: Option<(policy::Direction, Verdict)>,
    /// In words; made into text only when somebody reads it.
    pub cause: Option<Box<dyn Error + Send + Sync>>,
    /// Whether anybody can bring it about, as often as they like: the log tells of few such in its own way, not of each.
    pub is_early: bool,
}

impl Failure {
    /// One that an error tells.
    pub fn new(flag: Flag, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            flag,
            hook: None,
            verdict: None,
            cause: Some(cause.into()),
            is_early: false,
        }
    }

    /// The policy behind it, where it is one and known.
    pub fn policy(&self) -> Option<&PolicyRef> {
        self.verdict.as_ref()?.1.policy.as_ref()
    }

    /// Whether somebody decided that it is not to be, rather than something being in its way.
    pub fn is_denied(&self) -> bool {
        self.verdict.is_some()
            || self.hook.is_some()
            || matches!(self.flag, Flag::Deny | Flag::NetworkPolicy)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cause, &self.verdict, self.hook) {
            (Some(cause), ..) => f.write_str(&causes(&**cause)),
            (None, Some((direction, verdict)), _) => write!(f, "{direction:?}: {verdict}"),
            (None, None, Some((_, outcome))) => f.write_str(in_words(outcome)),
            (None, None, None) => f.write_str(self.flag.name()),
        }
    }
}

/// Why a hook dropped a packet.
const fn in_words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass | Outcome::Socket | Outcome::Listener | Outcome::Local => "it was not",
        Outcome::UnknownPod => "no pod is known at this interface",
        Outcome::Spoofed => "the source address is not the pod's own",
        Outcome::Malformed => "the headers are not what they claim to be",
        Outcome::EtherType => "it is neither IP nor ARP",
        Outcome::Fragment => "a TCP fragment has no ports to judge",
        Outcome::LinkLocal => "link-local traffic stays with the pod",
        Outcome::AgentAbsent => "the agent was away",
        Outcome::AssignFailed => "the kernel did not give the packet to the agent's socket",
        Outcome::Strict => "plaintext was not taken, by what has changed since",
        Outcome::Policy => "refused by policy that has changed since",
        Outcome::NoFlow => "a segment of no connection that this node has seen begin",
        Outcome::FlowsFull => "the kernel had no room to record the flow",
    }
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection stands.
    Opened,
    /// It has ended.
    Closed,
    /// It never was.
    Refused,
}

impl Event {
    /// The name in flows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Refused => "refused",
        }
    }
}

/// One moment of one connection; cheap to clone.
#[derive(Clone, Debug)]
pub struct Record {
    /// When.
    pub at: SystemTime,
    /// What happened.
    pub event: Event,
    /// To which connection.
    pub connection: Arc<Connection>,
    /// Bytes from the opener so far.
    pub sent: u64,
    /// Bytes to the opener so far.
    pub received: u64,
    /// Since it was seen first.
    pub duration: Duration,
    /// Why it was not, or what broke it.
    pub failure: Option<Arc<Failure>>,
}

impl Record {
    /// `allowed`, `denied`, or `failed` if something was in its way.
    pub fn verdict(&self) -> &'static str {
        match &self.failure {
            Some(failure) if failure.is_denied() => "denied",
            Some(_) if self.event == Event::Refused => "failed",
            Some(_) | None => "allowed",
        }
    }

    /// What it speaks, such as `tcp`.
    pub fn protocol(&self) -> String {
        format!("{:?}", self.connection.protocol).to_lowercase()
    }
}
