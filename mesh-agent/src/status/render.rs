//! A status as text, on one screen.

use super::{Node, Problem, Status};

/// Certificates that are named; of more, only their number is told.
const NAMED: usize = 10;

/// The first line is the conclusion, the last ones are what to do.
pub fn render(status: &Status) -> String {
    let Status {
        node,
        version,
        pods,
        policies,
        ..
    } = status;
    let state = match status.problems.len() {
        0 => "healthy".to_owned(),
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let mut lines = vec![format!("node {node} (mesh-agent {version}): {state}")];
    if let Some(source) = &status.source {
        lines.push(format!("source        {}: {}", source.name, source.detail));
    }
    lines.extend(status.network.iter().flat_map(network));
    lines.push(format!(
        "pods          {} wired, {} enrolled, {} strict",
        pods.wired, pods.enrolled, pods.strict
    ));
    lines.extend(
        status
            .not_enrolled
            .iter()
            .map(|(why, pods)| format!("not enrolled  {}: {why} ({})", pods.len(), some(pods))),
    );
    lines.push(format!(
        "policies      {}, {} parts not in force as written",
        policies.count, policies.not_as_written
    ));
    lines.push(format!(
        "left out      {} objects that cannot be read",
        status.left_out.len()
    ));
    lines.push(format!("tunnels       {} open", status.tunnels));
    if !status.http.is_empty() {
        let ports: Vec<_> = status.http.iter().map(|it| it.address.as_str()).collect();
        lines.push(format!("http          {}", ports.join(", ")));
    }
    if !status.certificates.is_empty() {
        lines.push(format!("certificates  {}", status.certificates.len()));
    }
    lines.extend(status.certificates.iter().take(NAMED).map(|it| {
        let until = it.not_after.as_deref().unwrap_or("none yet");
        format!("              {} until {until}", it.identity)
    }));
    lines.extend(
        status
            .problems
            .iter()
            .map(|Problem { what, remedy }| format!("PROBLEM       {what}; {remedy}")),
    );
    lines.join("\n") + "\n"
}

/// Some of a list, for whoever wants to know one.
fn some(list: &[String]) -> String {
    let mut some = list.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    if list.len() > 3 {
        some.push_str(", ...");
    }
    some
}

fn network(it: &Node) -> Vec<String> {
    let uplinks: Vec<_> = it
        .uplinks
        .iter()
        .map(|uplink| uplink.name.as_str())
        .collect();
    let addresses: Vec<_> = it
        .addresses
        .iter()
        .map(|it| format!("{}: {} taken, {} free", it.family, it.taken, it.free))
        .collect();
    let interfaces = it.uplinks.len() + it.pods.len();
    let whole = it
        .uplinks
        .iter()
        .chain(&it.pods)
        .filter(|it| it.missing.is_empty())
        .count();
    let outside = if it.masquerades {
        "with the node's address"
    } else {
        "with their own addresses"
    };
    let mut lines = vec![
        format!(
            "uplinks       {}; MTU of pods {}",
            uplinks.join(", "),
            it.mtu
        ),
        format!("programs      attached to {whole} of {interfaces} interfaces"),
        format!(
            "kernel        {}",
            if it.is_behind {
                "behind the world"
            } else {
                "in step with the world"
            }
        ),
        format!("maps          {}", fullest(it)),
        format!("addresses     {}", addresses.join("; ")),
        format!("outside       pods leave the cluster {outside}"),
    ];
    lines.extend(it.without.iter().map(|it| format!("without       {it}")));
    lines
}

/// The map that is nearest to its end, of those that have one.
fn fullest(it: &Node) -> String {
    let share = |held: usize, room: u32| held as u64 * 1_000_000 / u64::from(room);
    let limited = it.maps.iter().filter(|it| it.room > 0);
    match limited.max_by_key(|it| share(it.held, it.room)) {
        Some(it) => format!("fullest is {}, {} of {}", it.name, it.held, it.room),
        None => "not known".to_owned(),
    }
}
