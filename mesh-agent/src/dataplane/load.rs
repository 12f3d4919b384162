//! Loads the object, attaches its programs and keeps its maps in step with the world.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, IterableMap, MapData, PerCpuArray, RingBuf, SockMap};
use aya::programs::{CgroupSockAddr, Program, SchedClassifier, SkLookup, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use mesh_common::addr::Addr;
use mesh_common::cni::Attachment;
use mesh_common::maps::{Config, FlowKey, Pod, PodCidr, Service, Slot, Workload};
use mesh_common::names::{
    MAP_CONFIG, MAP_COUNTERS, MAP_EVENTS, MAP_FLOWS, MAP_LISTENERS, MAP_NAMESPACES, MAP_POD_CIDRS,
    MAP_PODS, MAP_SERVICES, MAP_TRAFFIC, MAP_WORKLOADS, MAPS, PROGRAM_FROM_NET, PROGRAM_FROM_POD,
    PROGRAM_LISTEN, PROGRAM_TO_NET, PROGRAM_TO_NODE, PROGRAM_TO_POD, PROGRAMS_CONNECT,
};
use mesh_common::traffic::{Record, Traffic, TrafficKey, Way};
use mesh_common::verdict::{Hook, Outcome};
use mesh_common::{ABI_VERSION, FLOWS_SINCE};
use tracing::warn;

use super::attach::{self, Mode, Place, pin_path};
use super::flows::Flows;
use super::maps::{Fill, Mirror, Trie, packets, removed_or_absent, take};
use super::plan::{self, Interfaces};
use super::policy::PolicyTables;
use super::refused::{Refused, refused};
use super::sys::{self, Buffers};
use super::traffic::{Carried, Connection, carried, connections};
use super::{Error, Events, attached, bpffs, strays};
use crate::causes::causes;
use crate::model::{Change, Snapshot, WorkloadKey};
use crate::policy;

/// The object that `cargo xtask build` made; empty in a build without it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_EBPF_OBJECT"));

/// How the kernel's side is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a BPF file system for pins.
    pub bpffs: PathBuf,
    /// How TC programs are attached.
    pub mode: Mode,
    /// The cgroup (v2) that the pods' processes are in, or below; `None` for the root of those that are mounted.
    pub cgroup: Option<PathBuf>,
}

/// The loaded programs and their maps.
///
/// Dropping it leaves everything in the kernel as it is: programs, links and maps are pinned.
pub struct Dataplane {
    options: Options,
    ebpf: Ebpf,
    listeners: SockMap<MapData>,
    pods: Mirror<u32, Pod>,
    namespaces: Mirror<u64, u32>,
    workloads: Mirror<Addr, Workload>,
    services: Mirror<Addr, Service>,
    pod_cidrs: Trie<PodCidr, u32>,
    policy: PolicyTables,
    flows: Flows,
    traffic: HashMap<MapData, TrafficKey, Traffic>,
    counters: PerCpuArray<MapData, u64>,
    /// Whether pods have changed over to policy that open flows are not judged by yet.
    changed_over: bool,
    /// Whether the maps are those of an earlier agent.
    has_world: bool,
    /// What the node goes without, in words.
    without: Vec<String>,
}

