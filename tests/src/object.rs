//! The real kernel object, loaded for its own sake: no device, no agent, packets by `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuArray, SockMap};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{Program, SchedClassifier, TcAttachType, TestRun, TestRunOptions};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_map_type;
use mesh_common::addr::Addr;
use mesh_common::maps::{
    ALL_FLOWS, ClassKey, Config, Flow, FlowKey, Pod, PolicyEntry, PolicyKey, Service, Slot,
    Workload,
};
use mesh_common::steer::Origin;
use mesh_common::traffic::Record;
use mesh_common::verdict::Hook;
use mesh_common::{ABI_VERSION, names};
use tempfile::TempDir;

use crate::bpffs::Bpffs;
use crate::counters::Counters;
use crate::netns::Netns;
use crate::vectors::Vector;
use crate::world::{NO_POD, Table, UPLINK, Who};

/// Where `cargo xtask build` leaves the object.
pub fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/mesh.o")
}

/// The loaded object. Its maps are pinned in a file system of its own, which goes with it.
pub struct Object {
    ebpf: Ebpf,
    /// The tables of flows by their keys in `FLOWS`.
    flows: BTreeMap<u32, Flows>,
    _pins: Bpffs,
    _directory: TempDir,
}

/// What a program did with a packet.
#[derive(Debug)]
pub struct Ran {
    /// The TC return code.
    pub action: u32,
    /// The packet's mark afterwards.
    pub mark: u32,
    /// The packet's bytes afterwards.
    pub frame: Vec<u8>,
}

/// TC return codes (`TC_ACT_*` in the kernel's `pkt_cls.h`).
pub mod action {
    /// On to the next program or the stack.
    pub const OK: u32 = 0;
    /// Dropped.
    pub const SHOT: u32 = 2;
    /// To another device.
    pub const REDIRECT: u32 = 7;
}

impl Object {
    /// Loads every program that the kernel is new enough for, so the verifier sees them all.
    pub fn load() -> Result<Self> {
        let bytes = fs::read(path()).with_context(|| {
            format!(
                "cannot read {}; `cargo xtask build` makes it",
                path().display()
            )
        })?;
        let directory = tempfile::Builder::new().prefix("mesh-packets-").tempdir()?;
        let pins = Bpffs::mount(directory.path())?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(directory.path())
            .map_pin_path(names::MAP_FLOWS, directory.path().join(names::MAP_FLOWS))
            .load(&bytes)
            .context("the kernel refused a map")?;
        let kernel = KernelVersion::current()?;
        for (name, program) in ebpf.programs_mut() {
            if OPTIONAL
                .iter()
                .any(|(optional, since)| *optional == name && kernel < *since)
            {
                continue;
            }
            let loaded = match program {
                Program::SchedClassifier(it) => it.load(),
                Program::SkLookup(it) => it.load(),
                Program::CgroupSockAddr(it) => it.load(),
                _ => bail!("{name} is of a kind that this does not know"),
            };
            loaded.with_context(|| format!("the verifier refused {name}"))?;
        }
        Ok(Self {
            ebpf,
            flows: BTreeMap::new(),
            _pins: pins,
            _directory: directory,
        })
    }

    /// Writes everything but the flows.
    pub fn fill(&mut self, table: &Table) -> Result<()> {
        let mut config: Array<_, Config> = self.map(names::MAP_CONFIG)?.try_into()?;
        let entry = Config {
            abi_version: ABI_VERSION,
            revision: table.revision,
        };
        config.set(0, entry, 0)?;
        let mut pods: HashMap<_, u32, Pod> = self.map(names::MAP_PODS)?.try_into()?;
        for (ifindex, pod) in &table.pods {
            pods.insert(ifindex, pod, 0)?;
        }
        let mut workloads: HashMap<_, Addr, Workload> =
            self.map(names::MAP_WORKLOADS)?.try_into()?;
        for (addr, workload) in &table.workloads {
            workloads.insert(addr, workload, 0)?;
        }
        let mut services: HashMap<_, Addr, Service> = self.map(names::MAP_SERVICES)?.try_into()?;
        for addr in &table.services {
            services.insert(addr, Service { id: 1 }, 0)?;
        }
        let mut cidrs: LpmTrie<_, Addr, u32> = self.map(names::MAP_POD_CIDRS)?.try_into()?;
        for (length, network, value) in table.pod_cidrs.iter() {
            cidrs.insert(&Key::new(length, *network), value, 0)?;
        }
        let mut classes: LpmTrie<_, ClassKey, u32> = self.map(names::MAP_CLASSES)?.try_into()?;
        for (length, key, class) in table.classes.iter() {
            classes.insert(&Key::new(length, *key), class, 0)?;
        }
        let mut policy: LpmTrie<_, PolicyKey, PolicyEntry> =
            self.map(names::MAP_POLICY)?.try_into()?;
        for (length, key, entry) in table.policy.iter() {
            policy.insert(&Key::new(length, *key), entry, 0)?;
        }
        self.add_flows(table)
    }

