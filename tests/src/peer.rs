//! An HBONE peer that shares no code with the mesh: `tests/peer/hbone_peer.py`, Python's ssl and hyper-h2.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::Lab;
use crate::netns::Netns;
use crate::process::Process;
use crate::wait::{SOON, eventually};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peer/hbone_peer.py");

/// A certificate and its key as PEM files.
#[derive(Clone, Debug)]
pub struct Credentials {
    cert: PathBuf,
    key: PathBuf,
}

impl Credentials {
    /// Issues a certificate for a SPIFFE id from the root in a directory (`root-cert.pem`, `root-key.pem`).
    pub fn issue(lab: &Lab, ca: &Path, identity: &str) -> Result<Self> {
        let name = identity.replace(['/', ':'], "-");
        Self::of_days(lab, ca, identity, &name, 1)
    }

    /// The same, from the lab's root, of a certificate that is valid no longer.
    pub fn expired(lab: &Lab, identity: &str) -> Result<Self> {
        let name = format!("expired-{}", identity.replace(['/', ':'], "-"));
        let expired = Self::of_days(lab, &lab.ca(), identity, &name, 0)?;
        // It ends with the second it was made in.
        sleep(Duration::from_secs(1));
        Ok(expired)
    }

    fn of_days(lab: &Lab, ca: &Path, identity: &str, name: &str, days: u8) -> Result<Self> {
        let prefix = lab.directory().join(name);
        let mut command = script("issue");
        command.arg("--ca").arg(ca).arg("--out").arg(&prefix);
        run(command.args(["--identity", identity, "--days", &days.to_string()]))?;
        Ok(Self {
            cert: prefix.with_added_extension("pem"),
            key: prefix.with_added_extension("key"),
        })
    }
}

/// Makes a root that nobody trusts, in a directory as the agents keep theirs.
pub fn foreign_root(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut openssl = Command::new("openssl");
    openssl
        .args([
            "req",
            "-x509",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/O=foreign",
        ])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .arg("-keyout")
        .arg(directory.join("root-key.pem"))
        .arg("-out")
        .arg(directory.join("root-cert.pem"));
    run(&mut openssl)
}

/// What a run of the script told.
#[derive(Clone, Debug)]
pub struct Events(Vec<Value>);

impl Events {
    fn parse(output: &str) -> Self {
        Self(
            output
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
        )
    }

    /// The events of a kind, in order.
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        let meant = |event: &&Value| event["event"] == kind;
        self.0.iter().filter(meant).collect()
    }

    /// The first event of a kind.
    ///
    /// # Errors
    /// When there is none, with all there are.
    pub fn first(&self, kind: &str) -> Result<&Value> {
        let first = self.0.iter().find(|event| event["event"] == kind);
        first.with_context(|| format!("the peer tells no {kind}: {:#?}", self.0))
    }
}

/// A client: who it is and whom it trusts; the rest is told with each call.
#[derive(Debug)]
pub struct Client<'lab> {
    lab: &'lab Lab,
    netns: &'lab Netns,
    credentials: Option<Credentials>,
}

impl<'lab> Client<'lab> {
    /// A client inside a network namespace that trusts the lab's root.
    pub fn new(lab: &'lab Lab, netns: &'lab Netns, credentials: Option<Credentials>) -> Self {
        Self {
            lab,
            netns,
            credentials,
        }
    }

    /// Runs the script to its end; the flag tells whether it got what it asked for.
    pub fn call(&self, arguments: &[&str]) -> Result<(bool, Events)> {
        let mut command = script("client");
        command
            .arg("--root")
            .arg(self.lab.ca().join("root-cert.pem"));
        present(&mut command, self.credentials.as_ref());
        let output = self.netns.output(command.args(arguments))?;
        let events = Events::parse(&String::from_utf8_lossy(&output.stdout));
        if events.0.is_empty() {
            bail!("the peer: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok((output.status.success(), events))
    }
}

/// A server that echoes on the tunnel port; ends when dropped.
#[derive(Debug)]
pub struct Server {
    _process: Process,
    log: PathBuf,
}

impl Server {
    /// Starts the script inside a network namespace, on all addresses of one family.
    pub fn start(
        lab: &Lab,
        netns: &Netns,
        listen: &str,
        credentials: &Credentials,
        arguments: &[&str],
    ) -> Result<Self> {
        let name = listen.replace([':', '[', ']'], "-");
        let log = lab.directory().join(format!("peer{name}.log"));
        let mut command = script("server");
        command
            .arg("--root")
            .arg(lab.ca().join("root-cert.pem"))
            .args(["--listen", listen]);
        present(&mut command, Some(credentials));
        command.args(arguments);
        let process = Process::spawn(netns, &mut command, &log, &lab.directory().join("pids"))?;
        let server = Self {
            _process: process,
            log,
        };
        eventually("the peer listens", SOON, || {
            server.events()?.first("listening").map(|_| true)
        })?;
        Ok(server)
    }

    /// What it told so far.
    pub fn events(&self) -> Result<Events> {
        Ok(Events::parse(&std::fs::read_to_string(&self.log)?))
    }
}

fn script(command: &str) -> Command {
    // The distribution's Python, whose package python3-h2 is.
    let mut python = Command::new("/usr/bin/python3");
    python.arg(SCRIPT).arg(command);
    python
}

fn present(command: &mut Command, credentials: Option<&Credentials>) {
    if let Some(Credentials { cert, key }) = credentials {
        command.arg("--cert").arg(cert).arg("--key").arg(key);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
