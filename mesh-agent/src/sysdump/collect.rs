//! What there is to be had, each thing by itself: one that cannot be had keeps no other from being there.

use std::fs;
use std::path::Path;

use nix::sys::utsname::uname;
use serde::Serialize;

use crate::admin::{self, Process, Request, Response};
use crate::args::Sysdump;
use crate::causes::causes;
use crate::dataplane::{probe, seen};
use crate::network::{Listing, Network};

/// Files of the archive, and what could not be had.
#[derive(Debug, Default)]
pub(super) struct Collection {
    /// The node, if its agent told.
    pub(super) node: Option<String>,
    /// Names and contents.
    pub(super) files: Vec<(String, String)>,
    /// What could not be had, and why.
    pub(super) missing: Vec<String>,
}

/// Asks everybody for everything.
pub(super) async fn collect(args: &Sysdump) -> Collection {
    let mut all = Collection::default();
    agent(&mut all, &args.admin_socket);
    kernel(&mut all, &args.bpffs);
    state(&mut all, &args.state);
    network(&mut all, &args.state).await;
    all
}

impl Collection {
    fn add(&mut self, name: &str, content: String) {
        self.files.push((name.to_owned(), content));
    }

    fn lines(&mut self, name: &str, lines: &[String]) {
        self.add(name, lines.join("\n") + "\n");
    }

    fn json(&mut self, name: &str, document: &impl Serialize) {
        match serde_json::to_string_pretty(document) {
            Ok(text) => self.add(name, text + "\n"),
            Err(error) => self.lacks(name, &error),
        }
    }

    fn lacks(&mut self, what: &str, why: &dyn std::error::Error) {
        self.missing.push(format!("{what}: {}", causes(why)));
    }
}

/// What the running agent tells.
fn agent(all: &mut Collection, socket: &Path) {
    let questions = [
        ("status", Request::Status),
        ("workloads", Request::Workloads(Vec::new())),
        ("services", Request::Services),
        ("policies", Request::Policies(None)),
        ("tunnels", Request::Tunnels),
        ("certificates", Request::Certificates),
        ("process", Request::Process),
    ];
    for (name, question) in questions {
        let file = format!("agent/{name}.json");
        match admin::ask(socket, &question) {
            Ok(Response::Status(it)) => {
                all.node = Some(it.node.clone());
                all.json(&file, &it);
                all.add("agent/status.txt", crate::status::render(&it));
            }
            Ok(Response::Workloads(it)) => all.json(&file, &it),
            Ok(Response::Services(it)) => all.json(&file, &it),
            Ok(Response::Policies(it)) => all.json(&file, &it),
            Ok(Response::Tunnels(it)) => all.json(&file, &it),
            Ok(Response::Certificates(it)) => all.json(&file, &it),
            Ok(Response::Process(it)) => process(all, &it),
            Ok(_) => all.missing.push(format!("{file}: another answer")),
            Err(error @ admin::ClientError::Connect { .. }) => {
                all.lacks("no agent answers, so what it knows is not here", &error);
                return;
            }
            Err(error) => all.lacks(&file, &error),
        }
    }
}

fn process(all: &mut Collection, it: &Process) {
    all.json("agent/config_dump.json", &it.config_dump);
    all.json("agent/flags.json", &it.flags);
    all.add("agent/version.txt", it.version.clone() + "\n");
    all.lines("agent/log.txt", &it.log);
}

/// What the kernel has of ours.
fn kernel(all: &mut Collection, bpffs: &Path) {
    match uname() {
        Ok(it) => {
            let words = [
                it.sysname(),
                it.nodename(),
                it.release(),
                it.version(),
                it.machine(),
            ];
            let words: Vec<_> = words.iter().map(|it| it.to_string_lossy()).collect();
            all.add("kernel/uname.txt", words.join(" ") + "\n");
        }
        Err(error) => all.lacks("kernel/uname.txt", &error),
    }
    let features: Vec<_> = probe::features()
        .into_iter()
        .map(|it| match it.present {
            Ok(true) => format!("{}: yes", it.name),
            Ok(false) => format!("{}: no, {} has it", it.name, it.since),
            Err(error) => format!("{}: {error}", it.name),
        })
        .collect();
    all.lines("kernel/features.txt", &features);
    all.lines("kernel/programs.txt", &seen::programs());
    all.lines("kernel/pins.txt", &seen::pins(bpffs));
    all.lines("kernel/maps.txt", &seen::maps(bpffs));
    match seen::counters(bpffs) {
        Ok(counters) => all.json("kernel/counters.json", &counters),
        Err(error) => all.lacks("kernel/counters.json", &error),
    }
}

/// The names and sizes of what is kept on disk; what is in it is told by the agent.
fn state(all: &mut Collection, state: &Path) {
    let mut lines = Vec::new();
    let mut directories = vec![state.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                all.lacks(&directory.display().to_string(), &error);
                continue;
            }
        };
        for entry in entries.flatten() {
            let (path, about) = (entry.path(), entry.metadata());
            let is_directory = about.as_ref().is_ok_and(fs::Metadata::is_dir);
            let size = about.map_or(0, |it| it.len());
            lines.push(format!("{size} {}", path.display()));
            if is_directory {
                directories.push(path);
            }
        }
    }
    lines.sort();
    all.lines("state/files.txt", &lines);
}

/// The node's network.
async fn network(all: &mut Collection, state: &Path) {
    let network = match Network::open(state) {
        Ok(network) => network,
        Err(error) => return all.lacks("network", &error),
    };
    match network.listing().await {
        Ok(Listing {
            links,
            addresses,
            rules,
            routes,
        }) => {
            all.lines("network/links.txt", &links);
            all.lines("network/addresses.txt", &addresses);
            all.lines("network/rules.txt", &rules);
            all.lines("network/routes.txt", &routes);
        }
        Err(error) => all.lacks("network", &error),
    }
    match network.chains().await {
        Ok(chains) => all.lines("network/chains.txt", &chains),
        Err(error) => all.lacks("network/chains.txt", &error),
    }
    let settings = SETTINGS.map(|name| {
        let value = fs::read_to_string(Path::new("/proc/sys/net").join(name));
        let value = value.unwrap_or_else(|error| error.to_string());
        format!("{name} = {}", value.trim())
    });
    all.lines("network/settings.txt", &settings);
}

/// Kernel settings that have to do with how packets come to the agent.
const SETTINGS: [&str; 10] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/default/rp_filter",
    "ipv4/conf/all/src_valid_mark",
    "ipv4/conf/all/route_localnet",
    "ipv4/ip_local_port_range",
    "core/somaxconn",
    "netfilter/nf_conntrack_max",
];
