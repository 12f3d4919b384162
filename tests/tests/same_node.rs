//! Between two enrolled pods of one node: no tunnel and no agent, the kernel hands packets over, also while no agent runs.

use anyhow::Result;
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::{AtLeast, Exactly};
use mesh_tests::lab::{scenario, stop};
use mesh_tests::world::Family;

#[test]
fn the_kernel_hands_over() -> Result<()> {
    scenario("same_node", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").create()?;
        let server = lab.pod("web").namespace("shop").create()?;
        let node = lab.node("n1");
        let app = Server::start(&server, 8080, App::Echo)?;
        for family in Family::BOTH {
            let before = node.counters()?;
            let wire = lab.capture()?;
            let stream = client.connect(server.at(family, 8080))?;
            echoes(&stream, b"from pod to pod")?;
            let own = stream.local_addr()?;
            drop(stream);

            assert_eq!(
                app.clients().last(),
                Some(&own),
                "the very connection of the client"
            );
            let wire = stop(wire)?;
            assert_eq!(wire.tcp(HBONE_PORT), 0, "no tunnel");
            assert_eq!(wire.tcp(8080), 0, "nothing leaves the node");
            node.counters()?.since(&before).assert(&[
                (Hook::FromPod, Outcome::Local, AtLeast(4)),
                (Hook::FromPod, Outcome::Listener, Exactly(0)),
                (Hook::FromPod, Outcome::Socket, Exactly(0)),
            ]);
        }
        assert!(
            !node.agent().log().contains("8080"),
            "the agent has seen no connection"
        );
        Ok(())
    })
}

#[test]
fn through_a_service_the_agent_connects() -> Result<()> {
    scenario("same_service", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").create()?;
        let server = lab.pod("web").namespace("shop").create()?;
        let service = lab
            .service("web")
            .namespace("shop")
            .port(80, 8080)
            .create()?;
        let app = Server::start(&server, 8080, App::Echo)?;
        for family in Family::BOTH {
            let wire = lab.capture()?;
            echoes(&client.connect(service.at(family))?, b"through the service")?;
            let seen = app.clients().last().map(std::net::SocketAddr::ip);
            assert_eq!(
                seen,
                Some(client.ip(family)),
                "the server sees the client pod"
            );
            assert!(
                !stop(wire)?.contains(b"through the service"),
                "nothing leaves the node"
            );
        }
        Ok(())
    })
}
