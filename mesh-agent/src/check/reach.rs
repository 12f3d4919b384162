//! CORE: judges what the node reaches: other nodes, the clock, the Kubernetes API, the certificate authority, the agent.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

use super::finding::Finding;
use crate::cluster::kubernetes::Permission;
use crate::pki::Standing;
use crate::status::Status;

/// What became of packets to another node that must not be fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// A packet of this size, in bytes, arrived.
    Whole(u32),
    /// A small one arrived, one of this size did not; the largest that the way takes, if somebody on it told.
    TooLarge(u32, Option<u32>),
    /// Not even a small one was answered, or none can be sent; why.
    Unknown(&'static str),
}

/// The agent of this node.
#[derive(Debug)]
pub(super) enum Agent {
    /// None holds the state directory.
    Absent,
    /// One does, and does not answer; why.
    Silent(String),
    /// One does.
    Running(Box<Status>),
}

impl Agent {
    pub(super) fn runs(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    pub(super) fn status(&self) -> Option<&Status> {
        match self {
            Self::Running(status) => Some(status),
            Self::Absent | Self::Silent(_) => None,
        }
    }
}

pub(super) fn agent(it: &Agent) -> Finding {
    match it {
        Agent::Absent => Finding::ok("no agent runs here"),
        Agent::Silent(why) => Finding::warn(
            format!("an agent runs here and does not answer: {why}"),
            "name its socket with --admin-socket; if that is right, see its log",
        ),
        Agent::Running(status) => match status.problems.len() {
            0 => Finding::ok(format!("the agent of node {} is healthy", status.node)),
            count => Finding::warn(
                format!("the agent of node {} has problems: {count}", status.node),
                "see `mesh-agent status`",
            ),
        },
    }
}

pub(super) fn passage(to: IpAddr, it: Passage) -> Finding {
    match it {
        Passage::Whole(size) => Finding::ok(format!("packets of {size} bytes reach node {to}")),
        Passage::TooLarge(size, largest) => {
            let largest = largest.map_or_else(
                || "nobody on the way tells what does".to_owned(),
                |it| format!("{it} do"),
            );
            Finding::fail(
                format!("packets of {size} bytes do not reach node {to}, small ones do; {largest}"),
                "make the network between the nodes take them, or lower the MTU of the uplink",
            )
        }
        Passage::Unknown(why) => Finding::warn(
            format!("whether packets of full size reach node {to} is not known: {why}"),
            "see that the node is up, and that ICMP from it and UDP port 15008 to it are let through",
        ),
    }
}

/// Judges the clock by the certificates of the running agent, if there are any.
pub(super) fn clock(now: SystemTime, agent: Option<&Status>) -> Finding {
    let told = Timestamp::try_from(now).and_then(|it| Timestamp::from_second(it.as_second()));
    let told = told.map_or_else(|_| "nothing sane".to_owned(), |it| it.to_string());
    let what = format!("the clock says {told}");
    let remedy =
        "set the clock; certificates are valid by it (chrony or systemd-timesyncd keep it)";
    if now < SystemTime::UNIX_EPOCH + BUILT_AFTER {
        return Finding::fail(
            format!("{what}, a time before this program was made"),
            remedy,
        );
    }
    let starts = agent.into_iter().flat_map(|it| &it.certificates);
    let starts = starts.filter_map(|it| it.not_before.as_deref()?.parse::<Timestamp>().ok());
    match starts.max() {
        Some(start) if SystemTime::from(start) > now => Finding::fail(
            format!("{what}, before a certificate of this node begins to be valid ({start})"),
            remedy,
        ),
        _ => Finding::ok(what),
    }
}

pub(super) fn kubernetes(it: Result<Vec<Permission>, String>) -> Vec<Finding> {
    let asked = match it {
        Ok(asked) => asked,
        Err(error) => {
            return vec![Finding::fail(
                format!("the Kubernetes API cannot be asked: {error}"),
                "see that it runs, that the way to it does not need this network, and that --kubeconfig is right",
            )];
        }
    };
    let count = asked.len();
    let mut findings: Vec<_> = asked.into_iter().filter_map(permission).collect();
    if findings.is_empty() {
        findings.push(Finding::ok(format!(
            "the Kubernetes API lets the agent list and watch all {count} kinds"
        )));
    }
    findings
}

fn permission(it: Permission) -> Option<Finding> {
    match it {
        Permission::Granted => None,
        Permission::Absent {
            kind,
            is_optional: true,
        } => Some(Finding::ok(format!(
            "the Kubernetes API does not serve {kind}, which may come later"
        ))),
        Permission::Absent { kind, .. } => Some(Finding::fail(
            format!("the Kubernetes API does not serve {kind}"),
            "run Kubernetes 1.20 or newer",
        )),
        Permission::Denied { kind, reason } => Some(Finding::fail(
            format!("the Kubernetes API does not let the agent list and watch {kind}: {reason}"),
            "grant get, list and watch of it to the agent's service account (deploy/base/agent-rbac.yaml)",
        )),
    }
}

pub(super) fn authority(address: &str, it: Result<Standing, String>) -> Finding {
    match it {
        Ok(Standing::Known) => Finding::ok(format!("the authority {address} answers and knows us")),
        Ok(Standing::NoToken(error)) => Finding::warn(
            format!("the authority {address} answers; there is no token to show it: {error}"),
            "name the agent's token with --ca-token",
        ),
        Ok(Standing::Unknown(reason)) => Finding::fail(
            format!("the authority {address} refuses our token: {reason}"),
            "see that --ca-token is for the authority's audience, and that its --allow has our service account",
        ),
        Ok(Standing::Unable(reason)) => Finding::fail(
            format!("the authority {address} answers, but cannot sign: {reason}"),
            "see the authority's log",
        ),
        Err(error) => Finding::fail(
            format!("the authority {address} cannot be asked: {error}"),
            "see that it runs, and that --ca-address, --ca-root and --ca-san are right",
        ),
    }
}

/// Until 2025-01-01T00:00:00Z, in days.
const BUILT_AFTER: Duration = Duration::from_hours(24 * 20_089);

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome::{self, Fail, Ok as Fine, Warn};
    use super::*;
    use crate::model::{Settings, Snapshot};
    use crate::status::Certificate;

