//! `NetworkPolicy` means the same whoever is enrolled: judged on the connection itself, cross node and same node, in both
//! families, without a word about port 15008.

use std::panic::resume_unwind;
use std::thread;

use anyhow::Result;
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server};
use mesh_tests::counters::Counters;
use mesh_tests::counters::Packets::Exactly;
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::pod::Pod;
use mesh_tests::reach::Reach::{Open, Refused, Silent};
use mesh_tests::reach::{UdpEcho, ping, tcp, udp};
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::json;

const KIND: &str = "NetworkPolicy";

#[test]
fn only_8080_from_b() -> Result<()> {
    scenario("np_headline", |lab| {
        lab.namespace("shop").create()?;
        let pods = Shop::create(lab)?;
        let _apps = pods.serve(&[8080, 8081, 9090])?;
        pods.all_open(&[8080, 8081, 9090])?;
        lab.policy(KIND, "shop", "only-8080-from-b", only_8080_from_b_spec())?;

        let clients = [&pods.b, &pods.near_b, &pods.c, &pods.near_c];
        pods.judge("all plain", 14, 14)?;
        enrol(&clients)?;
        enrol(&[&pods.web])?;
        pods.judge("all enrolled", 0, 10)?;
        pods.web.leave()?;
        pods.judge("all enrolled but the server", 10, 10)?;
        enrol(&[&pods.web])?;
        leave(&clients)?;
        pods.judge("the server alone enrolled", 10, 10)?;
        pods.web.leave()?;
        pods.judge("all plain again", 14, 14)?;
        enrol(&clients)?;
        enrol(&[&pods.web])?;
        pods.judge("all enrolled again", 0, 10)?;

        let told = |line: &&str| {
            ["error=", "direction=\"inbound\"", "only-8080-from-b"]
                .iter()
                .all(|it| line.contains(it))
        };
        let refused = || lab.node("n2").agent().log().lines().filter(told).count();
        eventually(
            "refusals at the end of a tunnel name the policy",
            SOON,
            || Ok(refused() >= 2 * 10),
        )?;
        assert_eq!(refused(), 2 * 10, "and no more");

        lab.remove_policy(KIND, "shop", "only-8080-from-b")?;
        pods.all_open(&[8080, 8081, 9090])
    })
}

fn only_8080_from_b_spec() -> serde_json::Value {
    json!({
        "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{
            "from": [{ "podSelector": { "matchLabels": { "app": "b" } } }],
            "ports": [{ "port": 8080 }],
        }],
    })
}

#[test]
fn naming_15008_opens_nothing() -> Result<()> {
    scenario("np_hbone", |lab| {
        lab.namespace("shop").ambient().create()?;
        let pods = Shop::create(lab)?;
        let _apps = pods.serve(&[8080])?;
        let spec = json!({
            "podSelector": { "matchLabels": { "app": "web" } },
            "ingress": [{ "ports": [{ "port": HBONE_PORT }] }],
        });
        lab.policy(KIND, "shop", "only-15008", spec)?;
        for family in Family::BOTH {
            for client in [&pods.b, &pods.near_b] {
                for port in [8080, HBONE_PORT] {
                    let reach = tcp(client.netns(), pods.web.at(family, port))?;
                    assert_eq!(reach, Refused, "{} to {port}, {family:?}", client.name());
                }
            }
        }
        Ok(())
    })
}

#[test]
fn egress() -> Result<()> {
    scenario("np_egress", |lab| {
        for enrolled in [false, true] {
            let namespace = if enrolled { "meshed" } else { "plain" };
            let builder = lab.namespace(namespace);
            if enrolled { builder.ambient() } else { builder }.create()?;
            judge_egress(lab, namespace, enrolled)?;
        }
        Ok(())
    })
}

