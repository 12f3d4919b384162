//! CORE: judges the kernel: its features, file systems and settings.

use std::path::PathBuf;

use super::finding::Finding;
use crate::dataplane::probe::{Feature, Need};
use crate::proxy::{CLIENT_PORTS, POD_PORTS};

/// How the agent would keep its programs and reach the pods' sockets.
#[derive(Debug)]
pub(super) struct Mounts {
    /// `--bpffs`.
    pub(super) bpffs: PathBuf,
    /// Whether it is, or would be, on a BPF file system.
    pub(super) is_bpffs: bool,
    /// Whether it is where the agent mounts one if it may.
    pub(super) is_usual: bool,
    /// The tree of control groups, unless there is none.
    pub(super) cgroup: Option<Cgroup>,
}

/// The control group that `connect()` is answered in.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Where it is.
    pub(super) path: PathBuf,
    /// Whether somebody named it.
    pub(super) is_named: bool,
    /// Whether it can be read and is of version 2.
    pub(super) is_version_2: bool,
    /// Whether it is the machine's root, not that of a container.
    pub(super) is_root: bool,
    /// Whether there are others below it.
    pub(super) has_children: bool,
}

/// The kernel settings of the node's network namespace, as the kernel writes them; `None` is absent.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// `ipv4/ip_forward` and `ipv6/conf/all/forwarding`.
    pub(super) forwarding: Vec<Forwarding>,
    /// `rp_filter` by interface (or `all`).
    pub(super) reverse_path: Vec<(String, Option<u8>)>,
    /// `ipv4/ip_local_port_range`.
    pub(super) local_ports: Option<String>,
    /// `netfilter/nf_conntrack_tcp_be_liberal`.
    pub(super) liberal: Option<String>,
}

/// Whether the node forwards packets of a family.
#[derive(Debug)]
pub(super) struct Forwarding {
    /// The setting.
    pub(super) name: &'static str,
    /// Its value.
    pub(super) value: String,
    /// Whether this process may change it.
    pub(super) is_writable: bool,
}

pub(super) fn features(features: &[Feature]) -> Vec<Finding> {
    features.iter().map(feature).collect()
}

fn feature(it: &Feature) -> Finding {
    let Feature {
        name, since, need, ..
    } = it;
    match (&it.present, need) {
        (Ok(true), _) => Finding::ok(format!("kernel has {name}")),
        (Ok(false), Need::Agent(option)) => Finding::fail(
            format!("kernel has no {name}"),
            format!("run Linux {since} or newer with {option}"),
        ),
        (Ok(false), Need::Part(without)) => Finding::warn(
            format!("kernel has no {name}: {without}"),
            format!("run Linux {since} or newer"),
        ),
        (Err(error), _) => Finding::fail(
            format!("cannot ask for {name}: {error}"),
            "run this as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN",
        ),
    }
}

/// Judges them; a running agent has mounted what it mounts.
pub(super) fn mounts(it: &Mounts, agent_runs: bool) -> Vec<Finding> {
    vec![pins(it, agent_runs), cgroup(it.cgroup.as_ref())]
}

fn pins(it: &Mounts, agent_runs: bool) -> Finding {
    let path = it.bpffs.display();
    if it.is_bpffs {
        return Finding::ok(format!("{path} is on a BPF file system"));
    }
    let what = format!("{path} is on no BPF file system");
    if it.is_usual && !agent_runs {
        return Finding::warn(
            what,
            "on a host nothing is to be done: the agent mounts one; in a container run `mesh-agent prepare` before it",
        );
    }
    Finding::fail(
        what,
        "mount one (`mesh-agent prepare` does, at /sys/fs/bpf), or name another directory with --bpffs",
    )
}

