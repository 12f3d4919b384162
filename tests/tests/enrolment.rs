//! Enrolment is a label: it takes effect at once, without touching a pod, and open connections carry on as they were.

use anyhow::Result;
use mesh_common::HBONE_PORT;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{Lab, scenario, stop};
use mesh_tests::objects::MODE;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;

const SECRET: &[u8] = b"fifteen men on the dead man's chest";

#[test]
fn the_label_of_the_namespace() -> Result<()> {
    scenario("enrol_namespace", |lab| {
        lab.namespace("shop").create()?;
        follow(lab, |mode| lab.label_namespace("shop", MODE, mode))
    })
}

#[test]
fn the_label_of_the_pods() -> Result<()> {
    scenario("enrol_pods", |lab| {
        lab.namespace("shop").create()?;
        follow(lab, |mode| {
            for (name, value) in [("client", mode), ("web", mode)] {
                lab.label_pod("shop", name, MODE, value)?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_pod_opts_out_of_its_namespace() -> Result<()> {
    scenario("enrol_none", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let server = lab
            .pod("web")
            .namespace("shop")
            .on("n2")
            .label(MODE, "none")
            .create()?;
        let _app = Server::start(&server, 8080, App::Echo)?;
        for family in Family::BOTH {
            assert_eq!(way(lab, &client, &server, family)?, Way::Plain);
        }
        Ok(())
    })
}

/// Plain, then enrolled, then plain again.
fn follow(lab: &Lab, set: impl Fn(Option<&str>) -> Result<()>) -> Result<()> {
    let client = lab.pod("client").namespace("shop").on("n1").create()?;
    let server = lab.pod("web").namespace("shop").on("n2").create()?;
    let _app = Server::start(&server, 8080, App::Echo)?;
    let open = || Family::BOTH.map(|family| client.connect(server.at(family, 8080)));

    for family in Family::BOTH {
        assert_eq!(way(lab, &client, &server, family)?, Way::Plain);
    }
    let before = open();
    set(Some("ambient"))?;
    for family in Family::BOTH {
        assert_eq!(way(lab, &client, &server, family)?, Way::Tunnel);
    }
    let during = open();
    for stream in before.iter().flatten() {
        echoes(stream, b"opened before the label")?;
    }
    set(None)?;
    for family in Family::BOTH {
        assert_eq!(way(lab, &client, &server, family)?, Way::Plain);
    }
    let wire = lab.capture()?;
    for stream in during {
        echoes(&stream?, b"opened under the label")?;
    }
    assert!(
        !stop(wire)?.contains(b"opened under the label"),
        "what began in a tunnel stays in it"
    );
    for stream in before {
        echoes(&stream?, b"opened before the label")?;
    }
    Ok(())
}

/// How a connection crosses the wire.
#[derive(Debug, PartialEq)]
enum Way {
    Plain,
    Tunnel,
}

fn way(lab: &Lab, client: &Pod<'_>, server: &Pod<'_>, family: Family) -> Result<Way> {
    let wire = lab.capture()?;
    echoes(&client.connect(server.at(family, 8080))?, SECRET)?;
    let wire = stop(wire)?;
    // Of open tunnels some packet may come at any time.
    match (
        wire.tcp(HBONE_PORT) > 0,
        wire.tcp(8080) > 0,
        wire.contains(SECRET),
    ) {
        (true, false, false) => Ok(Way::Tunnel),
        (_, true, true) => Ok(Way::Plain),
        (tunnel, direct, payload) => anyhow::bail!(
            "neither one nor the other: tunnel {tunnel}, direct {direct}, payload {payload}"
        ),
    }
}
