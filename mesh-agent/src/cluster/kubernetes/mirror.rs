//! CORE: what was told, and what is to be told when something else is heard.
//!
//! Invariant: an object that cannot be understood is what it was when it last could be.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::wire::Item;
use crate::causes::causes;
use crate::cluster::resource::Resource;
use crate::model::{Event, Object, Reference};

/// Objects of one kind, each as the JSON of the fields that are used.
pub(super) type Listing = BTreeMap<Reference, Arc<str>>;

/// All that was told.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    listings: BTreeMap<Resource, Listing>,
    left_out: BTreeMap<Reference, Arc<str>>,
}

impl Mirror {
    /// What was told of each kind.
    pub(super) fn listings(&self) -> &BTreeMap<Resource, Listing> {
        &self.listings
    }

    /// Number of objects of a kind that were told.
    pub(super) fn count(&self, resource: Resource) -> usize {
        self.listings.get(&resource).map_or(0, Listing::len)
    }

    /// Number of objects that cannot be understood.
    pub(super) fn left_out(&self) -> usize {
        self.left_out.len()
    }

    /// Takes all objects of a kind and tells what differs.
    ///
    /// Pods that are gone come first, because their addresses may be given anew; other things that are gone come last,
    /// because they may decide about pods that stay until what replaces them is told.
    pub(super) fn replace(&mut self, resource: Resource, listing: Listing) -> Vec<Event> {
        let known = self.listings.get(&resource).into_iter().flatten();
        let known = known.map(|(name, _)| name);
        let left_out = self.left_out.keys();
        let left_out = left_out.filter(|it| Resource::of(it) == resource);
        let mut gone: Vec<_> = known.chain(left_out).cloned().collect();
        gone.retain(|it| !listing.contains_key(it));
        gone.sort();
        gone.dedup();
        let gone: Vec<_> = gone.iter().flat_map(|it| self.remove(it)).collect();
        let items = listing.into_iter();
        let items = items.map(|(reference, text)| Item { reference, text });
        let told: Vec<_> = items.flat_map(|it| self.set(it)).collect();
        match resource {
            Resource::Pod => [gone, told].concat(),
            _ => [told, gone].concat(),
        }
    }

    /// Takes an object and tells what differs.
    pub(super) fn set(&mut self, item: Item) -> Vec<Event> {
        let Item { reference, text } = item;
        let resource = Resource::of(&reference);
        let listing = self.listings.entry(resource).or_default();
        if listing.get(&reference) == Some(&text) {
            return self.understood(&reference).into_iter().collect();
        }
        match object(resource, &text) {
            Ok(Some(object)) => {
                listing.insert(reference.clone(), text);
                let told = self.understood(&reference);
                told.into_iter().chain([Event::Upsert(object)]).collect()
            }
            Ok(None) => self.remove(&reference),
            Err(reason) => {
                let reason: Arc<str> = reason.into();
                if self.left_out.get(&reference) == Some(&reason) {
                    return Vec::new();
                }
                let part = part(&reference);
                self.left_out.insert(reference, reason.clone());
                let reason = Some(reason);
                vec![Event::LeftOut { part, reason }]
            }
        }
    }

    /// Takes an object away and tells what differs.
    pub(super) fn remove(&mut self, reference: &Reference) -> Vec<Event> {
        let listing = self.listings.get_mut(&Resource::of(reference));
        let known = listing.and_then(|it| it.remove(reference));
        let gone = known.map(|_| Event::Delete(reference.clone()));
        let told = self.understood(reference);
        told.into_iter().chain(gone).collect()
    }

    /// Nothing is wrong with the object any more.
    fn understood(&mut self, reference: &Reference) -> Option<Event> {
        self.left_out.remove(reference)?;
        Some(Event::LeftOut {
            part: part(reference),
            reason: None,
        })
    }
}

fn object(resource: Resource, text: &str) -> Result<Option<Object>, String> {
    let written = serde_json::from_str(text).map_err(|error| causes(&error))?;
    resource.object(written).map_err(|fault| causes(&fault))
}

/// What an object is called in [`Event::LeftOut`], such as `Pod shop/cart-0`.
fn part(reference: &Reference) -> Arc<str> {
    let kind = Resource::of(reference).kind();
    match reference {
        Reference::Namespace(name) | Reference::Node(name) => format!("{kind} {name}").into(),
        Reference::PeerAuthentication(key)
        | Reference::NetworkPolicy(key)
        | Reference::AuthorizationPolicy(key)
        | Reference::Service(key)
        | Reference::EndpointSlice(key)
        | Reference::Pod(key) => format!("{kind} {key}").into(),
    }
}
