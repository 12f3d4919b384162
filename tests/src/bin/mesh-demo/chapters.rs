//! The story: what the mesh does for pods that know nothing of it.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};
use mesh_common::HBONE_PORT;
use mesh_common::verdict::{Hook, Outcome};
use mesh_tests::app::echoes;
use mesh_tests::capture::Recording;
use mesh_tests::lab::{Lab, stop};
use mesh_tests::objects::MODE;
use mesh_tests::pod::Pod;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

use crate::report::Report;
use crate::stage::{Cast, ECHO, HTTP};

/// What the client says, and what nobody on the wire may read.
const PAYLOAD: &str = "my-card-number-is-4111-1111-1111-1111";

/// Tells all chapters, and returns whether everything held.
pub(crate) fn tell(lab: &Lab, cast: &Cast<'_>) -> bool {
    let mut report = Report::default();
    report.chapter(
        "Two enrolled pods on different nodes: encrypted, and each knows the other",
        |r| other_node(lab, cast, r),
    );
    report.chapter(
        "Two enrolled pods on one node: handed over by the kernel",
        |r| same_node(lab, cast, r),
    );
    report.chapter(
        "A pod outside the mesh: welcome while permissive, dropped when STRICT",
        |r| strict(lab, cast, r),
    );
    report.chapter(
        "The label taken away and given back, without touching a pod",
        |r| label(lab, cast, r),
    );
    report.chapter(
        "Both agents killed: nothing in plaintext, the kernel carries on with the rest",
        |r| killed(lab, cast, r),
    );
    report.chapter("Both agents back: everything works again", |r| {
        back(lab, cast, r)
    });
    report.table()
}

fn other_node(lab: &Lab, cast: &Cast<'_>, report: &mut Report) -> Result<()> {
    let ways = [
        cast.web.at(Family::V4, HTTP),
        cast.service.at(Family::V4),
        cast.web.at(Family::V6, HTTP),
        cast.service.at(Family::V6),
    ];
    let wire = lab.capture()?;
    for to in ways {
        let own = cast.client.ip(family(to));
        let answer = curl(report, &cast.client, to)?;
        let saw = answer.starts_with(&format!("web saw {own}\n"));
        report.proof(
            saw && answer.ends_with(PAYLOAD),
            &format!("the server answers, and sees {own}, the client pod's own address"),
        );
    }
    encrypted(report, &stop(wire)?);
    let [client, web] =
        ["client", "web"].map(|name| format!("spiffe://cluster.local/ns/shop/sa/{name}"));
    for node in lab.nodes() {
        let told = || {
            let log = node.agent().log();
            Ok(log
                .lines()
                .any(|line| line.contains(&client) && line.contains(&web)))
        };
        let holds = eventually("the access log", SOON, told).is_ok();
        report.proof(
            holds,
            &format!("the agent of {} proved {client} -> {web}", node.name()),
        );
    }
    Ok(())
}

fn same_node(lab: &Lab, cast: &Cast<'_>, report: &mut Report) -> Result<()> {
    let node = lab.node("n1");
    let before = node.counters()?;
    let wire = lab.capture()?;
    let answer = curl(report, &cast.client, cast.cart.at(Family::V4, HTTP))?;
    let own = cast.client.ip(Family::V4);
    report.proof(
        answer.starts_with(&format!("cart saw {own}\n")),
        &format!("the server answers, and sees {own}"),
    );
    let wire = stop(wire)?;
    report.proof(
        wire.tcp(HTTP) + wire.tcp(HBONE_PORT) == 0,
        "nothing of it is on the link between the nodes",
    );
    let moved = node.counters()?.since(&before);
    let handed = moved.of(Hook::FromPod, Outcome::Local);
    let to_agent = moved.total(Outcome::Listener) + moved.total(Outcome::Socket);
    report.proof(
        handed > 0 && to_agent == 0,
        &format!(
            "kernel counters: {handed} packets handed from pod to pod, {to_agent} to the agent"
        ),
    );
    Ok(())
}

fn strict(lab: &Lab, cast: &Cast<'_>, report: &mut Report) -> Result<()> {
    let to = cast.web.at(Family::V4, HTTP);
    let wire = lab.capture()?;
    let answer = curl(report, &cast.plain, to)?;
    report.proof(
        answer.ends_with(PAYLOAD),
        "permissive: the pod outside the mesh gets an answer",
    );
    report.proof(
        stop(wire)?.contains(PAYLOAD.as_bytes()),
        "its payload is on the link for all to read",
    );

    report.does("edit source/peerauthentication-shop-default.yaml: mode STRICT");
    lab.peer_authentication("shop", "STRICT")?;
    let before = lab.node("n2").counters()?;
    report.does(&command(&cast.plain, to));
    let refused = curl_quietly(&cast.plain, to).is_err();
    report.proof(refused, "STRICT: it gets no answer");
    let dropped = lab
        .node("n2")
        .counters()?
        .since(&before)
        .of(Hook::ToPod, Outcome::Strict);
    report.proof(
        dropped > 0,
        &format!(
            "kernel counters on n2: {dropped} packets dropped at the pod's door (drop_strict)"
        ),
    );
    let answer = curl(report, &cast.client, to)?;
    report.proof(
        answer.ends_with(PAYLOAD),
        "the pod inside the mesh gets in as before",
    );
    lab.peer_authentication("shop", "PERMISSIVE")
}