fn cgroup(it: Option<&Cgroup>) -> Finding {
    const WITHOUT: &str = "connect() of pods will not fail with EPERM";
    let Some(it) = it else {
        return Finding::warn(
            format!("no tree of control groups (cgroup2) is mounted: {WITHOUT}"),
            "mount it, in a container the host's, or name it with --cgroup",
        );
    };
    let path = it.path.display();
    if !it.is_version_2 {
        return Finding::warn(
            format!("control group {path} is absent or not of version 2: {WITHOUT}"),
            "name another one with --cgroup",
        );
    }
    match (it.is_root, it.is_named && it.has_children) {
        (true, _) => Finding::ok(format!("control group {path} is the machine's root")),
        (false, true) => Finding::ok(format!("control group {path} has others below it")),
        (false, false) => Finding::warn(
            format!(
                "control group {path} is not the machine's root, but this container's: {WITHOUT}"
            ),
            "mount the host's /sys/fs/cgroup into the container, or name the pods' group with --cgroup",
        ),
    }
}

/// Judges the settings; a running agent has made those it makes, so what is not so was undone.
pub(super) fn settings(it: &Settings, agent_runs: bool) -> Vec<Finding> {
    let mut findings: Vec<_> = it
        .forwarding
        .iter()
        .map(|it| forwarding(it, agent_runs))
        .collect();
    findings.extend(reverse_path(&it.reverse_path));
    findings.extend(it.local_ports.as_deref().map(local_ports));
    findings.extend(
        it.liberal
            .as_deref()
            .map(|value| Finding::ok(format!("netfilter/nf_conntrack_tcp_be_liberal is {value}"))),
    );
    findings
}

fn forwarding(it: &Forwarding, agent_runs: bool) -> Finding {
    let what = format!("{} is {}", it.name, it.value);
    if it.value == "1" {
        Finding::ok(what)
    } else if agent_runs {
        Finding::fail(
            format!("{what}: pods cannot reach other nodes"),
            format!(
                "set it to 1 (`mesh-agent prepare`), and see what resets it: net/{} in /etc/sysctl.d",
                it.name
            ),
        )
    } else if it.is_writable {
        Finding::ok(format!("{what}, which the agent sets to 1"))
    } else {
        Finding::fail(
            format!("{what}, and is read-only"),
            "run `mesh-agent prepare` where /proc/sys can be written, in an init container",
        )
    }
}

/// The kernel takes the larger of `all` and the interface's own. Strict (1) is harmless while there is one way only.
fn reverse_path(values: &[(String, Option<u8>)]) -> Vec<Finding> {
    let of_all = values.iter().find(|(name, _)| name == "all");
    let of_all = of_all.and_then(|(_, value)| *value).unwrap_or_default();
    let uplinks: Vec<_> = values.iter().filter(|(name, _)| name != "all").collect();
    if uplinks.is_empty() {
        return vec![Finding::ok(format!("ipv4/conf/all/rp_filter is {of_all}"))];
    }
    let one_way = uplinks.len() == 1;
    let judged = uplinks.iter().filter_map(|(name, value)| {
        let value = of_all.max((*value)?);
        let what = format!("ipv4/conf/{name}/rp_filter is in effect {value}");
        Some(if value == 1 && !one_way {
            Finding::warn(
                format!("{what} (strict), and there are {} uplinks", uplinks.len()),
                "set it to 2: replies may come in by another uplink than requests leave by",
            )
        } else {
            Finding::ok(what)
        })
    });
    judged.collect()
}

