//! EDGE: the attachments of this node, one file each, so that a restarted agent knows every wired pod.
//!
//! A record is written to a temporary file and renamed into place: whoever reads sees the old one, the new one or none, also
//! when the agent is killed at any instant. There is no fsync, on purpose: rename orders the two for every process of
//! this boot, and a record is of no use after it, because network namespaces do not outlive the machine. What a power cut
//! may leave behind, an empty or cut-off file, is detected, told, and set aside as `*.corrupt`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use mesh_common::cni::{Attachment, PodRef};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// One wired interface, as its file tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Container and interface.
    pub attachment: Attachment,
    /// The pod, where the runtime named one.
    pub pod: Option<PodRef>,
    /// Path of the network namespace.
    pub netns: String,
    /// The `name` of the network configuration.
    pub network: String,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// Name of the host's end of the veth.
    pub host_ifname: String,
    /// MAC address of the host's end.
    pub host_mac: [u8; 6],
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// Its place in the order in which attachments were made; [`Store::put`] sets it.
    pub sequence: u64,
}

/// What a file holds.
#[derive(Serialize, Deserialize)]
struct File {
    #[serde(flatten)]
    record: Record,
    /// Of the record's JSON; earlier agents wrote none.
    #[serde(default)]
    crc32: Option<u32>,
}

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The attachment cannot name a file: the runtime sent a container id or interface name that the CNI specification
    /// forbids.
    #[error("container id {:?} or interface name {:?} is not a file name", .0.container, .0.ifname)]
    Name(Attachment),
    /// The file system refused.
    #[error("cannot {action} {}; the agent needs a writable directory with space left", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The records of this node, in memory and in their directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    records: BTreeMap<Attachment, Record>,
    last_sequence: u64,
}

impl Store {
    /// Opens the store of a state directory, which is made if need be, and reads every record.
    ///
    /// A file that holds no record is renamed to `*.corrupt`, and the log names it.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let directory = state.join("attachments");
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        let mut store = Self {
            directory,
            records: BTreeMap::new(),
            last_sequence: 0,
        };
        let entries = fs::read_dir(&store.directory).map_err(failed("read", &store.directory))?;
        for entry in entries {
            let path = entry.map_err(failed("read", &store.directory))?.path();
            if path.is_file() {
                store.load(&path)?;
            }
        }
        Ok(store)
    }

    /// Keeps a record, in place of an older one of the same attachment, as the last in order.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn put(&mut self, mut record: Record) -> Result<&Record, Error> {
        let path = self.path(&record.attachment)?;
        record.sequence = self.last_sequence + 1;
        let temporary = self.directory.join(TEMPORARY);
        let text = text(&record).map_err(failed("encode", &path))?;
        if let Err(source) =
            fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path))
        {
            // What was written of it would take room that there is none of.
            let _ = fs::remove_file(&temporary);
            return Err(failed("write", &path)(source));
        }
        self.last_sequence = record.sequence;
        let attachment = record.attachment.clone();
        self.records.remove(&attachment);
        Ok(self.records.entry(attachment).or_insert(record))
    }

    /// Forgets an attachment, also one whose record is set aside, and returns its record; an unknown one is fine.
    ///
    /// # Errors
    /// The record is kept then.
    pub fn remove(&mut self, attachment: &Attachment) -> Result<Option<Record>, Error> {
        if let Ok(path) = self.path(attachment) {
            delete(&path)?;
            delete(&corrupt(&path))?;
        }
        Ok(self.records.remove(attachment))
    }

    /// The record of an attachment.
    pub fn get(&self, attachment: &Attachment) -> Option<&Record> {
        self.records.get(attachment)
    }

    /// Every record, in the order in which they were made.
    pub fn in_order(&self) -> Vec<&Record> {
        let mut records: Vec<_> = self.records.values().collect();
        records.sort_by_key(|it| it.sequence);
        records
    }

    fn path(&self, attachment: &Attachment) -> Result<PathBuf, Error> {
        let name = attachment.file_name();
        if name.starts_with('.') || name.contains(['/', '\0']) || name.ends_with(CORRUPT) {
            return Err(Error::Name(attachment.clone()));
        }
        Ok(self.directory.join(name))
    }

    fn load(&mut self, path: &Path) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == TEMPORARY || name.ends_with(CORRUPT) {
            return Ok(());
        }
        let text = fs::read(path).map_err(failed("read", path))?;
        let reason = match record(&text) {
            Ok(record) if record.sequence > LAST_SEQUENCE => {
                "its sequence is none that was ever given".to_owned()
            }
            Ok(record) if record.attachment.file_name() == name => {
                self.last_sequence = self.last_sequence.max(record.sequence);
                self.records.insert(record.attachment.clone(), record);
                return Ok(());
            }
            Ok(_) => "the record is of another attachment".to_owned(),
            Err(error) => error.to_string(),
        };
        let aside = corrupt(path);
        fs::rename(path, &aside).map_err(failed("rename", path))?;
        warn!(
            file = %path.display(), kept_as = ?aside, error = reason,
            "attachment record is unreadable and set aside; delete its pod if it still runs",
        );
        Ok(())
    }
}

