//! The programs that the kernel runs at the devices of a node.

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use serde_json::Value;

use crate::holdings::devices;
use crate::node::Node;

/// Ids of the programs of a node, of which every device has one each way: by tcx where that is said of it, else by clsact.
///
/// # Errors
/// A device has none, several, or one by the other, or there are more than four in all.
pub fn one_each(node: &Node, is_by_tcx: impl Fn(&str) -> bool) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for device in devices(node.netns())? {
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            let filters = filters(node, &device, hook)?;
            // A kernel before 6.6 has no tcx.
            let links = node
                .netns()
                .run(|| SchedClassifier::query_tcx(&device, hook));
            let links = links.iter().flat_map(|(_, it)| it).map(ProgramInfo::id);
            let links: Vec<_> = links.collect();
            let found = [&links, &filters].map(Vec::len);
            let wanted = if is_by_tcx(&device) { [1, 0] } else { [0, 1] };
            ensure!(
                found == wanted,
                "{device}, {hook:?}: {links:?}, {filters:?}"
            );
            all.extend(links.into_iter().chain(filters));
        }
    }
    all.sort_unstable();
    all.dedup();
    ensure!(
        all.len() <= 4,
        "from_net, to_net, from_pod, to_pod: {all:?}"
    );
    Ok(all)
}

fn filters(node: &Node, device: &str, hook: TcAttachType) -> Result<Vec<u32>> {
    let direction = match hook {
        TcAttachType::Egress => "egress",
        _ => "ingress",
    };
    let show = ["-json", "filter", "show", "dev", device, direction];
    let shown: Value = serde_json::from_str(&node.netns().exec("tc", show)?)?;
    let filters = shown.as_array().context("no list of filters")?.iter();
    let ids = filters.filter_map(|it| it["options"]["prog"]["id"].as_u64());
    ids.map(|id| Ok(u32::try_from(id)?)).collect()
}