    /// Gives every pod a table of flows of its own, and all of them one, unless they have them.
    fn add_flows(&mut self, table: &Table) -> Result<()> {
        if !self.flows.is_empty() {
            return Ok(());
        }
        let mut made = BTreeMap::new();
        let mut tables: HashOfMaps<_, u32, Flows> = self.map(names::MAP_FLOWS)?.try_into()?;
        for index in table.pods.keys().chain([&ALL_FLOWS]) {
            let declared = aya_obj::Map::new_from_params(
                bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32,
                u32::try_from(size_of::<FlowKey>())?,
                u32::try_from(size_of::<Record>())?,
                FLOWS,
                0,
            );
            let map = MapData::create(declared, names::MAP_FLOWS, None)?;
            let flows = Flows::try_from(Map::LruHashMap(map))?;
            tables.insert(index, &flows, 0)?;
            made.insert(*index, flows);
        }
        self.flows = made;
        Ok(())
    }

    /// Replaces all recorded flows; each stands in its pod's own table, which only pods of [`Table::cluster`] have.
    pub fn set_flows(&mut self, table: &Table) -> Result<()> {
        for flows in self.flows.values_mut() {
            let keys: Vec<_> = flows.keys().collect::<Result<_, _>>()?;
            for key in keys {
                flows.remove(&key)?;
            }
        }
        for (key, flow) in &table.flows {
            let own = self.flows.get_mut(&key.ifindex).context("no such pod")?;
            own.insert(key, Record::new(*flow, 0), 0)?;
        }
        Ok(())
    }

    /// All recorded flows.
    pub fn flows(&mut self) -> Result<BTreeMap<FlowKey, Flow>> {
        let mut all = BTreeMap::new();
        for flows in self.flows.values() {
            for entry in flows {
                let (key, record) = entry?;
                // The pod's own comes after that of all, and counts.
                all.insert(key, record.flow);
            }
        }
        Ok(all)
    }

    /// Puts a listener into those slots whose index is chosen, and empties the others.
    pub fn set_listeners(
        &mut self,
        listener: &TcpListener,
        chosen: impl Fn(u32) -> bool,
    ) -> Result<()> {
        let mut slots: SockMap<_> = self.map(names::MAP_LISTENERS)?.try_into()?;
        for index in 0..Slot::COUNT {
            if chosen(index) {
                slots.set(index, listener, 0)?;
            } else {
                // An empty slot stays empty.
                let _ = slots.clear_index(&index);
            }
        }
        Ok(())
    }

    /// The counters.
    pub fn counters(&mut self) -> Result<Counters> {
        Counters::read(&PerCpuArray::try_from(self.map(names::MAP_COUNTERS)?)?)
    }

    /// Attaches a program to a device of the calling thread's network namespace, for as long as the object lives.
    pub fn attach(&mut self, hook: Hook, device: &str) -> Result<()> {
        let direction = match hook {
            Hook::FromPod | Hook::FromNet => TcAttachType::Ingress,
            Hook::ToPod | Hook::ToNet => TcAttachType::Egress,
            Hook::ToNode | Hook::Connect => bail!("{} is not at a device", hook.name()),
        };
        // Needed before 6.6; it is there for the second program.
        let _ = qdisc_add_clsact(device);
        classifier(&mut self.ebpf, hook)?
            .attach(device, direction)
            .with_context(|| format!("cannot attach {} to {device}", hook.name()))?;
        Ok(())
    }

