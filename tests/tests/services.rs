//! Egress policy on what goes to a service means its endpoint, also where the node's stack translates: over TCP and UDP, to
//! pods of both nodes, to a process of the node, and to the pod itself.
//!
//! Rules of nftables stand in for kube-proxy's. They translate what enrolled pods send, too, but for what the agent takes.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::Result;
use mesh_tests::app::{App, Server};
use mesh_tests::lab::{Lab, scenario_with};
use mesh_tests::pod::Pod;
use mesh_tests::reach::Reach::{Open, Refused, Silent};
use mesh_tests::reach::{Reach, UdpEcho, tcp, udp};
use mesh_tests::world::Family;
use serde_json::{Value, json};

/// Of every service.
const PORT: u16 = 80;
/// Of every endpoint.
const TARGET: u16 = 8080;

#[test]
fn egress_policy_means_the_endpoint() -> Result<()> {
    scenario_with("services", &["--masquerade"], |lab| {
        for enrolled in [false, true] {
            let namespace = if enrolled { "meshed" } else { "plain" };
            let builder = lab.namespace(namespace);
            if enrolled { builder.ambient() } else { builder }.create()?;
            judge(lab, namespace, enrolled)?;
        }
        Ok(())
    })
}

fn judge(lab: &Lab, namespace: &str, enrolled: bool) -> Result<()> {
    let pod = |name: &str, node| lab.pod(name).namespace(namespace).on(node).create();
    let client = pod("client", "n1")?;
    let near = pod("near", "n1")?;
    let far = pod("far", "n2")?;
    let mut apps = Vec::new();
    for server in [&client, &near, &far] {
        apps.push((
            Server::start(server, TARGET, App::Echo)?,
            UdpEcho::start(server, TARGET)?,
        ));
    }
    let node = lab.node("n1");
    let _of_node = node
        .netns()
        .run(|| TcpListener::bind(("::", TARGET)))
        .map(|listener| Server::run(listener, App::Echo))?;

    let of = |name: &str, ips: [IpAddr; 2]| -> Result<[SocketAddr; 2]> {
        let service = lab
            .service(name)
            .namespace(namespace)
            .port(PORT, TARGET)
            .create()?;
        let vips = Family::BOTH.map(|family| service.at(family));
        for (vip, ip) in vips.into_iter().zip(ips) {
            translate(&client, vip, ip)?;
        }
        Ok(vips)
    };
    translating(&client)?;
    let ips = |pod: &Pod<'_>| Family::BOTH.map(|family| pod.ip(family));
    let services = [
        ("near", of("near", ips(&near))?),
        ("far", of("far", ips(&far))?),
        ("the node", of("node", Family::BOTH.map(|it| node.ip(it)))?),
        ("itself", of("client", ips(&client))?),
    ];
    let check = |what: &str, open: [bool; 4]| -> Result<()> {
        for ((name, vips), open) in services.iter().zip(open) {
            for vip in vips {
                // The agent has endpoints for what an enrolled pod opens: none of the node here.
                if enrolled && *name == "the node" {
                    continue;
                }
                let say = |of| format!("{what}: {of} to {name}, {vip}, {namespace}");
                let is = |open, otherwise| if open { Open } else { otherwise };
                let reach = tcp(client.netns(), *vip)?;
                assert_eq!(reach, is(open, Refused), "{}", say("TCP"));
                if *name != "the node" {
                    let reach: Reach = udp(client.netns(), *vip)?;
                    assert_eq!(reach, is(open, Silent), "{}", say("UDP"));
                }
            }
        }
        Ok(())
    };
    let policy = |egress: Value| {
        let spec = json!({
            "podSelector": { "matchLabels": { "app": "client" } },
            "policyTypes": ["Egress"],
            "egress": egress,
        });
        lab.policy("NetworkPolicy", namespace, "egress", spec)
    };
    let app =
        |name: &str| json!([{ "to": [{ "podSelector": { "matchLabels": { "app": name } } }] }]);

    check("no policy", [true; 4])?;
    policy(app("near"))?;
    check("near alone", [true, false, false, true])?;
    policy(app("far"))?;
    check("far alone", [false, true, false, true])?;
    // The port is the endpoint's.
    policy(json!([{ "ports": [{ "port": PORT }, { "port": PORT, "protocol": "UDP" }] }]))?;
    check("the service's port", [false, false, false, true])?;
    policy(json!([{ "ports": [{ "port": TARGET }, { "port": TARGET, "protocol": "UDP" }] }]))?;
    check("the endpoint's port", [true; 4])?;
    // The address is the endpoint's.
    let blocks = ["10.96.0.0/16", "fd00:96::/64"].map(|it| json!({ "ipBlock": { "cidr": it } }));
    policy(json!([{ "to": blocks }]))?;
    check("the services' addresses", [false, false, false, true])?;
    let blocks = Family::BOTH.map(|family| {
        let ip = node.ip(family);
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        json!({ "ipBlock": { "cidr": format!("{ip}/{bits}") } })
    });
    policy(json!([{ "to": blocks }]))?;
    check("the node", [false, false, true, true])?;

    // A change ends what goes through a service, too.
    policy(app("far"))?;
    if !enrolled {
        let open = client.connect(services[1].1[0])?;
        mesh_tests::app::echoes(&open, b"as long as I may")?;
        policy(app("near"))?;
        let began = std::time::Instant::now();
        assert!(mesh_tests::app::echoes(&open, b"no longer").is_err());
        assert!(began.elapsed() < std::time::Duration::from_secs(1));
    }
    lab.remove_policy("NetworkPolicy", namespace, "egress")?;
    check("no policy any more", [true; 4])
}

/// Makes the chains that kube-proxy would have on the client's node; a pod that reaches itself comes as the node.
fn translating(client: &Pod<'_>) -> Result<()> {
    let [v4, v6] = Family::BOTH.map(|family| client.ip(family));
    let rules = format!(
        "table inet services {{}}
        flush table inet services
        table inet services {{
            chain translate {{ type nat hook prerouting priority -100; }}
            chain hairpin {{
                type nat hook postrouting priority 100;
                ip saddr {v4} ip daddr {v4} masquerade
                ip6 saddr {v6} ip6 daddr {v6} masquerade
            }}
        }}"
    );
    client.node().netns().exec("nft", [&rules]).map(drop)
}

fn translate(client: &Pod<'_>, vip: SocketAddr, to: IpAddr) -> Result<()> {
    let (family, to) = match to {
        IpAddr::V4(ip) => ("ip", format!("{ip}:{TARGET}")),
        IpAddr::V6(ip) => ("ip6", format!("[{ip}]:{TARGET}")),
    };
    let from = format!("{family} saddr {}", client.ip(Family::of(vip.ip())));
    for protocol in ["tcp", "udp"] {
        let rule = format!(
            "add rule inet services translate {from} {family} daddr {} {protocol} dport {PORT} dnat {family} to {to}",
            vip.ip()
        );
        client.node().netns().exec("nft", [&rule])?;
    }
    Ok(())
}
