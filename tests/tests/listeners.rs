//! The agent's listeners are for what the kernel programs hand to them: who finds their ports at the node's own address gets
//! a reset, and no line in the log.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::pod::PATIENCE;
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
                    is_reset(from, to).with_context(|| format!("{to} from {}", from.name()))?;
                }
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
    let ports: Vec<_> = ports.collect();
    ensure!(ports.len() == 2, "two listeners: {listening}");
    Ok(ports)
}

/// The connection opens, as the kernel does that by itself, and is reset.
fn is_reset(from: &Netns, to: SocketAddr) -> Result<()> {
    // The reset may even be faster than connect().
    let attempt = || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read(&mut [0])
    };
    let ended = from.run(attempt);
    let reset = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    ensure!(ended.as_ref().is_err_and(reset), "not reset: {ended:?}");
    Ok(())
}

fn lines(lab: &Lab) -> usize {
    lab.node("n1").agent().log().lines().count()
}
