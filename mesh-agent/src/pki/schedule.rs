//! CORE: which identity's certificate is fetched when.
//!
//! Pure bookkeeping over instants and random fractions it is handed; the store does the fetching.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::model::Identity;

/// The identities wanted on this node, each with its next fetch.
#[derive(Default)]
pub(super) struct Schedule {
    plans: HashMap<Identity, Plan>,
}

struct Plan {
    /// When the next fetch is due; meaningless while one runs.
    at: Instant,
    /// When the last fetch began.
    began: Option<Instant>,
    failures: u32,
    urgent: bool,
    running: bool,
}

impl Schedule {
    /// Wants a certificate, now if there is no plan yet.
    pub(super) fn want(&mut self, identity: &Identity, now: Instant) {
        if !self.plans.contains_key(identity) {
            self.plans.insert(
                identity.clone(),
                Plan {
                    at: now,
                    began: None,
                    failures: 0,
                    urgent: false,
                    running: false,
                },
            );
        }
    }

    /// Wants a certificate for a connection that waits: before all others, and cutting a backoff short.
    pub(super) fn urge(&mut self, identity: &Identity, now: Instant) {
        self.want(identity, now);
        if let Some(plan) = self.plans.get_mut(identity) {
            let earliest = plan.began.map_or(now, |began| now.max(began + URGENT_GAP));
            plan.at = plan.at.min(earliest);
            plan.urgent = true;
        }
    }

    /// Marks up to `room` due identities as being fetched and names them, urgent ones first, then by age.
    pub(super) fn begin(&mut self, now: Instant, room: usize) -> Vec<Identity> {
        let mut due: Vec<_> = self
            .plans
            .iter_mut()
            .filter(|(_, plan)| !plan.running && plan.at <= now)
            .collect();
        due.sort_by_key(|(_, plan)| (!plan.urgent, plan.at));
        due.into_iter()
            .take(room)
            .map(|(identity, plan)| {
                plan.running = true;
                plan.began = Some(now);
                identity.clone()
            })
            .collect()
    }

    /// Records success; the next fetch is `renew_in` from now. False if the identity is no longer wanted.
    pub(super) fn issued(&mut self, identity: &Identity, now: Instant, renew_in: Duration) -> bool {
        let Some(plan) = self.plans.get_mut(identity) else {
            return false;
        };
        plan.at = now + renew_in;
        plan.failures = 0;
        plan.urgent = false;
        plan.running = false;
        true
    }

    /// Plans the next fetch of what is here `renew_in` from now, unless it is on its way or has failed.
    pub(super) fn renew(&mut self, identity: &Identity, now: Instant, renew_in: Duration) {
        let plan = self.plans.get_mut(identity);
        if let Some(plan) = plan.filter(|it| !it.running && it.failures == 0) {
            plan.at = now + renew_in;
        }
    }

    /// Records a failure and plans the next try; `fraction` is random in [0, 1). None if no longer wanted.
    pub(super) fn failed(
        &mut self,
        identity: &Identity,
        now: Instant,
        fraction: f64,
    ) -> Option<Duration> {
        let plan = self.plans.get_mut(identity)?;
        let delay = backoff(plan.failures, fraction);
        plan.at = now + delay;
        plan.failures = plan.failures.saturating_add(1);
        plan.urgent = false;
        plan.running = false;
        Some(delay)
    }

    /// Forgets every identity that `keep` refuses.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Identity) -> bool) {
        self.plans.retain(|identity, _| keep(identity));
    }

    /// When `begin` has something to name next; none while nothing waits.
    pub(super) fn next(&self) -> Option<Instant> {
        self.plans
            .values()
            .filter(|plan| !plan.running)
            .map(|plan| plan.at)
            .min()
    }

    /// When `identity` is fetched next; none while it is being fetched, or is not wanted.
    pub(super) fn next_of(&self, identity: &Identity) -> Option<Instant> {
        let plan = self.plans.get(identity)?;
        (!plan.running).then_some(plan.at)
    }
}

/// Tells when the clock was set: fetches are planned in time that passes, certificates end by the clock.
pub(super) struct Clock {
    wall: SystemTime,
    instant: Instant,
}

impl Clock {
    pub(super) fn new(wall: SystemTime, instant: Instant) -> Self {
        Self { wall, instant }
    }

    /// Whether it was set since the last look, or the machine slept.
    pub(super) fn was_set(&mut self, wall: SystemTime, instant: Instant) -> bool {
        let expected = self.wall + instant.saturating_duration_since(self.instant);
        let off = wall
            .duration_since(expected)
            .unwrap_or_else(|early| early.duration());
        *self = Self { wall, instant };
        off > JUMP
    }
}

/// What clocks are slewed by between two looks is less.
const JUMP: Duration = Duration::from_secs(30);

/// How long after now a certificate of `lifetime` and `age` is renewed: between 40 and 50 percent of its life.
///
/// `fraction` is random in [0, 1) and keeps nodes that started together from renewing together.
pub(super) fn renew_in(lifetime: Duration, age: Duration, fraction: f64) -> Duration {
    lifetime
        .mul_f64(0.5 - 0.1 * fraction)
        .saturating_sub(age)
        .max(MIN_RENEWAL)
}

