//! CORE: judges what else is on the node: other networks, and what an earlier agent of ours left.

use super::finding::Finding;

/// What other networks show of themselves.
#[derive(Debug)]
pub(super) struct Others {
    /// Network configurations that a runtime takes before ours, in its order.
    pub(super) before_ours: Vec<Configuration>,
    /// Names of all interfaces.
    pub(super) interfaces: Vec<String>,
    /// Names of all chains of the packet filter; an error is why they cannot be listed.
    pub(super) chains: Result<Vec<String>, String>,
}

/// A network configuration of the runtime.
#[derive(Debug)]
pub(super) struct Configuration {
    /// The file's name.
    pub(super) name: String,
    /// The plugin that it calls first, if it can be read.
    pub(super) plugin: Option<String>,
}

/// What agents make on a node, found there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Traces {
    /// The directory of programs and maps, if there is one with anything in it.
    pub(super) pins: Option<String>,
    /// Policy rules.
    pub(super) rules: usize,
    /// Routes.
    pub(super) routes: usize,
    /// The nftables table.
    pub(super) has_table: bool,
    /// Interfaces with programs.
    pub(super) programs: Vec<String>,
}

pub(super) fn others(it: &Others) -> Vec<Finding> {
    let mut findings: Vec<_> = it.before_ours.iter().map(configuration).collect();
    findings.extend(it.interfaces.iter().filter_map(|it| interface(it)));
    match &it.chains {
        Ok(chains) => findings.extend(told_chains(chains)),
        Err(error) => findings.push(Finding::ok(format!(
            "chains of the packet filter are not known: {error}"
        ))),
    }
    findings
}

fn configuration(Configuration { name, plugin }: &Configuration) -> Finding {
    let whose = plugin
        .as_deref()
        .map_or_else(|| "unreadable".to_owned(), |it| format!("plugin {it}"));
    let what = format!("the runtime takes network configuration {name} ({whose}) before ours");
    match plugin.as_deref() {
        // It calls others in turn.
        Some("multus" | "multus-shim") => {
            Finding::warn(what, "see that its cluster network is ours")
        }
        _ => Finding::fail(
            format!("{what}: pods do not join the mesh"),
            "remove it, or move it out of the directory",
        ),
    }
}

fn interface(name: &str) -> Option<Finding> {
    let whose = owner(&INTERFACES, name)?;
    Some(Finding::warn(
        format!("interface {name} is {whose}'s"),
        "remove what the other network left on this node, or reboot it",
    ))
}

/// One line for each network: harmless by themselves, as what they match is gone.
fn told_chains(chains: &[String]) -> Vec<Finding> {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for whose in chains.iter().filter_map(|it| owner(&CHAINS, it)) {
        match counted.iter_mut().find(|(known, _)| *known == whose) {
            Some((_, count)) => *count += 1,
            None => counted.push((whose, 1)),
        }
    }
    let told = counted.into_iter().map(|(whose, count)| {
        Finding::ok(format!("{count} chains of the packet filter are {whose}'s"))
    });
    told.collect()
}

fn owner(beginnings: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let found = beginnings.iter().find(|(begin, _)| name.starts_with(begin));
    found.map(|(_, whose)| *whose)
}

/// Judges what is found of ours while no agent runs.
pub(super) fn leftovers(it: &Traces) -> Vec<Finding> {
    let found = [
        it.pins
            .as_ref()
            .map(|path| format!("programs and maps in {path}")),
        (it.rules > 0).then(|| format!("{} policy rules (50, 51)", it.rules)),
        (it.routes > 0).then(|| format!("{} routes (protocol 109, table 15008)", it.routes)),
        it.has_table
            .then(|| "nftables table inet mesh-cni".to_owned()),
        (!it.programs.is_empty()).then(|| format!("programs at {}", it.programs.join(", "))),
    ];
    let lines = found.into_iter().flatten().map(|what| {
        Finding::warn(
            format!("left by an agent that does not run: {what}"),
            "start the agent, which takes it over, or remove it with `mesh-agent uninstall`",
        )
    });
    lines.collect()
}

/// Beginnings of other networks' interface names.
const INTERFACES: [(&str, &str); 6] = [
    ("cilium", "Cilium"),
    ("lxc", "Cilium"),
    ("cali", "Calico"),
    ("flannel", "flannel"),
    ("weave", "Weave Net"),
    ("cni0", "the bridge plugin"),
];

/// Beginnings of other networks' chains.
const CHAINS: [(&str, &str); 7] = [
    ("CILIUM", "Cilium"),
    ("OLD_CILIUM", "Cilium"),
    ("cali-", "Calico"),
    ("FLANNEL", "flannel"),
    ("WEAVE", "Weave Net"),
    ("ANTREA", "Antrea"),
    ("ISTIO", "Istio"),
];

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    #[test]
    fn a_configuration_before_ours_takes_the_pods() {
        let of = |plugin: Option<&str>| {
            configuration(&Configuration {
                name: "05-x.conflist".to_owned(),
                plugin: plugin.map(str::to_owned),
            })
        };
        let found = of(Some("cilium-cni"));
        assert_eq!(found.outcome, Outcome::Fail);
        assert!(
            found.what.contains("05-x.conflist (plugin cilium-cni)"),
            "{found:?}"
        );
        assert_eq!(of(None).outcome, Outcome::Fail);
        assert_eq!(of(Some("multus")).outcome, Outcome::Warn);
    }

    #[test]
    fn other_networks_are_told() {
        let text = |names: &[&str]| names.iter().map(|&it| it.to_owned()).collect();
        let found = others(&Others {
            before_ours: Vec::new(),
            interfaces: text(&["eth0", "cali1234", "cni0"]),
            chains: Ok(text(&["cali-INPUT", "KUBE-SERVICES", "cali-FORWARD"])),
        });
        let [first, second, chains] = &found[..] else {
            panic!("{found:?}");
        };
        assert!(first.what.contains("Calico") && first.outcome == Outcome::Warn);
        assert!(second.what.contains("cni0"), "{second:?}");
        assert_eq!(
            chains,
            &Finding::ok("2 chains of the packet filter are Calico's")
        );
    }

    #[test]
    fn each_trace_is_a_line() {
        assert_eq!(leftovers(&Traces::default()), []);
        let traces = Traces {
            pins: Some("/sys/fs/bpf/x".to_owned()),
            rules: 4,
            routes: 1,
            has_table: true,
            programs: vec!["eth0".to_owned()],
        };
        let found = leftovers(&traces);
        for (found, word) in
            found
                .iter()
                .zip(["/sys/fs/bpf/x", "4 policy", "15008", "nftables", "eth0"])
        {
            assert!(
                found.what.contains(word) && found.remedy.contains("uninstall"),
                "{found:?}"
            );
        }
        assert_eq!(found.len(), 5);
    }
}