fn text(record: &Record) -> io::Result<Vec<u8>> {
    let crc32 = Some(crc32fast::hash(&serde_json::to_vec(record)?));
    let record = record.clone();
    Ok(serde_json::to_vec(&File { record, crc32 })?)
}

fn record(text: &[u8]) -> io::Result<Record> {
    let File { record, crc32 } = serde_json::from_slice(text)?;
    let found = crc32fast::hash(&serde_json::to_vec(&record)?);
    match crc32 {
        Some(told) if told != found => Err(io::Error::other("its checksum is another")),
        _ => Ok(record),
    }
}

/// Where the record of a path is set aside.
fn corrupt(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(CORRUPT);
    aside.into()
}

fn delete(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(failed("remove", path)(source)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}

/// Container ids begin with a letter or digit, so no record has this name.
const TEMPORARY: &str = ".new";
const CORRUPT: &str = ".corrupt";
/// No node wires as many pods: a greater number is a bit that fell over, and leaves no room to count on.
const LAST_SEQUENCE: u64 = u64::MAX / 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(container: &str, address: &str) -> Record {
        let attachment = Attachment {
            container: container.to_owned(),
            ifname: "eth0".to_owned(),
        };
        Record {
            pod: Some(PodRef {
                namespace: "shop".to_owned(),
                name: "cart-0".to_owned(),
                uid: Some("7d1c".to_owned()),
            }),
            netns: "/run/netns/cart".to_owned(),
            network: "mesh".to_owned(),
            addresses: vec![address.parse().unwrap(), "fd00::7".parse().unwrap()],
            host_ifname: attachment.host_ifname(),
            host_mac: [2, 0, 0, 0, 0, 1],
            mac: [2, 0, 0, 0, 0, 2],
            sequence: 0,
            attachment,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory.join("attachments")).unwrap();
        let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn reopened_store_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        for (container, address) in [("a", "10.0.0.2"), ("b", "10.0.0.3"), ("c", "10.0.0.4")] {
            store.put(record(container, address)).unwrap();
        }
        store.put(record("a", "10.0.0.5")).unwrap();
        let removed = store.remove(&record("b", "10.0.0.3").attachment).unwrap();
        assert_eq!(removed.unwrap().addresses[0].to_string(), "10.0.0.3");
        assert!(
            store
                .remove(&record("b", "10.0.0.3").attachment)
                .unwrap()
                .is_none()
        );

        let reopened = Store::open(dir.path()).unwrap();
        assert_eq!(reopened.in_order(), store.in_order());
        let order = reopened.in_order();
        let order: Vec<_> = order
            .iter()
            .map(|it| (&*it.attachment.container, it.sequence))
            .collect();
        assert_eq!(order, [("c", 3), ("a", 4)]);
        assert_eq!(names(dir.path()), ["a@eth0", "c@eth0"]);
    }

    #[test]
    fn cut_off_anywhere_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.put(record("whole", "10.0.0.2")).unwrap();
        store.put(record("cut", "10.0.0.3")).unwrap();
        let cut = record("cut", "10.0.0.3").attachment;
        let path = dir.path().join("attachments/cut@eth0");
        let text = fs::read(&path).unwrap();
        for length in 0..text.len() {
            fs::write(&path, &text[..length]).unwrap();
            let mut store = Store::open(dir.path()).unwrap();
            assert_eq!(store.in_order().len(), 1, "cut to {length} bytes");
            assert_eq!(names(dir.path()), ["cut@eth0.corrupt", "whole@eth0"]);
            assert_eq!(
                Store::open(dir.path()).unwrap().in_order(),
                store.in_order()
            );
            assert_eq!(store.remove(&cut).unwrap(), None);
            assert_eq!(names(dir.path()), ["whole@eth0"]);
            store.put(record("cut", "10.0.0.3")).unwrap();
            assert!(Store::open(dir.path()).unwrap().get(&cut).is_some());
        }
    }

    #[test]
    fn no_bit_of_a_record_is_another_unseen() {
        let whole = record("a", "10.0.0.2");
        let text = text(&whole).unwrap();
        for bit in 0..8 * text.len() {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let read = super::record(&damaged);
            assert!(
                read.is_err() || read.is_ok_and(|it| it == whole),
                "bit {bit}"
            );
        }
        // Of an earlier agent.
        let plain = serde_json::to_vec(&whole).unwrap();
        assert_eq!(super::record(&plain).unwrap(), whole);
    }

    #[test]
    fn a_kill_between_write_and_rename_leaves_the_old_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.put(record("a", "10.0.0.2")).unwrap();
        fs::write(dir.path().join("attachments").join(TEMPORARY), b"{\"att").unwrap();
        let mut reopened = Store::open(dir.path()).unwrap();
        assert_eq!(reopened.in_order(), store.in_order());
        reopened.put(record("a", "10.0.0.9")).unwrap();
        assert_eq!(names(dir.path()), ["a@eth0"]);
    }

    #[test]
    fn a_record_that_does_not_fit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        // A directory stands where the record is to be.
        fs::create_dir(dir.path().join("attachments/a@eth0")).unwrap();
        store.put(record("a", "10.0.0.2")).unwrap_err();
        assert_eq!(names(dir.path()), ["a@eth0"]);
        assert!(store.in_order().is_empty());
    }

    #[test]
    fn a_record_under_another_name_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.put(record("a", "10.0.0.2")).unwrap();
        let attachments = dir.path().join("attachments");
        fs::rename(attachments.join("a@eth0"), attachments.join("b@eth0")).unwrap();
        assert!(Store::open(dir.path()).unwrap().in_order().is_empty());
        assert_eq!(names(dir.path()), ["b@eth0.corrupt"]);
    }

    #[test]
    fn a_pods_interface_is_known_by_its_name() {
        for container in ["a", "b", "4f1c9d"] {
            let name = record(container, "10.0.0.2").host_ifname;
            assert!(Attachment::is_host_ifname(&name), "{name}");
        }
        for name in ["mesh0", "meshabcdefghij1", "eth0", "meshabcdefghijk2"] {
            assert!(!Attachment::is_host_ifname(name), "{name}");
        }
    }

    #[test]
    fn names_never_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        for container in ["../a", "/etc/a", ".new", "a\0b"] {
            let refused = store.put(record(container, "10.0.0.2"));
            assert!(matches!(refused, Err(Error::Name(_))), "{container:?}");
        }
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_full_or_foreign_directory_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("attachments"), b"in the way").unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(error.to_string().starts_with("cannot make "), "{error}");
    }
}