    /// Runs a program on a packet, in the calling thread's network namespace, which must have the interface.
    ///
    /// `client`: interface of the pod that sent it to a service, for `to_net`, otherwise 0.
    pub fn run(
        &mut self,
        hook: Hook,
        (ifindex, client): (u32, u32),
        origin: Origin,
        mark: u32,
        frame: &[u8],
    ) -> Result<Ran> {
        let context = context(hook, (ifindex, client), origin, mark);
        let mut written = [0_u8; SK_BUFF];
        let mut out = vec![0_u8; frame.len() + 64];
        let result = classifier(&mut self.ebpf, hook)?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut written),
            ..TestRunOptions::default()
        })?;
        out.truncate(usize::try_from(result.data_size_out)?);
        let mark = written[FIELD_MARK * 4..]
            .first_chunk()
            .context("the context is too short")?;
        Ok(Ran {
            action: result.return_value,
            mark: u32::from_ne_bytes(*mark),
            frame: out,
        })
    }

    /// Runs a program on one packet again and again, as [`Self::run`] does, and returns the mean time, of which the kernel
    /// tells whole nanoseconds.
    pub fn time(&mut self, vector: &Vector, mark: u32, repeat: u32) -> Result<Duration> {
        let at = (vector.ifindex, vector.client);
        let result = classifier(&mut self.ebpf, vector.hook)?.test_run(TestRunOptions {
            data_in: Some(&vector.frame),
            ctx_in: Some(&context(vector.hook, at, vector.origin, mark)),
            repeat,
            ..TestRunOptions::default()
        })?;
        Ok(result.duration)
    }

    fn map(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .with_context(|| format!("the object has no map {name}"))
    }
}

/// Works with the object loaded and filled, in a namespace that has the interfaces of the table; a listener lives there.
pub fn in_namespace(
    name: &str,
    work: impl FnOnce(&mut Object, &TcpListener) -> Result<()> + Send,
) -> Result<()> {
    Netns::remove(name)?;
    let netns = Netns::create(name)?;
    let result = (|| {
        for who in Who::ALL {
            let index = who.ifindex();
            if index != 0 {
                let inside = index + 100;
                netns.ip(&format!(
                    "link add p{index} index {index} type veth peer name q{index} index {inside}"
                ))?;
            }
        }
        netns.ip(&format!(
            "link add up index {UPLINK} type veth peer name no index {NO_POD}"
        ))?;
        netns.run(|| {
            let mut object = Object::load()?;
            object.fill(&Table::cluster())?;
            work(&mut object, &TcpListener::bind("[::]:0")?)
        })
    })();
    Netns::remove(name)?;
    result
}

/// Whether the kernel runs a program on a packet of such an origin: before 6.1 (5.10 was tried) it takes no input device.
pub fn is_runnable(hook: Hook, origin: Origin) -> bool {
    let has_input = is_at_egress(hook) && matches!(origin, Origin::Forwarded | Origin::Itself);
    let takes_input = |it| it >= KernelVersion::new(6, 1, 0);
    !has_input || KernelVersion::current().is_ok_and(takes_input)
}

/// Where programs look at a packet's input device.
fn is_at_egress(hook: Hook) -> bool {
    matches!(hook, Hook::ToPod | Hook::ToNet)
}

/// Programs that the agent does without on older kernels, and the first kernel that takes each.
const OPTIONAL: [(&str, KernelVersion); 1] =
    [(names::PROGRAM_TO_NODE, KernelVersion::new(5, 17, 0))];

/// Flows in a table: few, as each packet has all tables read.
const FLOWS: u32 = 512;

/// A table of flows.
type Flows = HashMap<MapData, FlowKey, Record>;

/// Size of the kernel's `struct __sk_buff`, in bytes, and the positions of some of its `u32` fields.
const SK_BUFF: usize = 192;
const FIELD_MARK: usize = 2;
const FIELD_INGRESS_IFINDEX: usize = 9;
const FIELD_IFINDEX: usize = 10;

/// A context for a packet at an interface, by who sent it.
fn context(hook: Hook, (ifindex, client): (u32, u32), origin: Origin, mark: u32) -> [u8; SK_BUFF] {
    let mut context = [0_u8; SK_BUFF];
    let mut set = |field: usize, value: u32| {
        context[field * 4..][..4].copy_from_slice(&value.to_ne_bytes());
    };
    let (ingress, mark) = match origin {
        Origin::Forwarded if client != 0 => (client, mark),
        Origin::Forwarded => (UPLINK, mark),
        Origin::Itself => (ifindex, mark),
        Origin::Node => (0, mark),
        Origin::Agent => (0, names::MARK_AGENT),
    };
    set(FIELD_MARK, mark);
    if is_at_egress(hook) {
        set(FIELD_INGRESS_IFINDEX, ingress);
    }
    set(FIELD_IFINDEX, ifindex);
    context
}

fn classifier(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier> {
    match ebpf.program_mut(hook.name()) {
        Some(program) => Ok(program.try_into()?),
        None => bail!("the object has no program {}", hook.name()),
    }
}
