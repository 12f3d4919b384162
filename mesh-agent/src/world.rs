//! EDGE: the one owner of the snapshot and of the kernel's side: applies what happens, in order.
//!
//! Invariant: a snapshot is published before the maps follow it. The agent may know of an enrolment before the kernel
//! captures for it, never the other way round: a captured connection is always decided on a world that has its reasons.

use std::collections::HashMap;
use std::net::IpAddr;

use mesh_common::cni::{Attachment, Reason, Refusal, Wiring};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::attachments::{Record, Store};
use crate::dataplane::plan::{Interface, Interfaces};
use crate::dataplane::{self, Dataplane};
use crate::ipam::Ipam;
use crate::model::{Attached, Change, Event, Snapshot};
use crate::network::Network;

/// What the CNI server asks of the world; every answer comes once everything is in place.
#[derive(Debug)]
pub enum Command {
    /// Choose addresses for an attachment. An attachment that is known keeps those it has.
    Reserve(Attachment, oneshot::Sender<Result<Wiring, Refusal>>),
    /// Give back what was reserved, unless it has been attached.
    Cancel(Attachment),
    /// The pod is wired: capture it. The record's sequence number is the world's to set.
    Attach(Box<Record>, u32, oneshot::Sender<Result<(), Refusal>>),
    /// The interface is gone.
    Release(Attachment, oneshot::Sender<Result<(), Refusal>>),
    /// Release every attachment of a network but these.
    Collect(String, Vec<Attachment>, oneshot::Sender<Result<(), Refusal>>),
    /// The addresses of an attachment.
    Check(Attachment, oneshot::Sender<Result<Wiring, Refusal>>),
    /// Whether an attachment could be made now.
    Status(oneshot::Sender<Result<(), Refusal>>),
}

/// The world of a node.
pub struct World {
    snapshot: Snapshot,
    published: watch::Sender<Snapshot>,
    dataplane: Dataplane,
    interfaces: Interfaces,
    network: Network,
    store: Store,
    records: HashMap<Attachment, Record>,
    reserved: HashMap<Attachment, Vec<IpAddr>>,
    ipam: Ipam,
    mtu: u32,
}
