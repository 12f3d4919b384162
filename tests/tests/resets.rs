//! A refused connection ends at once, with a reset that the stack of whoever asked takes for real: from inside a pod, from
//! another pod, from another machine and from the node itself. A revoked one ends at both ends.
//!
//! The programs stand at real devices here, without an agent; the maps are the packet tests'.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_common::names::{GATEWAY_V4, GATEWAY_V6};
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::counters::Packets::{AtLeast, Exactly};
use mesh_tests::netns::Netns;
use mesh_tests::object::Object;
use mesh_tests::rules::{GAP, NO_SET, OUTWARD, SERVER};
use mesh_tests::wait::uninterrupted;
use mesh_tests::world::Who::{Judged, Plain, Stranger, Unruled};
use mesh_tests::world::{Family, HOST_MAC, Table, UPLINK, Who};

/// A reset is there at once; a lost one is missed for a second, when the SYN comes again.
const AT_ONCE: Duration = Duration::from_millis(700);
const PODS: [Who; 3] = [Judged, Unruled, Plain];

/// A node with pods, and a machine behind its uplink.
struct Site {
    node: Netns,
    pods: Vec<(Who, Netns)>,
    stranger: Netns,
}

impl Site {
    fn build() -> Result<Self> {
        Self::remove()?;
        let site = Self {
            node: Netns::create("mesh-resets-node")?,
            pods: PODS
                .into_iter()
                .map(|who| Ok((who, Netns::create(&pod_name(who))?)))
                .collect::<Result<_>>()?,
            stranger: Netns::create("mesh-resets-stranger")?,
        };
        site.node.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?;
        let out = site.stranger.name();
        site.node.ip(&format!(
            "link add name uplink index {UPLINK} type veth peer name eth0 netns {out}
            addr add 192.0.2.254/24 dev uplink
            addr add 2001:db8::fe/64 dev uplink nodad
            link set uplink up"
        ))?;
        let [v4, v6] = Family::BOTH.map(|family| Stranger.ip(family));
        site.stranger.ip(&format!(
            "addr add {v4}/24 dev eth0
            addr add {v6}/64 dev eth0 nodad
            link set eth0 up
            route add default via 192.0.2.254
            -6 route add default via 2001:db8::fe"
        ))?;
        for (who, pod) in &site.pods {
            site.wire(*who, pod)?;
        }
        Ok(site)
    }

    fn wire(&self, who: Who, pod: &Netns) -> Result<()> {
        let (index, inside) = (who.ifindex(), pod.name());
        let [host, own] = [HOST_MAC, who.mac()].map(mac);
        let [v4, v6] = Family::BOTH.map(|family| who.ip(family));
        self.node.ip(&format!(
            "link add p{index} index {index} type veth peer name eth0 netns {inside}
            link set p{index} address {host} up
            route add {v4} dev p{index}
            -6 route add {v6} dev p{index}
            neigh add {v4} lladdr {own} dev p{index}
            neigh add {v6} lladdr {own} dev p{index}"
        ))?;
        pod.ip(&format!(
            "link set eth0 address {own} up
            addr add {v4}/32 dev eth0
            addr add {v6}/128 dev eth0 nodad
            neigh add {GATEWAY_V4} lladdr {host} dev eth0
            neigh add {GATEWAY_V6} lladdr {host} dev eth0
            route add {GATEWAY_V4} dev eth0
            route add default via {GATEWAY_V4}
            -6 route add default via {GATEWAY_V6} dev eth0"
        ))
    }

    fn netns(&self, who: Who) -> &Netns {
        let pod = self.pods.iter().find(|(pod, _)| *pod == who);
        pod.map_or(&self.stranger, |(_, netns)| netns)
    }

    fn attach(&self, table: &Table) -> Result<Object> {
        self.node.run(|| {
            let mut object = Object::load()?;
            object.fill(table)?;
            object.attach(Hook::FromNet, "uplink")?;
            for who in PODS {
                let device = format!("p{}", who.ifindex());
                object.attach(Hook::FromPod, &device)?;
                object.attach(Hook::ToPod, &device)?;
            }
            Ok(object)
        })
    }

    fn remove() -> Result<()> {
        for name in Netns::names("mesh-resets-") {
            Netns::remove(&name)?;
        }
        Ok(())
    }
}

fn pod_name(who: Who) -> String {
    format!("mesh-resets-{}", format!("{who:?}").to_lowercase())
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Asserts that a connection is refused, and not by silence.
fn refused(from: &Netns, family: Family, to: Who, port: u16) -> Result<()> {
    let started = Instant::now();
    let outcome = from.run(|| TcpStream::connect_timeout(&to.at(family, port), AT_ONCE * 3));
    let name = format!("{} to {to:?} port {port}, {family:?}", from.name());
    match outcome {
        Ok(_) => bail!("{name}: connected"),
        Err(error) => ensure!(
            error.kind() == ErrorKind::ConnectionRefused && started.elapsed() < AT_ONCE,
            "{name}: {error} after {:?}",
            started.elapsed()
        ),
    }
    Ok(())
}

/// Asserts that a connection is reset, at the latest by what this end says now.
fn is_reset(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(AT_ONCE))?;
    // Fails already when the reset was there before.
    let _ = stream.write_all(b"still here?");
    match uninterrupted(|| stream.read(&mut [0; 16])) {
        Ok(length) => bail!("read {length} bytes"),
        Err(error) => ensure!(error.kind() == ErrorKind::ConnectionReset, "{error}"),
    }
    Ok(())
}

#[test]
fn refused_connections_end_at_once() -> Result<()> {
    let site = Site::build()?;
    let mut object = site.attach(&Table::cluster())?;
    for family in Family::BOTH {
        for (from, to, port, hook) in [
            (Some(Unruled), Plain, SERVER, Hook::FromPod),
            (Some(Judged), Plain, OUTWARD + 1, Hook::FromPod),
            (Some(Plain), Unruled, SERVER, Hook::ToPod),
            (Some(Stranger), Judged, GAP, Hook::ToPod),
            (None, Unruled, SERVER, Hook::ToPod),
        ] {
            let netns = from.map_or(&site.node, |who| site.netns(who));
            let before = object.counters()?;
            refused(netns, family, to, port)?;
            let moved = object.counters()?.since(&before);
            moved.assert(&[(hook, Outcome::Policy, Exactly(1))]);
        }
    }
    Site::remove()
}

#[test]
fn revoked_connections_end_at_both_ends() -> Result<()> {
    let site = Site::build()?;
    let mut table = Table::cluster();
    let mut object = site.attach(&table)?;
    for family in Family::BOTH {
        let to = Judged.at(family, SERVER);
        let listener = site.netns(Judged).run(|| TcpListener::bind(to))?;
        let client = site
            .netns(Plain)
            .run(|| TcpStream::connect_timeout(&to, AT_ONCE))?;
        let (server, _) = listener.accept()?;

        let kept = table.clone();
        table.revision += 1;
        let pod = table.pods.get_mut(&Judged.ifindex());
        pod.context("a local pod")?.policy = NO_SET;
        object.fill(&table)?;
        let before = object.counters()?;
        is_reset(client).context("the client")?;
        is_reset(server).context("the server")?;
        let moved = object.counters()?.since(&before);
        moved.assert(&[
            (Hook::ToPod, Outcome::Policy, Exactly(1)),
            (Hook::FromPod, Outcome::NoFlow, AtLeast(1)),
        ]);

        let revision = table.revision + 1;
        table = Table { revision, ..kept };
        object.fill(&table)?;
    }
    Site::remove()
}
