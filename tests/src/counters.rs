//! The kernel's counters: what became of every packet.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use mesh_common::verdict::{Hook, Outcome, counter};

/// Packets by hook and outcome, summed over the CPUs; pairs that are zero are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<(Hook, Outcome), u64>);

impl Counters {
    /// Reads a pinned map.
    pub fn pinned(path: &Path) -> Result<Self> {
        let open = || Map::from_map_data(MapData::from_pin(path)?);
        let map = open().with_context(|| format!("cannot open the map {}", path.display()))?;
        Self::read(&PerCpuArray::try_from(map)?)
    }

    /// Reads a map that is open.
    pub fn read<M: Borrow<MapData>>(map: &PerCpuArray<M, u64>) -> Result<Self> {
        let mut counters = BTreeMap::new();
        for hook in Hook::ALL {
            for outcome in Outcome::ALL {
                let packets: u64 = map.get(&counter(*hook, *outcome as u32), 0)?.iter().sum();
                if packets != 0 {
                    counters.insert((*hook, *outcome), packets);
                }
            }
        }
        Ok(Self(counters))
    }

    /// Packets of one pair.
    pub fn of(&self, hook: Hook, outcome: Outcome) -> u64 {
        self.0.get(&(hook, outcome)).copied().unwrap_or(0)
    }

    /// All packets with one outcome.
    pub fn total(&self, outcome: Outcome) -> u64 {
        Hook::ALL.iter().map(|hook| self.of(*hook, outcome)).sum()
    }

    /// What was counted since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let moved = self.0.iter().filter_map(|(pair, packets)| {
            let before = earlier.0.get(pair).copied().unwrap_or(0);
            (*packets > before).then(|| (*pair, packets - before))
        });
        Self(moved.collect())
    }

    /// Asserts what moved, and that no other drop did. Link-local chatter of pods comes when it likes and is left out.
    ///
    /// # Panics
    /// When an expectation does not hold, or a drop counter moved that none names.
    #[track_caller]
    pub fn assert(&self, expected: &[(Hook, Outcome, Packets)]) {
        for (hook, outcome, packets) in expected {
            let counted = self.of(*hook, *outcome);
            assert!(
                packets.holds(counted),
                "{}/{} counted {counted}, not {packets:?}; all that moved:\n{self}",
                hook.name(),
                outcome.name()
            );
        }
        for (hook, outcome) in self.0.keys() {
            let told = expected.iter().any(|(h, o, _)| (h, o) == (hook, outcome));
            assert!(
                told || !outcome.is_drop() || *outcome == Outcome::LinkLocal,
                "{}/{} moved; all that moved:\n{self}",
                hook.name(),
                outcome.name()
            );
        }
    }
}

impl Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((hook, outcome), packets) in &self.0 {
            writeln!(f, "  {:10} {:20} {packets}", hook.name(), outcome.name())?;
        }
        Ok(())
    }
}

/// How many packets are expected.
#[derive(Clone, Copy, Debug)]
pub enum Packets {
    /// Exactly so many.
    Exactly(u64),
    /// So many or more.
    AtLeast(u64),
}

impl Packets {
    fn holds(self, counted: u64) -> bool {
        match self {
            Self::Exactly(packets) => counted == packets,
            Self::AtLeast(packets) => counted >= packets,
        }
    }
}
