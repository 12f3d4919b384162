//! Label selectors as Kubernetes defines them.

use std::collections::BTreeSet;

use crate::model::Labels;

/// Selects objects by their labels: all requirements hold; without any it selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// What is required.
    pub requirements: Vec<Requirement>,
}

/// What is required of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What its value is held against.
    pub operator: Operator,
}

/// How the value of a label is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label is there, with one of these values.
    In(BTreeSet<String>),
    /// The label is not there, or has none of these values.
    NotIn(BTreeSet<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Selector {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects what has all of these labels.
    pub fn of_labels(labels: Labels) -> Self {
        let requirement = |(key, value)| Requirement {
            key,
            operator: Operator::In([value].into()),
        };
        Self {
            requirements: labels.into_iter().map(requirement).collect(),
        }
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|it| it.holds(labels.get(&it.key).map(String::as_str)))
    }

    /// A label that everything selected has, key and value, where the selector asks for one.
    pub fn required_label(&self) -> Option<(&str, &str)> {
        self.requirements.iter().find_map(|it| match &it.operator {
            Operator::In(values) if values.len() == 1 => Some((&*it.key, &**values.first()?)),
            _ => None,
        })
    }
}

impl Requirement {
    /// Whether it holds for the value of the label; none when the label is not there.
    pub fn holds(&self, value: Option<&str>) -> bool {
        match &self.operator {
            Operator::In(values) => value.is_some_and(|it| values.contains(it)),
            Operator::NotIn(values) => value.is_none_or(|it| !values.contains(it)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}
