//! The command line: every flag with its environment variable, default and unit.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use mesh_common::names::CNI_SOCKET;

use crate::admin::ADMIN_SOCKET;
use crate::authority::ServiceAccount;
use crate::cluster::Source;
use crate::dataplane::attach::Mode;
use crate::http::Address;
use crate::inspect::{Destination, End, Transport};
use crate::map::Place;
use crate::telemetry::{Collector, Exposition, Filter, Wanted};
use crate::trace_context::Share;

/// The node agent of Mesh CNI.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, about)]
pub struct Cli {
    /// How the log is written.
    #[arg(
        long,
        global = true,
        env = "MESH_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads the command line and the environment; also tells the flags in force, by their names. Ends the process where
    /// they cannot be understood.
    pub fn read() -> (Self, BTreeMap<String, String>) {
        let matches = Self::command().get_matches();
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let flags = matches
            .subcommand()
            .map(|(name, matches)| in_force(name, matches));
        (cli, flags.unwrap_or_default())
    }
}

/// The values of a subcommand's flags.
fn in_force(subcommand: &str, matches: &ArgMatches) -> BTreeMap<String, String> {
    let cli = Cli::command();
    let flags = cli.find_subcommand(subcommand).into_iter();
    let flags = flags.flat_map(clap::Command::get_arguments);
    let value = |flag: &clap::Arg| {
        let values = matches.get_raw(flag.get_id().as_str())?;
        let values: Vec<_> = values.map(|it| it.to_string_lossy()).collect();
        Some((flag.get_long()?.to_owned(), values.join(",")))
    };
    flags.filter_map(value).collect()
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a node: wire its pods, carry their connections, enforce their policies.
    Run(Box<Run>),
    /// Serve a cluster: sign the certificates of its workloads, for the agents of the nodes they run on.
    Ca(Ca),
    /// Tell what would become of a connection, step by step, and which policy says so; nothing is sent.
    ///
    /// Exits with 0 if it is allowed, with 1 if it is denied (also if only by some endpoints of a service), with 2 if there
    /// is no answer.
    Trace(Trace),
    /// Tell what policies are in force, and what of them is not understood.
    Policies(Policies),
    /// Tell how the node is doing, on one screen.
    ///
    /// Exits with 0 if it is healthy, with 1 if there is a problem, with 2 if there is no answer.
    Status(Asking),
    /// Tell of the latest connections of the node's pods: who, with whom, how, and why not.
    Flows(Flows),
    /// Print the metrics.
    Metrics(Metrics),
    /// Tell which connections the access log tells of, or have it tell of others; lasts until the agent ends.
    Log(Log),
    /// List pods as the mesh sees them: where they are, who they are, and why they are not part of it.
    Workloads(Workloads),
    /// List services with their endpoints.
    Services(Asking),
    /// List the tunnels that are open between pods of this node and others.
    Tunnels(Asking),
    /// List the certificates of this node's identities, never with a key.
    ///
    /// Exits with 0 if all are there and none waits for its renewal, with 1 otherwise, with 2 if there is no answer.
    Certs(Asking),
    /// Serve a live map of who speaks with whom, of one agent or several, to the browser on this machine.
    Map(Map),
    /// Write what a maintainer needs to work on a problem of this node to one archive; no keys, no tokens.
    ///
    /// Also where no agent runs: then what the node itself can tell.
    Sysdump(Sysdump),
    /// Tell whether this node can run the agent, or what around a running one is wrong; changes nothing.
    ///
    /// One line a finding, with its remedy. Exits with 1 if anything fails.
    Check(Box<Check>),
    /// Make a node ready: a BPF file system, forwarding. For an init container that has more rights than the agent.
    Prepare(Prepare),
    /// Take everything that agents made off this node, except the interfaces of pods that still run; may be run again.
    ///
    /// Exits with 1 if something could not be removed, or if an agent runs.
    Uninstall(Uninstall),
    /// Wait for the order to stop: for a pod whose work is done by its init containers.
    #[command(hide = true)]
    Pause,
}