    #[track_caller]
    fn is(finding: &Finding, outcome: Outcome, words: &str) {
        assert_eq!(finding.outcome, outcome, "{finding:?}");
        assert_eq!(finding.remedy.is_empty(), outcome == Fine, "{finding:?}");
        let text = format!("{}; {}", finding.what, finding.remedy);
        assert!(text.contains(words), "{words} in {text}");
    }

    fn status(not_before: &str) -> Status {
        let snapshot = Snapshot::new(Settings::for_node("n1"));
        let certificate = Certificate {
            identity: "spiffe://x".to_owned(),
            not_before: Some(not_before.to_owned()),
            not_after: Some("2030-01-01T00:00:00Z".to_owned()),
            error: None,
        };
        let told = crate::status::Told {
            network: Some(crate::status::Node::default()),
            certificates: vec![certificate],
            ..crate::status::Told::default()
        };
        Status::new(&snapshot, told)
    }

    #[test]
    fn a_clock_behind_the_certificates_is_wrong() {
        let at = |text: &str| SystemTime::from(text.parse::<Timestamp>().unwrap());
        let noon = status("2026-05-05T12:00:00Z");
        is(
            &clock(at("2026-05-05T12:00:01Z"), Some(&noon)),
            Fine,
            "2026-05-05T12:00:01Z",
        );
        is(
            &clock(at("2026-05-05T11:59:59Z"), Some(&noon)),
            Fail,
            "before a certificate",
        );
        is(&clock(at("2026-05-05T11:59:59Z"), None), Fine, "2026");
        is(
            &clock(at("1970-01-01T00:00:09Z"), None),
            Fail,
            "set the clock",
        );
    }

    #[test]
    fn a_way_that_takes_no_full_packets_is_named() {
        let to = "10.0.0.2".parse().unwrap();
        is(
            &passage(to, Passage::Whole(1500)),
            Fine,
            "1500 bytes reach node 10.0.0.2",
        );
        is(
            &passage(to, Passage::TooLarge(1500, Some(1450))),
            Fail,
            "1450 do",
        );
        is(&passage(to, Passage::TooLarge(1500, None)), Fail, "nobody");
        is(&passage(to, Passage::Unknown("silence")), Warn, "silence");
    }

    #[test]
    fn the_agent_speaks_for_itself() {
        is(&agent(&Agent::Absent), Fine, "no agent");
        is(
            &agent(&Agent::Silent("refused".to_owned())),
            Warn,
            "--admin-socket",
        );
        let healthy = status("2026-01-01T00:00:00Z");
        is(
            &agent(&Agent::Running(Box::new(healthy.clone()))),
            Fine,
            "node n1 is healthy",
        );
        let mut ill = healthy;
        ill.problems = vec![crate::status::Problem {
            what: "x".to_owned(),
            remedy: "y".to_owned(),
        }];
        is(
            &agent(&Agent::Running(Box::new(ill))),
            Warn,
            "mesh-agent status",
        );
    }

    #[test]
    fn kinds_that_may_not_be_seen_are_named() {
        let kind = "NetworkPolicy";
        let denied = Permission::Denied {
            kind,
            reason: "403".to_owned(),
        };
        let absent = |is_optional| Permission::Absent { kind, is_optional };
        let of = |it| kubernetes(Ok(vec![Permission::Granted, it]));
        is(&of(Permission::Granted)[0], Fine, "all 2 kinds");
        is(&of(denied)[0], Fail, "agent-rbac.yaml");
        is(&of(absent(true))[0], Fine, "later");
        is(&of(absent(false))[0], Fail, "1.20");
        is(
            &kubernetes(Err("refused".to_owned()))[0],
            Fail,
            "--kubeconfig",
        );
    }

    #[test]
    fn the_authority_is_asked_as_an_agent_asks() {
        let of = |it| authority("ca:15012", it);
        is(&of(Ok(Standing::Known)), Fine, "knows us");
        is(
            &of(Ok(Standing::NoToken("x".to_owned()))),
            Warn,
            "--ca-token",
        );
        is(
            &of(Ok(Standing::Unknown("audience".to_owned()))),
            Fail,
            "audience",
        );
        is(
            &of(Ok(Standing::Unable("starting".to_owned()))),
            Fail,
            "log",
        );
        is(&of(Err("no route".to_owned())), Fail, "--ca-root");
    }
}
