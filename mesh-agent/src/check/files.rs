//! EDGE: what of the node is read from files.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};
use serde_json::Value;

use super::kernel::{Cgroup, Forwarding, Mounts, Settings};
use super::neighbours::Configuration;
use crate::dataplane::{bpffs, cgroup_root};
use crate::install::shadowing;

/// Where programs are to be kept, and where pods' processes are.
pub(super) fn mounts(bpffs: &Path, cgroup: Option<&Path>) -> Mounts {
    // The agent makes the directory, not the file system.
    let parent = bpffs.ancestors().find(|it| it.exists()).unwrap_or(bpffs);
    let path = cgroup.map(Path::to_owned).or_else(cgroup_root);
    Mounts {
        bpffs: bpffs.to_owned(),
        is_bpffs: bpffs::is_bpffs(parent),
        is_usual: bpffs.starts_with(bpffs::DEFAULT_MOUNT),
        cgroup: path.map(|path| self::cgroup(path, cgroup.is_some())),
    }
}

fn cgroup(path: PathBuf, is_named: bool) -> Cgroup {
    Cgroup {
        is_named,
        is_version_2: statfs(&path).is_ok_and(|it| it.filesystem_type() == CGROUP2_SUPER_MAGIC),
        // A file that every group has but the first, also where a container takes its own for the first.
        is_root: !path.join("cgroup.type").exists(),
        has_children: entries(&path).iter().any(|name| path.join(name).is_dir()),
        path,
    }
}

/// The settings of this process's network namespace.
pub(super) fn settings(uplinks: &[String]) -> Settings {
    let forwarding = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(|name| {
        let value = setting(name)?;
        Some(Forwarding {
            name,
            value,
            is_writable: access(&path(name), AccessFlags::W_OK).is_ok(),
        })
    });
    let all = "all".to_owned();
    let reverse_path = uplinks.iter().chain([&all]).map(|name| {
        let value = setting(&format!("ipv4/conf/{name}/rp_filter"));
        (name.clone(), value.and_then(|it| it.parse().ok()))
    });
    Settings {
        forwarding: forwarding.into_iter().flatten().collect(),
        reverse_path: reverse_path.collect(),
        local_ports: setting("ipv4/ip_local_port_range"),
        liberal: setting("netfilter/nf_conntrack_tcp_be_liberal"),
    }
}

/// The network configurations that a runtime takes before ours.
pub(super) fn before_ours(directory: &Path) -> Vec<Configuration> {
    let names = entries(directory);
    let before = shadowing(names.iter().map(String::as_str));
    let read = before.into_iter().map(|name| Configuration {
        name: name.to_owned(),
        plugin: plugin(&directory.join(name)),
    });
    read.collect()
}

/// The plugin that a configuration, a list or a single one, calls first.
fn plugin(path: &Path) -> Option<String> {
    let written: Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let first = written["plugins"][0]["type"].as_str();
    first.or(written["type"].as_str()).map(str::to_owned)
}

/// The pin directory, if there is anything in it.
pub(super) fn pins(path: &Path) -> Option<String> {
    let is_used = bpffs::is_bpffs(path) && !entries(path).is_empty();
    is_used.then(|| path.display().to_string())
}

fn setting(name: &str) -> Option<String> {
    let value = fs::read_to_string(path(name)).ok()?;
    Some(value.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_tells_its_plugin() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write(
            "05-list.conflist",
            r#"{"plugins": [{"type": "ptp"}, {"type": "portmap"}]}"#,
        );
        write("06-one.conf", r#"{"type": "bridge"}"#);
        write("07-broken.conf", "{");
        write("99-later.conf", r#"{"type": "bridge"}"#);
        let found = before_ours(directory.path());
        let plugins: Vec<_> = found.iter().map(|it| it.plugin.as_deref()).collect();
        assert_eq!(plugins, [Some("ptp"), Some("bridge"), None]);
    }

    #[test]
    fn a_directory_is_no_control_group() {
        let directory = tempfile::tempdir().unwrap();
        let found = mounts(directory.path(), Some(directory.path()));
        assert!(!found.is_bpffs && !found.cgroup.unwrap().is_version_2);
    }
}
