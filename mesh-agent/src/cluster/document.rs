//! Files of objects, as `kubectl` reads and writes them: several YAML or JSON documents, lists among them.

use serde::Deserialize;
use serde_json::Value;

use super::Invalid;
use super::resource::{Fault, Resource};
use crate::model::Object;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Its objects, in order.
    pub objects: Vec<Object>,
    /// Kinds that the agent has no use for, as `apiVersion kind`, in order.
    pub ignored: Vec<String>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// YAML documents, separated by `---`.
    Yaml,
    /// JSON documents, one after the other.
    Json,
}

/// Why a file cannot be used; documents are counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document is not YAML.
    #[error("document {document} is not valid YAML")]
    Yaml {
        /// Which one.
        document: usize,
        /// What is wrong, with line and column.
        #[source]
        source: serde_yaml_ng::Error,
    },
    /// A document is not JSON.
    #[error("document {document} is not valid JSON")]
    Json {
        /// Which one.
        document: usize,
        /// What is wrong, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// An object does not tell its kind.
    #[error("document {document} has no {field}; write what kind of object it is")]
    NoKind {
        /// Which document.
        document: usize,
        /// Path of the missing field.
        field: String,
    },
    /// A field has the wrong type, or a value that its type does not have.
    #[error("document {document}, {kind}, field {field} cannot be read")]
    Shape {
        /// Which document.
        document: usize,
        /// The object's kind.
        kind: String,
        /// Path of the field in the document.
        field: String,
        /// What was found, and what should be there.
        #[source]
        source: serde_json::Error,
    },
    /// A field has the right type and a value that means nothing.
    #[error("document {document}, {kind}, field {} cannot be used", source.field)]
    Value {
        /// Which document.
        document: usize,
        /// The object's kind.
        kind: String,
        /// Which field of the document, and what to write instead.
        #[source]
        source: Invalid,
    },
}

/// Reads a file.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(text: &str, syntax: Syntax) -> Result<Contents, Error> {
    let mut contents = Contents::default();
    // One document after the other: as values, all of them take many times what is kept of them.
    match syntax {
        Syntax::Yaml => {
            let values = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
            for (document, value) in (1..).zip(values) {
                let value = value.map_err(|source| Error::Yaml { document, source })?;
                contents.add_document(document, value)?;
            }
        }
        Syntax::Json => {
            let values = serde_json::Deserializer::from_str(text).into_iter();
            for (document, value) in (1..).zip(values) {
                let value = value.map_err(|source| Error::Json { document, source })?;
                contents.add_document(document, value)?;
            }
        }
    }
    Ok(contents)
}

impl Contents {
    fn add_document(&mut self, document: usize, value: Value) -> Result<(), Error> {
        let item = Item {
            document,
            path: String::new(),
            value,
        };
        self.add(item, None)
    }

    /// Adds an object, or the items of a list; those of a typed list may leave out their kind.
    fn add(&mut self, item: Item, of_list: Option<(&str, &str)>) -> Result<(), Error> {
        if item.value.is_null() {
            return Ok(());
        }
        let text = |field: &str| item.value.get(field).and_then(Value::as_str);
        let (of_version, of_kind) = of_list.unzip();
        let version = text("apiVersion").or(of_version).map(str::to_owned);
        let kind = text("kind").or(of_kind).map(str::to_owned);
        let (Some(version), Some(kind)) = (&version, &kind) else {
            let missing = version.map_or("apiVersion", |_| "kind");
            return Err(Error::NoKind {
                document: item.document,
                field: item.path + missing,
            });
        };
        match kind.strip_suffix("List") {
            Some(of) => self.add_list(item, version, of),
            None => self.add_object(item, version, kind),
        }
    }

    fn add_list(&mut self, item: Item, version: &str, kind: &str) -> Result<(), Error> {
        let Item {
            document,
            path,
            mut value,
        } = item;
        let items = value.get_mut("items").and_then(Value::as_array_mut);
        for (index, value) in items.into_iter().flatten().enumerate() {
            let path = format!("{path}items[{index}].");
            let value = value.take();
            let of_list = (!kind.is_empty()).then_some((version, kind));
            self.add(
                Item {
                    document,
                    path,
                    value,
                },
                of_list,
            )?;
        }
        Ok(())
    }

    fn add_object(&mut self, item: Item, version: &str, kind: &str) -> Result<(), Error> {
        let Item {
            document,
            path,
            value,
        } = item;
        let Some(resource) = Resource::named(version, kind) else {
            // A pod names its service account; the object adds nothing that is used here.
            if (version, kind) != ("v1", "ServiceAccount") {
                self.ignored.push(format!("{version} {kind}"));
            }
            return Ok(());
        };
        let kind = kind.to_owned();
        let object = resource.object(value).map_err(|fault| match fault {
            Fault::Shape { field, source } => Error::Shape {
                document,
                kind,
                field: format!("{path}{field}"),
                source,
            },
            Fault::Value(mut source) => {
                source.field.insert_str(0, &path);
                Error::Value {
                    document,
                    kind,
                    source,
                }
            }
        })?;
        self.objects.extend(object);
        Ok(())
    }
}

/// An object and where it stands.
struct Item {
    document: usize,
    /// Path in the document with a dot behind it; empty outside of lists.
    path: String,
    value: Value,
}
