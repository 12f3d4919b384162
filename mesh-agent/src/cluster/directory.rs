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
    files: BTreeMap<OsString, File>,
    /// What is wrong with the files that could not be understood when they were last read.
    left_out: BTreeMap<OsString, String>,
    definitions: BTreeMap<Reference, Definitions>,
}

/// What files say of an object, each with its name and in the order of the names: the first one's holds. Never empty.
type Definitions = Vec<(OsString, Object)>;

#[derive(Debug, Default)]
struct File {
    /// What the file looked like when it was read; none when it may have changed since without looking different.
    looks: Option<Fingerprint>,
    /// Hash of what was read.
    hash: Option<u64>,
    defines: Vec<Reference>,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: BTreeMap::new(),
            left_out: BTreeMap::new(),
            definitions: BTreeMap::new(),
        }
    }

    /// Reads what changed since the last scan and tells it as events; work is in proportion to the files that changed.
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
        // By name, what each file that changed says now.
        let mut changed: BTreeMap<OsString, Vec<Object>> = BTreeMap::new();
        for name in self.files.keys().filter(|it| !present.contains(*it)) {
            changed.insert(name.clone(), Vec::new());
        }
        for name in &present {
            if let Some(objects) = self.refresh(name) {
                changed.insert(name.clone(), objects);
            }
        }
        let mut events = self.take(changed);
        self.files.retain(|name, _| present.contains(name));
        events.extend(self.complaints(&left_out));
        Ok(events)
    }

    /// Whether every file was understood when it was last read.
    pub(super) fn is_understood(&self) -> bool {
        self.left_out.is_empty()
    }

    /// Reads a file again if it looks different; what it says, if that may be something else now.
    fn refresh(&mut self, name: &OsString) -> Option<Vec<Object>> {
        let path = self.path.join(name);
        let file = self.files.entry(name.clone()).or_default();
        match file.read(&path, syntax_of(name).unwrap_or(Syntax::Yaml)) {
            Ok(None) => None,
            Ok(Some(Contents { objects, ignored })) => {
                for kind in ignored {
                    info!(file = %path.display(), kind, "object of this kind is ignored");
                }
                self.left_out.remove(name);
                Some(objects)
            }
            // Removed since it was listed: the next scan finds it missing.
            Err(Error::Read(error)) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                let cause = error::Error::source(&error).map(ToString::to_string);
                warn!(
                    file = %path.display(), %error, cause,
                    "source file is left out, its previous objects stay in force; correct the file",
                );
                self.left_out.insert(name.clone(), causes(&error));
                None
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

    /// Takes in what changed files say, and tells what follows from it.
    fn take(&mut self, changed: BTreeMap<OsString, Vec<Object>>) -> Vec<Event> {
        let defined = changed.keys().filter_map(|it| self.files.get(it));
        let defined = defined.flat_map(|it| it.defines.iter().cloned());
        let told = changed.values().flatten().map(Object::reference);
        let touched: BTreeSet<Reference> = defined.chain(told).collect();

        let old = self.holding(&touched);
        let names: BTreeSet<_> = changed.keys().cloned().collect();
        for (name, objects) in changed {
            self.define(&name, objects);
        }
        for reference in &touched {
            self.warn_of_more(reference, &names);
        }
        difference(&old, &self.holding(&touched))
    }

    /// Which objects hold, of those of some names.
    fn holding(&self, names: &BTreeSet<Reference>) -> BTreeMap<Reference, Object> {
        let hold = names.iter().filter_map(|name| {
            let (_, object) = self.definitions.get(name)?.first()?;
            Some((name.clone(), object.clone()))
        });
        hold.collect()
    }

    /// Replaces what a file says.
    fn define(&mut self, name: &OsString, objects: Vec<Object>) {
        let file = self.files.entry(name.clone()).or_default();
        for reference in file.defines.drain(..) {
            if let Entry::Occupied(mut all) = self.definitions.entry(reference) {
                all.get_mut().retain(|(other, _)| other != name);
                if all.get().is_empty() {
                    all.remove();
                }
            }
        }
        for object in objects {
            let reference = object.reference();
            let all = self.definitions.entry(reference.clone()).or_default();
            // Behind those of the same file: the first of them holds.
            let place = all.partition_point(|(other, _)| other <= name);
            all.insert(place, (name.clone(), object));
            file.defines.push(reference);
        }
    }

    /// Tells of an object that is defined more than once, as far as changed files are concerned.
    fn warn_of_more(&self, reference: &Reference, changed: &BTreeSet<OsString>) {
        let Some([(kept, _), more @ ..]) = self.definitions.get(reference).map(Vec::as_slice)
        else {
            return;
        };
        for (name, _) in more {
            if changed.contains(name) || changed.contains(kept) {
                warn!(
                    object = ?reference, ?kept, ignored = ?name,
                    "object is defined twice; remove one of the two",
                );
            }
        }
    }
}

/// Why a file says what it said last.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// Whoever writes a file in place empties it first.
    #[error("the file is empty; remove it, unless it is being written")]
    Empty,
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
        if bytes.is_empty() {
            return Err(Error::Empty);
        }
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
