//! The owner of what was told: puts what the followers hear in order, and keeps it on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::access::AccessError;
use super::follow::{Follower, Heard};
use super::keeper::{self, Keeper};
use super::mirror::{Listing, Mirror};
use super::options::Options;
use super::store::Stored;
use super::wire::Item;
use crate::clock;
use crate::cluster::health::{Failure, Health, SourceState};
use crate::cluster::resource::Resource;
use crate::model::Event;

/// What followers have heard and the source has not yet taken.
const QUEUE: usize = 256;
/// Why the source cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not told how to reach the API server.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A part of it has panicked.
    #[error("a part of the Kubernetes source has ended")]
    Part(#[source] tokio::task::JoinError),
}

/// Tells all objects, then [`Event::Synced`], then every change, until `shutdown` or until nobody listens.
///
/// When the API server does not answer soon after the start, the world of an earlier run is told instead, if there is one,
/// and what differs once it answers. While it is away what was told last stays.
///
/// # Errors
/// It is not told how to reach the API server; nothing else ends it.
pub async fn run(
    options: Options,
    events: mpsc::Sender<Event>,
    health: watch::Sender<Health>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    options.access.client().await?;
    let state = options.state.clone();
    let stored = spawn_blocking(move || keeper::load(&state)).await;
    let stored = stored.map_err(Error::Part)?;
    let told = Source::new(options, stored, events, health).run();
    shutdown.run_until_cancelled(told).await.unwrap_or(Ok(()))
}

/// Nobody listens any more.
struct Closed;

struct Source {
    options: Options,
    events: mpsc::Sender<Event>,
    health: watch::Sender<Health>,
    mirror: Mirror,
    /// What was heard of each kind before anything is told; none once it is.
    pending: Option<BTreeMap<Resource, Listing>>,
    stored: Option<Stored>,
    /// Kinds that were listed in this run.
    listed: BTreeSet<Resource>,
    /// Kinds that cannot be followed, and why.
    failing: BTreeMap<Resource, String>,
    /// Kinds that the server does not know, since when.
    absent: BTreeMap<Resource, Instant>,
    keeper: Keeper,
}

impl Source {
    fn new(
        options: Options,
        stored: Option<Stored>,
        events: mpsc::Sender<Event>,
        health: watch::Sender<Health>,
    ) -> Self {
        Self {
            keeper: Keeper::new(options.state.clone(), options.timing.save),
            stored,
            options,
            events,
            health,
            mirror: Mirror::default(),
            pending: Some(BTreeMap::new()),
            listed: BTreeSet::new(),
            failing: BTreeMap::new(),
            absent: BTreeMap::new(),
        }
    }

    async fn run(mut self) -> Result<(), Error> {
        let (hears, mut heard) = mpsc::channel(QUEUE);
        let back = Arc::new(Notify::new());
        let mut followers = JoinSet::new();
        for resource in Resource::ALL {
            let Options { access, timing, .. } = &self.options;
            let follower = Follower::new(
                resource,
                access.clone(),
                *timing,
                hears.clone(),
                back.clone(),
            );
            followers.spawn(follower.run());
        }
        let impatient = clock::now() + self.options.timing.patience;
        loop {
            let may_tell_stored = self.pending.is_some() && self.stored.is_some();
            let done = tokio::select! {
                Some((resource, heard)) = heard.recv() => self.hear(resource, heard).await,
                () = sleep_until(impatient.into()), if may_tell_stored => self.tell_stored().await,
                () = self.keeper.turn() => {
                    let as_of = self.health.borrow().as_of.unwrap_or_default();
                    self.keeper.save(self.mirror.listings().clone(), as_of);
                    Ok(())
                }
                Some(Err(panic)) = followers.join_next() => return Err(Error::Part(panic)),
            };
            if done.is_err() {
                return Ok(());
            }
        }
    }

    async fn hear(&mut self, resource: Resource, heard: Heard) -> Result<(), Closed> {
        match heard {
            Heard::Failed(reason) => self.failed(resource, reason),
            Heard::Absent => self.is_absent(resource).await?,
            Heard::Alive => self.answers(resource),
            Heard::List(listing) => {
                self.answers(resource);
                if self.absent.remove(&resource).is_some() {
                    let kind = resource.kind();
                    info!(kind, "the API server serves this kind now");
                }
                self.listing(resource, listing).await?;
            }
            Heard::Set(Item { reference, text }) if let Some(pending) = &mut self.pending => {
                let listing = pending.entry(resource).or_default();
                listing.insert(reference, text);
            }
            Heard::Set(item) => {
                let events = self.mirror.set(item);
                self.tell(events).await?;
            }
            Heard::Gone(reference) => {
                let listing = self.pending.as_mut().and_then(|it| it.get_mut(&resource));
                listing.and_then(|it| it.remove(&reference));
                let events = self.mirror.remove(&reference);
                self.tell(events).await?;
            }
        }
        self.report();
        Ok(())
    }

