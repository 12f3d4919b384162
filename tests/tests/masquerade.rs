//! What pods send out of the cluster leaves with the node's address; inside the cluster they keep their own. And the table
//! that does it keeps others' translation off what the agent carries.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{Lab, scenario_with};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

const PORT: u16 = 7000;
/// On the fabric, as [`Lab::outside_ip`], but known to the operator as a network that knows the way to pods.
const SPARED: [&str; 2] = ["10.77.0.101", "fd00:77::101"];
const FLAGS: [&str; 2] = [
    "--masquerade",
    "--no-masquerade=10.77.0.101/32,fd00:77::101/128",
];

#[test]
fn only_out_of_the_cluster() -> Result<()> {
    scenario_with("masquerade", &FLAGS, |lab| {
        let outside = strangers(lab)?;
        let client = lab.pod("client").on("n1").create()?;
        let peer = lab.pod("peer").on("n2").create()?;
        let [n1, n2] = ["n1", "n2"].map(|name| lab.node(name));
        for family in Family::BOTH {
            let own = client.ip(family);
            let out = lab.outside_ip(family);
            assert_eq!(source(&client, &outside, out)?, n1.ip(family), "outside");
            assert_eq!(source(&client, n2.netns(), n2.ip(family))?, own, "a node");
            assert_eq!(source(&client, n1.netns(), n1.ip(family))?, own, "its node");
            assert_eq!(
                source(&client, peer.netns(), peer.ip(family))?,
                own,
                "a pod"
            );
        }
        // They have no way back to pods, which is how the test knows that the others were masqueraded.
        for spared in SPARED {
            let to = SocketAddr::new(spared.parse()?, PORT);
            let _server = listen(&outside, to)?;
            assert!(client.is_refused(to), "{spared} got a pod's own address");
        }
        Ok(())
    })
}

#[test]
fn the_table_is_replaced_and_kept() -> Result<()> {
    scenario_with("masquerade_table", &FLAGS, |lab| {
        let node = lab.node("n1");
        let table = table(node)?;
        assert_eq!(table.matches("masquerade").count(), 2, "{table}");
        for cidr in node.pod_cidrs() {
            assert!(table.contains(&format!("saddr {cidr} ")), "{table}");
        }
        node.agent().stop()?;
        assert_eq!(self::table(node)?, table, "it stays when the agent stops");
        node.agent().start()?;
        assert_eq!(
            self::table(node)?,
            table,
            "the next agent does not add to it"
        );
        node.netns().exec("nft", ["flush", "ruleset"])?;
        eventually("the table is back", SOON, || {
            Ok(self::table(node).is_ok_and(|it| it == table))
        })
    })
}

/// kube-proxy would give the first packet of a captured connection another destination than the rest.
#[test]
fn services_that_kube_proxy_translates() -> Result<()> {
    scenario_with("masquerade_proxy", &FLAGS, |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let web = lab.pod("web").namespace("shop").on("n2").create()?;
        let service = lab
            .service("web")
            .namespace("shop")
            .port(80, PORT)
            .create()?;
        let _web = Server::start(&web, PORT, App::Echo)?;
        for family in Family::BOTH {
            let ip = if family == Family::V4 { "ip" } else { "ip6" };
            let (from, to) = (service.at(family), web.at(family, PORT));
            let translate = format!(
                "table {ip} kube-proxy {{ chain services {{ type nat hook prerouting priority dstnat; \
                 {ip} daddr {} tcp dport 80 dnat to {to}; }}; }}",
                from.ip()
            );
            lab.node("n1").netns().exec("nft", [translate])?;
            echoes(&client.connect(from)?, b"as if it were not there")
                .with_context(|| format!("{family:?}"))?;
        }
        Ok(())
    })
}

/// The table as `nft` shows it.
fn table(node: &Node) -> Result<String> {
    node.netns()
        .exec("nft", ["list", "table", "inet", "mesh-cni"])
}

/// A machine on the fabric with addresses that know no way to pods.
fn strangers(lab: &Lab) -> Result<Netns> {
    let fabric = Netns::open(&format!("mesh-{}-net", lab.name()))?;
    let outside = Family::BOTH.map(|family| lab.outside_ip(family).to_string());
    for address in SPARED.into_iter().chain(outside.iter().map(String::as_str)) {
        let (prefix, nodad) = if address.contains(':') {
            (64, "nodad")
        } else {
            (24, "")
        };
        fabric.ip(&format!("address add {address}/{prefix} dev br0 {nodad}"))?;
    }
    Ok(fabric)
}

/// The address from which a server in `netns` sees the client.
fn source(client: &Pod<'_>, netns: &Netns, server: IpAddr) -> Result<IpAddr> {
    let to = SocketAddr::new(server, PORT);
    let listener = listen(netns, to)?;
    let _stream = client
        .connect(to)
        .with_context(|| format!("connecting to {to}"))?;
    Ok(listener.accept()?.1.ip())
}

fn listen(netns: &Netns, at: SocketAddr) -> Result<std::net::TcpListener> {
    netns
        .run(|| std::net::TcpListener::bind(at))
        .with_context(|| format!("listening at {at}"))
}
