//! Keeps the root: reads the Secret, makes it if there is none, takes the steps of a rotation, tells everybody the roots.
//!
//! Replicas need no leader: a Secret is made or changed only as the one that was read, so of two who do the same, one is
//! told of a conflict and reads again. A lease would promise no more.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, ClusterError, Outcome, Patch};
use super::rotation::{self, Pair, Phase, Roots, RootsError, STALE, Step, Timing};
use crate::causes::causes;
use crate::pki::{self, Authority, Root, RootError, Serving, ServingError};

/// What signs now.
pub struct Current {
    /// What signs.
    pub authority: Authority,
    /// What agents are shown.
    pub acceptor: TlsAcceptor,
    /// When the Secret said so.
    read_at: SystemTime,
}

impl Current {
    /// Whether the Secret was read lately enough to sign at `now`.
    pub fn is_fresh_at(&self, now: SystemTime) -> bool {
        now.duration_since(self.read_at)
            .map_or_else(|error| error.duration() < STALE, |age| age < STALE)
    }
}

/// The last [`Current`], and none before the first.
pub(super) type CurrentReceiver = watch::Receiver<Option<Arc<Current>>>;

/// What a keeper is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain of everything signed.
    pub trust_domain: String,
    /// The DNS names of the serving certificate.
    pub names: Vec<String>,
    /// How long things take.
    pub timing: Timing,
    /// How errors call the Secret.
    pub secret: String,
}

/// Why the root is not as it should be; what was read before stays in force until it is stale.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The API server did not do it.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The Secret is not as the authority writes it.
    #[error("the Secret {secret} is unusable")]
    Roots {
        /// Its namespace and name.
        secret: String,
        /// What is wrong.
        #[source]
        source: RootsError,
    },
    /// A root in it is unusable, or none could be made.
    #[error(transparent)]
    Root(#[from] RootError),
    /// There is no certificate to serve with.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// Others changed the Secret each time that it was read.
    #[error("the Secret {secret} changes all the time: find out who else writes it")]
    Contended {
        /// Its namespace and name.
        secret: String,
    },
}

/// One replica's hold on the root.
pub struct Keeper<C> {
    cluster: Arc<C>,
    settings: Settings,
    /// What the Secret said last.
    last: Option<Roots>,
    /// The serving certificate, with the root that signed it.
    serving: Option<(String, Serving)>,
    current: watch::Sender<Option<Arc<Current>>>,
}

impl<C: Cluster> Keeper<C> {
    /// A keeper that has read nothing yet, and where what it reads is told.
    pub fn new(cluster: Arc<C>, settings: Settings) -> (Self, CurrentReceiver) {
        let (current, receiver) = watch::channel(None);
        let keeper = Self {
            cluster,
            settings,
            last: None,
            serving: None,
            current,
        };
        (keeper, receiver)
    }

    /// Reads the Secret every [`INTERVAL`] until `shutdown`; a failure is logged and tried again sooner.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let wait = match self.tick(SystemTime::now()).await {
                Ok(()) => INTERVAL,
                Err(error) => {
                    tracing::warn!(error = causes(&error), "the root cannot be kept");
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    /// Reads the Secret, and takes every step that is due at `now`.
    pub async fn tick(&mut self, now: SystemTime) -> Result<(), KeeperError> {
        for _ in 0..TRIES {
            let Some(stored) = self.cluster.load().await? else {
                self.create(now).await?;
                continue;
            };
            let roots = Roots::parse(&stored).map_err(|source| KeeperError::Roots {
                secret: self.settings.secret.clone(),
                source,
            })?;
            let root = self.read(&roots.trusted(), &roots.signing.key, now)?;
            let step = roots.step(root.validity(), now, &self.settings.timing);
            self.adopt(&roots.signing.cert, root, now)?;
            self.last = Some(roots.clone());
            // No step before everybody can know the roots of the last one.
            self.cluster.publish(&roots.trusted()).await?;
            let patch = match step {
                Step::Wait => return Ok(()),
                Step::Introduce => rotation::introduce(self.make(now)?, now),
                Step::Promote => self.promoted(&roots, now)?,
                Step::Retire => rotation::retire(),
            };
            if self.cluster.change(&stored.version, &patch).await? == Outcome::Done {
                tracing::info!(?step, secret = self.settings.secret, "the root rotates");
            }
        }
        Err(KeeperError::Contended {
            secret: self.settings.secret.clone(),
        })
    }

    /// Makes the Secret: with what it held, if this replica knows, as everybody trusts that; with a new root otherwise.
    async fn create(&self, now: SystemTime) -> Result<(), KeeperError> {
        let (root, from) = match &self.last {
            Some(last) => (last.whole(), "what it held before it was deleted"),
            None => (rotation::first(self.make(now)?), "a new root"),
        };
        if self.cluster.create(&root).await? == Outcome::Done {
            tracing::info!(secret = self.settings.secret, from, "made the Secret");
        }
        Ok(())
    }

    /// The Secret with its next root signing, if that one can.
    fn promoted(&self, roots: &Roots, now: SystemTime) -> Result<Patch, KeeperError> {
        if let Phase::Introduced { next, .. } = &roots.phase {
            self.read(&next.cert, &next.key, now)?;
        }
        Ok(roots.promote(now).unwrap_or_default())
    }

    fn make(&self, now: SystemTime) -> Result<Pair, RootError> {
        let (cert, key) = pki::new_root(&self.settings.trust_domain, now)?;
        Ok(Pair { cert, key })
    }

    fn read(&self, certs: &str, key: &str, now: SystemTime) -> Result<Root, RootError> {
        let place = PathBuf::from(format!("secret/{}", self.settings.secret));
        Root::from_pem(&place, certs, key, now)
    }

    /// Signs with `root` from now on.
    fn adopt(&mut self, signing: &str, root: Root, now: SystemTime) -> Result<(), ServingError> {
        let Settings {
            trust_domain,
            timing,
            names,
            ..
        } = &self.settings;
        let authority = Authority::new(trust_domain, timing.lifetime, root);
        let serving = match &self.serving {
            Some((by, serving)) if by == signing && now < serving.renew_at() => serving.clone(),
            _ => authority.serving(names, now)?,
        };
        self.serving = Some((signing.to_owned(), serving.clone()));
        self.current.send_replace(Some(Arc::new(Current {
            authority,
            acceptor: serving.acceptor(),
            read_at: now,
        })));
        Ok(())
    }
}

/// How often the Secret is read.
const INTERVAL: Duration = Duration::from_secs(30);
/// How soon after a failure.
const RETRY: Duration = Duration::from_secs(5);
/// A start and a whole rotation are four steps; the rest is for conflicts.
const TRIES: usize = 8;
