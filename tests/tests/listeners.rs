//! The agent's listeners are for what the kernel programs hand to them: who tries their ports at the node's own address is
//! refused, a process of the node that finds them at the loopback address is reset, and neither leaves a line in the log.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use anyhow::{Result, ensure};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::pod::PATIENCE;
use mesh_tests::wait::uninterrupted;
use mesh_tests::world::Family;

#[test]
fn at_the_nodes_own_address() -> Result<()> {
    scenario("listeners", |lab| {
        let pod = lab.pod("passer-by").on("n1").create()?;
        let outside = lab.outside()?;
        let (node, before) = (lab.node("n1"), lines(lab));
        for family in Family::BOTH {
            for port in ports(node, family)? {
                let to = SocketAddr::new(node.ip(family), port);
                for from in [&outside, pod.netns(), node.netns()] {
                    fails(from, to, ErrorKind::ConnectionRefused)?;
                }
                let to = SocketAddr::new(loopback(family), port);
                fails(node.netns(), to, ErrorKind::ConnectionReset)?;
            }
        }
        assert_eq!(lines(lab), before, "new lines in the agent's log");
        Ok(())
    })
}

/// Ports of the agent's two listeners of a family, which nobody chose.
fn ports(node: &Node, family: Family) -> Result<Vec<u16>> {
    let family = match family {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    let listening = node.netns().exec("ss", [family, "-Hltn"])?;
    let ports = listening.lines().filter_map(|line| {
        let local = line.split_whitespace().nth(3)?;
        local.rsplit(':').next()?.parse().ok()
    });
    // Those of HTTP are its operator's word.
    let ports: Vec<_> = ports.filter(|it| !(15_000..=15_021).contains(it)).collect();
    ensure!(ports.len() == 2, "two listeners: {listening}");
    Ok(ports)
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// A connection ends so, be it in `connect` or when it is read.
fn fails(from: &Netns, to: SocketAddr, how: ErrorKind) -> Result<()> {
    let attempt = || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        uninterrupted(|| stream.read(&mut [0]))
    };
    let ended = from.run(attempt);
    let as_told = ended.as_ref().is_err_and(|error| error.kind() == how);
    ensure!(as_told, "{to} from {}: {ended:?}, not {how:?}", from.name());
    Ok(())
}

fn lines(lab: &Lab) -> usize {
    lab.node("n1").agent().log().lines().count()
}
