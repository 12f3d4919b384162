//! `AuthorizationPolicy` and `PeerAuthentication` at enrolled pods: who the peer is proved to be counts, in a tunnel and on
//! the same node alike; plaintext proves nothing.

use anyhow::Result;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server};
use mesh_tests::counters::Packets::Exactly;
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::pod::Pod;
use mesh_tests::reach::Reach::{Open, Refused};
use mesh_tests::reach::tcp;
use mesh_tests::world::Family;
use serde_json::{Value, json};

const KIND: &str = "AuthorizationPolicy";

#[test]
fn allow_by_principal_and_port() -> Result<()> {
    scenario("authz_allow", |lab| {
        let shop = Shop::create(lab)?;
        shop.check("no policy", |_, _| true)?;
        shop.authorize(&json!({
            "action": "ALLOW",
            "rules": [{
                "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/b"] } }],
                "to": [{ "operation": { "ports": ["8080"] } }],
            }],
        }))?;
        let before = lab.node("n2").counters()?;
        shop.check("b by principal", |client, port| {
            client.enrolled && client.is("b") && port == 8080
        })?;
        // Two families and two ports. At their connect(): near b at one port, near a at both, two near plain clients at both;
        // on arrival: two far plain clients at both.
        lab.node("n2").counters()?.since(&before).assert(&[
            (Hook::Connect, Outcome::Policy, Exactly(2 * (1 + 2 + 2 * 2))),
            (Hook::ToPod, Outcome::Policy, Exactly(2 * 2 * 2)),
        ]);
        shop.authorize(&json!({
            "rules": [{ "from": [{ "source": { "principals": ["*"] } }] }],
        }))?;
        shop.check("anybody with a principal", |client, _| client.enrolled)?;
        shop.authorize(&json!({
            "rules": [{ "from": [{ "source": { "namespaces": ["shop"] } }] }],
        }))?;
        shop.check("the namespace", |client, _| {
            client.enrolled && client.is("b")
        })?;
        shop.authorize(&json!({
            "rules": [{ "to": [{ "operation": { "ports": ["8081"] } }] }],
        }))?;
        shop.check("a port, whoever asks", |_, port| port == 8081)?;
        shop.authorize(&json!({}))?;
        shop.check("an ALLOW without rules", |_, _| false)
    })
}

#[test]
fn deny_comes_before_allow() -> Result<()> {
    scenario("authz_deny", |lab| {
        let shop = Shop::create(lab)?;
        shop.authorize(&json!({
            "action": "DENY",
            "rules": [{ "from": [{ "source": { "namespaces": ["alien"] } }] }],
        }))?;
        shop.check("plaintext has no namespace", |client, _| {
            !(client.enrolled && client.is("a"))
        })?;
        shop.authorize(&json!({
            "action": "DENY",
            "rules": [{ "from": [{ "source": { "notPrincipals": ["cluster.local/ns/shop/sa/b"] } }] }],
        }))?;
        shop.check("plaintext is not b", |client, _| {
            client.enrolled && client.is("b")
        })?;
        shop.authorize(&json!({
            "action": "DENY",
            "rules": [{ "to": [{ "operation": { "ports": ["8081"] } }] }],
        }))?;
        shop.check("a port, whoever asks", |_, port| port == 8080)?;
        let all = json!({ "rules": [{}] });
        lab.policy(KIND, "shop", "all", all)?;
        shop.check("though everything is allowed", |_, port| port == 8080)?;
        lab.remove_policy(KIND, "shop", "web")?;
        shop.check("everything is allowed", |_, _| true)
    })
}

#[test]
fn modes_of_ports() -> Result<()> {
    scenario("authz_modes", |lab| {
        let shop = Shop::create(lab)?;
        let modes = |mode: &str, at_8081: &str| {
            let spec = json!({
                "selector": { "matchLabels": { "app": "web" } },
                "mtls": { "mode": mode },
                "portLevelMtls": { "8081": { "mode": at_8081 } },
            });
            lab.policy("PeerAuthentication", "shop", "web", spec)
        };
        modes("STRICT", "PERMISSIVE")?;
        shop.check("strict but for 8081", |client, port| {
            client.enrolled || port == 8081
        })?;
        modes("PERMISSIVE", "STRICT")?;
        shop.check("strict at 8081", |client, port| {
            client.enrolled || port == 8080
        })?;
        modes("STRICT", "STRICT")?;
        shop.check("strict", |client, _| client.enrolled)?;
        modes("PERMISSIVE", "DISABLE")?;
        shop.check("permissive", |_, _| true)
    })
}

/// An enrolled server on n2; of the services accounts `b` in its namespace and `a` in another, enrolled and plain clients
/// on either node.
struct Shop<'lab> {
    lab: &'lab Lab,
    web: Pod<'lab>,
    clients: Vec<Client<'lab>>,
    _apps: [Server; 2],
}

struct Client<'lab> {
    pod: Pod<'lab>,
    account: &'static str,
    enrolled: bool,
}

impl Client<'_> {
    fn is(&self, account: &str) -> bool {
        self.account == account
    }
}

impl<'lab> Shop<'lab> {
    fn create(lab: &'lab Lab) -> Result<Self> {
        lab.namespace("shop").ambient().create()?;
        lab.namespace("alien").ambient().create()?;
        let web = lab.pod("web").namespace("shop").on("n2").create()?;
        let mut clients = Vec::new();
        for (namespace, account) in [("shop", "b"), ("alien", "a")] {
            for node in ["n1", "n2"] {
                for enrolled in [true, false] {
                    let kind = if enrolled { "meshed" } else { "plain" };
                    let pod = lab
                        .pod(&format!("{account}-{kind}-{node}"))
                        .namespace(namespace)
                        .service_account(account)
                        .on(node)
                        .create()?;
                    if !enrolled {
                        pod.leave()?;
                    }
                    clients.push(Client {
                        pod,
                        account,
                        enrolled,
                    });
                }
            }
        }
        let apps = [
            Server::start(&web, 8080, App::Echo)?,
            Server::start(&web, 8081, App::Echo)?,
        ];
        Ok(Self {
            lab,
            web,
            clients,
            _apps: apps,
        })
    }

    /// Writes the policy about the server.
    fn authorize(&self, spec: &Value) -> Result<()> {
        let mut spec = spec.clone();
        spec["selector"] = json!({ "matchLabels": { "app": "web" } });
        self.lab.policy(KIND, "shop", "web", spec)
    }

    /// Every client asks at both ports, in both families.
    fn check(&self, when: &str, is_allowed: impl Fn(&Client<'_>, u16) -> bool) -> Result<()> {
        for family in Family::BOTH {
            for client in &self.clients {
                for port in [8080, 8081] {
                    let to = self.web.at(family, port);
                    let wanted = if is_allowed(client, port) {
                        Open
                    } else {
                        Refused
                    };
                    let reach = tcp(client.pod.netns(), to)?;
                    assert_eq!(reach, wanted, "{when}: {} to {to}", client.pod.name());
                }
            }
        }
        Ok(())
    }
}