/// Settings of `mesh-agent check`.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// Directory on a BPF file system that is to keep programs and maps.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,

    /// Directory of the container runtime's network configuration.
    #[arg(
        long,
        env = "MESH_CNI_CONF_DIR",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    pub cni_conf_dir: PathBuf,

    /// Directory of the agent's state, by which a running agent is known.
    #[arg(long, env = "MESH_STATE", value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,

    /// Control group (v2) that holds the pods' processes [default: the root of the tree that is mounted]
    #[arg(long, env = "MESH_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Interface that leads to other nodes; may be given more than once [default: the running agent's]
    #[arg(long, env = "MESH_UPLINK", value_name = "NAME", value_delimiter = ',')]
    pub uplink: Vec<String>,

    /// Address of another node, to which packets of full size are sent; may be given more than once [default: those that the
    /// running agent has routes to]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub node_address: Vec<IpAddr>,

    /// File that tells how to reach the Kubernetes API [default: the service account of this pod, if this is one]
    #[arg(long, env = "MESH_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The authority of the cluster, if it has one.
    #[command(flatten)]
    pub remote_ca: RemoteCa,

    /// What asks the running agent, if there is one.
    #[command(flatten)]
    pub common: Asking,
}

/// Settings of `mesh-agent prepare`.
#[derive(Clone, Debug, Args)]
pub struct Prepare {
    /// Directory on a BPF file system that keeps programs and maps while no agent runs.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,

    /// Directory of the agent's state, where changed kernel settings are recorded.
    #[arg(long, env = "MESH_STATE", value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,
}

/// Settings of `mesh-agent uninstall`; the directories are those that the agent was given.
#[derive(Clone, Debug, Args)]
pub struct Uninstall {
    /// Remove also what survives a restart: which pods have which addresses.
    #[arg(long)]
    pub purge_state: bool,

    /// Remove it under a running agent, which then is of no use.
    #[arg(long)]
    pub force: bool,

    /// Directory of the agent's programs and maps.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,

    /// Directory of the agent's state.
    #[arg(long, env = "MESH_STATE", value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,

    /// Directory of the agent's sockets.
    #[arg(
        long,
        env = "MESH_RUN_DIR",
        value_name = "DIR",
        default_value = "/run/mesh-cni"
    )]
    pub run_dir: PathBuf,

    /// Directory that the plugin was installed in.
    #[arg(
        long,
        env = "MESH_CNI_BIN_DIR",
        value_name = "DIR",
        default_value = "/opt/cni/bin"
    )]
    pub cni_bin_dir: PathBuf,

    /// Directory that the network configuration was written to.
    #[arg(
        long,
        env = "MESH_CNI_CONF_DIR",
        value_name = "DIR",
        default_value = "/etc/cni/net.d"
    )]
    pub cni_conf_dir: PathBuf,
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

/// Settings of `mesh-agent flows`.
#[derive(Clone, Debug, Args)]
pub struct Flows {
    /// Go on with connections as they open, end or are refused.
    #[arg(short, long)]
    pub follow: bool,

    /// Only those with this pod at one end: namespace/pod, or pod (of namespace default).
    #[arg(long, value_name = "POD")]
    pub pod: Option<PodName>,

    /// Only those with a pod of this namespace at one end.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Only those that were refused, or ended because policy no longer allows them.
    #[arg(long)]
    pub denied: bool,

    /// How many of the latest to tell.
    #[arg(long, value_name = "COUNT", default_value = "100")]
    pub last: usize,

    /// What all questions have; JSON is one object a line.
    #[command(flatten)]
    pub common: Asking,
}

impl From<&Flows> for Wanted {
    fn from(args: &Flows) -> Self {
        Self {
            pod: args.pod.clone().map(|it| (it.namespace, it.name)),
            namespace: args.namespace.clone(),
            denied: args.denied,
            opened: args.follow,
        }
    }
}

