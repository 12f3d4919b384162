//! Names of namespaced objects.

use std::fmt;
use std::sync::Arc;

/// Namespace and name of an object; cheap to clone, ordered by namespace first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

impl Key {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The least key there is, for ranges.
    pub(super) fn first() -> Self {
        Self::new("", "")
    }

    /// The least key of a namespace, for ranges.
    pub(super) fn first_in(namespace: &Arc<str>) -> Self {
        Self::new(namespace.clone(), "")
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
