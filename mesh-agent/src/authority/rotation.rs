//! CORE: what becomes of the root when. The whole state is in one Secret, so that any replica goes on with it.
//!
//! A new root is trusted beside the old one, for so long that every valid certificate was issued with it among its
//! roots; then it signs; then, once nothing that the old one signed is valid, the old one is dropped. Whoever issues is
//! at most [`STALE`] behind the Secret, which the waits allow for: at no moment does a leaf meet a peer that lacks its root.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

use super::cluster::{Patch, Stored};

/// A replica that has not read the Secret for so long signs nothing.
pub(super) const STALE: Duration = Duration::from_mins(5);
/// What the waits allow for: a replica that is behind, and clocks that differ.
const SLACK: Duration = Duration::from_mins(15);
/// A root is replaced so long before its end, but not before two thirds of its life.
const RENEW_BEFORE: Duration = Duration::from_hours(90 * 24);

/// Entries of the Secret.
const CERT: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const NEXT_CERT: &str = "root-cert-next.pem";
const NEXT_KEY: &str = "root-key-next.pem";
const PREVIOUS_CERT: &str = "root-cert-previous.pem";
const EXTRA: &str = "root-cert-extra.pem";
/// Annotations of the Secret: since when there is a next or a previous root, and the operator's wish for one.
const SINCE: &str = "mesh.dev/rotating-since";
const ROTATE: &str = "mesh.dev/rotate";

/// How long each part of a rotation takes at least.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long the longest certificate lives.
    pub lifetime: Duration,
    /// How long the operator wants a new root trusted before it signs.
    pub overlap: Duration,
}

impl Timing {
    /// How long a new root is trusted before it signs; whatever was issued without it has ended by then.
    pub(super) fn before_signing(&self) -> Duration {
        self.overlap.max(self.lifetime + SLACK)
    }

    /// How long an old root is trusted after it signed last.
    pub(super) fn before_dropping(&self) -> Duration {
        self.lifetime + SLACK
    }
}

/// A root: certificate and key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

/// What the Secret says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Roots {
    /// What signs.
    pub signing: Pair,
    /// How far a rotation is.
    pub phase: Phase,
    /// Roots of others that are trusted too; rotation leaves them alone.
    extra: Option<String>,
    /// Whether the operator wants a new root.
    requested: bool,
}

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none.
    Steady,
    /// The next root is trusted and does not sign yet.
    Introduced {
        /// It.
        next: Pair,
        /// Since when it is trusted.
        since: SystemTime,
    },
    /// The previous root is trusted and signs no more.
    Retiring {
        /// Its certificate.
        previous: String,
        /// Since when it does not sign.
        since: SystemTime,
    },
}

/// What the Secret must not say.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// An entry is missing.
    #[error(
        "the entry {entry} is missing: restore it, or delete the Secret to have a new root made"
    )]
    Missing {
        /// Which one.
        entry: &'static str,
    },
    /// A rotation has begun, but not when.
    #[error(
        "the annotation {SINCE} is {value:?}: write when the rotation began, as 2026-01-31T12:00:00Z"
    )]
    Since {
        /// What it says.
        value: String,
    },
    /// A next and a previous root at once.
    #[error(
        "there are both {NEXT_CERT} and {PREVIOUS_CERT}: remove the one that is not of the present rotation"
    )]
    Both,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    Wait,
    /// A next root is to be made, and trusted.
    Introduce,
    /// The next root is to sign.
    Promote,
    /// The previous root is to be dropped.
    Retire,
}

impl Roots {
    /// Reads the Secret.
    pub(super) fn parse(stored: &Stored) -> Result<Self, RootsError> {
        let optional = |entry| stored.data.get(entry).filter(|it| !it.trim().is_empty());
        let entry = |entry| {
            let found = optional(entry).cloned();
            found.ok_or(RootsError::Missing { entry })
        };
        let phase = match (optional(NEXT_CERT), optional(PREVIOUS_CERT)) {
            (None, None) => Phase::Steady,
            (Some(next), None) => Phase::Introduced {
                next: Pair {
                    cert: next.clone(),
                    key: entry(NEXT_KEY)?,
                },
                since: since(stored)?,
            },
            (None, Some(previous)) => Phase::Retiring {
                previous: previous.clone(),
                since: since(stored)?,
            },
            (Some(_), Some(_)) => return Err(RootsError::Both),
        };
        Ok(Self {
            signing: Pair {
                cert: entry(CERT)?,
                key: entry(KEY)?,
            },
            phase,
            extra: optional(EXTRA).cloned(),
            requested: stored.annotations.get(ROTATE).is_some_and(|it| it == "now"),
        })
    }