/// A pod as people write it: `namespace/name`, or `name` of namespace `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    namespace: String,
    name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(End::Pod { namespace, name }) => Ok(Self { namespace, name }),
            Ok(End::Service { .. } | End::Address(_)) => {
                Err("not a pod: write namespace/pod".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Settings of `mesh-agent metrics`.
#[derive(Clone, Debug, Args)]
pub struct Metrics {
    /// Unix socket on which the agent answers.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,

    /// Which text.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "prometheus")]
    pub format: MetricsFormat,
}

/// The texts that metrics are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsFormat {
    /// The text format of Prometheus, 0.0.4.
    Prometheus,
    /// `OpenMetrics` 1.0.
    Openmetrics,
}

impl From<MetricsFormat> for Exposition {
    fn from(format: MetricsFormat) -> Self {
        match format {
            MetricsFormat::Prometheus => Self::Prometheus,
            MetricsFormat::Openmetrics => Self::OpenMetrics,
        }
    }
}

/// Settings of `mesh-agent log`.
#[derive(Clone, Debug, Args)]
pub struct Log {
    /// Tell only of connections with a pod of this namespace at one end; may be given more than once.
    #[arg(short, long, value_name = "NAME", value_delimiter = ',')]
    pub namespace: Vec<String>,

    /// Tell of one in so many connections.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: Option<u32>,

    /// Tell of refusals alone.
    #[arg(long, conflicts_with_all = ["namespace", "sample", "all"])]
    pub off: bool,

    /// Tell of all connections, as an agent does that has started.
    #[arg(long, conflicts_with_all = ["namespace", "sample"])]
    pub all: bool,

    /// What all questions have.
    #[command(flatten)]
    pub common: Asking,
}

/// Settings of `mesh-agent workloads`.
#[derive(Clone, Debug, Args)]
pub struct Workloads {
    /// Pods: namespace/pod, pod (of namespace default), or an address [default: all]
    #[arg(value_name = "POD")]
    pub pods: Vec<End>,

    /// What all questions have.
    #[command(flatten)]
    pub common: Asking,
}

impl Log {
    /// What the log is to tell; none if it is only asked.
    pub fn filter(&self) -> Option<Filter> {
        let namespaces = Some(self.namespace.clone()).filter(|it| !it.is_empty());
        let changes = self.off || self.all || self.sample.is_some() || namespaces.is_some();
        changes.then(|| Filter {
            on: !self.off,
            namespaces,
            sample: self.sample.unwrap_or(1),
        })
    }
}

/// Settings of `mesh-agent sysdump`.
#[derive(Clone, Debug, Args)]
pub struct Sysdump {
    /// The archive to write, or - for standard output [default: mesh-sysdump-NODE-TIME.tar.gz here]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Unix socket on which the agent answers.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,

    /// Directory of the agent's state.
    #[arg(long, env = "MESH_STATE", value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,

    /// Directory of the agent's programs and maps.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,
}

/// Settings of `mesh-agent map`.
#[derive(Clone, Debug, Args)]
pub struct Map {
    /// An agent to ask: the path of its admin socket, or http://HOST:PORT that leads to its --admin-address; may be given more
    /// than once [default: all of the cluster, each through the Kubernetes API].
    #[arg(
        long = "agent",
        env = "MESH_MAP_AGENTS",
        value_name = "SOCKET|URL",
        value_delimiter = ','
    )]
    pub agents: Vec<Place>,

    /// Namespace of the cluster's agents.
    #[arg(
        short,
        long,
        env = "MESH_MAP_NAMESPACE",
        value_name = "NAME",
        default_value = "mesh-system"
    )]
    pub namespace: String,

    /// File that tells how to reach the Kubernetes API [default: as kubectl finds it]
    #[arg(
        long,
        env = "MESH_KUBECONFIG",
        value_name = "FILE",
        conflicts_with = "agents"
    )]
    pub kubeconfig: Option<PathBuf>,

    /// Loopback address of the map, plain HTTP: /map.
    #[arg(
        long,
        env = "MESH_MAP_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:15080",
        value_parser = loopback
    )]
    pub listen: SocketAddr,
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
    #[arg(
        long,
        env = "MESH_CA",
        value_name = "DIR",
        conflicts_with = "ca_address"
    )]
    pub ca: Option<PathBuf>,

    /// The authority of the cluster, if it has one.
    #[command(flatten)]
    pub remote_ca: RemoteCa,

    /// Directory for what must survive a restart of the agent.
    #[arg(long, env = "MESH_STATE", value_name = "DIR", default_value = STATE)]
    pub state: PathBuf,

    /// Unix socket on which mesh-cni finds this agent.
    #[arg(long, env = "MESH_CNI_SOCKET", value_name = "PATH", default_value = CNI_SOCKET)]
    pub cni_socket: PathBuf,

    /// Unix socket on which `mesh-agent trace`, `status`, `workloads` and the like find this agent.
    #[arg(long, env = "MESH_ADMIN_SOCKET", value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,

    /// Directory of the container runtime's plugins, where mesh-cni is installed and kept [default: it is not installed]
    #[arg(long, env = "MESH_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,

    /// Directory of the container runtime's network configuration, where ours is written and kept once the agent can wire
    /// pods [default: it is not written]
    #[arg(long, env = "MESH_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// The plugin to install [default: mesh-cni beside this executable]
    #[arg(long, env = "MESH_CNI_BINARY", value_name = "FILE")]
    pub cni_binary: Option<PathBuf>,

    /// Directory on a BPF file system that keeps programs and maps while no agent runs.
    #[arg(long, env = "MESH_BPFFS", value_name = "DIR", default_value = BPFFS)]
    pub bpffs: PathBuf,

    /// Interface that leads to other nodes; may be given more than once [default: those with an address of the Node]
    #[arg(long, env = "MESH_UPLINK", value_name = "NAME", value_delimiter = ',')]
    pub uplink: Vec<String>,

    /// MTU of pod interfaces, in bytes [default: that of the uplink]
    #[arg(long, env = "MESH_MTU", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1280..=65535))]
    pub mtu: Option<u32>,

    /// Let pods leave the cluster with the node's address; pods and nodes still see each other's own.
    #[arg(long, env = "MESH_MASQUERADE")]
    pub masquerade: bool,

    /// Network outside the cluster that knows the way to pods, which keep their addresses towards it; may be given more than
    /// once.
    #[arg(
        long,
        env = "MESH_NO_MASQUERADE",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub no_masquerade: Vec<IpNet>,

    /// Trust domain of every identity.
    #[arg(
        long,
        env = "MESH_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,

    /// How programs are attached to interfaces; auto takes clsact for pods' and, from Linux 6.6 on, tcx for uplinks.
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

    /// Threads that carry connections [default: one for each processor, at most 4]
    #[arg(long, env = "MESH_WORKERS", value_name = "COUNT")]
    pub workers: Option<NonZeroUsize>,

    /// Seconds that open connections are given to end when another agent has taken over; without one it is 5 at most.
    #[arg(long, env = "MESH_DRAIN_DEADLINE", value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub drain_deadline: Duration,

    /// Where it serves HTTP.
    #[command(flatten)]
    pub http: Http,

    /// Whom it tells of connections.
    #[command(flatten)]
    pub otlp: Otlp,
}

