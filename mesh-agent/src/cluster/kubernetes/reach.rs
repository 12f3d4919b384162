//! Whether the API server can be asked, and lets the agent see what it needs: asked as the agent asks.

use std::time::Duration;

use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use kube::{Client, Error};
use tokio::time::timeout;

use super::access::{Access, AccessError, words};
use super::wire::Page;
use crate::cluster::resource::Resource;

/// What the API server says to listing and watching a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Both are done.
    Granted,
    /// It does not serve it.
    Absent {
        /// The kind.
        kind: &'static str,
        /// Whether the agent does without.
        is_optional: bool,
    },
    /// It does not let the agent.
    Denied {
        /// The kind.
        kind: &'static str,
        /// Its words.
        reason: String,
    },
}

/// The API server gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// It is not known where it is.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// It does not speak, does not know us, or fails.
    #[error("{0}")]
    Failed(String),
    /// It does not speak in time.
    #[error("it does not answer")]
    Silent,
}

/// Lists and watches each kind that the agent follows, one object and one moment of it.
///
/// # Errors
/// There is no answer to one of the questions.
pub async fn permissions(access: &Access) -> Result<Vec<Permission>, Unreachable> {
    let client = access.client().await?;
    let mut permissions = Vec::new();
    for resource in Resource::ALL {
        let asked = timeout(PATIENCE, permission(&client, resource));
        permissions.push(asked.await.map_err(|_| Unreachable::Silent)??);
    }
    Ok(permissions)
}

async fn permission(client: &Client, resource: Resource) -> Result<Permission, Unreachable> {
    for version in resource.versions() {
        match list_and_watch(client, &resource.path(version)).await {
            Ok(()) => return Ok(Permission::Granted),
            Err(error) if is(&error, ABSENT) => {}
            Err(error) if is(&error, FORBIDDEN) => {
                return Ok(Permission::Denied {
                    kind: resource.kind(),
                    reason: words(&error),
                });
            }
            Err(error) => return Err(Unreachable::Failed(words(&error))),
        }
    }
    Ok(Permission::Absent {
        kind: resource.kind(),
        is_optional: resource.is_optional(),
    })
}

fn is(error: &Error, code: u16) -> bool {
    matches!(error, Error::Api(status) if status.code == code)
}

async fn list_and_watch(client: &Client, path: &str) -> kube::Result<()> {
    let one = ListParams::default().limit(1);
    let request = Request::new(path).list(&one).map_err(Error::BuildRequest)?;
    let text = client.request_text(request).await?;
    let page: Page<'_> = serde_json::from_str(&text).map_err(Error::SerdeError)?;
    let moment = WatchParams::default().timeout(1);
    let from = &page.metadata.resource_version;
    let request = Request::new(path).watch(&moment, from);
    // That it begins is the answer.
    let begun = client.request_stream(request.map_err(Error::BuildRequest)?);
    begun.await.map(drop)
}

/// How long the answer to one kind may take.
const PATIENCE: Duration = Duration::from_secs(5);
const FORBIDDEN: u16 = 403;
const ABSENT: u16 = 404;