    /// The whole Secret, to be made again after it was deleted.
    pub(super) fn whole(&self) -> Patch {
        let mut patch = first(self.signing.clone());
        let (entries, since) = match self.phase.clone() {
            Phase::Steady => (vec![], None),
            Phase::Introduced { next, since } => (
                vec![(NEXT_CERT, next.cert), (NEXT_KEY, next.key)],
                Some(since),
            ),
            Phase::Retiring { previous, since } => (vec![(PREVIOUS_CERT, previous)], Some(since)),
        };
        let extra = self.extra.clone().map(|extra| (EXTRA, extra));
        let entries = entries.into_iter().chain(extra);
        patch
            .data
            .extend(entries.map(|(key, text)| (key, Some(text))));
        patch
            .annotations
            .extend(since.map(|at| (SINCE, Some(instant(at)))));
        patch
    }

    /// Every root that is trusted, the one that signs first, in PEM.
    pub(super) fn trusted(&self) -> String {
        let other = match &self.phase {
            Phase::Steady => None,
            Phase::Introduced { next, .. } => Some(&next.cert),
            Phase::Retiring { previous, .. } => Some(previous),
        };
        let all = [Some(&self.signing.cert), other, self.extra.as_ref()];
        let all = all.into_iter().flatten();
        all.flat_map(|pem| [pem.trim(), "\n"]).collect()
    }

    /// What is to be done at `now`, when the root that signs is valid within `validity`.
    pub(super) fn step(
        &self,
        validity: (SystemTime, SystemTime),
        now: SystemTime,
        timing: &Timing,
    ) -> Step {
        // An instant in the future is another replica's clock: nothing has passed.
        let passed = |since: &SystemTime| now.duration_since(*since).unwrap_or_default();
        match &self.phase {
            Phase::Steady if self.requested || ends_soon(validity, now) => Step::Introduce,
            Phase::Introduced { since, .. } if passed(since) >= timing.before_signing() => {
                Step::Promote
            }
            Phase::Retiring { since, .. } if passed(since) >= timing.before_dropping() => {
                Step::Retire
            }
            _ => Step::Wait,
        }
    }

    /// The Secret after the next root has begun to sign, at `now`; none if there is no next root.
    pub(super) fn promote(&self, now: SystemTime) -> Option<Patch> {
        let Phase::Introduced { next, .. } = &self.phase else {
            return None;
        };
        Some(Patch {
            data: [
                (CERT, Some(next.cert.clone())),
                (KEY, Some(next.key.clone())),
                (NEXT_CERT, None),
                (NEXT_KEY, None),
                (PREVIOUS_CERT, Some(self.signing.cert.clone())),
            ]
            .into(),
            annotations: [(SINCE, Some(instant(now)))].into(),
        })
    }
}

/// The Secret with its first root.
pub(super) fn first(root: Pair) -> Patch {
    Patch {
        data: [(CERT, Some(root.cert)), (KEY, Some(root.key))].into(),
        ..Patch::default()
    }
}

/// The Secret after `next` has become trusted, at `now`; this is what the operator may have wished.
pub(super) fn introduce(next: Pair, now: SystemTime) -> Patch {
    Patch {
        data: [(NEXT_CERT, Some(next.cert)), (NEXT_KEY, Some(next.key))].into(),
        annotations: [(SINCE, Some(instant(now))), (ROTATE, None)].into(),
    }
}

/// The Secret without its previous root.
pub(super) fn retire() -> Patch {
    Patch {
        data: [(PREVIOUS_CERT, None)].into(),
        annotations: [(SINCE, None)].into(),
    }
}

fn ends_soon((from, until): (SystemTime, SystemTime), now: SystemTime) -> bool {
    let life = until.duration_since(from).unwrap_or_default();
    let left = until.duration_since(now).unwrap_or_default();
    left <= RENEW_BEFORE.min(life / 3)
}

fn since(stored: &Stored) -> Result<SystemTime, RootsError> {
    let value = stored.annotations.get(SINCE).cloned().unwrap_or_default();
    let at: Result<Timestamp, _> = value.parse();
    at.map(SystemTime::from)
        .map_err(|_| RootsError::Since { value })
}

/// RFC 3339, in whole seconds rounded up: what is told too late only waits longer.
fn instant(at: SystemTime) -> String {
    let since_epoch = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = since_epoch.as_secs() + u64::from(since_epoch.subsec_nanos() > 0);
    let at = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(at)
        .unwrap_or(Timestamp::MAX)
        .to_string()
}
