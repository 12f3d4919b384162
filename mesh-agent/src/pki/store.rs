//! Every identity of this node with its certificate, fetched before use and renewed in time.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::crypto::aws_lc_rs;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::schedule::{Clock, Schedule, renew_in};
use super::{Certificate, Error, Report, Signer, TrustDomains};
use crate::causes::causes;
use crate::model::Identity;

/// The certificates of this node, one an identity, in memory only.
///
/// Everything is fetched by [`run`](Self::run), at most one request per identity and [`CONCURRENCY`] in all; without
/// it running, callers wait for ever.
pub struct Certificates {
    signer: Arc<dyn Signer>,
    domains: TrustDomains,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    schedule: Schedule,
    slots: HashMap<Identity, watch::Sender<Latest>>,
    /// Why the last fetch of an identity failed, until one succeeds.
    problems: HashMap<Identity, String>,
    /// How many certificates were issued for an identity.
    issued: HashMap<Identity, u64>,
}

/// What the last fetch came to; a failed renewal leaves a valid certificate in place.
#[derive(Clone)]
enum Latest {
    Awaited,
    Issued(Arc<Certificate>),
    Failed(Arc<Error>),
}

impl Certificates {
    /// A store that asks `signer`, and whose servers accept peers of `domains`.
    pub fn new(signer: Arc<dyn Signer>, domains: TrustDomains) -> Self {
        Self {
            signer,
            domains,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// The valid certificate of `identity`; fetched at once, and waited for, when there is none.
    ///
    /// Cancel-safe. Callers that wait together share one fetch and its outcome.
    ///
    /// # Errors
    /// The one fetch that was waited for failed, or [`Error::Forgotten`].
    pub async fn certificate(&self, identity: &Identity) -> Result<Arc<Certificate>, Arc<Error>> {
        let mut latest = {
            let mut state = self.state();
            let slot = state.slot(identity);
            if let Latest::Issued(certificate) = &*slot.borrow()
                && certificate.is_valid_at(SystemTime::now())
            {
                return Ok(certificate.clone());
            }
            // Subscribed under the lock: the outcome cannot slip by unseen.
            let latest = slot.subscribe();
            state.schedule.urge(identity, Instant::now());
            latest
        };
        self.changed.notify_one();
        let forgotten = || {
            Arc::new(Error::Forgotten {
                identity: identity.clone(),
            })
        };
        latest.changed().await.map_err(|_| forgotten())?;
        match &*latest.borrow() {
            Latest::Awaited => Err(forgotten()),
            Latest::Issued(certificate) => Ok(certificate.clone()),
            Latest::Failed(error) => Err(error.clone()),
        }
    }

    /// The certificate of `identity` if it is here and valid, without fetching.
    pub fn cached(&self, identity: &Identity) -> Option<Arc<Certificate>> {
        match &*self.state().slots.get(identity)?.borrow() {
            Latest::Issued(certificate) if certificate.is_valid_at(SystemTime::now()) => {
                Some(certificate.clone())
            }
            Latest::Issued(_) | Latest::Awaited | Latest::Failed(_) => None,
        }
    }

    /// Fetches the certificates of `identities` that are not here, before anybody asks for them.
    pub fn prefetch<'a>(&self, identities: impl IntoIterator<Item = &'a Identity>) {
        let mut state = self.state();
        let now = Instant::now();
        for identity in identities {
            state.slot(identity);
            state.schedule.want(identity, now);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Forgets every identity but `identities`, and their keys; whoever waits for one gets [`Error::Forgotten`].
    pub fn retain(&self, identities: &HashSet<Identity>) {
        let mut state = self.state();
        state.slots.retain(|known, _| identities.contains(known));
        state.problems.retain(|known, _| identities.contains(known));
        state.issued.retain(|known, _| identities.contains(known));
        state.schedule.retain(|known| identities.contains(known));
    }

    /// Every identity wanted here with its certificate, in the order of their names.
    pub fn report(&self) -> Vec<Report> {
        let (state, now) = (self.state(), Instant::now());
        let mut all: Vec<_> = state.slots.iter().collect();
        all.sort_by_cached_key(|(identity, _)| identity.to_string());
        let report = |(identity, slot): (&Identity, &watch::Sender<Latest>)| {
            let certificate = match &*slot.borrow() {
                Latest::Issued(certificate) => Some(certificate.clone()),
                Latest::Awaited | Latest::Failed(_) => None,
            };
            let next = state.schedule.next_of(identity);
            let next = next.map(|at| SystemTime::now() + at.saturating_duration_since(now));
            let problem = state.problems.get(identity).cloned();
            let issued = state.issued.get(identity).copied().unwrap_or_default();
            Report::new(identity, certificate.as_deref(), issued, next, problem)
        };
        all.into_iter().map(report).collect()
    }

    /// Fetches and renews until `shutdown`; a failed renewal keeps the old certificate, is logged, and tried again.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut fetches = JoinSet::new();
        let mut clock = Clock::new(SystemTime::now(), Instant::now());
        let mut look = interval(LOOK);
        loop {
            let due = {
                let room = CONCURRENCY.saturating_sub(fetches.len());
                self.state().schedule.begin(Instant::now(), room)
            };
            for identity in due {
                fetches.spawn(Arc::clone(&self).fetch(identity));
            }
            // With no room left, only a finished fetch changes anything.
            let next = (fetches.len() < CONCURRENCY)
                .then(|| self.state().schedule.next())
                .flatten();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                Some(finished) = fetches.join_next() => {
                    if let Err(error) = finished {
                        tracing::error!(%error, "a certificate fetch panicked");
                    }
                }
                _ = look.tick() => {
                    if clock.was_set(SystemTime::now(), Instant::now()) {
                        self.plan_again();
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now).into()), if next.is_some() => {}
            }
        }
    }

    /// Plans the renewal of every certificate by the clock as it is now.
    fn plan_again(&self) {
        tracing::warn!("the clock was set: certificates are renewed by what it says now");
        let mut state = self.state();
        let State {
            slots, schedule, ..
        } = &mut *state;
        for (identity, slot) in slots {
            if let Latest::Issued(certificate) = &*slot.borrow() {
                let (_, renew_in) = renewal(certificate);
                schedule.renew(identity, Instant::now(), renew_in);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    async fn fetch(self: Arc<Self>, identity: Identity) {
        match self.issue(&identity).await {
            Ok(certificate) => self.issued(&identity, Arc::new(certificate)),
            Err(error) => self.failed(&identity, error),
        }
    }

    async fn issue(&self, identity: &Identity) -> Result<Certificate, Error> {
        let (key, request) = request(identity).map_err(|source| Error::Make {
            identity: identity.clone(),
            source,
        })?;
        let chain = timeout(DEADLINE, self.signer.sign(identity, &request))
            .await
            .map_err(|_| Error::Timeout {
                identity: identity.clone(),
                deadline: DEADLINE,
            })??;
        Certificate::new(identity.clone(), chain, &key, self.domains.clone())
    }

    fn issued(&self, identity: &Identity, certificate: Arc<Certificate>) {
        let (lifetime, renew_in) = renewal(&certificate);
        let mut state = self.state();
        if state.schedule.issued(identity, Instant::now(), renew_in) {
            tracing::info!(%identity, ?lifetime, ?renew_in, "certificate issued");
            state.problems.remove(identity);
            *state.issued.entry(identity.clone()).or_default() += 1;
            state
                .slot(identity)
                .send_replace(Latest::Issued(certificate));
        }
    }

    fn failed(&self, identity: &Identity, error: Error) {
        let mut state = self.state();
        let now = Instant::now();
        let Some(retry_in) = state.schedule.failed(identity, now, random_fraction()) else {
            return;
        };
        tracing::warn!(
            %identity,
            ?retry_in,
            error = &error as &dyn std::error::Error,
            "certificate not issued"
        );
        state.problems.insert(identity.clone(), causes(&error));
        state.slot(identity).send_modify(|latest| {
            let valid = matches!(latest, Latest::Issued(old) if old.is_valid_at(SystemTime::now()));
            if !valid {
                *latest = Latest::Failed(Arc::new(error));
            }
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn slot(&mut self, identity: &Identity) -> &watch::Sender<Latest> {
        self.slots
            .entry(identity.clone())
            .or_insert_with(|| watch::Sender::new(Latest::Awaited))
    }
}

/// How long a certificate is good for in all, and how long from now it is renewed.
fn renewal(certificate: &Certificate) -> (Duration, Duration) {
    let (lifetime, age) = certificate.lifetime_and_age(SystemTime::now());
    (lifetime, renew_in(lifetime, age, random_fraction()))
}

/// A new P-256 key, and the PEM request that names `identity` with it.
fn request(identity: &Identity) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key, request))
}

/// Uniform in [0, 1); the middle if the system has no randomness, as it only spreads load.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::default_provider().secure_random.fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
}

/// Requests to the authority at once.
const CONCURRENCY: usize = 8;
/// How often to see whether the clock was set.
const LOOK: Duration = Duration::from_secs(10);
/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(10);
