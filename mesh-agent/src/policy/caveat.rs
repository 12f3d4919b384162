//! What is not in force as it was written.

use std::fmt;

/// A part of a policy that is not in force as it was written, and what holds instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caveat {
    /// Path of the field in the object.
    pub field: String,
    /// What is wrong with it, and the remedy where there is one.
    pub problem: String,
    /// What holds instead.
    pub effect: Effect,
}

/// What holds in place of what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What the field would have allowed is not allowed by it.
    AllowsLess,
    /// More is denied than was written.
    DeniesMore,
    /// Every connection to the selected pods is denied.
    DeniesAll,
    /// All pods are selected that the policy could have selected.
    SelectsAll,
    /// Both directions are isolated.
    IsolatesBoth,
    /// The policy does nothing here.
    Nothing,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowsLess => "what it would allow is not allowed",
            Self::DeniesMore => "more is denied than written",
            Self::DeniesAll => "every connection to the selected pods is denied",
            Self::SelectsAll => "every pod that the policy could select is selected",
            Self::IsolatesBoth => "the selected pods are isolated in both directions",
            Self::Nothing => "the policy has no effect",
        })
    }
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            problem,
            effect,
        } = self;
        write!(f, "{field}: {problem}; {effect}")
    }
}
