//! Who is found at an address.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::HashMap;
use tracing::warn;

use super::{Service, Workload};

/// Something that claims addresses.
pub(super) trait Claimant: PartialEq {
    /// The addresses it claims.
    fn addresses(&self) -> &[IpAddr];

    /// What it is known by; of two with the same name only one stands.
    fn name(&self) -> impl Display + PartialEq;

    /// The least rank wins; no two claimants share one.
    fn rank(&self) -> impl Ord;
}

impl Claimant for Workload {
    fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    fn name(&self) -> impl Display + PartialEq {
        self.key.clone()
    }

    fn rank(&self) -> impl Ord {
        let created = self.pod.as_ref().map_or(0, |pod| pod.created);
        (Reverse(self.is_local()), Reverse(created), self.key.clone())
    }
}

impl Claimant for Service {
    fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    fn name(&self) -> impl Display + PartialEq {
        self.key.clone()
    }

    fn rank(&self) -> impl Ord {
        self.key.clone()
    }
}

/// Address -> its claimants, best first; never empty.
#[derive(Clone, Debug)]
pub(super) struct Claims<T>(HashMap<IpAddr, Arc<[Arc<T>]>>);

impl<T: Claimant> Claims<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Who is found at the address.
    pub(super) fn winner(&self, address: IpAddr) -> Option<&Arc<T>> {
        self.0.get(&address)?.first()
    }

    /// Every address with who is found there.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Arc<T>)> {
        self.0
            .iter()
            .filter_map(|(address, claimants)| Some((*address, claimants.first()?)))
    }

    /// Puts one state of a claimant in the place of another, and adds to `touched` where the winner differs now.
    pub(super) fn replace(
        &mut self,
        old: Option<&Arc<T>>,
        new: Option<&Arc<T>>,
        touched: &mut BTreeSet<IpAddr>,
    ) {
        let both = [old, new].into_iter().flatten();
        let addresses: BTreeSet<_> = both.flat_map(|it| it.addresses()).copied().collect();
        for address in addresses {
            if self.replace_at(address, old, new) {
                touched.insert(address);
            }
        }
    }

    /// Whether the winner at the address differs afterwards.
    fn replace_at(&mut self, address: IpAddr, old: Option<&Arc<T>>, new: Option<&Arc<T>>) -> bool {
        let before = self.winner(address).cloned();
        let others = self.0.get(&address).map_or(&[][..], |it| it);
        let contested = others.len() > 1;
        let mut claimants: Vec<_> = others
            .iter()
            .filter(|it| old.is_none_or(|old| it.name() != old.name()))
            .cloned()
            .collect();
        if let Some(new) = new.filter(|it| it.addresses().contains(&address)) {
            claimants.push(new.clone());
            claimants.sort_by(|a, b| a.rank().cmp(&b.rank()));
        }
        if let [winner, loser, ..] = &*claimants
            && !(contested && before.as_ref().is_some_and(|it| it.name() == winner.name()))
        {
            warn!(%address, winner = %winner.name(), loser = %loser.name(), "address claimed twice");
        }
        let after = claimants.first().cloned();
        if claimants.is_empty() {
            self.0.remove(&address);
        } else {
            self.0.insert(address, claimants.into());
        }
        before != after
    }
}