impl Dataplane {
    /// Loads the programs over the pinned maps of an earlier agent, or over new ones.
    pub fn load(options: Options) -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NoObject);
        }
        bpffs::prepare(&options.bpffs)?;
        let has_world = keep_or_take_out(&options.bpffs)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&options.bpffs)
            .map_pin_path(MAP_FLOWS, options.bpffs.join(MAP_FLOWS))
            .load(OBJECT)
            .map_err(|source| Error::Load(Box::new(source)))?;
        for program in [
            PROGRAM_FROM_POD,
            PROGRAM_TO_POD,
            PROGRAM_FROM_NET,
            PROGRAM_TO_NET,
        ] {
            let error = |source| Error::Program {
                program,
                source: Box::new(source),
            };
            let classifier: &mut SchedClassifier = self::program(&mut ebpf, program)?;
            classifier.load().map_err(error)?;
        }
        let listeners = SockMap::try_from(take(&mut ebpf, MAP_LISTENERS)?)
            .map_err(Error::of_map(MAP_LISTENERS))?;
        Ok(Self {
            listeners,
            pods: Mirror::open(&mut ebpf, MAP_PODS)?,
            namespaces: Mirror::open(&mut ebpf, MAP_NAMESPACES)?,
            workloads: Mirror::open(&mut ebpf, MAP_WORKLOADS)?,
            services: Mirror::open(&mut ebpf, MAP_SERVICES)?,
            pod_cidrs: Trie::open(&mut ebpf, MAP_POD_CIDRS)?,
            policy: PolicyTables::open(&mut ebpf)?,
            flows: Flows::open(&mut ebpf)?,
            traffic: HashMap::try_from(take(&mut ebpf, MAP_TRAFFIC)?)
                .map_err(Error::of_map(MAP_TRAFFIC))?,
            counters: PerCpuArray::try_from(take(&mut ebpf, MAP_COUNTERS)?)
                .map_err(Error::of_map(MAP_COUNTERS))?,
            changed_over: false,
            has_world,
            without: Vec::new(),
            ebpf,
            options,
        })
    }

    /// Whether the programs that an earlier agent has left at pods go on, with its maps, until ours hold the world.
    ///
    /// Links of tcx end with their pins, so there may be none.
    pub fn leaves_earlier(&self) -> bool {
        !self.has_world && !attach::is_tcx(self.options.mode, Place::Pod)
    }

    /// What the programs tell of packets that they refused; once.
    pub fn events(&mut self) -> Result<Events, Error> {
        let ring = RingBuf::try_from(take(&mut self.ebpf, MAP_EVENTS)?)
            .map_err(Error::of_map(MAP_EVENTS))?;
        Events::new(ring).map_err(Error::Events)
    }

    /// Attaches the socket look-up programs to the node's network namespace, and those that answer `connect` to the pods'
    /// cgroup.
    ///
    /// The latter, and what needs a newer kernel, may fail: the log tells what the node goes without.
    pub fn attach_node(&mut self) -> Result<(), Error> {
        self.attach_lookup(PROGRAM_LISTEN)?;
        if let Err(error) = self.attach_lookup(PROGRAM_TO_NODE) {
            self.goes_without(
                &error,
                "egress policy does not see services whose endpoint is a process of this node (Linux 5.17 is needed)",
            );
        }
        if let Err(error) = self.attach_connect() {
            self.goes_without(
                &error,
                "what policy refuses is reset, connect() does not fail with EPERM; see --cgroup",
            );
        }
        Ok(())
    }

    fn goes_without(&mut self, error: &Error, what: &str) {
        warn!(error = error as &dyn std::error::Error, "{what}");
        self.without.push(format!("{what}: {}", causes(error)));
    }

    /// What the node goes without, because its kernel lacks something or refused it.
    pub fn without(&self) -> &[String] {
        &self.without
    }

    fn attach_lookup(&mut self, name: &'static str) -> Result<(), Error> {
        let program: &mut SkLookup = program(&mut self.ebpf, name)?;
        program.load().map_err(|source| Error::Program {
            program: name,
            source: Box::new(source),
        })?;
        let pin = pin_path(&self.options.bpffs, name, "netns");
        attach::netns(program, &pin).map_err(|source| Error::Attach {
            program: name,
            target: "the node's network namespace".to_owned(),
            source,
        })
    }

    fn attach_connect(&mut self) -> Result<(), Error> {
        let found = self.options.cgroup.clone().or_else(cgroup_root);
        let path = found.ok_or(Error::NoCgroup)?;
        let cgroup = File::open(&path).map_err(|source| Error::Cgroup {
            path: path.clone(),
            source,
        })?;
        for name in PROGRAMS_CONNECT {
            let program: &mut CgroupSockAddr = program(&mut self.ebpf, name)?;
            program.load().map_err(|source| Error::Program {
                program: name,
                source: Box::new(source),
            })?;
            let pin = pin_path(&self.options.bpffs, name, "cgroup");
            attach::cgroup(program, &cgroup, &pin).map_err(|source| Error::Attach {
                program: name,
                target: format!("cgroup {}", path.display()),
                source,
            })?;
        }
        Ok(())
    }

    /// Attaches `from_net` and `to_net` to an uplink.
    pub fn attach_uplink(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach_tc(PROGRAM_TO_NET, Place::Uplink, ifname, TcAttachType::Egress)?;
        self.attach_tc(
            PROGRAM_FROM_NET,
            Place::Uplink,
            ifname,
            TcAttachType::Ingress,
        )
    }

    /// Detaches what an earlier agent left whose pins are lost, once this agent's programs are attached.
    pub fn detach_strays(&self) {
        match strays::detach(&self.options.bpffs) {
            Ok(0) => {}
            Ok(links) => warn!(links, "detached what an agent left whose pins are lost"),
            Err(error) => warn!(%error, "cannot look for what an agent left whose pins are lost"),
        }
    }

    /// Attaches `to_pod` and `from_pod` to the host's end of a pod's veth.
    pub fn attach_pod(&mut self, ifname: &str) -> Result<(), Error> {
        self.attach_tc(PROGRAM_TO_POD, Place::Pod, ifname, TcAttachType::Egress)?;
        self.attach_tc(PROGRAM_FROM_POD, Place::Pod, ifname, TcAttachType::Ingress)
    }

    /// Programs that an uplink should have and does not; `filters` are those in its clsact qdisc.
    pub fn missing_at_uplink(&self, ifname: &str, filters: &[String]) -> Vec<String> {
        attached::missing(self.options.mode, Place::Uplink, ifname, filters)
    }

    /// As [`Self::missing_at_uplink`], at the host's end of a pod's veth.
    pub fn missing_at_pod(&self, ifname: &str, filters: &[String]) -> Vec<String> {
        attached::missing(self.options.mode, Place::Pod, ifname, filters)
    }

    /// Forgets the links of a pod's veth that is gone.
    pub fn detach_pod(&mut self, ifname: &str) -> Result<(), Error> {
        for program in [PROGRAM_FROM_POD, PROGRAM_TO_POD] {
            let pin = pin_path(&self.options.bpffs, program, ifname);
            attach::detach(&pin).map_err(|source| Error::Bpffs {
                path: pin.clone(),
                what: "removing a pinned link",
                source,
            })?;
        }
        Ok(())
    }

    /// Removes the links of pod interfaces that are not in `alive`: pods deleted while no agent ran.
    pub fn retain_pods(&mut self, alive: impl Fn(&str) -> bool) -> Result<(), Error> {
        let directory = self.options.bpffs.join("links");
        let names = fs::read_dir(&directory)
            .map_err(|source| Error::Bpffs {
                path: directory,
                what: "listing the pinned links",
                source,
            })?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for name in names {
            if let Some(ifname) = name
                .strip_prefix("from_pod-")
                .filter(|ifname| !alive(ifname))
            {
                self.detach_pod(ifname)?;
            }
        }
        Ok(())
    }

    /// Puts a listening socket into its slot; an occupied slot changes hands atomically.
    pub fn publish(&mut self, slot: Slot, v6: bool, listener: &impl AsRawFd) -> Result<(), Error> {
        self.listeners
            .set(Slot::index(slot as u32, v6), listener, 0)
            .map_err(|source| Error::Listener {
                slot,
                source: Box::new(source),
            })
    }

    /// Empties the slots: no connection begins until an agent publishes its listeners again.
    pub fn retire(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        for slot in [Slot::Outbound, Slot::Inbound] {
            for v6 in [false, true] {
                let cleared = self.listeners.clear_index(&Slot::index(slot as u32, v6));
                let cleared = removed_or_absent(cleared).map_err(|source| Error::Listener {
                    slot,
                    source: Box::new(source),
                });
                first = first.and(cleared);
            }
        }
        first
    }

    /// Makes the maps agree with the world about what changed.
    ///
    /// Destinations are known before the pods that may reach them. Policy is in force for new flows; for open ones with
    /// [`Self::settle`]. A write that the kernel refuses does not keep the others
    /// from being made; the first failure is returned.
    pub fn update(
        &mut self,
        snapshot: &Snapshot,
        interfaces: &Interfaces,
        change: &Change,
    ) -> Result<(), Error> {
        let mut first = Ok(());
        if !change.nodes.is_empty() {
            first = first.and(self.set_pod_cidrs(snapshot));
        }
        let judged = if change.bears_on_policy() {
            self.set_policy(snapshot)
        } else {
            Ok(false)
        };
        let changed = *judged.as_ref().unwrap_or(&false);
        first = first.and(judged.map(drop));
        for address in &change.addresses {
            first = first.and(self.set_workload(snapshot, interfaces, *address));
        }
        for address in &change.service_addresses {
            first = first.and(self.set_service(snapshot, *address));
        }
        for key in &change.workloads {
            let attachments = snapshot.workload(key).map(|workload| &workload.attachments);
            for attachment in attachments.into_iter().flatten() {
                first = first.and(self.set_pod(snapshot, interfaces, attachment));
            }
        }
        if changed {
            first = first.and(self.change_over(snapshot, interfaces));
        }
        first
    }

    /// Makes the maps agree with the whole world, and removes what an earlier agent left in them; as [`Self::update`].
    pub fn replace(&mut self, snapshot: &Snapshot, interfaces: &Interfaces) -> Result<(), Error> {
        let mut first = self.set_pod_cidrs(snapshot);
        first = first.and(self.set_policy(snapshot).map(drop));
        let told = snapshot.workload_addresses().map(|(address, _)| address);
        let held = self.workloads.keys().into_iter().map(IpAddr::from);
        for address in told.chain(held).collect::<HashSet<_>>() {
            first = first.and(self.set_workload(snapshot, interfaces, address));
        }
        let told = snapshot.service_addresses().map(|(address, _)| address);
        let held = self.services.keys().into_iter().map(IpAddr::from);
        for address in told.chain(held).collect::<HashSet<_>>() {
            first = first.and(self.set_service(snapshot, address));
        }
        let alive: HashSet<u32> = interfaces
            .iter()
            .map(|(_, interface)| interface.index)
            .collect();
        for index in self.pods.keys() {
            if !alive.contains(&index) {
                first = first.and(self.pods.set(index, None));
            }
        }
        first = first.and(self.namespaces.retain(|index| alive.contains(index)));
        first = first.and(self.flows.retain(|index| alive.contains(&index)));
        first = first.and(self.forget_traffic(|index| alive.contains(&index)));
        first.and(self.change_over(snapshot, interfaces))
    }

    /// What the kernel has carried by itself, by pods' interfaces; of one of them or of all.
    pub fn traffic(&self, of: Option<u32>) -> Result<BTreeMap<TrafficKey, Carried>, Error> {
        let nobody = TrafficKey {
            ifindex: 0,
            way: Way::Local as u32,
            peer: Addr::NONE,
        };
        let mut buffers = Buffers::new(nobody, Traffic::default());
        let mut totals = Vec::new();
        sys::read_all(self.traffic.map().fd().as_fd(), &mut buffers, |key, it| {
            if of.is_none_or(|index| index == key.ifindex) {
                totals.push((*key, *it));
            }
        })
        .map_err(Error::Flows)?;
        let connections = match of {
            None => {
                let mut records = Vec::new();
                let each = |key: &FlowKey, record: &Record| records.push((*key, *record));
                self.flows.read_counted(each)?;
                connections(records, |flow| self.own(flow))
            }
            Some(index) => connections(self.records_of(index)?, |flow| self.own(flow)),
        };
        let known = |peer: &Addr| self.workloads.get(peer).is_some();
        Ok(carried(totals, &connections, known))
    }

    /// The connections that the kernel carries by itself, or has carried lately: of each pod the latest.
    pub fn connections(&self) -> Result<Vec<Connection>, Error> {
        let mut records = Vec::new();
        self.flows.read_own(None, |key, record| {
            // Others are of flows that nobody counts.
            if record.state != 0 {
                records.push((*key, *record));
            }
        })?;
        Ok(connections(records, |flow| self.own(flow)))
    }

    /// The records of a pod, and of other pods' ends of its connections.
    fn records_of(&self, index: u32) -> Result<Vec<(FlowKey, Record)>, Error> {
        let mut records = Vec::new();
        self.flows.read_own(Some(index), |key, record| {
            records.push((*key, *record));
            let Some(own) = self.own(key).filter(|_| record.flow.neighbour != 0) else {
                return;
            };
            let theirs = FlowKey {
                ifindex: record.flow.neighbour,
                peer: own,
                pod_port: key.peer_port,
                peer_port: key.pod_port,
                protocol: key.protocol,
            };
            records.extend(self.flows.get(&theirs).map(|record| (theirs, record)));
        })?;
        Ok(records)
    }

    /// The address of the pod whose flow it is, as the peer knows it.
    fn own(&self, flow: &FlowKey) -> Option<Addr> {
        let pod = self.pods.get(&flow.ifindex)?;
        Some(if flow.peer.is_v4() {
            pod.addr4
        } else {
            pod.addr6
        })
    }

    fn forget_traffic(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        let keys: Vec<_> = self.traffic.keys().filter_map(Result::ok).collect();
        for key in keys.iter().filter(|key| !keep(key.ifindex)) {
            removed_or_absent(self.traffic.remove(key)).map_err(Error::of_map(MAP_TRAFFIC))?;
        }
        Ok(())
    }

    /// Takes a pod interface out of the maps, with its flows and what they carried.
    pub fn remove_pod(&mut self, index: u32) -> Result<(), Error> {
        let flows = self.flows.remove(index);
        let flows = flows.and(self.forget_traffic(|other| other != index));
        let namespaces = self.namespaces.retain(|other| *other != index);
        self.pods.set(index, None).and(namespaces).and(flows)
    }

    /// How full the maps are that can fill up.
    pub fn fill(&self) -> Vec<Fill> {
        let mut all = vec![
            self.pods.fill(),
            self.workloads.fill(),
            self.services.fill(),
            self.pod_cidrs.fill(),
        ];
        all.extend(self.policy.fill());
        all
    }

    /// Packets by what became of them, of all processors.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn packets(&self) -> Result<Vec<(Hook, Outcome, u64)>, Error> {
        packets(&self.counters).map_err(Error::of_map(MAP_COUNTERS))
    }

    /// Whether policy that pods have changed over to waits for [`Self::settle`].
    pub fn has_changed_over(&self) -> bool {
        self.changed_over
    }

    /// Open connections of local pods that the policy written last does not allow.
    ///
    /// Until [`Self::settle`] their packets still pass, and so do the resets that end them at both ends.
    pub fn refused(&self) -> Result<Vec<Refused>, Error> {
        let mut found = Vec::new();
        let pod = |index| self.pods.get(&index);
        let judge = |key: &FlowKey, record: &Record| {
            found.extend(refused(&self.policy, pod, key, &record.flow));
        };
        self.flows.read(judge)?;
        Ok(found)
    }

    /// Has open flows judged at their next packet by the policy that pods have changed over to, and forgets those that
    /// have ended, unless their tuples have been used again since.
    pub fn settle(&mut self, ended: &[FlowKey]) -> Result<(), Error> {
        let settled = self.policy.commit();
        self.changed_over = settled.is_err();
        settled.and(self.flows.forget_older(ended, self.policy.revision()))
    }

    fn set_pod_cidrs(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let wanted = plan::pod_cidrs(snapshot);
        for cidr in &wanted {
            self.pod_cidrs.insert(*cidr, 0)?;
        }
        self.pod_cidrs.retain(|cidr| wanted.contains(cidr))
    }

    /// Writes compiled policy beside what is in force; says whether pods are to change over.
    fn set_policy(&mut self, snapshot: &Snapshot) -> Result<bool, Error> {
        self.policy.write(policy::compile(snapshot))
    }

    /// Puts written policy in force for new flows, pod by pod.
    fn change_over(&mut self, snapshot: &Snapshot, interfaces: &Interfaces) -> Result<(), Error> {
        for (attachment, _) in interfaces.iter() {
            self.set_pod(snapshot, interfaces, attachment)?;
        }
        self.changed_over = true;
        Ok(())
    }

    fn set_workload(
        &mut self,
        snapshot: &Snapshot,
        interfaces: &Interfaces,
        address: IpAddr,
    ) -> Result<(), Error> {
        let key = address.into();
        let value = plan::workload(snapshot, interfaces, address, self.workloads.get(&key));
        self.workloads.set(key, value)
    }

    fn set_service(&mut self, snapshot: &Snapshot, address: IpAddr) -> Result<(), Error> {
        self.services
            .set(address.into(), plan::service(snapshot, address))
    }

    fn set_pod(
        &mut self,
        snapshot: &Snapshot,
        interfaces: &Interfaces,
        attachment: &Attachment,
    ) -> Result<(), Error> {
        let Some(interface) = interfaces.get(attachment) else {
            return Ok(());
        };
        let present = self.pods.get(&interface.index);
        let judged = |workload: &WorkloadKey| self.policy.judged(workload);
        let value = plan::pod(snapshot, attachment, interface, present, judged);
        let known = value.is_some();
        if known {
            self.flows.add(interface.index)?;
        }
        let set = self.pods.set(interface.index, value);
        let Some(cookie) = interface.netns_cookie.filter(|_| known) else {
            return set;
        };
        set.and(self.namespaces.set(cookie, Some(interface.index)))
    }

    fn attach_tc(
        &mut self,
        program: &'static str,
        place: Place,
        ifname: &str,
        attach: TcAttachType,
    ) -> Result<(), Error> {
        let pin = pin_path(&self.options.bpffs, program, ifname);
        let by_tcx = attach::is_tcx(self.options.mode, place);
        let classifier: &mut SchedClassifier = self::program(&mut self.ebpf, program)?;
        attach::tc(classifier, by_tcx, ifname, attach, &pin).map_err(|source| Error::Attach {
            program,
            target: ifname.to_owned(),
            source,
        })
    }
}

