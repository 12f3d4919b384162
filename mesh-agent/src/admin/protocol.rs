//! CORE: the messages: one JSON document a line over a Unix stream socket, one request and its answer a connection.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::inspect::{End, PolicyReport, Problem, Question, Trace};
use crate::listing::{Services, Tunnels, Workloads};
use crate::pki::Report;
use crate::status::Status;
use crate::telemetry::{Batch, Exposition, Filter, Graph, Since, Wanted};

/// Where the agent listens unless its flags say otherwise.
pub const ADMIN_SOCKET: &str = "/run/mesh-cni/admin.sock";

/// Version of the messages; both sides refuse any other.
pub const VERSION: u32 = 1;

/// Longest request, in bytes.
pub(super) const MAX_REQUEST: u64 = 64 << 10;

/// What is asked of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// What would become of a connection.
    Trace(Question),
    /// What is in force for a pod, or at all.
    Policies(Option<End>),
    /// How the node is doing.
    Status,
    /// The metrics, as a scraper gets them.
    Metrics(Exposition),
    /// Connections.
    Flows {
        /// Which.
        wanted: Wanted,
        /// From here on, as an earlier answer told it; the latest if there is none.
        since: Option<Since>,
        /// At most so many of the latest.
        most: usize,
    },
    /// What the access log tells of; or what it is to tell from now on.
    Log(Option<Filter>),
    /// The workloads of these names, or all.
    Workloads(Vec<End>),
    /// All services.
    Services,
    /// Who speaks with whom.
    Graph,
    /// The tunnels of this node that are open.
    Tunnels,
    /// The certificates of this node, without their keys.
    Certificates,
    /// What only the process itself can tell of it.
    Process,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// To [`Request::Trace`].
    Trace(Trace),
    /// To [`Request::Policies`].
    Policies(PolicyReport),
    /// To [`Request::Metrics`].
    Metrics(String),
    /// To [`Request::Flows`].
    Flows(Batch),
    /// To [`Request::Log`]: what is in force.
    Log(Filter),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Workloads`].
    Workloads(Workloads),
    /// To [`Request::Services`].
    Services(Services),
    /// To [`Request::Graph`].
    Graph(Graph),
    /// To [`Request::Tunnels`].
    Tunnels(Tunnels),
    /// To [`Request::Certificates`].
    Certificates(Vec<Report>),
    /// To [`Request::Process`].
    Process(Process),
    /// There is no answer.
    Refused(Refusal),
}

/// What the process of an agent tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The agent's version.
    pub version: String,
    /// The flags in force.
    pub flags: BTreeMap<String, String>,
    /// What it knows, as Istio's tools read it.
    pub config_dump: Value,
    /// The last lines of its log.
    pub log: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self {
            message: problem.to_string(),
            remedy: problem.remedy().to_owned(),
        }
    }
}

impl From<Result<Self, Problem>> for Response {
    fn from(answer: Result<Self, Problem>) -> Self {
        answer.unwrap_or_else(|problem| Self::Refused(problem.into()))
    }
}