fn judge_egress(lab: &Lab, namespace: &str, enrolled: bool) -> Result<()> {
    let pod = |name: &str, node| lab.pod(name).namespace(namespace).on(node).create();
    let client = pod("client", "n1")?;
    let servers = [
        pod("far", "n2")?,
        pod("near", "n1")?,
        pod("other-far", "n2")?,
        pod("other-near", "n1")?,
    ];
    for server in &servers[..2] {
        server.label("tier", Some("allowed"))?;
    }
    let mut apps = Vec::new();
    for server in &servers {
        for port in [8080, 8081] {
            apps.push(Server::start(server, port, App::Echo)?);
        }
    }
    let services = ["far", "near", "other-far", "other-near"].map(|name| {
        lab.service(name)
            .namespace(namespace)
            .port(80, 8080)
            .create()
    });
    let outside = lab.outside()?;
    let _outside_app = outside
        .run(|| std::net::TcpListener::bind("[::]:8080"))
        .map(|it| Server::run(it, App::Echo))?;
    let outsides = Family::BOTH.map(|family| lab.outside_ip(family));

    let check = |what: &str, pods: [bool; 4], port: u16, is_outside: bool| -> Result<()> {
        let is = |open| if open { Open } else { Refused };
        for family in Family::BOTH {
            for (index, server) in servers.iter().enumerate() {
                let say =
                    |to: &str| format!("{what}: {to} {} {family:?} in {namespace}", server.name());
                let reach = tcp(client.netns(), server.at(family, port))?;
                assert_eq!(reach, is(pods[index]), "{}", say("pod"));
                // Nothing translates for plain pods here.
                if let (true, 8080, Ok(service)) = (enrolled, port, &services[index]) {
                    let reach = tcp(client.netns(), service.at(family))?;
                    assert_eq!(reach, is(pods[index]), "{}", say("service"));
                }
            }
        }
        for ip in outsides {
            let reach = tcp(client.netns(), (ip, 8080).into())?;
            assert_eq!(reach, is(is_outside), "{what}: {ip} from {namespace}");
        }
        Ok(())
    };
    let policy = |egress| {
        let spec = json!({
            "podSelector": { "matchLabels": { "app": "client" } },
            "policyTypes": ["Egress"],
            "egress": egress,
        });
        lab.policy(KIND, namespace, "egress", spec)
    };
    check("no policy", [true; 4], 8080, true)?;
    let selected = json!([{
        "to": [{ "podSelector": { "matchLabels": { "tier": "allowed" } } }],
        "ports": [{ "port": 8080 }],
    }]);
    policy(selected)?;
    check("by selector", [true, true, false, false], 8080, false)?;
    check("by selector, another port", [false; 4], 8081, false)?;
    let blocks = [lab.outside_ip(Family::V4), lab.outside_ip(Family::V6)].map(|ip| {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        json!({ "ipBlock": { "cidr": format!("{ip}/{bits}") } })
    });
    policy(json!([{ "to": blocks }]))?;
    check("the machine outside", [false; 4], 8080, true)?;
    let far = Family::BOTH.map(|family| {
        let ip = servers[0].ip(family);
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        json!({ "ipBlock": { "cidr": format!("{ip}/{bits}") } })
    });
    policy(json!([{ "to": far }]))?;
    check("by block", [true, false, false, false], 8080, false)?;
    let services =
        ["10.96.0.0/16", "fd00:96::/64"].map(|cidr| json!({ "ipBlock": { "cidr": cidr } }));
    policy(json!([{ "to": services }]))?;
    check(
        "a service's address is not its endpoint's",
        [false; 4],
        8080,
        false,
    )?;
    policy(json!([]))?;
    check("nothing", [false; 4], 8080, false)
}

