//! EDGE: asks the standard `portmap` plugin what it speaks.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::place::Stamp;

/// How long the plugin may take to tell its versions.
const PATIENCE: Duration = Duration::from_secs(5);
/// What every `portmap` speaks that is still in use, for one that does not run where the agent does (another libc).
const ASSUMED: [&str; 3] = ["0.3.1", "0.4.0", "1.0.0"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    supported_versions: Vec<String>,
}

/// The `portmap` plugin of a directory.
#[derive(Debug)]
pub(super) struct Portmap {
    path: PathBuf,
    /// What it answered, and which file did.
    told: Option<(Stamp, Vec<String>)>,
}

impl Portmap {
    /// The plugin of this directory, there or not.
    pub(super) fn new(directory: &Path) -> Self {
        let path = directory.join("portmap");
        Self { path, told: None }
    }

    /// The versions of the CNI specification that it speaks, asked once a file; `None` when there is no `portmap`.
    pub(super) async fn versions(&mut self) -> Option<&[String]> {
        let stamp = Stamp::of(&self.path).ok().flatten()?;
        if self.told.as_ref().is_none_or(|(of, _)| *of != stamp) {
            let versions = timeout(PATIENCE, ask(&self.path)).await.ok().flatten();
            let versions = versions.unwrap_or_else(|| ASSUMED.map(str::to_owned).to_vec());
            self.told = Some((stamp, versions));
        }
        self.told.as_ref().map(|(_, versions)| &versions[..])
    }
}

async fn ask(plugin: &Path) -> Option<Vec<String>> {
    let mut child = Command::new(plugin)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    child
        .stdin
        .take()?
        .write_all(br#"{"cniVersion":"1.0.0"}"#)
        .await
        .ok()?;
    let output = child.wait_with_output().await.ok()?;
    let told: Versions = serde_json::from_slice(&output.stdout).ok()?;
    Some(told.supported_versions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::place;

    #[tokio::test]
    async fn a_plugin_is_asked_and_one_that_does_not_answer_is_assumed() {
        let directory = tempfile::tempdir().unwrap();
        let mut portmap = Portmap::new(directory.path());
        assert_eq!(portmap.versions().await, None);
        let told =
            "#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && echo '{\"supportedVersions\":[\"1.1.0\"]}'\n";
        place(directory.path(), "portmap", told.as_bytes(), 0o755).unwrap();
        assert_eq!(portmap.versions().await.unwrap(), ["1.1.0"]);
        place(directory.path(), "portmap", b"not a program", 0o755).unwrap();
        assert_eq!(portmap.versions().await.unwrap(), ASSUMED);
    }
}
