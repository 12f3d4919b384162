//! A node of a lab: a network namespace with an uplink, an agent and the kernel state that the agent keeps.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use mesh_common::addr::Addr;
use mesh_common::maps::{Service, Workload};
use mesh_common::names;
use nix::unistd::Pid;
use serde_json::Value;

use crate::cabling::Cabling;
use crate::capture::Capture;
use crate::cni::{Answer, Call, Cni};
use crate::counters::Counters;
use crate::holdings::devices;
use crate::netns::Netns;
use crate::process::Process;
use crate::wait::{SOON, eventually};
use crate::world::Family;

/// The device that leads to the other nodes.
pub const UPLINK: &str = "eth0";

/// A node.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    netns: Netns,
    fabric: Netns,
    lab: PathBuf,
    binaries: PathBuf,
    /// Flags of the agent beyond the usual.
    flags: &'static [&'static str],
    agent: Mutex<Option<Process>>,
    /// Agents that were replaced and may still carry what was open.
    replaced: Mutex<Vec<Process>>,
}

impl Node {
    /// Makes the namespace and links it to the fabric's bridge.
    pub(crate) fn create(
        lab: &str,
        number: u8,
        directory: PathBuf,
        binaries: PathBuf,
        flags: &'static [&'static str],
    ) -> Result<Self> {
        let name = format!("n{number}");
        let netns = Netns::create(&format!("mesh-{lab}-{name}"))?;
        let fabric = Netns::open(&format!("mesh-{lab}-net"))?;
        fabric.ip(&format!(
            "link add {name} type veth peer name {UPLINK} netns {}
             link set {name} master br0 up",
            netns.name()
        ))?;
        // A tentative link-local address asks for no neighbour: the first second would be without IPv6.
        netns.run(|| fs::write(format!("/proc/sys/net/ipv6/conf/{UPLINK}/accept_dad"), "0"))?;
        netns.ip(&format!(
            "address add 10.77.0.{number}/24 dev {UPLINK}
             address add fd00:77::{number}/64 dev {UPLINK} nodad
             link set {UPLINK} up"
        ))?;
        let cabling = Cabling::of_environment()?;
        cabling.uplink(&fabric, &name)?;
        cabling.uplink(&netns, UPLINK)?;
        let node = Self {
            name,
            number,
            netns,
            fabric,
            lab: directory,
            binaries,
            flags,
            agent: Mutex::default(),
            replaced: Mutex::default(),
        };
        fs::create_dir_all(node.state())?;
        fs::create_dir_all(node.pins())?;
        Ok(node)
    }

    /// The name, as in its Node object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address on the fabric.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from([10, 77, 0, self.number]),
            Family::V6 => IpAddr::from([0xfd00, 0x77, 0, 0, 0, 0, 0, self.number.into()]),
        }
    }

    /// The ranges of its pods.
    pub fn pod_cidrs(&self) -> [String; 2] {
        let number = self.number;
        [
            format!("10.244.{number}.0/24"),
            format!("fd00:244:{number}::/64"),
        ]
    }

    /// Directory of the agent's state, the socket and the log.
    pub fn state(&self) -> PathBuf {
        self.lab.join(&self.name)
    }

    /// The socket on which the agent answers `mesh-agent trace` and `mesh-agent policies`.
    pub fn admin_socket(&self) -> PathBuf {
        self.state().join("admin.sock")
    }

    /// A command of `mesh-agent` that asks this node's agent.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.program(words);
        command.arg("--admin-socket").arg(self.admin_socket());
        command
    }

    /// What `mesh-agent status` answers, and its exit code: 0 without a problem, 1 with some, 2 without an answer.
    pub fn status(&self) -> Result<(i32, Value)> {
        let mut command = self.command(&["status", "-o", "json"]);
        let output = self.netns.output(&mut command)?;
        let code = output.status.code().context("an exit code")?;
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok((code, answer))
    }

    /// The problems that `mesh-agent status` tells, one a line.
    pub fn problems(&self) -> Result<String> {
        let (_, status) = self.status()?;
        let problems = status["problems"].as_array().context("no answer")?;
        let told = problems.iter().filter_map(|it| it["what"].as_str());
        Ok(told.collect::<Vec<_>>().join("\n"))
    }

    /// A command of `mesh-agent`.
    pub fn program(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.join("mesh-agent"));
        command.args(words);
        command
    }

    /// Directory of the pinned maps.
    pub fn pins(&self) -> PathBuf {
        self.lab.join("bpf").join(&self.name)
    }

    /// The CNI plugin of this node.
    pub fn cni(&self) -> Cni {
        Cni::new(&self.binaries.join("mesh-cni"), &self.cni_socket())
    }

    /// Its agent.
    pub fn agent(&self) -> Agent<'_> {
        Agent(self)
    }

    /// The kernel's counters.
    pub fn counters(&self) -> Result<Counters> {
        Counters::pinned(&self.pins().join(names::MAP_COUNTERS))
    }

    /// The workload that the kernel knows at an address.
    pub fn workload(&self, ip: IpAddr) -> Result<Option<Workload>> {
        Ok(self.workloads()?.get(&ip.into(), 0).ok())
    }

    /// The kernel's workloads.
    pub fn workloads(&self) -> Result<HashMap<MapData, Addr, Workload>> {
        Ok(self.map(names::MAP_WORKLOADS)?.try_into()?)
    }

    /// Whether the kernel knows a service at an address.
    pub fn has_service(&self, ip: IpAddr) -> Result<bool> {
        let map: HashMap<_, Addr, Service> = self.map(names::MAP_SERVICES)?.try_into()?;
        Ok(map.get(&ip.into(), 0).is_ok())
    }

    /// Number of pods that the kernel knows at interfaces of this node.
    pub fn pods(&self) -> Result<usize> {
        let map: HashMap<_, u32, mesh_common::maps::Pod> = self.map(names::MAP_PODS)?.try_into()?;
        Ok(map.keys().count())
    }

    /// Records what passes the uplink, both directions.
    pub fn capture(&self) -> Result<Capture> {
        // The other end of the veth sees the same frames, and no packet of the node's own pods.
        Capture::start(&self.fabric, &self.name)
    }

    fn map(&self, name: &str) -> Result<Map> {
        let path = self.pins().join(name);
        let open = || Ok::<_, anyhow::Error>(Map::from_map_data(MapData::from_pin(&path)?)?);
        open().with_context(|| format!("cannot open the map {}", path.display()))
    }

    /// Loses everything but what is on disk, its pods' namespaces too, as a machine does that loses its power; no agent is
    /// started.
    pub fn reboot(&self, pods: &[&Netns]) -> Result<()> {
        self.agent().kill()?;
        for pod in pods {
            Netns::remove(pod.name())?;
        }
        for device in devices(&self.netns)? {
            if device != UPLINK {
                self.netns.exec("ip", ["link", "delete", &device])?;
            }
        }
        self.netns.exec("nft", ["flush", "ruleset"])?;
        for family in ["-4", "-6"] {
            for pref in ["50", "51"] {
                self.netns
                    .exec("ip", [family, "rule", "delete", "pref", pref])?;
            }
            let table = names::ROUTE_TABLE.to_string();
            self.netns
                .exec("ip", [family, "route", "flush", "table", &table])?;
        }
        self.lose_pins()?;
        Ok([self.cni_socket(), self.admin_socket()]
            .iter()
            .try_for_each(fs::remove_file)?)
    }

    /// Removes everything that is pinned.
    pub fn lose_pins(&self) -> Result<()> {
        for entry in fs::read_dir(self.pins())? {
            let path = entry?.path();
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The socket that the plugin speaks to.
    pub fn cni_socket(&self) -> PathBuf {
        self.state().join("cni.sock")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replaced(&self) -> MutexGuard<'_, Vec<Process>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent of a node, running or not.
#[derive(Clone, Copy, Debug)]
pub struct Agent<'a>(&'a Node);

impl Agent<'_> {
    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// When it ends, or does not serve in time, with the end of its log.
    pub fn start(self) -> Result<()> {
        self.start_until("serves", |status| status.success().map(|_| true))
    }

    /// Starts it, and waits until it answers, be it that it is not ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_unready(self) -> Result<()> {
        let unreachable = |status: &Answer| {
            status.json["msg"]
                .as_str()
                .is_some_and(|it| it.contains("cni.sock"))
        };
        self.start_until("answers", |status| Ok(!unreachable(status)))
    }

    fn start_until(self, what: &str, is_ready: impl Fn(&Answer) -> Result<bool>) -> Result<()> {
        *self.0.process() = Some(self.spawn(&self.0.binaries)?);
        self.wait_until(what, is_ready)
    }

    /// Starts another one, which waits beside the one that runs; tells that one to stop, and waits until the new one
    /// serves. `binaries` is where the new one comes from, if not from where the old one did.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn replace(self, binaries: Option<&Path>) -> Result<()> {
        let waiting = || self.log().matches("waiting for another agent").count();
        let before = waiting();
        let new = self.spawn(binaries.unwrap_or(&self.0.binaries))?;
        eventually("the new agent waits", SOON, || Ok(waiting() > before))?;
        let old = self.0.process().replace(new).context("no agent runs")?;
        old.ask_to_stop()?;
        self.0.replaced().push(old);
        let starts = || self.log().matches("agent started").count();
        let before = starts();
        eventually("the new agent starts", 2 * SOON, || Ok(starts() > before))?;
        self.wait_until("serves", |status| status.success().map(|_| true))
    }

    /// How many agents that were replaced still run.
    pub fn replaced(self) -> usize {
        let mut replaced = self.0.replaced();
        replaced.retain_mut(Process::is_running);
        replaced.len()
    }

    fn spawn(self, binaries: &Path) -> Result<Process> {
        let node = self.0;
        let mut command = Command::new(binaries.join("mesh-agent"));
        let log_filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
        command
            .env("RUST_LOG", log_filter)
            .env("NO_COLOR", "1")
            .args(["run", "--node", &node.name])
            .arg("--source")
            .arg(node.lab.join("source"))
            .arg("--ca")
            .arg(node.lab.join("ca"))
            .arg("--state")
            .arg(node.state().join("state"))
            .arg("--cni-socket")
            .arg(node.cni_socket())
            .arg("--admin-socket")
            .arg(node.admin_socket())
            .arg("--bpffs")
            .arg(node.pins())
            .args(["--uplink", UPLINK])
            .args(node.flags);
        let records = node.lab.join("pids");
        Process::spawn(&node.netns, &mut command, &self.log_path(), &records)
    }

    fn wait_until(self, what: &str, is_ready: impl Fn(&Answer) -> Result<bool>) -> Result<()> {
        let node = self.0;
        let ready = eventually(
            &format!("the agent of {} {what}", node.name),
            2 * SOON,
            || {
                if !self.is_running() {
                    return Ok(true);
                }
                let answer = node.cni().call(&node.netns, "STATUS", &Call::default())?;
                is_ready(&answer)
            },
        );
        let end = || format!("the end of its log:\n{}", self.log_tail(20));
        ready.with_context(end)?;
        if !self.is_running() {
            bail!("the agent of {} ended; {}", node.name, end());
        }
        Ok(())
    }

    /// Kills it (SIGKILL): what stays is the kernel's.
    pub fn kill(self) -> Result<()> {
        self.take()?.kill()
    }

    /// Stops it in good order (SIGTERM).
    pub fn stop(self) -> Result<()> {
        self.take()?.stop()
    }

    /// Whether it runs.
    pub fn is_running(self) -> bool {
        self.0.process().as_mut().is_some_and(Process::is_running)
    }

    /// Its process, when it was started.
    pub fn pid(self) -> Option<Pid> {
        self.0.process().as_ref()?.pid().ok()
    }

    /// Its whole log, all starts.
    pub fn log(self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_tail(self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Lets it run on when the lab is dropped.
    pub(crate) fn keep(self) {
        if let Some(process) = self.0.process().take() {
            process.keep();
        }
    }

    fn take(self) -> Result<Process> {
        self.0
            .process()
            .take()
            .with_context(|| format!("no agent runs on {}", self.0.name))
    }

    fn log_path(self) -> PathBuf {
        self.0.state().join("agent.log")
    }
}
