//! CORE: the latest records, of a bounded number; whoever reads them remembers where it was.
//!
//! Those that are refused have places of their own, so that a flood of others does not hide them.

use std::collections::VecDeque;

use super::connection::{Event, Record};

/// Places for each kind.
const PLACES: usize = 4096;

/// The latest records by number; the first that ever was is 0.
pub(super) struct Ring {
    next: u64,
    passed: VecDeque<(u64, Record)>,
    refused: VecDeque<(u64, Record)>,
}

/// Records from somewhere on.
pub(super) struct Read {
    /// In their order.
    pub(super) records: Vec<Record>,
    /// Where to go on.
    pub(super) next: u64,
    /// Records that found no reader in time.
    pub(super) lost: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self {
            next: 0,
            passed: VecDeque::new(),
            refused: VecDeque::new(),
        }
    }

    /// Adds a record, in place of the oldest of its kind if need be.
    pub(super) fn push(&mut self, record: Record) {
        let kind = match record.event {
            Event::Refused => &mut self.refused,
            Event::Opened | Event::Closed => &mut self.passed,
        };
        if kind.len() == PLACES {
            kind.pop_front();
        }
        kind.push_back((self.next, record));
        self.next += 1;
    }

    /// The number of the next record.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// All records from a number on that are still here.
    pub(super) fn since(&self, from: u64) -> Read {
        let from = from.min(self.next);
        let mut records = Vec::new();
        let mut kinds = [&self.passed, &self.refused].map(|kind| {
            let first = kind.partition_point(|(number, _)| *number < from);
            kind.range(first..).peekable()
        });
        loop {
            let [passed, refused] = &mut kinds;
            let earlier = match (passed.peek(), refused.peek()) {
                (Some((p, _)), Some((r, _))) if p < r => passed,
                (Some(_), None) => passed,
                (_, Some(_)) => refused,
                (None, None) => break,
            };
            records.extend(earlier.next().map(|(_, record)| record.clone()));
        }
        Read {
            lost: (self.next - from).saturating_sub(records.len() as u64),
            next: self.next,
            records,
        }
    }

    /// The latest records that `wanted` tells, of those that are here, at most so many.
    pub(super) fn latest(&self, most: usize, wanted: impl Fn(&Record) -> bool) -> Vec<Record> {
        let mut found = self.since(0).records;
        found.retain(wanted);
        found.split_off(found.len().saturating_sub(most))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::super::connection::{Connection, Direction};
    use super::*;

    fn record(event: Event, sent: u64) -> Record {
        let address = "10.0.0.1:80".parse().unwrap();
        let began = crate::clock::now();
        Record {
            at: SystemTime::UNIX_EPOCH,
            event,
            connection: Arc::new(Connection::new(
                Direction::Outbound,
                address,
                address,
                began,
            )),
            sent,
            received: 0,
            duration: Duration::ZERO,
            failure: None,
        }
    }

    #[test]
    fn a_reader_gets_all_in_order_or_is_told_what_it_lost() {
        let mut ring = Ring::new();
        for number in 0..10 {
            let event = [Event::Closed, Event::Refused][usize::from(number % 3 == 0)];
            ring.push(record(event, number));
        }
        let sent = |read: &Read| read.records.iter().map(|it| it.sent).collect::<Vec<_>>();
        let read = ring.since(4);
        assert_eq!(sent(&read), [4, 5, 6, 7, 8, 9]);
        assert_eq!((read.lost, read.next), (0, 10));
        assert!(ring.since(read.next).records.is_empty());
        for number in 10..10 + PLACES as u64 + 5 {
            ring.push(record(Event::Closed, number));
        }
        let read = ring.since(8);
        // 8, and 10 to 14, have gone; the refused one has stayed.
        assert_eq!((sent(&read)[0], read.lost), (9, 6));
        let latest = ring.latest(2, |it| it.event == Event::Refused);
        assert_eq!(latest.iter().map(|it| it.sent).collect::<Vec<_>>(), [6, 9]);
    }
}