/// Whom `mesh-agent run` tells of connections.
#[derive(Clone, Debug, Args)]
pub struct Otlp {
    /// OpenTelemetry collector that is told of connections, by spans and log records (OTLP over gRPC, without TLS): one of
    /// the node [default: none]
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "http://HOST:PORT"
    )]
    pub otlp_endpoint: Option<Collector>,

    /// Share of connections that the collector is told of, from 0 to 1. The end that opens a connection decides, and the
    /// other does as it does (traceparent in CONNECT; none with 0). Of refusals there always is a log record.
    #[arg(
        long,
        env = "MESH_OTLP_SAMPLING",
        value_name = "SHARE",
        default_value = "0.01"
    )]
    pub otlp_sampling: Share,
}

impl Otlp {
    /// The share of connections that a collector is told of, if there is one.
    pub fn sampling(&self) -> Option<Share> {
        self.otlp_endpoint.as_ref().map(|_| self.otlp_sampling)
    }
}

/// Where `mesh-agent run` serves HTTP. A port that is taken is waited for, and told by `mesh-agent status`.
#[derive(Clone, Debug, Args)]
pub struct Http {
    /// Address of the metrics, plain HTTP: /metrics; off, or 0.0.0.0 where the kernel has no IPv6.
    #[arg(
        long,
        env = "MESH_METRICS_ADDRESS",
        value_name = "ADDRESS:PORT|off",
        default_value = "[::]:15020"
    )]
    pub metrics_address: Address,

    /// Address of the health checks, plain HTTP: /healthz/ready and /healthz/live; off, or 0.0.0.0 where the kernel has no
    /// IPv6.
    #[arg(
        long,
        env = "MESH_HEALTH_ADDRESS",
        value_name = "ADDRESS:PORT|off",
        default_value = "[::]:15021"
    )]
    pub health_address: Address,

    /// Loopback address of what the agent knows, plain HTTP: `/config_dump`, `/map` and POST `/logging`; or off.
    #[arg(
        long,
        env = "MESH_ADMIN_ADDRESS",
        value_name = "ADDRESS:PORT|off",
        default_value = "127.0.0.1:15000",
        value_parser = Address::loopback
    )]
    pub admin_address: Address,
}

const STATE: &str = "/var/lib/mesh-cni";
const BPFFS: &str = "/sys/fs/bpf/mesh-cni";

