//! EDGE: `mesh-agent check`: whether this node can run the agent, before there is one.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::args::{Check, Format};
use crate::dataplane::{bpffs, probe};
use crate::install::shadowing;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The agent runs, but something may surprise.
    Warn,
    /// The agent cannot run.
    Fail,
}

/// One line of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How it ended.
    pub outcome: Outcome,
    /// What was looked at, and what was found.
    pub what: String,
    /// What to do about it; empty if nothing.
    pub remedy: String,
}

/// Looks at this node; changes nothing.
pub fn check(args: &Check) -> Vec<Line> {
    let mut lines: Vec<_> = probe::features().into_iter().map(feature).collect();
    lines.push(pins(&args.bpffs));
    lines.extend(["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(forwarding));
    lines.extend(setting("ipv4/ip_local_port_range").map(|it| local_ports(&it)));
    let names = names(&args.cni_conf_dir);
    lines.extend(
        shadowing(names.iter().map(String::as_str))
            .into_iter()
            .map(shadowed),
    );
    lines.extend(
        self::names(Path::new("/sys/class/net"))
            .iter()
            .filter_map(|it| foreign(it)),
    );
    lines
}

/// Whether the agent can run.
pub fn passes(lines: &[Line]) -> bool {
    lines.iter().all(|line| line.outcome != Outcome::Fail)
}

/// The answer as it is printed.
pub fn render(lines: &[Line], format: Format) -> String {
    match format {
        Format::Json => serde_json::to_string_pretty(lines).unwrap_or_default() + "\n",
        Format::Text => lines.iter().map(text).collect(),
    }
}

fn text(
    Line {
        outcome,
        what,
        remedy,
    }: &Line,
) -> String {
    let word = match outcome {
        Outcome::Ok => "ok  ",
        Outcome::Warn => "WARN",
        Outcome::Fail => "FAIL",
    };
    let remedy = if remedy.is_empty() {
        String::new()
    } else {
        format!("; {remedy}")
    };
    format!("{word}  {what}{remedy}\n")
}

fn line(outcome: Outcome, what: String, remedy: &str) -> Line {
    let remedy = if outcome == Outcome::Ok { "" } else { remedy };
    Line {
        outcome,
        what,
        remedy: remedy.to_owned(),
    }
}

fn feature((name, present): probe::Feature) -> Line {
    match present {
        Ok(true) => line(Outcome::Ok, format!("kernel has {name}"), ""),
        Ok(false) => line(
            Outcome::Fail,
            format!("kernel has no {name}"),
            "run Linux 5.10 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF",
        ),
        Err(error) => line(
            Outcome::Fail,
            format!("cannot ask for {name}: {error}"),
            "run this as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN",
        ),
    }
}

fn pins(path: &Path) -> Line {
    let parent = path.ancestors().find(|it| it.exists()).unwrap_or(path);
    let outcome = if bpffs::is_bpffs(parent) {
        Outcome::Ok
    } else {
        Outcome::Warn
    };
    let what = match outcome {
        Outcome::Ok => format!("{} is on a BPF file system", path.display()),
        _ => format!("{} is on no BPF file system", path.display()),
    };
    line(
        outcome,
        what,
        "`mesh-agent prepare` mounts one at /sys/fs/bpf",
    )
}

fn forwarding(name: &str) -> Line {
    let value = setting(name);
    let outcome = if value.as_deref() == Some("1") {
        Outcome::Ok
    } else {
        Outcome::Warn
    };
    let value = value.unwrap_or_else(|| "absent".to_owned());
    line(
        outcome,
        format!("{name} is {value}"),
        "`mesh-agent prepare` sets it to 1",
    )
}

/// The agent speaks in the name of pods from ports below those that kernels choose.
fn local_ports(range: &str) -> Line {
    let first = range
        .split_whitespace()
        .next()
        .and_then(|it| it.parse::<u16>().ok());
    let apart = first.is_some_and(|first| first >= FIRST_LOCAL_PORT);
    let outcome = if apart { Outcome::Ok } else { Outcome::Warn };
    let what = format!("ipv4/ip_local_port_range is {}", range.replace('\t', " "));
    line(
        outcome,
        what,
        "begin it at 32768 or above: the agent uses lower ports in the name of pods",
    )
}

fn shadowed(name: &str) -> Line {
    let what = format!("the runtime takes network configuration {name} before ours");
    line(
        Outcome::Warn,
        what,
        "remove it, or move it out of the directory",
    )
}

fn foreign(interface: &str) -> Option<Line> {
    let owner = FOREIGN
        .iter()
        .find(|(prefix, _)| interface.starts_with(prefix))?
        .1;
    let what = format!("interface {interface} is {owner}'s");
    Some(line(
        Outcome::Warn,
        what,
        "remove what the other network left on this node",
    ))
}

fn setting(name: &str) -> Option<String> {
    let value = fs::read_to_string(Path::new("/proc/sys/net").join(name));
    value.ok().map(|value| value.trim().to_owned())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// The first port that kernels choose for themselves unless they are told otherwise.
const FIRST_LOCAL_PORT: u16 = 32768;

/// Beginnings of other networks' interface names.
const FOREIGN: [(&str, &str); 5] = [
    ("cilium_", "Cilium"),
    ("lxc", "Cilium"),
    ("cali", "Calico"),
    ("flannel", "flannel"),
    ("weave", "Weave Net"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_its_outcome_and_remedy() {
        let check = |line: Line, outcome| {
            assert_eq!(line.outcome, outcome, "{line:?}");
            assert_eq!(line.remedy.is_empty(), outcome == Outcome::Ok, "{line:?}");
        };
        check(feature(("x", Ok(true))), Outcome::Ok);
        check(feature(("x", Ok(false))), Outcome::Fail);
        check(feature(("x", Err("no".to_owned()))), Outcome::Fail);
        check(local_ports("32768\t60999"), Outcome::Ok);
        check(local_ports("1024\t60999"), Outcome::Warn);
        check(pins(Path::new("/proc/nowhere")), Outcome::Warn);
        check(shadowed("05-x.conflist"), Outcome::Warn);
        check(foreign("cali1234").unwrap(), Outcome::Warn);
        assert_eq!(foreign("eth0"), None);
    }

    #[test]
    fn only_a_failure_fails() {
        let warn = local_ports("1024 2000");
        let fail = feature(("x", Ok(false)));
        assert!(passes(std::slice::from_ref(&warn)) && !passes(&[warn.clone(), fail]));
        assert!(
            render(&[warn], Format::Text)
                .starts_with("WARN  ipv4/ip_local_port_range is 1024 2000; ")
        );
    }
}
