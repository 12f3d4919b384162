//! The command line: every flag with its environment variable, default and unit.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_common::names::CNI_SOCKET;

use crate::admin::ADMIN_SOCKET;
use crate::cluster::Source;
use crate::dataplane::attach::Mode;
use crate::inspect::{Destination, End, Transport};

/// The node agent of Mesh CNI.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a node: wire its pods, carry their connections, enforce their policies.
    Run(Run),
    /// Tell what would become of a connection, step by step, and which policy says so; nothing is sent.
    ///
    /// Exits with 0 if it is allowed, with 1 if it is denied (also if only by some endpoints of a service), with 2 if there
    /// is no answer.
    Trace(Trace),
    /// Tell what policies are in force, and what of them is not understood.
    Policies(Policies),
}

/// Settings of `mesh-agent trace`.
#[derive(Clone, Debug, Args)]
pub struct Trace {
    /// Who opens it: namespace/pod, pod (of namespace default), or an address.
    #[arg(value_name = "SRC-POD")]
    pub source: End,

    /// To whom: namespace/pod, pod, svc/namespace/service, service.namespace, or an address; then :PORT.
    ///
    /// An IPv6 address with a port is written `[fd00::1]:80`. A pod whose name has dots, or whose namespace is called svc, is
    /// written pod/namespace/pod. Without PORT the only one that the pod or service names is meant.
    #[arg(value_name = "DST[:PORT]")]
    pub destination: Destination,

    /// What it speaks.
    #[arg(long, value_name = "PROTOCOL", value_enum, default_value = "tcp")]
    pub proto: Transport,

    /// What both kinds of questions have.
    #[command(flatten)]
    pub common: Asking,
}

/// Settings of `mesh-agent policies`.
#[derive(Clone, Debug, Args)]
pub struct Policies {
    /// The pod they are about: namespace/pod, pod (of namespace default), or its address [default: all of the node]
    #[arg(value_name = "POD")]
    pub pod: Option<End>,

    /// What both kinds of questions have.
    #[command(flatten)]
    pub common: Asking,
}

/// Settings of what asks the running agent.
#[derive(Clone, Debug, Args)]
pub struct Asking {
    /// Unix socket on which the agent answers.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,

    /// How the answer is written.
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub output: Format,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Settings of `mesh-agent run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Name of this node, as its Node object has it.
    #[arg(long, env = "MESH_NODE", value_name = "NAME")]
    pub node: String,

    /// Where to take the world from: kubernetes, or a directory of Kubernetes YAML; edits take effect at once.
    #[arg(long, env = "MESH_SOURCE", value_name = "kubernetes|DIR")]
    pub source: Source,

    /// File that tells how to reach the Kubernetes API [default: the service account of the agent's pod]
    #[arg(long, env = "MESH_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Directory of the embedded certificate authority: root-cert.pem and root-key.pem, made at the first start.
    #[arg(long, env = "MESH_CA", value_name = "DIR")]
    pub ca: PathBuf,

    /// Directory for what must survive a restart of the agent.
    #[arg(
        long,
        env = "MESH_STATE",
        value_name = "DIR",
        default_value = "/var/lib/mesh-cni"
    )]
    pub state: PathBuf,

    /// Unix socket on which mesh-cni finds this agent.
    #[arg(long, env = "MESH_CNI_SOCKET", value_name = "PATH", default_value = CNI_SOCKET)]
    pub cni_socket: PathBuf,

    /// Unix socket on which `mesh-agent trace` and `mesh-agent policies` find this agent.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,

    /// Directory on a BPF file system that keeps programs and maps while no agent runs.
    #[arg(
        long,
        env = "MESH_BPFFS",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/mesh-cni"
    )]
    pub bpffs: PathBuf,

    /// Interface that leads to other nodes; may be given more than once [default: those with an address of the Node]
    #[arg(long, env = "MESH_UPLINK", value_name = "NAME", value_delimiter = ',')]
    pub uplink: Vec<String>,

    /// MTU of pod interfaces, in bytes [default: that of the uplink]
    #[arg(long, env = "MESH_MTU", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    pub mtu: Option<u32>,

    /// Trust domain of every identity.
    #[arg(
        long,
        env = "MESH_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,

    /// How programs are attached to interfaces; auto takes tcx from Linux 6.6 on.
    #[arg(
        long,
        env = "MESH_ATTACH",
        value_name = "HOW",
        value_enum,
        default_value = "auto"
    )]
    pub attach: Mode,

    /// Control group (v2) that holds the pods' processes [default: the root of the tree that is mounted]
    ///
    /// There, `connect` is answered with EPERM for what policy refuses. In a container it is the host's tree, mounted.
    #[arg(long, env = "MESH_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Seconds that open connections are given to end when the agent is told to stop.
    #[arg(long, env = "MESH_DRAIN_DEADLINE", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub drain_deadline: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text
        .parse()
        .map_err(|_| "not a whole number of seconds".to_owned())?;
    Ok(Duration::from_secs(seconds.into()))
}