fn label(lab: &Lab, cast: &Cast<'_>, report: &mut Report) -> Result<()> {
    let open = cast.client.connect(cast.web.at(Family::V4, ECHO))?;
    let to = cast.web.at(Family::V4, HTTP);
    report.does(&format!(
        "edit source/namespace-shop.yaml: remove the label {MODE}"
    ));
    lab.label_namespace("shop", MODE, None)?;
    let wire = lab.capture()?;
    curl(report, &cast.client, to)?;
    let plain = stop(wire)?;
    report.proof(
        plain.contains(PAYLOAD.as_bytes()) && plain.tcp(HTTP) > 0,
        "without the label a new connection goes in plaintext, as without the mesh",
    );
    let wire = lab.capture()?;
    carries_on(report, &open);
    report.proof(
        !stop(wire)?.contains(PAYLOAD.as_bytes()),
        "and stays in its tunnel",
    );

    report.does(&format!(
        "edit source/namespace-shop.yaml: the label {MODE}: ambient"
    ));
    lab.label_namespace("shop", MODE, Some("ambient"))?;
    let wire = lab.capture()?;
    curl(report, &cast.client, to)?;
    encrypted(report, &stop(wire)?);
    carries_on(report, &open);
    Ok(())
}

fn killed(lab: &Lab, cast: &Cast<'_>, report: &mut Report) -> Result<()> {
    let open = cast.client.connect(cast.web.at(Family::V4, ECHO))?;
    echoes(&open, PAYLOAD.as_bytes())?;
    let wire = lab.capture()?;
    report.does("kill -9 (both agents)");
    lab.nodes()
        .iter()
        .try_for_each(|node| node.agent().kill())?;
    for to in [
        cast.web.at(Family::V4, HTTP),
        cast.web.at(Family::V6, HTTP),
        cast.service.at(Family::V4),
    ] {
        report.does(&command(&cast.client, to));
        report.proof(
            curl_quietly(&cast.client, to).is_err(),
            "to another node: no connection",
        );
    }
    let told = echoes(&open, PAYLOAD.as_bytes()).is_err();
    report.proof(
        told,
        "the connection that was open ends, and the application is told",
    );
    let answer = curl(report, &cast.client, cast.cart.at(Family::V4, HTTP))?;
    report.proof(
        answer.ends_with(PAYLOAD),
        "on the same node: works, new connections too",
    );
    let wire = stop(wire)?;
    let silent = !wire.contains(PAYLOAD.as_bytes()) && wire.tcp(HTTP) == 0;
    report.proof(
        silent,
        &format!(
            "of {} frames on the link none has the payload, or belongs to such a connection",
            wire.len()
        ),
    );

    let wire = lab.capture()?;
    let (host, outside) = (cast.plain.ip(Family::V4), lab.outside()?);
    let url = format!("http://{}/", cast.plain.at(Family::V4, HTTP));
    report.does(&format!("curl {url}   (from a machine outside)"));
    let answer = outside.exec("curl", ["-sS", "-m", "3", "--data", PAYLOAD, &url])?;
    let seen = stop(wire)?.contains(PAYLOAD.as_bytes());
    report.proof(
        answer.ends_with(PAYLOAD) && seen,
        &format!("the pod outside the mesh, {host}, is reached as ever"),
    );
    Ok(())
}

fn back(lab: &Lab, cast: &Cast<'_>, report: &mut Report) -> Result<()> {
    report.does("mesh-agent run (on both nodes)");
    lab.nodes()
        .iter()
        .try_for_each(|node| node.agent().start())?;
    lab.settle()?;
    let wire = lab.capture()?;
    for to in [cast.web.at(Family::V4, HTTP), cast.service.at(Family::V6)] {
        let answer = curl(report, &cast.client, to)?;
        report.proof(answer.ends_with(PAYLOAD), "to another node: works");
    }
    encrypted(report, &stop(wire)?);
    Ok(())
}

fn encrypted(report: &mut Report, wire: &Recording) {
    let (tunnel, plain) = (wire.tcp(HBONE_PORT), wire.tcp(HTTP));
    report.proof(tunnel > 0 && plain == 0, &format!("on the link between the nodes: {tunnel} packets of tunnels (port {HBONE_PORT}), {plain} to port {HTTP}"));
    report.proof(
        !wire.contains(PAYLOAD.as_bytes()),
        &format!("the payload occurs in none of {} frames", wire.len()),
    );
}

fn carries_on(report: &mut Report, open: &TcpStream) {
    report.proof(
        echoes(open, PAYLOAD.as_bytes()).is_ok(),
        "a connection that was open before carries on",
    );
}

/// Calls a server from a pod, and tells so.
fn curl(report: &Report, pod: &Pod<'_>, to: SocketAddr) -> Result<String> {
    report.does(&command(pod, to));
    curl_quietly(pod, to)
}

fn curl_quietly(pod: &Pod<'_>, to: SocketAddr) -> Result<String> {
    let url = format!("http://{to}/");
    let output = pod.output("curl", &["-sS", "-m", "3", "--data", PAYLOAD, &url])?;
    ensure!(
        output.status.success(),
        "{}: {}",
        command(pod, to),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn command(pod: &Pod<'_>, to: SocketAddr) -> String {
    format!(
        "curl http://{to}/   (in {} on {})",
        pod.name(),
        pod.node().name()
    )
}

fn family(to: SocketAddr) -> Family {
    if to.is_ipv4() { Family::V4 } else { Family::V6 }
}
