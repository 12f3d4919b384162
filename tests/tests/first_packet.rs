//! A policy that was there before the pod judges the pod's very first packet; the node's probes pass whatever policy says,
//! and under STRICT at no other port.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context, Result};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server};
use mesh_tests::counters::Packets::{AtLeast, Exactly};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::netns::Netns;
use mesh_tests::pod::Pod;
use mesh_tests::reach::Reach::{Open, Refused};
use mesh_tests::reach::tcp;
use mesh_tests::world::Family;
use serde_json::json;

const KIND: &str = "NetworkPolicy";

#[test]
fn a_pod_whose_first_act_is_to_connect() -> Result<()> {
    for_plain_and_enrolled("first_egress", |lab, namespace| {
        let servers =
            [("near", "n1"), ("far", "n2")].map(|(name, node)| serve(lab, namespace, name, node));
        let spec = json!({
            "podSelector": { "matchLabels": { "role": "new" } },
            "policyTypes": ["Egress"],
            "egress": [{ "to": [{ "podSelector": { "matchLabels": { "tier": "allowed" } } }] }],
        });
        lab.policy(KIND, namespace, "new", spec)?;
        for server in servers {
            let (server, _app) = server?;
            for (tier, wanted) in [(None, Refused), (Some("allowed"), Open)] {
                server.label("tier", tier)?;
                let before = lab.node("n1").counters()?;
                let new = lab.pod("new").namespace(namespace).label("role", "new");
                let (new, reaches) = new.create_and(|netns, _| {
                    Family::BOTH.map(|family| tcp(netns, server.at(family, 8080)))
                })?;
                for reach in reaches {
                    assert_eq!(
                        reach?,
                        wanted,
                        "{namespace}: to {}, {tier:?}",
                        server.name()
                    );
                }
                let refused = if wanted == Refused { 2 } else { 0 };
                let moved = lab.node("n1").counters()?.since(&before);
                moved.assert(&[(Hook::Connect, Outcome::Policy, Exactly(refused))]);
                new.delete()?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_is_connected_to_at_once() -> Result<()> {
    for_plain_and_enrolled("first_ingress", |lab, namespace| {
        let clients = [("near", "n1"), ("far", "n2")]
            .map(|(name, node)| lab.pod(name).namespace(namespace).on(node).create());
        let spec = json!({ "podSelector": { "matchLabels": { "role": "new" } } });
        lab.policy(KIND, namespace, "new", spec)?;
        for client in clients {
            let client = client?;
            let new = lab.pod("new").namespace(namespace).label("role", "new");
            let (new, is_open) = new.create_and(|netns, ips| {
                let _app = listen(netns)?;
                let to = |ip: &IpAddr| SocketAddr::new(*ip, 8080);
                let mut reaches = ips.iter().map(|ip| tcp(client.netns(), to(ip)));
                Ok::<_, anyhow::Error>(reaches.any(|it| matches!(it, Ok(Open))))
            })?;
            // However it was refused: another node may not know the pod yet, and waits for a while.
            assert!(!is_open?, "{namespace}: from {}", client.name());
            let _app = Server::start(&new, 8080, App::Echo)?;
            for family in Family::BOTH {
                let reach = tcp(client.netns(), new.at(family, 8080))?;
                assert_eq!(reach, Refused, "{namespace}: from {}", client.name());
            }
            new.delete()?;
        }
        Ok(())
    })
}

#[test]
fn probes_of_the_node() -> Result<()> {
    for_plain_and_enrolled("first_probes", |lab, namespace| {
        let nothing = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
        lab.policy(KIND, namespace, "nothing", nothing)?;
        let strict = json!({ "mtls": { "mode": "STRICT" } });
        let probed = lab
            .pod("probed")
            .namespace(namespace)
            .probed(8080)
            .on("n1")
            .create()?;
        let _apps = [8080, 8081].map(|port| Server::start(&probed, port, App::Echo));
        let (node, other) = (lab.node("n1"), lab.node("n2"));
        let is_enrolled = namespace == "meshed";
        for mode in ["default deny", "and STRICT"] {
            if mode == "and STRICT" {
                lab.policy("PeerAuthentication", namespace, "default", strict.clone())?;
            }
            let before = node.counters()?;
            let only_probes = is_enrolled && mode == "and STRICT";
            for family in Family::BOTH {
                for port in [8080, 8081] {
                    let wanted = if only_probes && port != 8080 {
                        Refused
                    } else {
                        Open
                    };
                    let reach = tcp(node.netns(), probed.at(family, port))?;
                    assert_eq!(reach, wanted, "{namespace}, {mode}: probe of {port}");
                }
                // Another node is not the pod's own.
                let reach = tcp(other.netns(), probed.at(family, 8080))?;
                assert_eq!(reach, Refused, "{namespace}, {mode}: from another node");
            }
            let moved = node.counters()?.since(&before);
            let refused =
                moved.of(Hook::ToPod, Outcome::Policy) + moved.of(Hook::ToPod, Outcome::Strict);
            assert_eq!(refused, if only_probes { 4 } else { 2 }, "{moved}");
            moved.assert(&[
                (Hook::ToPod, Outcome::Policy, AtLeast(0)),
                (Hook::ToPod, Outcome::Strict, AtLeast(0)),
            ]);
        }
        Ok(())
    })
}

/// Runs a part of a scenario in a namespace of plain pods, then in one of enrolled pods.
fn for_plain_and_enrolled(name: &str, part: impl Fn(&Lab, &str) -> Result<()>) -> Result<()> {
    scenario(name, |lab| {
        lab.namespace("plain").create()?;
        part(lab, "plain").context("plain")?;
        lab.namespace("meshed").ambient().create()?;
        part(lab, "meshed").context("meshed")
    })
}

fn serve<'lab>(
    lab: &'lab Lab,
    namespace: &str,
    name: &str,
    node: &str,
) -> Result<(Pod<'lab>, Server)> {
    let pod = lab.pod(name).namespace(namespace).on(node).create()?;
    let app = Server::start(&pod, 8080, App::Echo)?;
    Ok((pod, app))
}

fn listen(netns: &Netns) -> Result<Server> {
    let listener = netns.run(|| TcpListener::bind("[::]:8080"))?;
    Ok(Server::run(listener, App::Echo))
}
