//! Follows the objects of one kind: lists them in pages, watches from there, and begins again wherever that broke off.
//!
//! What is heard is whole: a list is told when its last page is there. Nothing ends a follower but that nobody listens.

use std::io;
use std::sync::Arc;

use futures_util::io::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::access::{Access, AccessError, words};
use super::backoff::{Backoff, below};
use super::mirror::Listing;
use super::options::Timing;
use super::wire::{self, Frame, Item, Page, Status};
use crate::causes::causes;
use crate::clock;
use crate::cluster::resource::Resource;
use crate::model::Reference;

/// Objects a page of a list has at most.
const PAGE: u32 = 500;
/// Seconds after which a server ends a watch, so that none is held for ever and credentials are read again: at least, and
/// how many more there may be by chance.
const WATCH: (u32, u32) = (240, 50);

/// What a follower hears of its kind.
#[derive(Debug)]
pub(super) enum Heard {
    /// These are all.
    List(Listing),
    /// One is new or has changed.
    Set(Item),
    /// One is gone.
    Gone(Reference),
    /// Nothing, but the server answers.
    Alive,
    /// The server does not know the kind.
    Absent,
    /// The server cannot be asked, for this reason.
    Failed(String),
}

/// Why a round is over.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("nobody listens")]
    Closed,
    #[error("the API server does not serve this kind")]
    Absent,
    #[error("what was asked for is too old")]
    Expired,
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("{}", words(.0))]
    Api(Box<kube::Error>),
    #[error("the API server says {} {}: {}", .0.code, .0.reason, .0.message)]
    Refused(Status),
    #[error("the API server does not answer")]
    Silent,
    #[error("the answer of the API server makes no sense")]
    Garbage(#[source] serde_json::Error),
    /// A watch broke off, which is only told when it cannot be taken up again.
    #[error("the watch broke off")]
    Broken(#[source] io::Error),
}

/// Where a watch goes on from.
struct Position {
    path: String,
    version: String,
}

pub(super) struct Follower {
    resource: Resource,
    access: Access,
    timing: Timing,
    heard: mpsc::Sender<(Resource, Heard)>,
    /// None when everything has to be listed again.
    position: Option<Position>,
    /// The server forgot a list before its last page was asked for: the next one is asked for as a whole.
    unpaged: bool,
    backoff: Backoff,
    /// Ends the pauses of all kinds' followers once the server answers one of them again.
    back: Arc<Notify>,
    /// The server could not be asked and has not answered since.
    failing: bool,
}

impl Follower {
    pub(super) fn new(
        resource: Resource,
        access: Access,
        timing: Timing,
        heard: mpsc::Sender<(Resource, Heard)>,
        back: Arc<Notify>,
    ) -> Self {
        Self {
            resource,
            access,
            timing,
            heard,
            position: None,
            unpaged: false,
            backoff: Backoff::new(timing.first_retry, timing.last_retry),
            back,
            failing: false,
        }
    }

    /// Follows until nobody listens.
    pub(super) async fn run(mut self) {
        let kind = self.resource.kind();
        loop {
            let Err(trouble) = self.round().await else {
                continue;
            };
            debug!(kind, error = causes(&trouble), "following stopped");
            let heard = match trouble {
                Trouble::Closed => return,
                Trouble::Expired => {
                    info!(
                        kind,
                        "the API server has forgotten the version: listing again"
                    );
                    self.position = None;
                    None
                }
                Trouble::Broken(_) => None,
                Trouble::Absent => {
                    self.position = None;
                    Some(Heard::Absent)
                }
                trouble => {
                    if matches!(trouble, Trouble::Garbage(_) | Trouble::Refused(_)) {
                        self.position = None;
                    }
                    self.failing = true;
                    Some(Heard::Failed(causes(&trouble)))
                }
            };
            if let Some(heard) = heard
                && self.tell(heard).await.is_err()
            {
                return;
            }
            tokio::select! {
                () = sleep(self.backoff.pause()) => {}
                () = self.back.notified(), if self.failing => {}
            }
        }
    }

    /// Lists if need be, and watches until the server ends it.
    async fn round(&mut self) -> Result<(), Trouble> {
        // A new client each time: what is on disk may have changed.
        let client = self.access.client().await?;
        if self.position.is_none() {
            self.list(&client).await?;
        }
        self.watch(&client).await
    }

    async fn list(&mut self, client: &Client) -> Result<(), Trouble> {
        for version in self.resource.versions() {
            match self.list_at(client, self.resource.path(version)).await {
                Err(Trouble::Absent) => {}
                ended => return ended,
            }
        }
        Err(Trouble::Absent)
    }

    async fn list_at(&mut self, client: &Client, path: String) -> Result<(), Trouble> {
        let mut params = ListParams::default();
        if !self.unpaged {
            params = params.limit(PAGE);
        }
        let mut listing = Listing::new();
        let version = loop {
            let request = Request::new(path.as_str()).list(&params).map_err(bad)?;
            let answer = self.answer(client.request_text(request)).await;
            if matches!(answer, Err(Trouble::Expired)) {
                self.unpaged = true;
            }
            let text = answer?;
            let page: Page<'_> = serde_json::from_str(&text).map_err(Trouble::Garbage)?;
            for written in page.items.into_iter().flatten() {
                if let Some(Item { reference, text }) = self.item(written.get()) {
                    listing.insert(reference, text);
                }
            }
            if page.metadata.next.is_empty() {
                break page.metadata.resource_version;
            }
            params = params.continue_token(&page.metadata.next);
        };
        self.unpaged = false;
        self.position = Some(Position { path, version });
        self.tell(Heard::List(listing)).await
    }

    async fn watch(&mut self, client: &Client) -> Result<(), Trouble> {
        let Some(Position { path, version }) = &self.position else {
            return Ok(());
        };
        let params = WatchParams::default().timeout(WATCH.0 + below(WATCH.1));
        let request = Request::new(path.as_str()).watch(&params, version);
        let stream = self.answer(client.request_stream(request.map_err(bad)?));
        let stream = stream.await?;
        self.tell(Heard::Alive).await?;
        if std::mem::take(&mut self.failing) {
            self.back.notify_waiters();
        }
        let begun = clock::now();
        let ended = self.read(stream).await;
        if begun.elapsed() > self.timing.settled {
            self.backoff.reset();
        } else if ended.is_ok() {
            // A server that ends each watch at once is not asked in a tight circle.
            sleep(self.backoff.pause()).await;
        }
        ended
    }

    /// Reads a watch to its end.
    async fn read(&mut self, stream: impl AsyncBufRead) -> Result<(), Trouble> {
        let mut stream = std::pin::pin!(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = stream.read_until(b'\n', &mut line);
            let Ok(read) = timeout(self.timing.silence, read).await else {
                // Taking it up again costs less than waiting for a connection that is dead.
                return Ok(());
            };
            read.map_err(Trouble::Broken)?;
            if line.last() != Some(&b'\n') {
                // The end; what is there of a line broke off.
                return Ok(());
            }
            let frame: Frame<'_> = serde_json::from_slice(&line).map_err(Trouble::Garbage)?;
            self.take(&frame).await?;
            self.backoff.reset();
        }
    }

    async fn take(&mut self, frame: &Frame<'_>) -> Result<(), Trouble> {
        let written = frame.object.get();
        if frame.kind == "ERROR" {
            let status: Status = serde_json::from_str(written).unwrap_or_default();
            return Err(match status.code {
                410 => Trouble::Expired,
                _ => Trouble::Refused(status),
            });
        }
        let version = wire::version(written).map_err(Trouble::Garbage)?;
        let heard = match &*frame.kind {
            "ADDED" | "MODIFIED" => self.item(written).map(Heard::Set),
            "DELETED" => {
                let reference = wire::reference(self.resource, written);
                Some(Heard::Gone(reference.map_err(Trouble::Garbage)?))
            }
            _ => None,
        };
        if let Some(heard) = heard {
            self.tell(heard).await?;
        }
        if let Some(position) = &mut self.position
            && !version.is_empty()
        {
            position.version = version;
        }
        Ok(())
    }

    /// Reads an object; one that does not even tell its name cannot be told of otherwise than in the log.
    fn item(&self, written: &str) -> Option<Item> {
        let item = wire::item(self.resource, written);
        let item = item.inspect_err(|error| {
            let kind = self.resource.kind();
            warn!(kind, %error, "an object without a name is left out");
        });
        item.ok()
    }

    /// Waits for the answer to a request.
    async fn answer<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Trouble> {
        match timeout(self.timing.answer, request).await {
            Err(_) => Err(Trouble::Silent),
            Ok(answer) => answer.map_err(|error| match &error {
                kube::Error::Api(status) if status.code == 410 => Trouble::Expired,
                kube::Error::Api(status) if status.code == 404 => Trouble::Absent,
                _ => Trouble::Api(Box::new(error)),
            }),
        }
    }

    async fn tell(&self, heard: Heard) -> Result<(), Trouble> {
        let told = self.heard.send((self.resource, heard)).await;
        told.map_err(|_| Trouble::Closed)
    }
}

fn bad(error: kube::core::request::Error) -> Trouble {
    Trouble::Api(Box::new(kube::Error::BuildRequest(error)))
}
