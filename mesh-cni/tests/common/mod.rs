//! A node and its pods as network namespaces, and an agent that only speaks the protocol.

#![allow(
    dead_code,
    reason = "every test file compiles this module and uses its own part"
)]

pub(crate) mod agent;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use mesh_cni::netns::Netns;
use mesh_common::cni::Attachment;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Every version that has CHECK or not, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network namespace of its own name, deleted on drop.
pub(crate) struct Space {
    name: String,
    pub(crate) netns: Netns,
}

impl Space {
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mesh-cni-{}-{role}-{number}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let netns = Netns::open(&path_of(&name)).unwrap();
        Self { name, netns }
    }

    pub(crate) fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Runs `ip` inside and returns what it prints.
    pub(crate) fn ip(&self, args: &str) -> String {
        let mut command = Command::new("ip");
        command.args(args.split(' '));
        let output = self.netns.inside(|| command.output().unwrap()).unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {args}: {text}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Names of the devices inside.
    pub(crate) fn devices(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.ip("-j link")).unwrap();
        let name = |link: &Value| link["ifname"].as_str().unwrap().to_owned();
        links.as_array().unwrap().iter().map(name).collect()
    }

    /// Sets a sysctl inside.
    pub(crate) fn sysctl(&self, path: &str, value: &str) {
        let path = Path::new("/proc/sys").join(path);
        let written = self.netns.inside(|| std::fs::write(path, value));
        written.unwrap().unwrap();
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _best_effort = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output();
    }
}

/// A node: a namespace with addresses of its own, and a directory for the agent's socket.
pub(crate) struct Node {
    pub(crate) space: Space,
    pub(crate) directory: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let space = Space::new("node");
        space.ip("link set lo up");
        space.ip("address add 10.99.0.1/32 dev lo");
        space.ip("address add fd99::1/128 dev lo nodad");
        space.sysctl("net/ipv4/ip_forward", "1");
        space.sysctl("net/ipv6/conf/all/forwarding", "1");
        let directory = tempfile::tempdir().unwrap();
        Self { space, directory }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("cni.sock")
    }

    pub(crate) fn released(&self) -> PathBuf {
        self.directory.path().join("released")
    }

    /// The configuration that a runtime of this node would send.
    pub(crate) fn config(&self, version: &str) -> Value {
        json!({
            "cniVersion": version,
            "name": "mesh",
            "type": "mesh-cni",
            "socket": self.socket(),
        })
    }

    pub(crate) fn call<'a>(&'a self, command: &'a str) -> Call<'a> {
        Call {
            node: self,
            env: vec![
                ("CNI_COMMAND", command.to_owned()),
                ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ],
            config: self.config("1.1.0"),
        }
    }
}

/// One call of the binary.
pub(crate) struct Call<'a> {
    node: &'a Node,
    env: Vec<(&'static str, String)>,
    config: Value,
}

impl Call<'_> {
    pub(crate) fn version(self, version: &str) -> Self {
        self.with("cniVersion", json!(version))
    }

    pub(crate) fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn of(self, attachment: &Attachment) -> Self {
        self.env("CNI_CONTAINERID", &attachment.container)
            .env("CNI_IFNAME", &attachment.ifname)
    }

    pub(crate) fn netns(self, space: &Space) -> Self {
        self.env("CNI_NETNS", space.path().to_string_lossy())
    }

    /// Runs the binary in the node's namespace with nothing of our environment.
    pub(crate) fn output(&self) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-cni"));
        command.env_clear().envs(self.env.iter().cloned());
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = self.node.space.netns.inside(|| command.spawn());
        let mut child = spawned.unwrap().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Like Go's os/exec, which runtimes use: a plugin that ends without reading is no error.
        let _may_be_closed = stdin.write_all(self.config.to_string().as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs the binary and returns the JSON document that it printed, or null.
    pub(crate) fn ok(&self) -> Value {
        let output = self.output();
        assert!(output.status.success(), "{output:?}");
        if output.stdout.is_empty() {
            return Value::Null;
        }
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the binary, which must fail with a CNI error of this code; returns the error.
    pub(crate) fn fails(&self, code: u32) -> Value {
        let output = self.output();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["code"], code, "{error}");
        assert_eq!(error["cniVersion"], self.config["cniVersion"], "{error}");
        assert!(!error["msg"].as_str().unwrap().is_empty());
        assert!(!error["details"].as_str().unwrap().is_empty());
        error
    }
}

/// An attachment that no other test uses.
pub(crate) fn attachment() -> Attachment {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Attachment {
        container: format!("container-{}-{number}", std::process::id()),
        ifname: "eth0".to_owned(),
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}
