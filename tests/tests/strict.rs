//! `PeerAuthentication` STRICT: plaintext to an enrolled pod is dropped and counted, the mesh and the node's probes pass.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::counters::Packets::AtLeast;
use mesh_tests::lab::scenario;
use mesh_tests::world::Family;

#[test]
fn only_the_mesh_gets_in() -> Result<()> {
    scenario("strict", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let neighbour = lab.pod("neighbour").namespace("shop").on("n2").create()?;
        let server = lab
            .pod("web")
            .namespace("shop")
            .probed(8080)
            .on("n2")
            .create()?;
        let plain = lab.pod("plain").on("n1").create()?;
        let plain_neighbour = lab.pod("plain-neighbour").on("n2").create()?;
        let _app = Server::start(&server, 8080, App::Echo)?;

        for family in Family::BOTH {
            let to = server.at(family, 8080);
            for pod in [&client, &neighbour, &plain, &plain_neighbour] {
                echoes(&pod.connect(to)?, b"permissive")?;
            }
        }
        let open = plain.connect(server.at(Family::V4, 8080))?;

        lab.peer_authentication("shop", "STRICT")?;
        assert!(
            echoes(&open, b"opened before").is_err(),
            "plaintext goes on"
        );
        for family in Family::BOTH {
            let to = server.at(family, 8080);
            for pod in [&client, &neighbour] {
                echoes(&pod.connect(to)?, b"through the mesh")?;
            }
            let probe = lab
                .node("n2")
                .netns()
                .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
            echoes(&probe, b"a probe of the node")?;
            for pod in [&plain, &plain_neighbour] {
                let before = lab.node("n2").counters()?;
                assert!(pod.is_refused(to), "{} gets in in plaintext", pod.name());
                let moved = lab.node("n2").counters()?.since(&before);
                let hook = if pod.node().name() == "n2" {
                    Hook::Connect
                } else {
                    Hook::ToPod
                };
                moved.assert(&[(hook, Outcome::Strict, AtLeast(1))]);
            }
        }
        lab.peer_authentication("shop", "PERMISSIVE")?;
        for family in Family::BOTH {
            for pod in [&plain, &plain_neighbour] {
                echoes(&pod.connect(server.at(family, 8080))?, b"permissive again")?;
            }
        }
        Ok(())
    })
}
