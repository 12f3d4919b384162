//! A directory of object files: what it says now, and what differs from what it said before.
//!
//! Invariant: a file that cannot be read or understood says what it said last.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{error, fs};

use tracing::{info, warn};

use super::document::{self, Contents, Syntax};
use crate::causes::causes;
use crate::model::{Event, Object, Reference};

/// A directory and all that its files said when they were last understood.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// By name: of two files that define an object, the first one's holds.
    files: BTreeMap<OsString, File>,
    /// What is wrong with the files that could not be understood when they were last read.
    left_out: BTreeMap<OsString, String>,
    world: BTreeMap<Reference, Object>,
}

#[derive(Debug, Default)]
struct File {
    /// What the file looked like when it was read; none when it may have changed since without looking different.
    looks: Option<Fingerprint>,
    /// Hash of what was read.
    hash: Option<u64>,
    objects: Vec<Object>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            left_out: BTreeMap::new(),
            world: BTreeMap::new(),
        }
    }

    /// Reads what changed since the last scan and tells it as events.
    ///
    /// # Errors
    /// The directory cannot be listed; what it said stays.
    pub(super) fn scan(&mut self) -> io::Result<Vec<Event>> {
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if syntax_of(&name).is_some() {
                present.insert(name);
            }
        }
        let left_out = self.left_out.clone();
        self.left_out.retain(|name, _| present.contains(name));
        let mut changed: BTreeSet<OsString> = BTreeSet::new();
        self.files.retain(|name, _| {
            let gone = !present.contains(name);
            if gone {
                changed.insert(name.clone());
            }
            !gone
        });
        for name in present {
            if self.refresh(&name) {
                changed.insert(name);
            }
        }
        let mut events = Vec::new();
        if !changed.is_empty() {
            let world = self.merge(&changed);
            events = difference(&self.world, &world);
            self.world = world;
        }
        events.extend(self.complaints(&left_out));
        Ok(events)
    }

    /// Reads a file again if it looks different; whether it says something else now.
    fn refresh(&mut self, name: &OsString) -> bool {
        let path = self.path.join(name);
        let file = self.files.entry(name.clone()).or_default();
        match file.read(&path, syntax_of(name).unwrap_or(Syntax::Yaml)) {
            Ok(None) => false,
            Ok(Some(Contents { objects, ignored })) => {
                for kind in ignored {
                    info!(file = %path.display(), kind, "object of this kind is ignored");
                }
                file.objects = objects;
                self.left_out.remove(name);
                true
            }
            // Removed since it was listed: the next scan finds it missing.
            Err(Error::Read(error)) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => {
                let cause = error::Error::source(&error).map(ToString::to_string);
                warn!(
                    file = %path.display(), %error, cause,
                    "source file is left out, its previous objects stay in force; correct the file",
                );
                self.left_out.insert(name.clone(), causes(&error));
                false
            }
        }
    }

    /// What changed about files that are left out.
    fn complaints(&self, before: &BTreeMap<OsString, String>) -> Vec<Event> {
        let names: BTreeSet<_> = before.keys().chain(self.left_out.keys()).collect();
        names
            .into_iter()
            .filter(|name| before.get(*name) != self.left_out.get(*name))
            .map(|name| Event::LeftOut {
                part: name.to_string_lossy().into(),
                reason: self.left_out.get(name).map(|it| it.as_str().into()),
            })
            .collect()
    }

    /// All objects by name; tells of those defined twice as far as a changed file is concerned.
    fn merge(&self, changed: &BTreeSet<OsString>) -> BTreeMap<Reference, Object> {
        let mut world = BTreeMap::new();
        let mut defined_in = BTreeMap::new();
        for (name, file) in &self.files {
            for object in &file.objects {
                let reference = object.reference();
                match world.entry(reference.clone()) {
                    Entry::Vacant(place) => {
                        place.insert(object.clone());
                        defined_in.insert(reference, name);
                    }
                    Entry::Occupied(_) => {
                        let kept: &OsString = defined_in[&reference];
                        if changed.contains(name) || changed.contains(kept) {
                            warn!(
                                object = ?reference, ?kept, ignored = ?name,
                                "object is defined twice; remove one of the two",
                            );
                        }
                    }
                }
            }
        }
        world
    }
}

/// Why a file says what it said last.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    #[error("the file is not UTF-8")]
    Encoding(#[source] std::string::FromUtf8Error),
    #[error(transparent)]
    Document(#[from] document::Error),
}

impl File {
    /// The contents, unless they are what they were when last read: what cannot be used is told once, not at every scan.
    fn read(&mut self, path: &Path, syntax: Syntax) -> Result<Option<Contents>, Error> {
        let looks = Fingerprint::of(path).map_err(Error::Read)?;
        if self.looks == Some(looks) {
            return Ok(None);
        }
        let bytes = fs::read(path);
        self.looks = looks.is_settled().then_some(looks);
        let bytes = bytes.map_err(Error::Read)?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if self.hash == hash {
            return Ok(None);
        }
        self.hash = hash;
        let text = String::from_utf8(bytes).map_err(Error::Encoding)?;
        Ok(Some(document::read(&text, syntax)?))
    }
}

/// What a file looks like from outside; symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(path: &Path) -> io::Result<Self> {
        let it = fs::metadata(path)?;
        Ok(Self {
            device: it.dev(),
            inode: it.ino(),
            size: it.len(),
            modified: (it.mtime(), it.mtime_nsec()),
            changed: (it.ctime(), it.ctime_nsec()),
        })
    }

    /// Whether a further change would look different: time stamps are no finer than the kernel's tick.
    fn is_settled(&self) -> bool {
        let (Ok(seconds), Ok(nanos)) = (self.changed.0.try_into(), self.changed.1.try_into())
        else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        changed.elapsed().is_ok_and(|age| age >= TICK)
    }
}

/// Longer than the tick of any kernel.
const TICK: Duration = Duration::from_millis(100);

/// How a file of this name is written; none when it is not a source file. Editors hide their temporary files by a dot.
fn syntax_of(name: &OsStr) -> Option<Syntax> {
    if name.as_encoded_bytes().starts_with(b".") {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Syntax::Yaml),
        "json" => Some(Syntax::Json),
        _ => None,
    }
}

/// What leads from one world to another.
///
/// Pods that are gone come first, because their addresses may be given anew; other things that are gone come last, because
/// they may decide about pods that stay until what replaces them is told.
fn difference(old: &BTreeMap<Reference, Object>, new: &BTreeMap<Reference, Object>) -> Vec<Event> {
    let gone = old.keys().filter(|it| !new.contains_key(it)).cloned();
    let (pods, others): (Vec<_>, Vec<_>) = gone.partition(|it| matches!(it, Reference::Pod(_)));
    let told = new
        .iter()
        .filter(|(name, object)| old.get(name) != Some(object));
    let told = told.map(|(_, object)| Event::Upsert(object.clone()));
    let pods = pods.into_iter().map(Event::Delete);
    let others = others.into_iter().rev().map(Event::Delete);
    pods.chain(told).chain(others).collect()
}
