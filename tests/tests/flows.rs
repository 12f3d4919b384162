//! A pod that opens more flows than the kernel keeps records of breaks nobody's connections but its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_common::maps::{OWN_FLOWS, SHARED_FLOWS};
use mesh_tests::frames::{Frame, flag};
use mesh_tests::lab::scenario;
use mesh_tests::pod::Pod;
use mesh_tests::world::Family;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, send, socket,
};
use serde_json::json;

/// Where a frame without VLAN tag and IP options has its ports.
const PORTS: usize = 34;

/// Opens flows to one address from port to port; none is ever answered.
fn flood(pod: &Pod, mut frames: Vec<Vec<u8>>, flows: u32) -> Result<()> {
    pod.netns().run(|| {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::EthAll,
        )?;
        let device = nix::ifaddrs::getifaddrs()?
            .filter(|it| it.interface_name == "eth0")
            .find_map(|it| it.address?.as_link_addr().copied())
            .context("the pod has no eth0")?;
        bind(fd.as_raw_fd(), &device)?;
        for flow in 0..flows {
            for frame in &mut frames {
                frame[PORTS..PORTS + 4].copy_from_slice(&(flow + (1_000 << 16)).to_be_bytes());
                while send(fd.as_raw_fd(), frame, MsgFlags::empty()).is_err() {
                    std::thread::yield_now();
                }
            }
        }
        Ok(())
    })
}

fn exchange((mut client, mut server): (&TcpStream, &TcpStream)) -> Result<()> {
    let mut byte = [0];
    for stream in [client, server] {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    client.write_all(b"x")?;
    server.read_exact(&mut byte)?;
    server.write_all(&byte)?;
    client.read_exact(&mut byte)?;
    ensure!(byte == *b"x", "another byte came back");
    Ok(())
}

#[test]
fn a_pod_pushes_out_only_its_own_flows() -> Result<()> {
    scenario("flows", |lab| {
        lab.namespace("shop").ambient().create()?;
        let greedy = lab.pod("greedy").namespace("shop").on("n1").create()?;
        let good = lab.pod("good").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let far = lab.pod("far").namespace("shop").on("n2").create()?;
        let plain = lab.pod("plain").on("n2").create()?;
        let mut held = Vec::new();
        for (way, pod) in [("plain", &plain), ("same node", &near), ("tunnel", &far)] {
            let listener = pod.listen(8080)?;
            let client = good.connect(pod.at(Family::V4, 8080))?;
            let (server, _) = listener.accept()?;
            exchange((&client, &server)).with_context(|| format!("before, {way}"))?;
            held.push((way, client, server));
        }

        let (host, own) = greedy.macs()?;
        let frame = |flags| {
            let frame = Frame::tcp(greedy.at(Family::V4, 1), plain.at(Family::V4, 1), flags);
            frame.macs(host, own).bytes()
        };
        // One that is used is not the next to go.
        let frames = vec![frame(flag::SYN), frame(flag::ACK), frame(flag::ACK)];
        flood(&greedy, frames, 2 * SHARED_FLOWS)?;

        for (way, client, server) in &held {
            exchange((client, server)).with_context(|| format!("after, {way}"))?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_may_have_more_flows_than_its_own_table_holds() -> Result<()> {
    scenario("flows_many", |lab| {
        lab.namespace("shop").ambient().create()?;
        let client = lab.pod("client").namespace("shop").on("n1").create()?;
        let near = lab.pod("near").namespace("shop").on("n1").create()?;
        let plain = lab.pod("plain").on("n2").create()?;
        let open = json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 8080 }] }] });
        lab.policy("NetworkPolicy", "shop", "open", open)?;
        let mut held = Vec::new();
        for (way, pod) in [("plain", &plain), ("same node", &near)] {
            let listener = pod.listen(8080)?;
            let stream = client.connect(pod.at(Family::V4, 8080))?;
            let (server, _) = listener.accept()?;
            exchange((&stream, &server)).with_context(|| format!("before, {way}"))?;
            held.push((way, stream, server, listener));
        }
        let all_work = |when: &str| {
            held.iter().try_for_each(|(way, stream, server, _)| {
                exchange((stream, server)).with_context(|| format!("{when}, {way}"))
            })
        };

        let (host, own) = client.macs()?;
        for pod in [&plain, &near] {
            let to = pod.at(Family::V4, 1);
            let frame = Frame::tcp(client.at(Family::V4, 1), to, flag::SYN).macs(host, own);
            flood(&client, vec![frame.bytes()], 4 * OWN_FLOWS)?;
        }
        all_work("after its own have been pushed out")?;
        let node = lab.node("n1");
        node.agent().stop()?;
        node.agent().start()?;
        all_work("after a restart")?;
        let more = json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 8080 }, { "port": 9 }] }] });
        lab.policy("NetworkPolicy", "shop", "open", more)?;
        lab.settle()?;
        all_work("after a change of policy")
    })
}
