//! The world on disk, for a start while the API server is away.
//!
//! One file of JSON lines, `kubernetes.json`: an object a line, with the fields that the agent uses, in the order to tell
//! them in; at the end a line that tells their number and their checksum. It is written beside and renamed.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::mirror::{Listing, Mirror};
use super::wire;
use crate::cluster::resource::Resource;
use crate::model::Event;

/// Changes when an older agent would misunderstand the file.
const FORMAT: u32 = 1;
const NAME: &str = "kubernetes.json";

/// Objects by their kind, and when they were so.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) listings: BTreeMap<Resource, Listing>,
    /// Seconds since 1970.
    pub(super) as_of: u64,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// Its last line is none that was written as such.
    #[error("the file does not end as it should: it was cut short, or is of another kind")]
    End(#[source] serde_json::Error),
    /// A newer agent wrote it.
    #[error("the file is of format {0}, this agent reads format {FORMAT}")]
    Format(u32),
    /// It was damaged.
    #[error("the file's checksum is {found:08x}, it says {told:08x}")]
    Checksum {
        /// Of what stands there.
        found: u32,
        /// Of what was written.
        told: u32,
    },
    /// A line is no object.
    #[error("line {line} cannot be read")]
    Line {
        /// Which one, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// The last line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct End {
    format: u32,
    as_of: u64,
    objects: usize,
    crc32: u32,
}

/// An object's line, which is an object as Kubernetes has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    api_version: &'a str,
    kind: &'a str,
}

/// Reads the file; none when there is none.
pub(super) fn load(state: &Path) -> Result<Option<Stored>, StoreError> {
    let bytes = match fs::read(state.join(NAME)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::Read(error)),
    };
    parse(&bytes).map(Some)
}

/// What an agent tells at its start of a file and of nothing else, in order.
///
/// # Errors
/// The file is not used.
pub fn events(file: &[u8]) -> Result<Vec<Event>, StoreError> {
    let mut mirror = Mirror::default();
    let listings = parse(file)?.listings.into_iter();
    Ok(listings
        .flat_map(|(resource, listing)| mirror.replace(resource, listing))
        .collect())
}

/// Reads what a file holds.
fn parse(bytes: &[u8]) -> Result<Stored, StoreError> {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let at = body
        .iter()
        .rposition(|it| *it == b'\n')
        .map_or(0, |at| at + 1);
    let (body, end) = body.split_at(at);
    let end: End = serde_json::from_slice(end).map_err(StoreError::End)?;
    if end.format != FORMAT {
        return Err(StoreError::Format(end.format));
    }
    let found = crc32fast::hash(body);
    if found != end.crc32 {
        let told = end.crc32;
        return Err(StoreError::Checksum { found, told });
    }
    let mut stored = Stored {
        as_of: end.as_of,
        ..Stored::default()
    };
    for (index, line) in body.split_inclusive(|it| *it == b'\n').enumerate() {
        let line_number = index + 1;
        stored.add(line).map_err(|source| StoreError::Line {
            line: line_number,
            source,
        })?;
    }
    Ok(stored)
}

impl Stored {
    fn add(&mut self, line: &[u8]) -> serde_json::Result<()> {
        let written: &RawValue = serde_json::from_slice(line)?;
        let head: Head<'_> = serde_json::from_str(written.get())?;
        // A kind that this agent no longer knows.
        let Some(resource) = Resource::named(head.api_version, head.kind) else {
            return Ok(());
        };
        let item = wire::item(resource, written.get())?;
        let listing = self.listings.entry(resource).or_default();
        listing.insert(item.reference, item.text);
        Ok(())
    }
}

/// Writes the file and returns its size in bytes.
pub(super) fn save(
    state: &Path,
    listings: &BTreeMap<Resource, Listing>,
    as_of: u64,
) -> io::Result<u64> {
    let beside = state.join(".kubernetes.json.new");
    let written = write(&beside, listings, as_of);
    let saved = written.and_then(|size| fs::rename(&beside, state.join(NAME)).map(|()| size));
    if saved.is_err() {
        // What was written of it would take room that there is none of.
        let _ = fs::remove_file(&beside);
    }
    saved
}

fn write(path: &Path, listings: &BTreeMap<Resource, Listing>, as_of: u64) -> io::Result<u64> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = BufWriter::new(options.open(path)?);
    let mut checksum = crc32fast::Hasher::new();
    let (mut objects, mut size) = (0, 0);
    for (resource, listing) in listings {
        let (version, kind) = (resource.versions()[0], resource.kind());
        for text in listing.values() {
            let fields = text.strip_prefix('{').unwrap_or(text);
            let line = format!("{{\"apiVersion\":\"{version}\",\"kind\":\"{kind}\",{fields}\n");
            checksum.update(line.as_bytes());
            file.write_all(line.as_bytes())?;
            objects += 1;
            size += line.len() as u64;
        }
    }
    let end = End {
        format: FORMAT,
        as_of,
        objects,
        crc32: checksum.finalize(),
    };
    writeln!(file, "{}", serde_json::to_string(&end)?)?;
    // Without it a machine that loses power may keep the name and lose the contents.
    file.into_inner()?.sync_all()?;
    Ok(size)
}

/// Puts a file that cannot be used out of the way, for who wants to look at it; where it is now.
pub(super) fn set_aside(state: &Path) -> io::Result<PathBuf> {
    let aside = state.join("kubernetes.json.damaged");
    fs::rename(state.join(NAME), &aside)?;
    Ok(aside)
}
