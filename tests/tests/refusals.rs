//! Every refusal is told within a second, with its reason and whose policy it is.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use mesh_common::HBONE_PORT;
use mesh_tests::app::{App, Server, refused};
use mesh_tests::flows::told;
use mesh_tests::foreign::Foreign;
use mesh_tests::lab::scenario;
use mesh_tests::peer::{self, Client, Credentials};
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;
use serde_json::json;

/// An address of the client's pod CIDR that no pod has.
fn unknown(client: &Pod<'_>, family: Family) -> Result<SocketAddr> {
    let cidr = client.node().pod_cidrs()[usize::from(family == Family::V6)].clone();
    let (network, _) = cidr.split_once('/').context("a CIDR")?;
    let address = match network.parse()? {
        IpAddr::V4(it) => IpAddr::from((u32::from(it) + 250).to_be_bytes()),
        IpAddr::V6(it) => IpAddr::from((u128::from(it) + 250).to_be_bytes()),
    };
    Ok(SocketAddr::new(address, 8080))
}

#[test]
fn refusals_are_told_at_once() -> Result<()> {
    scenario("refusals", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let web = lab.pod("web").namespace("shop").on("n2").create()?;
        let plain = lab.pod("plain").on("n1").create()?;
        let strict = lab.pod("strict").namespace("shop").on("n1").create()?;
        let servers = [&near, &web, &strict];
        let _apps = servers.map(|it| Server::start(it, 8080, App::Echo));
        lab.policy(
            "NetworkPolicy",
            "shop",
            "near-nobody",
            json!({"podSelector": {"matchLabels": {"app": "near"}}, "policyTypes": ["Ingress"]}),
        )?;
        lab.policy(
            "AuthorizationPolicy",
            "shop",
            "web-nobody",
            json!({"selector": {"matchLabels": {"app": "web"}}, "action": "DENY", "rules": [{}]}),
        )?;
        lab.peer_authentication("shop", "STRICT")?;
        lab.settle()?;
        let lonely = lab
            .service("lonely")
            .namespace("shop")
            .selector("app", "nobody")
            .port(80, 8080)
            .create()?;
        lab.settle()?;
        let node = lab.node("n1");
        for family in Family::BOTH {
            refused(&client, near.at(family, 8080));
            let parts = [
                ("/source/workload", "shop/client"),
                ("/destination/workload", "shop/near"),
                ("/policy", "NetworkPolicy shop/near-nobody"),
                ("/flag", "NETWORK_POLICY"),
                ("/verdict", "denied"),
            ];
            told(node, &parts)?;

            refused(&client, web.at(family, 8080));
            for (node, direction) in [(node, "outbound"), (lab.node("n2"), "inbound")] {
                let parts = [
                    ("/direction", direction),
                    ("/source/identity", "/sa/client"),
                    ("/destination/workload", "shop/web"),
                    ("/policy", "AuthorizationPolicy shop/web-nobody"),
                    ("/flag", "DENY"),
                ];
                told(node, &parts)?;
            }

            refused(&client, lonely.at(family));
            let parts = [
                ("/source/workload", "shop/client"),
                ("/service", "lonely.shop.svc.cluster.local"),
                ("/reason", "no ready endpoint"),
                ("/flag", "CONNECT"),
            ];
            told(node, &parts)?;

            refused(&client, unknown(&client, family)?);
            let parts = [
                ("/source/workload", "shop/client"),
                (
                    "/reason",
                    "no workload and no service has the destination address",
                ),
            ];
            told(node, &parts)?;

            refused(&plain, strict.at(family, 8080));
            let parts = [
                ("/source/workload", "default/plain"),
                ("/destination/workload", "shop/strict"),
                ("/reason", "plaintext is not taken"),
                ("/policy", "PeerAuthentication shop/"),
                ("/hook", "connect"),
            ];
            told(node, &parts)?;
        }
        Ok(())
    })
}

/// Certificates of another time and of another workload, on both sides of a tunnel.
#[test]
fn certificates_that_prove_nothing() -> Result<()> {
    scenario("refused_certificates", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let outside = lab.pod("outside").on("n1").create()?;
        let server = lab.pod("api").namespace("shop").on("n2").create()?;
        let _app = Server::start(&server, 8080, App::Echo)?;
        let foreign = Foreign::create(lab)?;
        let [ip, _] = foreign.pod("shop", "web")?;
        let listen = SocketAddr::new(ip, HBONE_PORT).to_string();
        let [web, other] =
            ["web", "other"].map(|it| format!("spiffe://cluster.local/ns/shop/sa/{it}"));
        let presented = [
            (Credentials::expired(lab, &web)?, "expired"),
            (Credentials::issue(lab, &lab.ca(), &other)?, "/sa/other"),
        ];
        for (credentials, reason) in &presented {
            let _peer = peer::Server::start(lab, foreign.netns(), &listen, credentials, &[])?;
            refused(&client, SocketAddr::new(ip, 8080));
            let parts = [
                ("/direction", "outbound"),
                ("/source/workload", "shop/client"),
                ("/destination/workload", "shop/web"),
                ("/flag", "TLS_FAILURE"),
                ("/reason", reason),
            ];
            told(lab.node("n1"), &parts)?;
        }

        let to = server.at(Family::V4, HBONE_PORT).to_string();
        let authority = server.at(Family::V4, 8080).to_string();
        let expired = Credentials::expired(lab, &other)?;
        let peer = Client::new(lab, outside.netns(), Some(expired));
        let (is_served, events) = peer.call(&["--connect", &to, "--authority", &authority])?;
        assert!(!is_served, "{events:#?}");
        let parts = [
            ("/direction", "inbound"),
            ("/destination/workload", "shop/api"),
            ("/flag", "TLS_FAILURE"),
            ("/reason", "expired"),
        ];
        told(lab.node("n2"), &parts)
    })
}
