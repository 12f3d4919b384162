//! What network policies grant the pods of a namespace.

use std::collections::{BTreeSet, HashMap};

use super::mark::Mark;
use crate::model::Labels;
use crate::policy::Selector;

/// The rules that mean pods of one namespace, and what they grant pods by their labels, each combination found out once.
pub(super) struct Residents<'p, 'a> {
    /// By rule: which pods it means, and its grants.
    rules: Vec<(Vec<&'a Selector>, &'p [usize])>,
    /// Keys of labels that decide about pods.
    keys: Vec<&'a str>,
    found: HashMap<Vec<Option<&'a str>>, Vec<Mark<'a>>>,
}

impl<'p, 'a> Residents<'p, 'a> {
    /// Of the pods that each rule means, and its grants.
    pub(super) fn new(rules: impl Iterator<Item = (Vec<&'a Selector>, &'p [usize])>) -> Self {
        let rules: Vec<_> = rules.filter(|(pods, _)| !pods.is_empty()).collect();
        let selectors = rules.iter().flat_map(|(pods, _)| pods);
        let requirements = selectors.flat_map(|it| &it.requirements);
        let keys: BTreeSet<_> = requirements.map(|it| it.key.as_str()).collect();
        Self {
            rules,
            keys: keys.into_iter().collect(),
            found: HashMap::new(),
        }
    }

    /// What a pod is granted.
    pub(super) fn of(&mut self, labels: &'a Labels) -> &[Mark<'a>] {
        if self.rules.is_empty() {
            return &[];
        }
        let keys = self.keys.iter();
        let values = keys.map(|it| labels.get(*it).map(String::as_str)).collect();
        self.found.entry(values).or_insert_with(|| {
            let is_meant = |pods: &[&Selector]| pods.iter().any(|it| it.matches(labels));
            let rules = self.rules.iter().filter(|(pods, _)| is_meant(pods));
            let grants = rules.flat_map(|(_, grants)| *grants);
            grants.map(|it| Mark::Granted(*it)).collect()
        })
    }
}
