//! Rows `cni.*`: how long the container runtime waits for a pod's network, beside containernetworking's `ptp` with
//! `host-local`, called the same way. Theirs gives an IPv4 address alone: with IPv6 it waits more than a second for duplicate
//! address detection, and there would be nothing to compare. Ours gives both.

use std::path::Path;
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use mesh_tests::cni::{Call, Cni};
use mesh_tests::lab::Lab;
use mesh_tests::netns::Netns;
use mesh_tests::node::Node;
use mesh_tests::objects::{self, Labels};
use serde_json::json;

use crate::Plan;
use crate::report::{Report, digits};
use crate::row::{Better, Row};
use crate::statistics::{median, percentile};

/// What the keys of the rows begin with.
pub(crate) const KEY: &str = "cni";

/// Where Debian's `containernetworking-plugins` puts them.
const PTP: &str = "/usr/lib/cni/ptp";
/// Pods that come and go.
const PODS: usize = 32;

/// A plugin, and what it is called with.
struct Side<'a> {
    cni: Cni,
    node: &'a Node,
    calls: Vec<Call>,
}

/// Milliseconds of each call: ADD and DEL, one at a time and all at once.
type Times = [Vec<f64>; 4];

const NAMES: [&str; 4] = ["add", "del", "add32", "del32"];

/// Measures all of them.
pub(crate) fn measure(plan: &Plan, lab: &Lab, report: &mut Report) -> Result<()> {
    if !plan.wants(KEY) {
        return Ok(());
    }
    let netns = (0..PODS).map(|number| Netns::create(&format!("mesh-{}-cni{number}", lab.name())));
    let netns: Vec<_> = netns.collect::<Result<_>>()?;
    let [ptp, mesh] = [ptp(lab, &netns), mesh(lab, &netns)?];
    let mut pairs = Vec::new();
    for number in 1..=plan.pairs {
        let pair = [
            ptp.round().context("ptp")?,
            mesh.round().context("mesh-cni")?,
        ];
        let [plain, ours] = pair
            .each_ref()
            .map(|it| digits(median(it[0].iter().copied())));
        eprintln!(
            "bench: {KEY:<10} pair {number}/{}: ADD ptp {plain}, mesh-cni {ours} ms",
            plan.pairs
        );
        pairs.push(pair);
    }
    for (index, name) in NAMES.into_iter().enumerate() {
        for percent in [50, 99] {
            let figures = pairs.iter_mut().map(|pair| {
                pair.each_mut()
                    .map(|times| percentile(&mut times[index], percent))
            });
            let key = format!("{KEY}.{name}.p{percent}");
            report.add(Row::new(key, "ms", Better::Less).pairs(figures));
        }
    }
    for netns in netns {
        Netns::remove(netns.name())?;
    }
    Ok(())
}

fn ptp<'a>(lab: &'a Lab, netns: &[Netns]) -> Side<'a> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "mesh-bench", "type": "ptp",
        "ipam": {
            "type": "host-local", "dataDir": lab.directory().join("host-local"),
            "ranges": [[{ "subnet": "10.245.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    let call = |(number, netns): (usize, &Netns)| Call {
        container: format!("ptp{number}"),
        netns: netns.path().display().to_string(),
        config: config.clone(),
        ..Call::default()
    };
    Side {
        cni: Cni::new(Path::new(PTP), Path::new("none")),
        node: &lab.nodes()[0],
        calls: netns.iter().enumerate().map(call).collect(),
    }
}

/// Pods that the cluster knows, enrolled, as a kubelet would call for them.
fn mesh<'a>(lab: &'a Lab, netns: &[Netns]) -> Result<Side<'a>> {
    let node = &lab.nodes()[0];
    let calls = netns.iter().enumerate().map(|(number, netns)| {
        let name = format!("cni{number}");
        let pod = objects::pod("mesh", &name, "cni", node.name(), &Labels::new());
        lab.objects().apply(pod)?;
        Ok(Call {
            container: netns.name().to_owned(),
            netns: netns.path().display().to_string(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=mesh;K8S_POD_NAME={name};K8S_POD_UID=uid-mesh-{name}"
            ),
            ..Call::default()
        })
    });
    Ok(Side {
        cni: node.cni(),
        node,
        calls: calls.collect::<Result<_>>()?,
    })
}

impl Side<'_> {
    /// All pods come and go: one after the other, then all at once.
    fn round(&self) -> Result<Times> {
        let in_turn = |command| -> Result<Vec<f64>> {
            self.calls
                .iter()
                .map(|call| self.call(command, call))
                .collect()
        };
        Ok([
            in_turn("ADD")?,
            in_turn("DEL")?,
            self.at_once("ADD")?,
            self.at_once("DEL")?,
        ])
    }

    fn at_once(&self, command: &str) -> Result<Vec<f64>> {
        thread::scope(|scope| {
            let calls = self
                .calls
                .iter()
                .map(|call| scope.spawn(|| self.call(command, call)));
            let calls: Vec<_> = calls.collect();
            let joined = calls.into_iter().map(ScopedJoinHandle::join);
            joined
                .map(|it| it.map_err(|_| anyhow!("a caller panicked"))?)
                .collect()
        })
    }

    /// Milliseconds from the call to the end of the plugin.
    fn call(&self, command: &str, call: &Call) -> Result<f64> {
        let start = Instant::now();
        let answer = self.cni.call(self.node.netns(), command, call)?;
        let time = start.elapsed();
        answer.success().with_context(|| command.to_owned())?;
        Ok(time.as_secs_f64() * 1e3)
    }
}