#[test]
fn datagrams_and_echoes() -> Result<()> {
    for_plain_and_enrolled("np_datagrams", |pods, clients| {
        let lab = pods.lab;
        let _udp = UdpEcho::start(&pods.web, 9000)?;
        let _udp_too = UdpEcho::start(&pods.web, 9001)?;
        let _answers = clients.map(|client| UdpEcho::start(client, 9000));
        let _apps = pods.serve(&[8080])?;
        let check = |what: &str, tcp_open: bool, udp_open: [bool; 2], echo: bool| -> Result<()> {
            let heard = |open| if open { Open } else { Silent };
            let judge = |client: &Pod<'_>, family| -> Result<()> {
                let (from, to) = (client.netns(), |port| pods.web.at(family, port));
                let say = |of| format!("{what}: {of} of {} {family:?}", client.name());
                let wanted = if tcp_open { Open } else { Refused };
                assert_eq!(tcp(from, to(8080))?, wanted, "{}", say("TCP"));
                for (port, open) in [9000, 9001].into_iter().zip(udp_open) {
                    assert_eq!(udp(from, to(port))?, heard(open), "{} {port}", say("UDP"));
                }
                assert_eq!(ping(from, to(0).ip())?, heard(echo), "{}", say("echo"));
                // Replies to what the pod itself asks.
                let web = pods.web.netns();
                assert_eq!(udp(web, client.at(family, 9000))?, Open, "{}", say("reply"));
                assert_eq!(ping(web, client.ip(family))?, Open, "{}", say("echo reply"));
                Ok(())
            };
            // Each waits for many answers that do not come.
            thread::scope(|scope| {
                let judge = &judge;
                let each = clients.map(|client| {
                    Family::BOTH.map(|family| scope.spawn(move || judge(client, family)))
                });
                let mut each = each.into_iter().flatten();
                each.try_for_each(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic)))
            })
        };
        let policy = |ingress| {
            let spec = json!({
                "podSelector": { "matchLabels": { "app": "web" } },
                "policyTypes": ["Ingress"],
                "ingress": ingress,
            });
            lab.policy(KIND, "shop", "web", spec)
        };
        check("no policy", true, [true, true], true)?;
        let before = pods.counters()?;
        policy(json!([]))?;
        check("default deny", false, [false, false], false)?;
        let moved = pods.since(&before)?;
        assert!(moved.total(Outcome::Policy) >= 12, "{moved}");
        policy(json!([{ "ports": [{ "port": 9000, "protocol": "UDP" }] }]))?;
        check("one UDP port", false, [true, false], false)?;
        policy(json!([{ "ports": [{ "port": 8080, "protocol": "UDP" }] }]))?;
        check("UDP at the port of TCP", false, [false, false], false)?;
        policy(json!([{ "ports": [{ "port": 8080, "protocol": "SCTP" }] }]))?;
        check("SCTP", false, [false, false], false)?;
        policy(json!([{ "ports": [{ "port": 8080 }] }]))?;
        check("TCP", true, [false, false], false)?;
        policy(json!([{ "from": [{ "podSelector": {} }] }]))?;
        check("the namespace, whatever it sends", true, [true, true], true)?;
        lab.remove_policy(KIND, "shop", "web")
    })
}

#[test]
fn a_pod_reaches_itself_whatever_it_may() -> Result<()> {
    for_plain_and_enrolled("np_self", |pods, _| {
        let _apps = pods.serve(&[8080])?;
        let spec = json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] });
        pods.lab.policy(KIND, "shop", "nothing", spec)?;
        for family in Family::BOTH {
            assert_eq!(tcp(pods.web.netns(), pods.web.at(family, 8080))?, Open);
            assert_eq!(tcp(pods.b.netns(), pods.web.at(family, 8080))?, Refused);
        }
        pods.lab.remove_policy(KIND, "shop", "nothing")
    })
}

/// Runs a part of a scenario with plain pods, then with the same pods enrolled. It gets clients of both nodes.
fn for_plain_and_enrolled(
    name: &str,
    part: impl Fn(&Shop<'_>, [&Pod<'_>; 2]) -> Result<()>,
) -> Result<()> {
    scenario(name, |lab| {
        lab.namespace("shop").create()?;
        let pods = Shop::create(lab)?;
        part(&pods, [&pods.b, &pods.near_b])?;
        enrol(&[&pods.b, &pods.near_b, &pods.web])?;
        part(&pods, [&pods.b, &pods.near_b])
    })
}

