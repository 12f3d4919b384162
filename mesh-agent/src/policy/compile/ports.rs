//! Ports that verdicts change at, and the fewest entries that tell the verdicts.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Protocol;
use crate::policy::{Among, PortRange, PortTerm};

/// A [`PortTerm`] that can be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span<'a> {
    /// The protocol.
    pub(super) protocol: Protocol,
    /// The name that stands for the ports; the numbers are then of no meaning.
    pub(super) name: Option<&'a str>,
    first: u16,
    last: u16,
}

/// The spans of a rule, each once and in order; none for whatever has ports or none.
pub(super) type Spans<'a> = Option<Vec<Span<'a>>>;

/// The spans of a rule's ports.
pub(super) fn spans(ports: &Among<PortTerm>) -> Spans<'_> {
    let Among::OneOf(terms) = ports else {
        return None;
    };
    let spans: BTreeSet<_> = terms.iter().map(Span::of).collect();
    Some(spans.into_iter().collect())
}

impl<'a> Span<'a> {
    fn of(term: &'a PortTerm) -> Self {
        let (name, first, last) = match &term.port {
            PortRange::All => (None, 0, u16::MAX),
            PortRange::Numbers(it) => (None, *it.start(), *it.end()),
            PortRange::Name(it) => (Some(it.as_str()), 0, u16::MAX),
        };
        Self {
            protocol: term.protocol,
            name,
            first,
            last,
        }
    }
}

/// Ports at which a verdict may differ from that at the port before.
#[derive(Clone, Default)]
pub(super) struct Cuts(BTreeSet<u16>);

impl Cuts {
    /// Adds the ends of a span of numbers.
    pub(super) fn span(&mut self, span: &Span<'_>) {
        self.range(span.first, span.last);
    }

    /// Adds those around a port.
    pub(super) fn port(&mut self, port: u16) {
        self.range(port, port);
    }

    fn range(&mut self, first: u16, last: u16) {
        self.0.insert(first);
        self.0.extend(last.checked_add(1));
    }

    /// The verdicts at all ports, from one question for each piece.
    pub(super) fn judge(&self, mut allow: impl FnMut(u16) -> bool) -> Verdicts {
        let mut verdicts = BTreeMap::from([(0, allow(0))]);
        for port in &self.0 {
            let verdict = allow(*port);
            if verdicts.last_key_value().map(|(_, it)| *it) != Some(verdict) {
                verdicts.insert(*port, verdict);
            }
        }
        Verdicts(verdicts)
    }
}

/// The verdict at each port: those at which it changes, and what it is from there; 0 is among them.
pub(super) struct Verdicts(BTreeMap<u16, bool>);

/// Ports with equal leading bits, and the verdict at those of no longer prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    /// How many leading bits, up to 16.
    pub(super) bits: u32,
    /// The bits, the others 0.
    pub(super) port: u16,
    /// The verdict.
    pub(super) allow: bool,
}

impl Verdicts {
    /// The fewest prefixes by which a longest-prefix look-up finds the verdicts, where `without` is the verdict at ports
    /// of none.
    pub(super) fn prefixes(&self, without: bool) -> Vec<Prefix> {
        let [refused, allowed] = self.within(0, 0);
        if without { allowed } else { refused }
    }

    /// The fewest prefixes within one, if what is around it refuses, and if it allows.
    fn within(&self, port: u16, bits: u32) -> [Vec<Prefix>; 2] {
        let of = |allow| Prefix { bits, port, allow };
        let end = port | u16::MAX.checked_shr(bits).unwrap_or(0);
        let (from, verdict) = match self.0.range(..=end).next_back() {
            Some((from, verdict)) => (*from, *verdict),
            None => (0, false),
        };
        if from <= port {
            return if verdict {
                [vec![of(true)], Vec::new()]
            } else {
                [Vec::new(), vec![of(false)]]
            };
        }
        let upper = port | (1 << (15 - bits));
        let [mut refused, mut allowed] = self.within(port, bits + 1);
        let [upper_refused, upper_allowed] = self.within(upper, bits + 1);
        refused.extend(upper_refused);
        allowed.extend(upper_allowed);
        if allowed.len() + 1 < refused.len() {
            refused.clone_from(&allowed);
            refused.push(of(true));
        } else if refused.len() + 1 < allowed.len() {
            allowed.clone_from(&refused);
            allowed.push(of(false));
        }
        [refused, allowed]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict that a look-up finds.
    fn look_up(prefixes: &[Prefix], port: u16, without: bool) -> bool {
        let is_in = |it: &&Prefix| (it.port ^ port).checked_shr(16 - it.bits).unwrap_or(0) == 0;
        let found = prefixes.iter().filter(is_in).max_by_key(|it| it.bits);
        found.map_or(without, |it| it.allow)
    }

    #[track_caller]
    fn check(ranges: &[(u16, u16)], count: [usize; 2]) {
        let mut cuts = Cuts::default();
        for (first, last) in ranges {
            cuts.range(*first, *last);
        }
        let allow = |port| {
            ranges
                .iter()
                .any(|(first, last)| (*first..=*last).contains(&port))
        };
        let verdicts = cuts.judge(allow);
        for (without, count) in [false, true].into_iter().zip(count) {
            let prefixes = verdicts.prefixes(without);
            for port in 0..=u16::MAX {
                assert_eq!(look_up(&prefixes, port, without), allow(port), "{port}");
            }
            assert_eq!(prefixes.len(), count, "{prefixes:?}");
        }
    }

    #[test]
    fn prefixes_tell_the_verdicts_and_are_few() {
        check(&[], [0, 1]);
        check(&[(0, u16::MAX)], [1, 0]);
        check(&[(80, 80)], [1, 2]);
        check(&[(0, 79), (81, u16::MAX)], [2, 1]);
        check(&[(1, u16::MAX)], [2, 1]);
        check(&[(0, 0)], [1, 2]);
        check(&[(u16::MAX, u16::MAX)], [1, 2]);
        check(&[(1024, 2047)], [1, 2]);
        check(&[(80, 81), (443, 443), (8080, 8080)], [3, 4]);
        check(&[(30000, 32767)], [5, 6]);
        check(&[(100, 200), (201, 300), (65000, 65535)], [10, 11]);
    }
}
