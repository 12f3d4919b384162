//! CORE: an error for a person to read.

use std::error::Error;
use std::iter::successors;

/// An error with its causes, in one line; a cause that an error has told already is not told again.
pub fn causes(error: &dyn Error) -> String {
    let chain = successors(Some(error), |&error| error.source());
    chain
        .map(ToString::to_string)
        .fold(String::new(), |mut told, cause| {
            if !told.contains(&cause) {
                if !told.is_empty() {
                    told.push_str(": ");
                }
                told.push_str(&cause);
            }
            told
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    #[test]
    fn each_cause_is_told_once() {
        let root = Told("no route", None);
        let talkative = Told("cannot connect: no route", Some(Box::new(root)));
        let all = Told("no certificate", Some(Box::new(talkative)));
        assert_eq!(causes(&all), "no certificate: cannot connect: no route");
        let plain = Told("outer", Some(Box::new(Told("inner", None))));
        assert_eq!(causes(&plain), "outer: inner");
    }
}
