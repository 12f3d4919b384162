//! CORE: the figures that ours are read against: those of a peer, and the goals.

/// Figures of one row; what is not told is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// With the mesh by without.
    pub(crate) ratio: Option<f64>,
    /// The figure itself, in the row's unit.
    pub(crate) value: Option<f64>,
    /// CPU time of all agents for a unit of work, in the row's CPU unit.
    pub(crate) agent_cpu: Option<f64>,
}

type Entry = (&'static str, Figures);

const fn ratio(key: &'static str, ratio: f64) -> Entry {
    let figures = Figures {
        ratio: Some(ratio),
        value: None,
        agent_cpu: None,
    };
    (key, figures)
}

const fn value(key: &'static str, value: f64) -> Entry {
    let figures = Figures {
        ratio: None,
        value: Some(value),
        agent_cpu: None,
    };
    (key, figures)
}

const fn with_cpu(entry: Entry, agent_cpu: f64) -> Entry {
    let figures = Figures {
        agent_cpu: Some(agent_cpu),
        ..entry.1
    };
    (entry.0, figures)
}

/// What is told of a row, by its key.
pub(crate) fn of(table: &[Entry], key: &str) -> Figures {
    let found = table.iter().find(|(name, _)| *name == key);
    found.map_or_else(Figures::default, |(_, figures)| *figures)
}

/// ztunnel 62d8265, release, aws-lc, in-pod mode, on two namespaces as nodes: medians of 8 alternating pairs on 2 cores of
/// an EPYC, about one of which was busy with other work.
pub(crate) const PEER_RATIOS: &[Entry] = &[
    with_cpu(ratio("cross.bulk1", 0.21), 2.13),
    with_cpu(ratio("cross.bulk8", 0.23), 2.26),
    with_cpu(ratio("cross.pp1.p50", 4.5), 76.0),
    ratio("cross.pp1.p99", 4.6),
    ratio("cross.pp32.p50", 4.0),
    ratio("cross.pp32.p99", 3.1),
    with_cpu(ratio("cross.pp32.rate", 0.27), 57.0),
    with_cpu(ratio("cross.cr", 0.20), 416.0),
    with_cpu(ratio("same.bulk1", 0.19), 2.03),
    with_cpu(ratio("same.pp1.p50", 4.7), 59.0),
    ratio("same.pp1.p99", 3.6),
    with_cpu(ratio("same.pp32.rate", 0.18), 52.0),
    with_cpu(ratio("same.cr", 0.16), 359.0),
    value("mem.idle", 17.9),
    value("mem.1000", 25.0),
    value("mem.5000", 50.0),
    value("mem.connection", 6.4),
];

/// What we are after.
pub(crate) const GOALS: &[Entry] = &[
    with_cpu(ratio("cross.bulk1", 0.55), 0.8),
    with_cpu(ratio("cross.bulk8", 0.60), 0.8),
    with_cpu(ratio("cross.pp1.p50", 2.5), 30.0),
    with_cpu(ratio("cross.pp32.rate", 0.55), 30.0),
    with_cpu(ratio("cross.cr", 0.50), 130.0),
    // No agent is on this path: what one uses that has nothing to do, by as much work as goes by meanwhile.
    with_cpu(ratio("same.bulk1", 1.0), 0.01),
    with_cpu(ratio("same.pp1.p50", 1.1), 0.5),
    with_cpu(ratio("same.cr", 0.9), 1.0),
    value("mem.idle", 15.0),
    value("mem.connection", 3.0),
    ratio("telemetry.cr", 0.98),
    ratio("telemetry.pp32", 0.98),
    ratio("telemetry.bulk1", 0.98),
    ratio("bare.bulk1", 0.97),
    ratio("bare.pp1.p50", 1.03),
    ratio("bare.cr", 0.97),
    ratio("cni.add.p50", 0.5),
    value("world.rss", 120.0),
    value("world.label", 50.0),
    value("world.pod", 50.0),
];