/// Where `mesh-agent run` has its certificates from, when not from a directory.
#[derive(Clone, Debug, Args)]
pub struct RemoteCa {
    /// The cluster's certificate authority instead of --ca: `mesh-agent ca`, istiod or istio-csr.
    #[arg(
        long,
        env = "MESH_CA_ADDRESS",
        value_name = "HOST:PORT",
        requires = "ca_root"
    )]
    pub ca_address: Option<String>,

    /// PEM file of the roots that sign that authority's serving certificate; read again for each certificate.
    #[arg(
        long,
        env = "MESH_CA_ROOT",
        value_name = "FILE",
        requires = "ca_address"
    )]
    pub ca_root: Option<PathBuf>,

    /// File of the agent's service account token for that authority; read again for each certificate.
    #[arg(
        long,
        env = "MESH_CA_TOKEN",
        value_name = "FILE",
        default_value = "/var/run/secrets/mesh-ca/token"
    )]
    pub ca_token: PathBuf,

    /// DNS name in that authority's serving certificate [default: the host of --ca-address]
    #[arg(
        long,
        env = "MESH_CA_SAN",
        value_name = "NAME",
        requires = "ca_address"
    )]
    pub ca_san: Option<String>,

    /// Name of this cluster, as istiod has it; `mesh-agent ca` does not look at it.
    #[arg(
        long,
        env = "MESH_CA_CLUSTER",
        value_name = "NAME",
        default_value = "Kubernetes"
    )]
    pub ca_cluster: String,
}

/// Settings of `mesh-agent ca`.
#[derive(Clone, Debug, Args)]
pub struct Ca {
    /// Address on which agents ask, in TLS; 0.0.0.0:15012 where the kernel has no IPv6.
    #[arg(
        long,
        env = "MESH_CA_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "[::]:15012"
    )]
    pub listen: SocketAddr,

    /// Address of the readiness probe, plain HTTP: /healthz/ready.
    #[arg(
        long,
        env = "MESH_CA_HEALTH",
        value_name = "ADDRESS:PORT",
        default_value = "[::]:15021"
    )]
    pub health: SocketAddr,

    /// Namespace of the authority, with its Secret and ConfigMap.
    #[arg(
        long,
        env = "MESH_CA_NAMESPACE",
        value_name = "NAME",
        default_value = "mesh-system"
    )]
    pub namespace: String,

    /// DNS name in the serving certificate; may be given more than once [default: mesh-ca.NAMESPACE.svc]
    #[arg(long, env = "MESH_CA_SAN", value_name = "NAME", value_delimiter = ',')]
    pub san: Vec<String>,

    /// Audience that tokens must be made for.
    #[arg(
        long,
        env = "MESH_CA_AUDIENCE",
        value_name = "NAME",
        default_value = "istio-ca"
    )]
    pub audience: String,

    /// Service account that may ask on behalf of the pods of its own node; may be given more than once.
    #[arg(
        long,
        env = "MESH_CA_ALLOW",
        value_name = "USER",
        value_delimiter = ',',
        default_value = "system:serviceaccount:mesh-system:mesh-agent"
    )]
    pub allow: Vec<ServiceAccount>,

    /// Trust domain of every identity.
    #[arg(
        long,
        env = "MESH_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,

    /// Seconds that a certificate lives at most; the same for all replicas.
    #[arg(long, env = "MESH_CA_LEAF_LIFETIME", value_name = "SECONDS", default_value = "86400", value_parser = lifetime)]
    pub leaf_lifetime: Duration,

    /// Seconds that a new root is trusted before it signs; never less than certificates live.
    #[arg(long, env = "MESH_CA_ROOT_OVERLAP", value_name = "SECONDS", default_value = "172800", value_parser = seconds)]
    pub root_overlap: Duration,

    /// Secret with the root, made at the first start.
    #[arg(
        long,
        env = "MESH_CA_SECRET",
        value_name = "NAME",
        default_value = "mesh-ca-root"
    )]
    pub secret: String,

    /// ConfigMap that the trusted roots are written to, as root-cert.pem.
    #[arg(
        long,
        env = "MESH_CA_CONFIG_MAP",
        value_name = "NAME",
        default_value = "mesh-ca-root-cert"
    )]
    pub config_map: String,

    /// File that tells how to reach the Kubernetes API [default: the service account of the pod]
    #[arg(long, env = "MESH_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Seconds that open requests are given to end when the authority is told to stop.
    #[arg(long, env = "MESH_DRAIN_DEADLINE", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub drain_deadline: Duration,
}

/// A shorter life would be renewed all the time.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = seconds(text)?;
    if lifetime < Duration::from_mins(10) {
        return Err("at least 600 seconds".to_owned());
    }
    Ok(lifetime)
}

/// An address that only processes of this machine can reach.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    match Address::loopback(text) {
        Ok(Address::At(address)) => Ok(address),
        Ok(Address::Off) => Err("name an address with a port, such as 127.0.0.1:15080".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text
        .parse()
        .map_err(|_| "not a whole number of seconds".to_owned())?;
    Ok(Duration::from_secs(seconds.into()))
}
