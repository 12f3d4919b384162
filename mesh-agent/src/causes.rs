//! CORE: an error for a person to read.

use std::error::Error;
use std::iter::successors;

/// An error with its causes, in one line.
pub fn causes(error: &dyn Error) -> String {
    let chain = successors(Some(error), |&error| error.source());
    chain
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
