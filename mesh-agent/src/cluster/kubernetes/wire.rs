//! CORE: answers of the API server, read so that only what the agent uses of an object is ever held.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde_json::value::RawValue;

use crate::cluster::resource::Resource;
use crate::model::Reference;

/// A page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: ListMetadata,
    /// Null when there is none.
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// Where a list stands.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMetadata {
    /// The version to watch from.
    pub(super) resource_version: String,
    /// What asks for the next page; empty on the last.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Frame<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What an `ERROR` says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Which object, and which version of it.
#[derive(Debug, Deserialize)]
struct Head {
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    namespace: String,
    resource_version: String,
}

/// An object as it is kept: its fields that are used, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) reference: Reference,
    pub(super) text: Arc<str>,
}

/// Reads an object.
///
/// # Errors
/// It is not JSON or has no metadata.
pub(super) fn item(resource: Resource, written: &str) -> serde_json::Result<Item> {
    let reference = reference(resource, written)?;
    let mut json = serde_json::Deserializer::from_str(written);
    let text = resource.keep().deserialize(&mut json)?.to_string().into();
    Ok(Item { reference, text })
}

/// Reads only which object it is.
///
/// # Errors
/// It is not JSON or has no metadata.
pub(super) fn reference(resource: Resource, written: &str) -> serde_json::Result<Reference> {
    let Metadata {
        namespace, name, ..
    } = serde_json::from_str::<Head>(written)?.metadata;
    Ok(resource.reference(&namespace, &name))
}

/// Reads only the version; empty when it has none.
///
/// # Errors
/// It is not JSON or has no metadata.
pub(super) fn version(written: &str) -> serde_json::Result<String> {
    let head: Head = serde_json::from_str(written)?;
    Ok(head.metadata.resource_version)
}
