//! CORE: what people ask about the world of a node.
//!
//! [`trace`] tells what would become of a connection and why, [`policies`] what is in force. Both answer from a
//! [`Snapshot`](crate::model::Snapshot) alone, and by the functions that decide about real connections; the answers are
//! plain data for a screen or a program.
//!
//! Invariant: what is not known to this node is said, not guessed.

mod notes;
mod party;
mod policies;
mod question;
mod report;
#[cfg(test)]
mod tests;
mod trace;
mod walk;

pub use policies::{in_force, policies};
pub use question::{Destination, End, Problem, Question, Transport, Unreadable};
pub use report::{
    Carriage, Found, InForce, Judgement, LeftOut, Listed, NotAsWritten, Outcome, Party, Path,
    PolicyName, PolicyReport, Step, Trace,
};
pub use trace::trace;
