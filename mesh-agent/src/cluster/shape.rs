//! Specs of policies, read so that nothing is overlooked: a policy of which a part is not known must not pass for one
//! without that part.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Invalid;
use crate::model::Labels;
use crate::policy::{Caveat, Effect, Operator, Requirement, Selector};

/// A part of a policy cannot be read as what it should be.
#[derive(Debug)]
pub(super) struct Unread {
    /// Path of the field in the object.
    pub(super) field: String,
    /// What is wrong.
    pub(super) problem: String,
}

impl Unread {
    pub(super) fn caveat(self, effect: Effect) -> Caveat {
        let Self { field, problem } = self;
        Caveat {
            field,
            problem,
            effect,
        }
    }
}

impl From<Invalid> for Unread {
    fn from(it: Invalid) -> Self {
        Self {
            problem: format!("{:?} is not valid, write {}", it.value, it.expected),
            field: it.field,
        }
    }
}

/// Reads a part of an object that stands at `path`, all of it: types pass over fields that they do not have, and take
/// lists for structs.
///
/// # Errors
/// It has another type than it should, or a field that its type does not have.
pub(super) fn read<T: DeserializeOwned + Serialize>(
    path: &str,
    value: &Value,
) -> Result<T, Unread> {
    let it: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        Unread {
            field: if inner == "." {
                path.to_owned()
            } else {
                format!("{path}.{inner}")
            },
            problem: error.into_inner().to_string(),
        }
    })?;
    let understood = serde_json::to_value(&it).unwrap_or_default();
    match overlooked(path, value, &understood) {
        Some(problem) => Err(problem),
        None => Ok(it),
    }
}

/// What was written and did not make it into what was read.
fn overlooked(path: &str, written: &Value, understood: &Value) -> Option<Unread> {
    match (written, understood) {
        (Value::Object(written), Value::Object(understood)) => written
            .iter()
            .filter(|(_, value)| !value.is_null())
            .find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                match understood.get(name) {
                    Some(understood) => overlooked(&path, value, understood),
                    None => Some(Unread {
                        field: path,
                        problem: "there is no such field, correct its name".to_owned(),
                    }),
                }
            }),
        (Value::Array(written), Value::Array(understood)) => written
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(i, (value, known))| overlooked(&format!("{path}[{i}]"), value, known)),
        (Value::Array(_), Value::Object(_)) => Some(Unread {
            field: path.to_owned(),
            problem: "a list stands where fields should".to_owned(),
        }),
        _ => None,
    }
}

/// Notes a caveat about one of many parts; of too many the first tell enough.
pub(super) fn note(caveats: &mut Vec<Caveat>, caveat: Caveat) {
    if caveats.len() < MOST_CAVEATS {
        caveats.push(caveat);
    }
}

/// Caveats that are kept of one policy.
const MOST_CAVEATS: usize = 50;

/// Reads what a policy says of the pods it is about; when that cannot be read, it is about all it could be about.
pub(super) fn subjects(selector: Result<Selector, Unread>, caveats: &mut Vec<Caveat>) -> Selector {
    selector.unwrap_or_else(|problem| {
        caveats.push(problem.caveat(Effect::SelectsAll));
        Selector::everything()
    })
}

/// Converts a label selector.
///
/// # Errors
/// It has an operator that is none, or values that its operator has no use for.
pub(super) fn selector(path: &str, it: LabelSelector) -> Result<Selector, Invalid> {
    let labels: Labels = it.match_labels.unwrap_or_default();
    let mut selector = Selector::of_labels(labels);
    let expressions = it.match_expressions.into_iter().flatten();
    for (i, it) in expressions.enumerate() {
        let values = it.values.unwrap_or_default();
        let invalid = |field: &str, value: &str, expected| Invalid {
            field: format!("{path}.matchExpressions[{i}].{field}"),
            value: value.to_owned(),
            expected,
        };
        let takes_values = match &*it.operator {
            "In" | "NotIn" => true,
            "Exists" | "DoesNotExist" => false,
            other => {
                let expected = "In, NotIn, Exists or DoesNotExist";
                return Err(invalid("operator", other, expected));
            }
        };
        if takes_values == values.is_empty() {
            let expected = "values for In and NotIn, none for Exists and DoesNotExist";
            return Err(invalid("values", &values.join(", "), expected));
        }
        let values = values.into_iter().collect();
        let operator = match &*it.operator {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        let key = it.key;
        selector.requirements.push(Requirement { key, operator });
    }
    Ok(selector)
}
