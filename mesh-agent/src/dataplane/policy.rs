//! Compiled policy in the kernel: written beside what is in force, then put in force pod by pod.
//!
//! A generation of classes and its policy sets are written whole under new numbers before any pod refers to them, and taken
//! away after the last pod has left them. A pod changes over by one write of its `PODS` entry, so no packet meets half a
//! policy; then the revision is bumped, and every flow is judged once more.

use aya::Ebpf;
use aya::maps::{Array, MapData};
use mesh_common::ABI_VERSION;
use mesh_common::addr::Addr;
use mesh_common::maps::{ClassKey, Config, PolicyEntry, PolicyKey};
use mesh_common::names::{MAP_CLASSES, MAP_CONFIG, MAP_POLICY};
use mesh_common::policy::Policies;

use super::Error;
use super::maps::{Fill, Trie, take};
use super::plan::Judged;
use crate::model::WorkloadKey;
use crate::policy::Compiled;

/// Bits of [`ClassKey::generation`], which is always matched whole.
const GENERATION_BITS: u32 = 32;

/// The policy tables of the kernel.
pub(super) struct PolicyTables {
    classes: Trie<ClassKey, u32>,
    entries: Trie<PolicyKey, PolicyEntry>,
    config: Array<MapData, Config>,
    revision: u32,
    /// What is in force.
    compiled: Compiled,
    generation: u32,
    /// Number that the next generation gets.
    next_generation: u32,
    /// Number of the first policy set in force.
    first_set: u32,
    /// Number that the next policy set gets.
    next_set: u32,
}

impl PolicyTables {
    /// Takes the maps from the object. What an earlier agent left stays in force until this one's first [`Self::write`].
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let classes: Trie<ClassKey, u32> = Trie::open(ebpf, MAP_CLASSES)?;
        let entries: Trie<PolicyKey, PolicyEntry> = Trie::open(ebpf, MAP_POLICY)?;
        let error = Error::of_map(MAP_CONFIG);
        let config: Array<_, Config> = Array::try_from(take(ebpf, MAP_CONFIG)?).map_err(&error)?;
        let revision = config.get(&0, 0).map_err(&error)?.revision;
        let generation = classes
            .keys()
            .map(|(_, key)| key.generation)
            .max()
            .unwrap_or(0);
        let next_set = entries.keys().map(|(_, key)| key.set).max().unwrap_or(0) + 1;
        let mut tables = Self {
            classes,
            entries,
            config,
            revision,
            compiled: Compiled::default(),
            generation,
            next_generation: generation + 1,
            first_set: next_set,
            next_set,
        };
        tables.bump()?;
        Ok(tables)
    }

    /// How full the tables are.
    pub(super) fn fill(&self) -> [Fill; 2] {
        [self.classes.fill(), self.entries.fill()]
    }

    /// [`Config::revision`].
    pub(super) fn revision(&self) -> u32 {
        self.revision
    }

    /// How a workload is judged.
    pub(super) fn judged(&self, workload: &WorkloadKey) -> Judged {
        let Some(subject) = self.compiled.sets.get(workload) else {
            return Judged::default();
        };
        Judged {
            flags: subject.flags,
            policy: self.first_set + subject.set,
            generation: self.generation,
        }
    }

    /// Writes compiled policy beside what is in force, unless it is the same; says whether pods are to change over.
    ///
    /// After a failure the old tables stay in force, and what was written of the new ones goes with the next success.
    pub(super) fn write(&mut self, compiled: Compiled) -> Result<bool, Error> {
        if compiled == self.compiled {
            return Ok(false);
        }
        let generation = self.next_generation;
        self.next_generation += 1;
        let first_set = self.next_set;
        let sets = compiled
            .sets
            .values()
            .map(|subject| subject.set + 1)
            .max()
            .unwrap_or(0);
        self.next_set += sets;
        for ((bits, addr), class) in &compiled.classes {
            let key = ClassKey {
                generation,
                addr: *addr,
            };
            self.classes.insert((GENERATION_BITS + bits, key), *class)?;
        }
        for ((bits, key), entry) in &compiled.entries {
            let key = PolicyKey {
                set: first_set + key.set,
                ..*key
            };
            self.entries.insert((*bits, key), *entry)?;
        }
        self.generation = generation;
        self.first_set = first_set;
        self.compiled = compiled;
        Ok(true)
    }

    /// After the pods have changed over: has every flow judged once more, and removes the tables of before.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        self.bump()?;
        let (generation, first_set) = (self.generation, self.first_set);
        let classes = self.classes.retain(|(_, key)| key.generation == generation);
        classes.and(self.entries.retain(|(_, key)| key.set >= first_set))
    }

    /// Has every recorded flow judged once more, by its next packet.
    fn bump(&mut self) -> Result<(), Error> {
        self.revision = self.revision.wrapping_add(1);
        let config = Config {
            abi_version: ABI_VERSION,
            revision: self.revision,
        };
        let set = self.config.set(0, config, 0);
        set.map_err(Error::of_map(MAP_CONFIG))
    }
}

/// What was written last, by the numbers of the kernel; of what was in force before it, nothing is known.
impl Policies for PolicyTables {
    fn class(&self, generation: u32, addr: &Addr) -> u32 {
        if generation == self.generation {
            self.compiled.class(generation, addr)
        } else {
            0
        }
    }

    fn entry(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
        let set = key.set.checked_sub(self.first_set)?;
        self.compiled.entry(&PolicyKey { set, ..*key })
    }
}
