//! The kernel settings that a node of this network needs, and what they were before.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

/// Settings of the calling process's network namespace that agents changed, in a file that outlives them.
#[derive(Debug)]
pub(super) struct Settings {
    record: PathBuf,
}

/// A setting that was changed.
#[derive(Debug, Serialize, Deserialize)]
struct Changed {
    /// Its value before the first change.
    was: String,
    /// Its value since.
    is: String,
}

impl Settings {
    /// Those that are recorded in a state directory.
    pub(super) fn new(state: &Path) -> Self {
        let record = state.join("sysctls.json");
        Self { record }
    }

    /// Makes the node forward packets, for the families it has, without giving up router advertisements on its uplinks.
    ///
    /// # Errors
    ///
    /// The file and the kernel's answer.
    pub(super) fn forward(&self, uplinks: impl Iterator<Item = String>) -> io::Result<()> {
        self.set("ipv4/ip_forward", "1")?;
        if !has_ipv6() {
            return Ok(());
        }
        for uplink in uplinks {
            let name = format!("ipv6/conf/{uplink}/accept_ra");
            // A forwarding kernel ignores advertisements unless told twice (2).
            if read(&name).is_ok_and(|value| value == "1") {
                self.set(&name, "2")?;
            }
        }
        self.set("ipv6/conf/all/forwarding", "1")
    }

    /// Puts back what was changed and is still as we made it; returns the settings' names.
    pub(super) fn restore(&self) -> io::Result<Vec<String>> {
        let mut restored = Vec::new();
        for (name, Changed { was, is }) in self.changed()? {
            // One that somebody changed since, or of an interface that is gone, is none of ours any more.
            if read(&name).is_ok_and(|value| value == is) {
                write(&name, &was)?;
                restored.push(name);
            }
        }
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(restored),
        }
    }

    /// Writes a setting where it does not hold already, so that a read-only `/proc/sys` with the right values is fine.
    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        let present = read(name);
        if present.as_ref().is_ok_and(|present| present == value) {
            return Ok(());
        }
        write(name, value)?;
        let mut changed = self.changed()?;
        // The first change knows what was before all of them.
        let was = changed.remove(name).map(|earlier| earlier.was);
        let was = was.or(present.ok()).unwrap_or_default();
        let is = value.to_owned();
        changed.insert(name.to_owned(), Changed { was, is });
        let fresh = self.record.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&changed)?)?;
        fs::rename(&fresh, &self.record)
    }

    /// What is recorded; nothing, if a crash of the machine has left a file that is none, which is set aside.
    fn changed(&self) -> io::Result<BTreeMap<String, Changed>> {
        let record = match fs::read(&self.record) {
            Ok(record) => record,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        match serde_json::from_slice(&record) {
            Ok(changed) => Ok(changed),
            Err(error) => {
                let aside = self.record.with_extension("json.corrupt");
                fs::rename(&self.record, &aside)?;
                warn!(
                    file = %self.record.display(), kept_as = %aside.display(), %error,
                    "the record of changed kernel settings is unreadable and set aside; an uninstall leaves them as they are",
                );
                Ok(BTreeMap::new())
            }
        }
    }
}

/// Whether the kernel speaks IPv6 in this network namespace.
pub(super) fn has_ipv6() -> bool {
    read("ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0")
}

/// A setting of the calling process's network namespace, such as `ipv4/ip_forward`.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name)).map(|value| value.trim().to_owned())
}

fn write(name: &str, value: &str) -> io::Result<()> {
    let path = path(name);
    fs::write(&path, value).map_err(|error| {
        let what = format!("writing {value} to {}: {error}", path.display());
        io::Error::new(error.kind(), what)
    })
}
