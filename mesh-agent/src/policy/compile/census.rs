//! Who there is, and who of them is treated alike.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_common::addr::Addr;

use super::mark::Mark;
use super::peers::Peers;
use super::regions::Regions;
use super::{Line, Question, Someone, View};
use crate::model::Snapshot;

/// Counts classes and collects the rows of the tables.
pub(super) struct Census<'a> {
    snapshot: &'a Snapshot,
    views: &'a [View<'a>],
    peers: &'a Peers<'a>,
    /// What entries there are for one view and one class, each once.
    rows: Numbers<Vec<Line>>,
    /// By view: marks that it looks for -> row.
    known: Vec<HashMap<Vec<Mark<'a>>, usize>>,
    /// Marks -> class.
    by_marks: HashMap<Vec<Mark<'a>>, u32>,
    /// The row in each view -> class.
    by_rows: BTreeMap<Vec<usize>, u32>,
    next_class: u32,
}

impl<'a> Census<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, views: &'a [View<'a>], peers: &'a Peers<'a>) -> Self {
        Self {
            snapshot,
            views,
            peers,
            rows: Numbers::new(),
            known: views.iter().map(|_| HashMap::new()).collect(),
            by_marks: HashMap::new(),
            by_rows: BTreeMap::new(),
            next_class: 0,
        }
    }

    /// Every prefix whose class is not that of the next shorter one: see [`super::Compiled::classes`].
    pub(super) fn count(&mut self) -> BTreeMap<(u32, Addr), u32> {
        let regions = Regions::of(self.peers.nets());
        let blocks = self.peers.blocks(&regions);
        let seen = (0..regions.all.len()).map(|it| self.peers.of_region(&regions, &blocks, it));
        let seen: Vec<_> = seen.collect();
        // Class 0 is for addresses in no prefix: an entry that is missing must not make somebody of nobody.
        let nobody = regions.wholes().find(|it| !regions.all[*it].told);
        match nobody.and_then(|it| Some((it, regions.all[it].sample?))) {
            Some((region, address)) => {
                self.class(seen[region].clone(), nameless(address));
            }
            None => self.next_class = 1,
        }

        let (mut found, mut of_region) = (BTreeMap::new(), Vec::new());
        for (region, seen) in regions.all.iter().zip(&seen) {
            let around = region.parent.map_or(0, |it| of_region[it]);
            let class = match region.sample {
                Some(address) => self.class(seen.clone(), nameless(address)),
                None => around,
            };
            of_region.push(class);
            if class != around {
                found.insert((region.bits, region.first()), class);
            }
        }
        self.count_workloads(&regions, &seen, &of_region, &mut found);
        found
    }

    fn count_workloads(
        &mut self,
        regions: &Regions,
        seen: &[Vec<Mark<'a>>],
        of_region: &[u32],
        found: &mut BTreeMap<(u32, Addr), u32>,
    ) {
        let peers = self.peers;
        let mut residents = HashMap::new();
        let mut marked = Vec::new();
        for (address, workload) in self.snapshot.workload_addresses() {
            let mut marks = peers.of_workload(self.views, workload, address);
            if let Some(pod) = &workload.pod {
                let namespace = &pod.key.namespace;
                let there = residents.entry(namespace);
                let there = there.or_insert_with(|| peers.of_namespace(self.snapshot, namespace));
                marks.extend_from_slice(there.of(&pod.labels));
            }
            // In most one sees no more than in whoever else might have the address.
            if !marks.is_empty() {
                marked.push((address, workload, marks));
            }
        }
        // Numbers of classes are in the order of addresses, whatever the order they are found in.
        marked.sort_unstable_by_key(|(address, ..)| *address);
        for (address, workload, mut marks) in marked {
            let region = regions.locate(address);
            marks.extend_from_slice(&seen[region]);
            let someone = Someone {
                address,
                workload: Some(workload),
            };
            let class = self.class(marks, someone);
            if class != of_region[region] {
                found.insert((128, address.into()), class);
            }
        }
    }

    /// The class of somebody in whom one sees some marks.
    fn class(&mut self, mut marks: Vec<Mark<'a>>, someone: Someone<'a>) -> u32 {
        marks.sort_unstable();
        marks.dedup();
        if let Some(class) = self.by_marks.get(&marks) {
            return *class;
        }
        let mut looked_for = vec![Vec::new(); self.views.len()];
        for mark in &marks {
            for view in self.peers.views(*mark) {
                looked_for[*view].push(*mark);
            }
        }
        let rows = looked_for.into_iter().enumerate();
        let rows: Vec<_> = rows
            .map(|(view, it)| self.row_of(view, it, someone))
            .collect();
        let class = *self.by_rows.entry(rows).or_insert(self.next_class);
        self.next_class += u32::from(class == self.next_class);
        self.by_marks.insert(marks, class);
        class
    }

    fn row_of(&mut self, view: usize, mut marks: Vec<Mark<'a>>, someone: Someone<'a>) -> usize {
        marks.dedup();
        if let Some(row) = self.known[view].get(&marks) {
            return *row;
        }
        let may_prove = marks.iter().any(|it| matches!(it, Mark::Local { .. }));
        let row = self.ask(view, &marks, &[someone], false).answer(may_prove);
        let row = self.rows.number(row);
        self.known[view].insert(marks, row);
        row
    }

    fn ask<'q>(
        &'q self,
        view: usize,
        marks: &[Mark<'a>],
        peers: &'q [Someone<'q>],
        from_node: bool,
    ) -> Question<'q> {
        let granted = marks.iter().filter_map(|it| match it {
            Mark::Granted(grant) => Some(*grant),
            _ => None,
        });
        let grants = granted.chain(self.peers.always[view].iter().copied());
        Question {
            snapshot: self.snapshot,
            view: &self.views[view],
            grants: grants.map(|it| &self.peers.grants[it]).collect(),
            peers,
            from_node,
        }
    }

    /// The row of each class in a view, without empty ones.
    pub(super) fn table(&self, view: usize) -> Vec<(u32, usize)> {
        let rows = self
            .by_rows
            .iter()
            .map(|(rows, class)| (*class, rows[view]));
        let mut table: Vec<_> = rows.filter(|(_, row)| !self.row(*row).is_empty()).collect();
        table.sort_unstable();
        table
    }

    /// The row of processes in the node's network, whichever of the node's addresses they have.
    pub(super) fn node(&mut self, view: usize) -> usize {
        let node = self.snapshot.node(&self.snapshot.settings().node);
        let addresses = node.map_or(&[][..], |it| &it.addresses);
        let mut peers: Vec<_> = addresses.iter().map(|it| nameless(*it)).collect();
        if peers.is_empty() {
            let unknown: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            peers.extend(unknown.map(nameless));
        }
        let row = self.ask(view, &[], &peers, true).answer(false);
        self.rows.number(row)
    }

    /// The entries of a row.
    pub(super) fn row(&self, row: usize) -> &[Line] {
        self.rows.get(row)
    }
}

fn nameless(address: IpAddr) -> Someone<'static> {
    Someone {
        address,
        workload: None,
    }
}

/// Values by numbers, equal ones once.
struct Numbers<T> {
    values: Vec<T>,
    numbers: HashMap<T, usize>,
}

impl<T: Clone + Eq + Hash> Numbers<T> {
    fn new() -> Self {
        Self {
            values: Vec::new(),
            numbers: HashMap::new(),
        }
    }

    fn number(&mut self, value: T) -> usize {
        let next = self.values.len();
        let number = *self.numbers.entry(value.clone()).or_insert(next);
        if number == next {
            self.values.push(value);
        }
        number
    }

    fn get(&self, number: usize) -> &T {
        &self.values[number]
    }
}
