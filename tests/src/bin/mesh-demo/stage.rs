//! The demo's cluster and who plays in it.

use std::process::Command;

use anyhow::{Context, Result};
use mesh_tests::builders::Service;
use mesh_tests::lab::Lab;
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;
use mesh_tests::wait::{SOON, eventually};
use mesh_tests::world::Family;

/// The port of every pod's HTTP server.
pub(crate) const HTTP: u16 = 8080;
/// The port of every pod's echo server.
pub(crate) const ECHO: u16 = 7;

/// The pods, and the service in front of one of them.
pub(crate) struct Cast<'lab> {
    /// Enrolled, on n1.
    pub(crate) client: Pod<'lab>,
    /// Enrolled, on n1.
    pub(crate) cart: Pod<'lab>,
    /// Enrolled, on n2.
    pub(crate) web: Pod<'lab>,
    /// Not enrolled, on n1.
    pub(crate) plain: Pod<'lab>,
    /// In front of `web`.
    pub(crate) service: Service,
    /// What runs in the pods.
    pub(crate) servers: Vec<Process>,
}

/// Makes the pods in a lab, with their applications.
pub(crate) fn set(lab: &Lab) -> Result<Cast<'_>> {
    lab.namespace("shop").ambient().create()?;
    lab.namespace("legacy").create()?;
    let shop = |name, node| lab.pod(name).namespace("shop").on(node).create();
    let mut cast = Cast {
        client: shop("client", "n1")?,
        cart: shop("cart", "n1")?,
        web: shop("web", "n2")?,
        plain: lab.pod("plain").namespace("legacy").on("n1").create()?,
        service: lab
            .service("web")
            .namespace("shop")
            .port(80, HTTP)
            .create()?,
        servers: Vec::new(),
    };
    let pods = [&cast.client, &cast.cart, &cast.web, &cast.plain];
    cast.servers = pods.into_iter().map(serve).collect::<Result<_>>()?;
    introduce(lab, &cast);
    Ok(cast)
}

/// Starts this very program as the application of a pod, and waits until it answers there.
fn serve(pod: &Pod<'_>) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    let process = pod.spawn(command.args(["serve", pod.name()]))?;
    eventually(&format!("{} serves", pod.name()), SOON, || {
        let url = format!("http://127.0.0.1:{HTTP}/");
        Ok(pod
            .output("curl", &["-sS", "-m", "1", &url])?
            .status
            .success())
    })
    .context("an application of the demo does not start")?;
    Ok(process)
}

fn introduce(lab: &Lab, cast: &Cast<'_>) {
    println!(
        "Two nodes on one link, each a network namespace with a real agent, and pods wired by the CNI plugin:"
    );
    for node in lab.nodes() {
        println!(
            "   {}  {}",
            node.name(),
            Family::BOTH
                .map(|family| node.ip(family).to_string())
                .join("  ")
        );
        for (pod, about) in [
            (&cast.client, "shop/client, in the mesh"),
            (&cast.cart, "shop/cart, in the mesh"),
            (&cast.web, "shop/web, in the mesh"),
            (&cast.plain, "legacy/plain, not in the mesh"),
        ] {
            if pod.node().name() == node.name() {
                let ips = Family::BOTH
                    .map(|family| pod.ip(family).to_string())
                    .join("  ");
                println!("       {ips}  {about}");
            }
        }
    }
    let ips = Family::BOTH
        .map(|family| cast.service.at(family).ip().to_string())
        .join("  ");
    println!(
        "   the service shop/web  {ips}  port {}",
        cast.service.at(Family::V4).port()
    );
}
