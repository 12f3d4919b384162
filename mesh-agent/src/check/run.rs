//! EDGE: reads the node, and has each reading judged.

use std::fs::File;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use tokio::time::timeout;

use super::finding::Finding;
use super::neighbours::{Others, Traces};
use super::reach::Agent;
use super::{files, kernel, neighbours, path, reach};
use crate::admin;
use crate::args;
use crate::causes::causes;
use crate::cluster::kubernetes::{self, Access, AccessError, Unreachable};
use crate::dataplane::probe;
use crate::network::{Error, Found, Network, Uplink};
use crate::pki::{Remote, RemoteCa, Standing};

/// Looks at this node; changes nothing. Ends within a minute or so, whoever does not answer.
pub async fn run(args: &args::Check) -> Vec<Finding> {
    let agent = agent(args);
    let mut findings = kernel::features(&probe::features());
    let mounts = files::mounts(&args.bpffs, args.cgroup.as_deref());
    findings.extend(kernel::mounts(&mounts, agent.runs()));
    let uplinks = uplinks(args, &agent);
    findings.extend(kernel::settings(&files::settings(&uplinks), agent.runs()));
    findings.push(reach::clock(SystemTime::now(), agent.status()));
    match network(args, &agent, &uplinks).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(Finding::fail(
            format!("the node's network cannot be read: {}", causes(&error)),
            "run this as root in the node's network namespace",
        )),
    }
    findings.extend(api(args).await);
    if let Some(address) = &args.remote_ca.ca_address {
        findings.push(reach::authority(address, authority(args, address).await));
    }
    findings.push(reach::agent(&agent));
    findings
}

/// A running agent holds the lock of its state directory.
fn agent(args: &args::Check) -> Agent {
    let is_held = File::open(args.state.join("lock"))
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err());
    match admin::ask_status(&args.common.admin_socket) {
        Ok(status) => Agent::Running(Box::new(status)),
        Err(error) if is_held => Agent::Silent(causes(&error)),
        Err(_) => Agent::Absent,
    }
}

fn uplinks(args: &args::Check, agent: &Agent) -> Vec<String> {
    if !args.uplink.is_empty() {
        return args.uplink.clone();
    }
    let network = agent.status().and_then(|it| it.network.as_ref());
    let uplinks = network.into_iter().flat_map(|it| &it.uplinks);
    uplinks.map(|it| it.name.clone()).collect()
}

/// What else is on the node, and the way to other nodes.
async fn network(
    args: &args::Check,
    agent: &Agent,
    uplinks: &[String],
) -> Result<Vec<Finding>, Error> {
    let network = Network::open(&args.state)?;
    let links = network.links().await?;
    let found = network.found().await?;
    let mut findings = neighbours::others(&Others {
        before_ours: files::before_ours(&args.cni_conf_dir),
        interfaces: links.iter().map(|it| it.name.clone()).collect(),
        chains: network.chains().await.map_err(|error| causes(&error)),
    });
    if !agent.runs() {
        findings.extend(neighbours::leftovers(&traces(args, &found, &links)));
    }
    let mut nodes = args.node_address.clone();
    if nodes.is_empty() && agent.runs() {
        nodes.extend(found.next_hops.iter().take(NODES));
    }
    findings.extend(ways(nodes, mtu(&links, uplinks)).await);
    Ok(findings)
}

fn traces(args: &args::Check, found: &Found, links: &[Uplink]) -> Traces {
    let programs = links.iter().map(|it| &it.name);
    let programs = programs.filter(|name| !probe::programs_at(name).is_empty());
    Traces {
        pins: files::pins(&args.bpffs),
        rules: found.rules,
        routes: found.routes,
        has_table: found.has_table,
        programs: programs.cloned().collect(),
    }
}

/// The largest packet that every uplink sends; what most networks take, if it is not known which they are.
fn mtu(links: &[Uplink], uplinks: &[String]) -> u32 {
    let mtus = links.iter().filter(|it| uplinks.contains(&it.name));
    mtus.map(|it| it.mtu).min().unwrap_or(ETHERNET)
}

async fn ways(nodes: Vec<IpAddr>, mtu: u32) -> Vec<Finding> {
    let asked = nodes
        .into_iter()
        .map(|to| async move { reach::passage(to, path::passage(to, mtu).await) });
    futures_util::future::join_all(asked).await
}

/// Nothing if this is no pod and nobody named a cluster.
async fn api(args: &args::Check) -> Vec<Finding> {
    let named = args.kubeconfig.clone().map(Access::Kubeconfig);
    let access = named.unwrap_or(Access::InCluster);
    match kubernetes::permissions(&access).await {
        Err(Unreachable::Access(AccessError::InCluster(_))) => Vec::new(),
        asked => reach::kubernetes(asked.map_err(|error| causes(&error))),
    }
}

async fn authority(args: &args::Check, address: &str) -> Result<Standing, String> {
    let given = &args.remote_ca;
    let remote = Remote {
        address: address.to_owned(),
        root: given.ca_root.clone().unwrap_or_default(),
        token: given.ca_token.clone(),
        server_name: given.ca_san.clone(),
        cluster: given.ca_cluster.clone(),
    };
    let ca = RemoteCa::new(remote).map_err(|error| causes(&error))?;
    match timeout(PATIENCE, ca.standing()).await {
        Ok(standing) => standing.map_err(|error| causes(&error)),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// Other nodes that are asked, of however many there are.
const NODES: usize = 16;
const ETHERNET: u32 = 1500;
/// How long the authority may take: it asks Kubernetes in turn.
const PATIENCE: Duration = Duration::from_secs(10);