/// The agent speaks in the name of pods from ports that no kernel may choose meanwhile.
fn local_ports(range: &str) -> Finding {
    let what = format!("ipv4/ip_local_port_range is {}", range.replace('\t', " "));
    let ends: Vec<u16> = range
        .split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect();
    let [first, last] = ends[..] else {
        return Finding::warn(what, "set it to two ports from 32768 on");
    };
    let meets = [POD_PORTS, CLIENT_PORTS]
        .into_iter()
        .find(|ours| first <= *ours.end() && *ours.start() <= last);
    match meets {
        None => Finding::ok(what),
        Some(ours) => Finding::warn(
            what,
            format!(
                "begin it at 32768 or above: the agent uses {} to {} in the name of pods",
                ours.start(),
                ours.end()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome::{self, Fail, Ok as Fine, Warn};
    use super::*;

    #[track_caller]
    fn is(finding: &Finding, outcome: Outcome, words: &str) {
        assert_eq!(finding.outcome, outcome, "{finding:?}");
        assert_eq!(finding.remedy.is_empty(), outcome == Fine, "{finding:?}");
        let text = format!("{}; {}", finding.what, finding.remedy);
        assert!(text.contains(words), "{words} in {text}");
    }

    #[test]
    fn a_feature_is_needed_by_all_or_by_a_part() {
        let of = |present, need| {
            feature(&Feature {
                name: "x",
                since: "5.9",
                need,
                present,
            })
        };
        let agent = Need::Agent("CONFIG_X");
        is(&of(Ok(true), agent), Fine, "kernel has x");
        is(
            &of(Ok(false), agent),
            Fail,
            "Linux 5.9 or newer with CONFIG_X",
        );
        is(&of(Ok(false), Need::Part("y is slow")), Warn, "y is slow");
        is(&of(Err("EPERM".to_owned()), agent), Fail, "as root");
    }

    #[test]
    fn a_cgroup_that_pods_are_not_below_is_told() {
        let group = |is_named, is_root, has_children| Cgroup {
            path: "/c".into(),
            is_named,
            is_version_2: true,
            is_root,
            has_children,
        };
        is(&cgroup(None), Warn, "--cgroup");
        is(&cgroup(Some(&group(false, true, true))), Fine, "root");
        is(
            &cgroup(Some(&group(false, false, true))),
            Warn,
            "the host's",
        );
        is(&cgroup(Some(&group(true, false, true))), Fine, "below");
        is(&cgroup(Some(&group(true, false, false))), Warn, "--cgroup");
        let mut old = group(true, true, true);
        old.is_version_2 = false;
        is(&cgroup(Some(&old)), Warn, "version 2");
    }

    #[test]
    fn a_bpf_file_system_is_needed() {
        let of = |is_bpffs, is_usual, agent_runs| {
            let mounts = Mounts {
                bpffs: "/b".into(),
                is_bpffs,
                is_usual,
                cgroup: None,
            };
            pins(&mounts, agent_runs)
        };
        is(&of(true, false, true), Fine, "/b");
        is(&of(false, false, false), Fail, "mesh-agent prepare");
        is(&of(false, true, false), Warn, "the agent mounts one");
        is(&of(false, true, true), Fail, "mesh-agent prepare");
    }

    #[test]
    fn forwarding_is_the_agents_until_it_runs() {
        let of = |value: &str, is_writable, agent_runs| {
            let value = value.to_owned();
            let name = "ipv4/ip_forward";
            let it = Forwarding {
                name,
                value,
                is_writable,
            };
            forwarding(&it, agent_runs)
        };
        is(&of("1", false, true), Fine, "ip_forward");
        is(&of("0", true, false), Fine, "the agent sets to 1");
        is(&of("0", false, false), Fail, "prepare");
        is(&of("0", true, true), Fail, "sysctl.d");
    }

    #[test]
    fn a_strict_reverse_path_matters_with_two_uplinks() {
        let of = |values: &[(&str, u8)]| {
            let values: Vec<_> = values
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Some(*value)))
                .collect();
            reverse_path(&values)
        };
        is(&of(&[("all", 1)])[0], Fine, "all/rp_filter is 1");
        is(&of(&[("all", 1), ("eth0", 0)])[0], Fine, "eth0");
        is(
            &of(&[("all", 1), ("eth0", 0), ("eth1", 2)])[0],
            Warn,
            "2 uplinks",
        );
        is(
            &of(&[("all", 1), ("eth0", 0), ("eth1", 2)])[1],
            Fine,
            "eth1",
        );
        is(
            &of(&[("all", 0), ("eth0", 0), ("eth1", 1)])[1],
            Warn,
            "eth1",
        );
    }

    #[test]
    fn the_agents_ports_are_its_own() {
        is(&local_ports("32768\t60999"), Fine, "32768 60999");
        is(&local_ports("1024\t60999"), Warn, "4096 to 14999");
        is(&local_ports("20000\t60999"), Warn, "16384 to 32767");
        is(&local_ports("15000\t16383"), Fine, "15000");
        is(&local_ports("x"), Warn, "two ports");
    }
}
