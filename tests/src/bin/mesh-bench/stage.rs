//! Two nodes and two sets of pods over the same cabling: one enrolled, one not.

use anyhow::Result;
use mesh_tests::lab::Lab;
use mesh_tests::pod::Pod;

use crate::cpu::Meter;
use crate::{Plan, bare, memory, plugin, telemetry, traffic};

/// The name of the lab.
pub(crate) const LAB: &str = "bench";

/// What load runs between.
pub(crate) struct Stage<'lab> {
    pub(crate) lab: &'lab Lab,
    pub(crate) plain: Pods<'lab>,
    pub(crate) mesh: Pods<'lab>,
    pub(crate) meter: Meter,
}

/// A client, and a server on either node.
pub(crate) struct Pods<'lab> {
    /// On n1.
    pub(crate) client: Pod<'lab>,
    /// On n1.
    pub(crate) neighbour: Pod<'lab>,
    /// On n2.
    pub(crate) remote: Pod<'lab>,
}

/// Whether a row is asked for that needs the stage.
pub(crate) fn is_wanted(plan: &Plan) -> bool {
    traffic::is_wanted(plan)
        || [bare::KEY, memory::KEY, plugin::KEY, telemetry::KEY]
            .iter()
            .any(|it| plan.wants(it))
}

/// Brings everything up, and down again.
pub(crate) fn with(work: impl FnOnce(&Stage<'_>) -> Result<()>) -> Result<()> {
    eprintln!("bench: two nodes, agents and pods");
    let lab = Lab::new(LAB)?;
    lab.namespace("mesh").ambient().create()?;
    lab.namespace("plain").create()?;
    let done = Pods::create(&lab, "plain").and_then(|plain| {
        work(&Stage {
            lab: &lab,
            plain,
            mesh: Pods::create(&lab, "mesh")?,
            meter: Meter::new(&lab)?,
        })
    });
    if done.is_err() {
        lab.print_logs();
    }
    done
}

impl<'lab> Pods<'lab> {
    fn create(lab: &'lab Lab, namespace: &str) -> Result<Self> {
        let pod = |name: &str, node: &str| -> Result<Pod<'lab>> {
            let pod = lab.pod(name).namespace(namespace).on(node).create()?;
            // A client that opens thousands of connections a second is out of ports before the first is forgotten.
            pod.exec("sysctl", &["-qw", "net.ipv4.tcp_tw_reuse=1"])?;
            Ok(pod)
        };
        Ok(Self {
            client: pod("client", "n1")?,
            neighbour: pod("neighbour", "n1")?,
            remote: pod("remote", "n2")?,
        })
    }
}
