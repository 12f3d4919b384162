//! Services whose endpoints are no pods: a process in a node's own network, and a machine outside. An enrolled pod reaches
//! them on its own node and on another; they see the address of the pod's node.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::Result;
use mesh_tests::app::{App, Server, echoes};
use mesh_tests::lab::{Lab, scenario};
use mesh_tests::netns::Netns;
use mesh_tests::objects::{self, Labels};
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;
use serde_json::{Value, json};

const PORT: u16 = 6443;

#[test]
fn a_process_of_the_node() -> Result<()> {
    scenario("host_process", |lab| {
        let of = |family| lab.node("n1").ip(family);
        reached(lab, lab.node("n1").netns(), of, &Value::Null)
    })
}

#[test]
fn a_pod_in_the_network_of_its_node() -> Result<()> {
    scenario("host_pod", |lab| {
        let of = |family| lab.node("n1").ip(family);
        let pod = json!({ "kind": "Pod", "namespace": "shop", "name": "api" });
        reached(lab, lab.node("n1").netns(), of, &pod)
    })
}

#[test]
fn a_machine_outside() -> Result<()> {
    scenario("host_outside", |lab| {
        let machine = lab.outside()?;
        reached(lab, &machine, |family| lab.outside_ip(family), &Value::Null)
    })
}

/// Puts an application at the addresses behind a service, and connects from enrolled pods of both nodes.
fn reached(lab: &Lab, at: &Netns, address: impl Fn(Family) -> IpAddr, pod: &Value) -> Result<()> {
    lab.namespace("shop").ambient().create()?;
    let clients = [
        lab.pod("near").namespace("shop").on("n1").create()?,
        lab.pod("far").namespace("shop").on("n2").create()?,
    ];
    let service = lab
        .service("api")
        .namespace("shop")
        .port(443, PORT)
        .create()?;
    if *pod != Value::Null {
        lab.objects().apply(host_pod())?;
    }
    for family in Family::BOTH {
        lab.objects().apply(slice(family, address(family), pod))?;
    }
    let app = Server::run(at.run(|| TcpListener::bind(("::", PORT)))?, App::Echo);

    for client in &clients {
        for family in Family::BOTH {
            let what = format!("{} reaches the endpoint, {family:?}", client.name());
            // Until its agent has read the slice, the connection opens and is reset.
            eventually(&what, SOON, || {
                echoes(&client.connect(service.at(family))?, b"to the host")?;
                Ok(true)
            })?;
            assert_eq!(
                app.clients().last().map(SocketAddr::ip),
                Some(client.node().ip(family)),
                "it sees the node of {}",
                client.name()
            );
        }
    }
    Ok(())
}

fn host_pod() -> Value {
    let mut pod = objects::pod("shop", "api", "api", "n1", &Labels::new());
    pod["spec"]["hostNetwork"] = true.into();
    pod
}

fn slice(family: Family, address: IpAddr, pod: &Value) -> Value {
    let family = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop",
            "name": format!("hosts-{}", family.to_lowercase()),
            "labels": { "kubernetes.io/service-name": "api" },
        },
        "addressType": family,
        "endpoints": [{
            "addresses": [address],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "targetRef": pod,
        }],
        "ports": [{ "name": "tcp", "port": PORT, "protocol": "TCP" }],
    })
}