/// Where the tree of cgroups of version 2 is mounted.
pub fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut fields| {
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// A program of the object, by its type.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(Error::NoProgram(name))
}

/// Whether there are pinned maps with a world in them. Those of an older ABI are taken out first, but for records of flows
/// that still mean the same.
///
/// The programs that are attached keep their maps until they are replaced.
fn keep_or_take_out(bpffs: &Path) -> Result<bool, Error> {
    let Some(found) = pinned_abi(bpffs)? else {
        return Ok(false);
    };
    if found == ABI_VERSION {
        return Ok(true);
    }
    if found > ABI_VERSION {
        return Err(Error::AbiVersion {
            path: bpffs.to_owned(),
            found,
            wanted: ABI_VERSION,
        });
    }
    let keeps_flows = found >= FLOWS_SINCE;
    warn!(
        found,
        wanted = ABI_VERSION,
        keeps_flows,
        "the pinned maps are an older agent's: they are replaced"
    );
    let of_flows = |map: &str| map == MAP_FLOWS;
    // The one that tells the version goes last: whoever is interrupted begins again.
    let others = MAPS.iter().filter(|map| **map != MAP_CONFIG);
    for map in others.chain([&MAP_CONFIG]) {
        if keeps_flows && of_flows(map) {
            continue;
        }
        let path = bpffs.join(map);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Bpffs {
                    path,
                    what: "removing a pinned map",
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Version of the pinned maps, if there are any.
fn pinned_abi(bpffs: &Path) -> Result<Option<u32>, Error> {
    let pin = bpffs.join(MAP_CONFIG);
    if !pin.exists() {
        return Ok(None);
    }
    let error = Error::of_map(MAP_CONFIG);
    let map = aya::maps::Map::Array(MapData::from_pin(&pin).map_err(&error)?);
    let config: Array<_, Config> = Array::try_from(map).map_err(&error)?;
    let found = config.get(&0, 0).map_err(&error)?.abi_version;
    // Zero: the agent that made the maps died before it wrote its version, so before it attached anything.
    Ok((found != 0).then_some(found))
}
