//! CORE: which connections are alike, so that their labels are written once.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::connection::{Carriage, Connection, Direction, Flag};
use super::labels::{End, Subject};
use super::totals::Pair;
use crate::model::{Identity, Service, Workload, WorkloadKey};

/// Objects of the snapshot by their address, which they keep while this holds them.
#[derive(Clone)]
struct At<T>(Arc<T>);

impl<T> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for At<T> {}

impl<T> Hash for At<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

#[derive(PartialEq, Eq, Hash)]
pub(super) struct Way {
    pub(super) direction: Direction,
    pub(super) carriage: Carriage,
    pub(super) flag: Flag,
    workloads: [Option<At<Workload>>; 2],
    service: Option<At<Service>>,
    identities: [Option<Identity>; 2],
}

impl Way {
    pub(super) fn of(it: &Connection, flag: Flag) -> Self {
        let at = |it: &Option<Arc<Workload>>| it.clone().map(At);
        Self {
            direction: it.direction,
            carriage: it.carriage,
            flag,
            workloads: [at(&it.source_workload), at(&it.destination_workload)],
            service: it.service.clone().map(At),
            identities: [it.source_identity.clone(), it.destination_identity.clone()],
        }
    }

    pub(super) fn of_pair(it: &Pair, direction: Direction, flag: Flag) -> Self {
        let proved = it.carriage != Carriage::Plain;
        let ends = [&it.source, &it.destination];
        let identity = |it: &Arc<Workload>| it.identity.clone().filter(|_| proved);
        Self {
            direction,
            carriage: it.carriage,
            flag,
            workloads: ends.map(|it| it.clone().map(At)),
            // What is opened to a service the agent carries.
            service: None,
            identities: ends.map(|it| it.as_ref().and_then(identity)),
        }
    }

    pub(super) fn subject(&self) -> Subject<'_> {
        let [source, destination] = [0, 1].map(|end: usize| End {
            workload: self.workloads[end].as_ref().map(|it| &*it.0),
            identity: self.identities[end].as_ref(),
        });
        Subject {
            direction: self.direction,
            carriage: self.carriage,
            flag: self.flag,
            source,
            destination,
            service: self.service.as_ref().map(|it| &*it.0),
        }
    }

    pub(super) fn ends(&self) -> [Option<WorkloadKey>; 2] {
        let key = |it: &Option<At<Workload>>| it.as_ref().map(|it| it.0.key.clone());
        [key(&self.workloads[0]), key(&self.workloads[1])]
    }
}