/// 1 s, doubled by each failure up to 150 s, and 20 percent either way.
fn backoff(failures: u32, fraction: f64) -> Duration {
    let base = Duration::from_secs(1 << failures.min(8)).min(MAX_BACKOFF);
    base.mul_f64(0.8 + 0.4 * fraction)
}

/// The least time between two fetches of one identity, however urgent.
const URGENT_GAP: Duration = Duration::from_secs(1);
/// A certificate that is issued half expired must not be fetched in a loop.
const MIN_RENEWAL: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(150);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn id(account: &str) -> Identity {
        Identity::new("cluster.local", "default", account)
    }

    #[test]
    fn renews_before_half_life_and_never_in_a_loop() {
        let check = |lifetime, age, fraction, expect| {
            assert_eq!(renew_in(lifetime, age, fraction), expect);
        };
        check(24 * HOUR, Duration::ZERO, 0.0, 12 * HOUR);
        check(20 * HOUR, Duration::ZERO, 0.5, 9 * HOUR);
        check(24 * HOUR, HOUR, 0.0, 11 * HOUR);
        check(24 * HOUR, 13 * HOUR, 0.0, MIN_RENEWAL);
    }

    #[test]
    fn one_fetch_at_a_time_then_half_life() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.want(&id("a"), start);
        schedule.want(&id("a"), start);
        assert_eq!(schedule.next(), Some(start));
        assert_eq!(schedule.begin(start, 8), [id("a")]);
        assert_eq!(schedule.next(), None);
        schedule.urge(&id("a"), start);
        assert!(schedule.begin(start + HOUR, 8).is_empty());
        assert!(schedule.issued(&id("a"), start, HOUR));
        assert!(schedule.begin(start, 8).is_empty());
        assert_eq!(schedule.begin(start + HOUR, 8), [id("a")]);
    }

    #[test]
    fn urgent_first_and_no_more_than_room() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.want(&id("a"), start);
        schedule.want(&id("b"), start + Duration::from_secs(1));
        schedule.urge(&id("c"), start + Duration::from_secs(2));
        let now = start + Duration::from_secs(3);
        assert_eq!(schedule.begin(now, 2), [id("c"), id("a")]);
        assert_eq!(schedule.begin(now, 2), [id("b")]);
    }

    #[test]
    fn failures_back_off_and_urgency_cuts_the_wait() {
        let (mut schedule, mut now) = (Schedule::default(), Instant::now());
        schedule.want(&id("a"), now);
        let mut delays = Vec::new();
        for _ in 0..10 {
            assert_eq!(schedule.begin(now, 1), [id("a")]);
            let delay = schedule.failed(&id("a"), now, 0.5).unwrap();
            delays.push(delay.as_secs_f64().round());
            now += delay;
        }
        assert_eq!(delays, [1., 2., 4., 8., 16., 32., 64., 128., 150., 150.]);
        assert_eq!(schedule.begin(now, 1), [id("a")]);
        schedule.failed(&id("a"), now, 0.0);
        schedule.urge(&id("a"), now);
        assert_eq!(schedule.next(), Some(now + URGENT_GAP));
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_and_one_that_is_slewed_is_not() {
        let (wall, start) = (SystemTime::now(), Instant::now());
        let minute = Duration::from_mins(1);
        let mut clock = Clock::new(wall, start);
        assert!(!clock.was_set(wall + minute, start + minute));
        let slewed = wall + 2 * minute + Duration::from_secs(1);
        assert!(!clock.was_set(slewed, start + 2 * minute));
        assert!(
            clock.was_set(slewed + 10 * HOUR, start + 3 * minute),
            "forwards"
        );
        assert!(clock.was_set(slewed, start + 4 * minute), "and back");
        assert!(!clock.was_set(slewed + minute, start + 5 * minute));
    }

    #[test]
    fn what_is_here_is_planned_again_and_what_failed_is_not() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        for (name, fails) in [("a", false), ("b", true)] {
            schedule.want(&id(name), start);
            schedule.begin(start, 1);
            if fails {
                schedule.failed(&id(name), start, 0.5);
            } else {
                schedule.issued(&id(name), start, 12 * HOUR);
            }
        }
        let before = schedule.next_of(&id("b"));
        for name in ["a", "b"] {
            schedule.renew(&id(name), start, HOUR);
        }
        assert_eq!(schedule.next_of(&id("a")), Some(start + HOUR));
        assert_eq!(schedule.next_of(&id("b")), before);
    }

    #[test]
    fn the_forgotten_are_not_fetched_nor_recorded() {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        schedule.want(&id("a"), start);
        schedule.begin(start, 1);
        schedule.retain(|_| false);
        assert!(!schedule.issued(&id("a"), start, HOUR));
        assert_eq!(schedule.failed(&id("a"), start, 0.0), None);
        assert_eq!(schedule.next(), None);
    }
}
