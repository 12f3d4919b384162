//! CORE: connections that the kernel carries by itself, as records of flows.
//!
//! The kernel tells what it has when it is asked, so a reader remembers the moment up to which it was told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::connection::{Carriage, Connection, Direction, Event, Failure, Flag, Record};
use super::totals::Pair;
use crate::dataplane;
use crate::model::Snapshot;

/// How long a program may take from its look at the clock to the end of its write, in microseconds.
const SETTLES: u32 = 10_000;

/// A moment by the clock of records: microseconds that wrap around.
type Moment = u32;

/// What the kernel has told, and when.
pub struct Told {
    /// Its connections.
    pub connections: Vec<(Pair, dataplane::Connection)>,
    /// The moment it was asked.
    pub now: Moment,
    /// The same by the other clocks.
    pub instant: Instant,
    /// The same.
    pub wall: SystemTime,
}

impl Told {
    /// The moment up to which this tells all.
    pub(super) fn until(&self) -> Moment {
        self.now.wrapping_sub(SETTLES)
    }

    /// What has happened after a moment; what it still knows of, if none is given.
    pub(super) fn records(&self, after: Option<Moment>, snapshot: &Snapshot) -> Vec<Record> {
        let until = self.until();
        let is_news = |at: Moment| {
            let is_later = |a: Moment, b: Moment| a.wrapping_sub(b).cast_signed() > 0;
            !is_later(at, until) && after.is_none_or(|after| is_later(at, after))
        };
        let mut records = Vec::new();
        for (pair, it) in &self.connections {
            let opened = it.began.wrapping_add(it.handshake);
            if it.was_open && is_news(opened) {
                records.push(self.record(pair, it, (Event::Opened, opened), snapshot));
            }
            if let Some(ended) = it.ended.filter(|ended| is_news(*ended)) {
                let event = if it.was_open {
                    Event::Closed
                } else {
                    Event::Refused
                };
                records.push(self.record(pair, it, (event, ended), snapshot));
            }
        }
        records.sort_by_key(|it| it.at);
        records
    }

    fn record(
        &self,
        pair: &Pair,
        it: &dataplane::Connection,
        (event, at): (Event, Moment),
        snapshot: &Snapshot,
    ) -> Record {
        let ago = |moment: Moment| Duration::from_micros(self.now.wrapping_sub(moment).into());
        let (opener, other) = match pair.direction {
            Direction::Outbound => (it.own, it.key.peer),
            Direction::Inbound => (it.key.peer, it.own),
        };
        let source = SocketAddr::new(opener.into(), it.ports.0.number());
        let destination = SocketAddr::new(other.into(), it.ports.1.number());
        let began = self.instant.checked_sub(ago(it.began));
        let began = began.unwrap_or(self.instant);
        let mut connection =
            Connection::new(pair.direction, source, destination, began).known_to(snapshot);
        connection.carriage = pair.carriage;
        if pair.carriage == Carriage::Plain {
            // Nobody has proved anything.
            (connection.source_identity, connection.destination_identity) = (None, None);
        }
        let is_over = event != Event::Opened;
        let refused = || Failure::new(Flag::Connect, "the other end refuses it");
        Record {
            at: self.wall - ago(at),
            event,
            connection: Arc::new(connection),
            sent: if is_over { it.bytes[0] } else { 0 },
            received: if is_over { it.bytes[1] } else { 0 },
            duration: Duration::from_micros(at.wrapping_sub(it.began).into()),
            failure: (event == Event::Refused).then(|| Arc::new(refused())),
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::addr::{Addr, Port};
    use mesh_common::traffic::{TrafficKey, Way};

    use super::*;
    use crate::clock;
    use crate::model::tests::world;

    const NOW: Moment = 5_000_000;

    fn told(began: Moment, was_open: bool, ended: Option<Moment>) -> Told {
        let (own, peer): (Addr, Addr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let key = TrafficKey {
            ifindex: 7,
            way: Way::Local as u32,
            peer,
        };
        let connection = dataplane::Connection {
            key,
            own,
            ports: (Port::new(4000), Port::new(80)),
            was_open,
            bytes: [3, 4],
            began,
            handshake: 100,
            ended,
            is_reset: false,
            is_done: [ended.is_some(); 2],
        };
        let pair = Pair {
            interface: 7,
            peer: Some(peer.into()),
            source: None,
            destination: None,
            carriage: Carriage::SameNode,
            direction: Direction::Outbound,
        };
        Told {
            connections: vec![(pair, connection)],
            now: NOW,
            instant: clock::now(),
            wall: clock::wall(),
        }
    }

    fn events(told: &Told, after: Option<Moment>) -> Vec<Event> {
        let records = told.records(after, &world([]));
        records.iter().map(|it| it.event).collect()
    }

    #[test]
    fn each_moment_is_told_once() {
        use Event::{Closed, Opened, Refused};
        let ended = told(1_000_000, true, Some(3_000_000));
        assert_eq!(events(&ended, None), [Opened, Closed]);
        assert_eq!(events(&ended, Some(1_000_099)), [Opened, Closed]);
        assert_eq!(events(&ended, Some(1_000_100)), [Closed]);
        assert_eq!(events(&ended, Some(3_000_000)), []);
        // What may not be written yet is told next time.
        assert_eq!(
            events(&told(1_000_000, true, Some(NOW - 5_000)), None),
            [Opened]
        );
        assert_eq!(events(&told(NOW - 5_000, true, None), None), []);
        assert_eq!(
            events(&told(2_000_000, false, Some(2_000_050)), None),
            [Refused]
        );
        assert_eq!(events(&told(2_000_000, false, None), None), []);
    }

    #[test]
    fn the_clock_may_wrap_around() {
        let before = Moment::MAX - 1_000_000;
        let ended = told(before, true, Some(1_000_000));
        assert_eq!(events(&ended, Some(before)), [Event::Opened, Event::Closed]);
        assert_eq!(events(&ended, Some(Moment::MAX)), [Event::Closed]);
        let records = ended.records(Some(0), &world([]));
        let [closed] = &records[..] else {
            panic!("{records:?}");
        };
        assert_eq!((closed.sent, closed.received), (3, 4));
        assert_eq!(closed.duration, Duration::from_micros(2_000_001));
        let ago = ended.wall.duration_since(closed.at).unwrap();
        assert_eq!(ago, Duration::from_secs(4));
    }
}
