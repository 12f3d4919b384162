//! CORE: answers as text.

use std::fmt::Write;

use crate::inspect::{
    Carriage, Found, Judgement, Listed, Party, PolicyName, PolicyReport, Step, Trace,
};

/// A trace, one step a line; the last line is the conclusion.
pub(super) fn trace(trace: &Trace) -> String {
    let mut lines = vec![
        format!("from  {}", party(&trace.source, None)),
        format!("to    {}", trace.destination),
        format!(
            "as    node {} knows it, revision {}",
            trace.node, trace.revision
        ),
    ];
    lines.extend(trace.steps.iter().map(step));
    for path in &trace.paths {
        let port = path.port.map(|port| (port, trace.protocol));
        let port = port
            .map(|(port, protocol)| format!("{port}/{}", format!("{protocol:?}").to_uppercase()));
        lines.push(format!(
            "  to {}",
            party(&path.destination, port.as_deref())
        ));
        lines.extend(path.steps.iter().map(|it| format!("  {}", step(it))));
    }
    for note in &trace.notes {
        lines.push(format!("note  {note}"));
    }
    lines.push(trace.conclusion.clone());
    lines.join("\n") + "\n"
}

fn party(it: &Party, port: Option<&str>) -> String {
    let mut text = match &it.name {
        Some(name) => format!("{name} {}", it.address),
        None => it.address.to_string(),
    };
    if let Some(port) = port {
        // Writing to a string cannot fail.
        let _ = write!(text, " {port}");
    }
    let mut about = Vec::new();
    match &it.node {
        Some(node) if it.here => about.push(format!("this node, {node}")),
        Some(node) => about.push(format!("node {node}")),
        None if it.name.is_none() => about.push("not of the cluster".to_owned()),
        None => {}
    }
    match (&it.identity, it.enrolled) {
        (Some(identity), true) => about.push(format!("enrolled, {identity}")),
        (_, enrolled) if it.node.is_some() => {
            about.push(if enrolled { "enrolled" } else { "not enrolled" }.to_owned());
        }
        _ => {}
    }
    if !about.is_empty() {
        let _ = write!(text, " ({})", about.join("; "));
    }
    text
}

fn step(step: &Step) -> String {
    match step {
        Step::Verdict(it) => verdict(it),
        Step::Service {
            service,
            by,
            endpoints,
        } => {
            let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
            let endpoints = match &endpoints[..] {
                [] => "none".to_owned(),
                some => some.join(", "),
            };
            format!("  service  {service}: endpoint chosen by {by}, of {endpoints}")
        }
        Step::Route {
            carriage,
            by,
            detail,
            tunnel,
            identities,
        } => {
            let word = match carriage {
                Carriage::Itself => "itself",
                Carriage::SameNode | Carriage::Agent => "same node",
                Carriage::Tunnel => "tunnel",
                Carriage::Plain => "plain",
                Carriage::Refused => "refused",
            };
            let mut text = format!("  route    {word}: {detail}");
            if let Some(tunnel) = tunnel {
                let _ = write!(text, " to {tunnel}, as {}", identities.join(" or "));
            }
            text + &format!(" [{by}]")
        }
    }
}

fn verdict(it: &Judgement) -> String {
    let word = if it.allow { "allowed" } else { "denied " };
    let rule = it.rule.as_ref().map(|it| format!(", {it}"));
    let policy = it.policy.as_ref().map(|policy| {
        let PolicyName {
            namespace, name, ..
        } = policy;
        format!(" ({namespace}/{name}{})", rule.unwrap_or_default())
    });
    let (direction, layer, reason, by) = (&it.direction, &it.layer, &it.reason, &it.by);
    let policy = policy.unwrap_or_default();
    format!("  {direction:<8} {word} {layer}: {reason}{policy} [{by}]")
}

/// A report, one policy a line.
pub(super) fn policies(report: &PolicyReport) -> String {
    let mut lines = Vec::new();
    match &report.found {
        Found::Pod { pod, layers } => {
            lines.push(party(pod, None));
            if layers.is_empty() {
                lines.push("  no pod of the cluster's network: no policy is about it".to_owned());
            }
            for it in layers {
                lines.push(format!("  {:<8} {}: {}", it.direction, it.layer, it.state));
                let of = it.policies.iter();
                lines.extend(of.map(|it| format!("             {}", listed(it))));
            }
        }
        Found::All(policies) if policies.is_empty() => lines.push("no policies".to_owned()),
        Found::All(policies) => lines.extend(policies.iter().map(|it| {
            let pods = match it.local_pods {
                1 => "1 pod".to_owned(),
                count => format!("{count} pods"),
            };
            format!(
                "{} {}; in force for {pods} of this node",
                it.policy.kind,
                listed(it)
            )
        })),
    }
    if !report.not_as_written.is_empty() {
        lines.push("not in force as written:".to_owned());
    }
    lines.extend(report.not_as_written.iter().map(|it| {
        let PolicyName {
            kind,
            namespace,
            name,
        } = &it.policy;
        let (field, problem, effect) = (&it.field, &it.problem, &it.effect);
        format!("  {kind} {namespace}/{name} {field}: {problem}; {effect}")
    }));
    if !report.left_out.is_empty() {
        lines.push("cannot be read:".to_owned());
    }
    let left_out = report.left_out.iter();
    lines.extend(left_out.map(|it| format!("  {}: {}", it.part, it.reason)));
    lines.push(format!(
        "node {}, revision {}",
        report.node, report.revision
    ));
    lines.join("\n") + "\n"
}

fn listed(it: &Listed) -> String {
    let PolicyName {
        namespace, name, ..
    } = &it.policy;
    let caveats = match it.not_as_written {
        0 => String::new(),
        _ => ", not in force as written".to_owned(),
    };
    format!("{namespace}/{name}: {}{caveats}", it.does)
}