/// The server on n2, and two kinds of clients on either node.
struct Shop<'lab> {
    lab: &'lab Lab,
    web: Pod<'lab>,
    b: Pod<'lab>,
    near_b: Pod<'lab>,
    c: Pod<'lab>,
    near_c: Pod<'lab>,
}

impl<'lab> Shop<'lab> {
    fn create(lab: &'lab Lab) -> Result<Self> {
        let pod = |name: &str, app: &str, node: &str| {
            lab.pod(name)
                .namespace("shop")
                .label("app", app)
                .on(node)
                .create()
        };
        Ok(Self {
            lab,
            web: pod("web", "web", "n2")?,
            b: pod("b", "b", "n1")?,
            near_b: pod("near-b", "b", "n2")?,
            c: pod("c", "c", "n1")?,
            near_c: pod("near-c", "c", "n2")?,
        })
    }

    fn serve(&self, ports: &[u16]) -> Result<Vec<Server>> {
        let start = |port: &u16| Ok(Server::start(&self.web, *port, App::Echo)?);
        ports.iter().map(start).collect()
    }

    fn clients(&self) -> [&Pod<'lab>; 4] {
        [&self.b, &self.near_b, &self.c, &self.near_c]
    }

    fn all_open(&self, ports: &[u16]) -> Result<()> {
        for family in Family::BOTH {
            for client in self.clients() {
                for port in ports {
                    let reach = tcp(client.netns(), self.web.at(family, *port))?;
                    assert_eq!(reach, Open, "{} to {port}, {family:?}", client.name());
                }
            }
        }
        Ok(())
    }

    /// The verdicts of [`only_8080_from_b_spec`], and where in the kernel of the server's node it refuses how many.
    ///
    /// Of the 28 attempts that are refused, 8 are to port 15008, which is the mesh's where either end is enrolled; of the
    /// others, 10 come from the other node.
    /// `arriving`: connections that the server's node refuses at the server; `setting_out`: at their client on this node.
    fn judge(&self, when: &str, arriving: u64, setting_out: u64) -> Result<()> {
        let before = self.counters()?;
        for family in Family::BOTH {
            for client in self.clients() {
                let is_b = client.name().ends_with('b');
                for port in [8080, 8081, 9090] {
                    let to = self.web.at(family, port);
                    let wanted = if is_b && port == 8080 { Open } else { Refused };
                    let reach = tcp(client.netns(), to)?;
                    assert_eq!(reach, wanted, "{when}: {} to {to}", client.name());
                }
                // An error is the mesh's own answer, which speaks TLS.
                let hbone = tcp(client.netns(), self.web.at(family, HBONE_PORT));
                assert!(!matches!(hbone, Ok(Open | Silent)), "{when}: {hbone:?}");
            }
        }
        let moved = self.since(&before)?;
        println!("{when}:\n{moved}");
        moved.assert(&[
            (Hook::ToPod, Outcome::Policy, Exactly(arriving)),
            (Hook::Connect, Outcome::Policy, Exactly(setting_out)),
        ]);
        Ok(())
    }

    /// The counters of the server's node.
    fn counters(&self) -> Result<Counters> {
        self.lab.node("n2").counters()
    }

    fn since(&self, before: &Counters) -> Result<Counters> {
        Ok(self.counters()?.since(before))
    }
}

fn enrol(pods: &[&Pod<'_>]) -> Result<()> {
    pods.iter().try_for_each(|pod| pod.enrol())
}

fn leave(pods: &[&Pod<'_>]) -> Result<()> {
    pods.iter().try_for_each(|pod| pod.leave())
}