    /// Takes all objects of a kind; those of the last kind to come let everything be told.
    async fn listing(&mut self, resource: Resource, listing: Listing) -> Result<(), Closed> {
        let was_whole = self.is_whole();
        self.listed.insert(resource);
        match &mut self.pending {
            None => {
                let events = self.mirror.replace(resource, listing);
                self.tell(events).await?;
                if self.is_whole() && !was_whole {
                    info!("the Kubernetes API is read: what an earlier run had stored is replaced");
                }
                Ok(())
            }
            Some(pending) => {
                pending.insert(resource, listing);
                if !self.is_whole() {
                    return Ok(());
                }
                self.begin().await?;
                let objects: usize = Resource::ALL.map(|it| self.mirror.count(it)).iter().sum();
                info!(objects, "the Kubernetes API is read");
                Ok(())
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.listed.len() == Resource::ALL.len()
    }

    /// The world of an earlier run, as far as nothing newer was heard.
    async fn tell_stored(&mut self) -> Result<(), Closed> {
        let as_of = self.stored.as_ref().map_or(0, |it| it.as_of);
        let age_seconds = clock::unix_seconds().saturating_sub(as_of);
        warn!(
            age_seconds,
            "the Kubernetes API has not told all yet: going on with what an earlier run had stored",
        );
        self.health.send_modify(|it| it.as_of = Some(as_of));
        self.begin().await?;
        self.report();
        Ok(())
    }

    /// Tells the first world.
    async fn begin(&mut self) -> Result<(), Closed> {
        let mut pending = self.pending.take().unwrap_or_default();
        let mut stored = self.stored.take().unwrap_or_default().listings;
        for resource in Resource::ALL {
            let heard = pending.remove(&resource);
            let heard = heard.filter(|_| self.listed.contains(&resource));
            let listing = heard.or_else(|| stored.remove(&resource));
            let events = self.mirror.replace(resource, listing.unwrap_or_default());
            self.tell(events).await?;
        }
        self.events.send(Event::Synced).await.map_err(|_| Closed)
    }

    async fn tell(&mut self, events: Vec<Event>) -> Result<(), Closed> {
        if events.is_empty() {
            return Ok(());
        }
        self.keeper.has_changed();
        for event in events {
            if let Event::LeftOut {
                part,
                reason: Some(reason),
            } = &event
            {
                warn!(
                    object = %part, %reason,
                    "object is left out, what it said last stays in force; correct it",
                );
            }
            self.events.send(event).await.map_err(|_| Closed)?;
        }
        let now = Some(clock::unix_seconds());
        self.health.send_modify(|it| it.last_event = now);
        Ok(())
    }

    /// A server that starts may deny kinds that it has, so what was told is only taken back when it insists.
    async fn is_absent(&mut self, resource: Resource) -> Result<(), Closed> {
        if !resource.is_optional() {
            let reason = "the API server does not serve this kind".to_owned();
            self.failed(resource, reason);
            return Ok(());
        }
        self.answers(resource);
        let since = *self.absent.entry(resource).or_insert_with(|| {
            let kind = resource.kind();
            info!(
                kind,
                "the API server does not serve this kind; it is waited for"
            );
            clock::now()
        });
        let stored = self.stored.as_ref().map(|it| &it.listings);
        let stored = stored.and_then(|it| it.get(&resource));
        let is_known = stored.is_some_and(|it| !it.is_empty()) || self.mirror.count(resource) > 0;
        let is_sure = since.elapsed() >= self.options.timing.absence;
        if is_sure || (!is_known && !self.listed.contains(&resource)) {
            self.listing(resource, Listing::new()).await?;
        }
        Ok(())
    }

    fn failed(&mut self, resource: Resource, reason: String) {
        // Once for all kinds that the same is wrong with, and not again before it is over.
        let is_told =
            self.failing.contains_key(&resource) || self.failing.values().any(|it| *it == reason);
        if !is_told {
            warn!(
                kind = resource.kind(), %reason,
                "the Kubernetes API cannot be asked; what it said last stays in force",
            );
        }
        let at = clock::unix_seconds();
        let error = format!("{}: {reason}", resource.kind());
        let failure = Some(Failure { at, error });
        self.health.send_modify(|it| it.last_error = failure);
        self.failing.insert(resource, reason);
    }

    fn answers(&mut self, resource: Resource) {
        if self.failing.remove(&resource).is_some() && self.failing.is_empty() {
            info!("the Kubernetes API answers again");
        }
    }

    /// Brings what others are told about the source up to date.
    fn report(&self) {
        let now = clock::unix_seconds();
        let state = if self.pending.is_some() {
            SourceState::Starting
        } else if self.is_whole() && self.failing.is_empty() {
            SourceState::Live
        } else {
            SourceState::Stale
        };
        self.health.send_modify(|it| {
            it.enter(state, now);
            if state == SourceState::Live {
                it.as_of = Some(now);
            }
            it.absent = self.absent.keys().map(|it| it.kind()).collect();
            let count = |it: Resource| (it.kind(), self.mirror.count(it));
            it.objects = Resource::ALL.map(count).into();
            it.left_out = self.mirror.left_out();
        });
    }
}
