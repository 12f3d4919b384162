//! Every map of the object, pinned by name in the agent's directory so that the kernel carries on without the agent.

#![expect(
    unsafe_code,
    reason = "map values are read through raw kernel pointers"
)]

use core::cell::Cell;
use core::ptr;

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{HashOfMaps, LruHashMap};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, SockMap};
use mesh_common::addr::Addr;
use mesh_common::maps::{
    ALL_FLOWS, ClassKey, Config, Flow, FlowKey, OWN_FLOWS, Pod, PodCidr, PolicyEntry, PolicyKey,
    Service, Slot, Workload,
};
use mesh_common::packet::Packet;
use mesh_common::policy::Policies;
use mesh_common::steer::World;
use mesh_common::traffic::{Record, Traffic, TrafficKey, state};
use mesh_common::verdict::COUNTERS as COUNTER_COUNT;
use zerocopy::transmute_ref;

#[map]
pub(crate) static CLASSES: LpmTrie<ClassKey, u32> = LpmTrie::pinned(524_288, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static POLICY: LpmTrie<PolicyKey, PolicyEntry> =
    LpmTrie::pinned(1_048_576, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTER_COUNT, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::pinned(256 << 10, 0);
/// Pinned by the agent, as a map that is declared by BTF is not by itself.
#[btf_map]
static FLOWS: HashOfMaps<u32, FlowTable, 4_097> = HashOfMaps::new();
/// Those of the agent are of different sizes, and of types that the kernel is not told. From 5.15 to 6.1 it takes them for
/// the same only if the one declared here has no structure as its value, in which a timer could be.
type FlowTable = LruHashMap<FlowKey, Words, { OWN_FLOWS as usize }>;
/// A [`Record`].
type Words = [u64; size_of::<Record>() / 8];
#[map]
pub(crate) static TRAFFIC: HashMap<TrafficKey, Traffic> =
    HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static POD_CIDRS: LpmTrie<PodCidr, u32> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::pinned(Slot::COUNT, 0);
#[map]
static NAMESPACES: HashMap<u64, u32> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
/// The packet that a program reads; each object has its own.
#[map]
pub(crate) static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static PODS: HashMap<u32, Pod> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SERVICES: HashMap<Addr, Service> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static WORKLOADS: HashMap<Addr, Workload> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

/// The maps as [`mesh_common::steer`] sees them.
///
/// A program asks for one flow, whose record is looked up once.
pub(crate) struct Maps {
    looked: Cell<bool>,
    found: Cell<*mut Record>,
}

impl Maps {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self {
            looked: Cell::new(false),
            found: Cell::new(ptr::null_mut()),
        }
    }

    /// The flow's record.
    #[inline(always)]
    pub(crate) fn record(&self, key: &FlowKey) -> Option<&'static mut Record> {
        if !self.looked.replace(true) {
            self.found.set(find(key).unwrap_or_default());
        }
        // SAFETY: null, or a value of a map: valid for the program's run. An evicted entry may be reused meanwhile, by
        // programs alone: each field is an aligned word, old or new.
        unsafe { self.found.get().as_mut() }
    }
}

impl Policies for Maps {
    #[inline(always)]
    fn class(&self, generation: u32, addr: &Addr) -> u32 {
        let key = ClassKey {
            generation,
            addr: *addr,
        };
        CLASSES.get(Key::new(160, key)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn entry(&self, key: &PolicyKey) -> Option<&PolicyEntry> {
        POLICY.get(Key::new(PolicyKey::ONE_PORT, *key))
    }
}

impl World for Maps {
    #[inline(always)]
    fn pod(&self, ifindex: u32) -> Option<&Pod> {
        pod(ifindex)
    }

    #[inline(always)]
    fn revision(&self) -> u32 {
        revision()
    }

    #[inline(always)]
    fn workload(&self, addr: &Addr) -> Option<&Workload> {
        // SAFETY: the map is not preallocated, so an entry is freed only after an RCU grace period: not while a program runs.
        unsafe { WORKLOADS.get(addr) }
    }

    #[inline(always)]
    fn is_service(&self, addr: &Addr) -> bool {
        SERVICES.get_ptr(addr).is_some()
    }

    #[inline(always)]
    fn is_pod_address(&self, addr: &Addr) -> bool {
        POD_CIDRS.get(Key::new(128, *addr)).is_some()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.record(key).map(|record| &record.flow)
    }
}

/// The pod at a host-side interface.
#[inline(always)]
pub(crate) fn pod(ifindex: u32) -> Option<&'static Pod> {
    // SAFETY: the map is not preallocated, so an entry is freed only after an RCU grace period: not while a program runs.
    unsafe { PODS.get(ifindex) }
}

/// Interface of the pod that has a network namespace.
#[inline(always)]
pub(crate) fn interface_of(netns_cookie: u64) -> Option<u32> {
    // SAFETY: the map is not preallocated, so an entry is freed only after an RCU grace period: not while a program runs.
    unsafe { NAMESPACES.get(netns_cookie) }.copied()
}

/// [`Config::revision`].
#[inline(always)]
pub(crate) fn revision() -> u32 {
    CONFIG.get(0).map_or(0, |config| config.revision)
}

/// A flow's record: its pod's own, or what is left of it in the table of all.
#[inline(always)]
pub(crate) fn find(key: &FlowKey) -> Option<*mut Record> {
    in_table(key.ifindex, key).or_else(|| in_table(ALL_FLOWS, key))
}

#[inline(always)]
fn in_table(table: u32, key: &FlowKey) -> Option<*mut Record> {
    let words: *mut Words = flows(table)?.get_ptr_mut(key)?;
    Some(words.cast())
}

/// A pod's table of flows, or that of all.
#[inline(always)]
fn flows(table: u32) -> Option<&'static FlowTable> {
    // SAFETY: the kernel frees an inner map only after an RCU grace period: not while a program runs.
    unsafe { FLOWS.get(&table) }
}

/// A flow as it is judged now.
#[inline(always)]
pub(crate) fn judged(neighbour: u32, opener: u32) -> Flow {
    Flow {
        neighbour,
        opener,
        revision: revision(),
    }
}

/// Records a flow; `false` when the kernel has no room.
#[inline(always)]
pub(crate) fn record(key: &FlowKey, record: &mut Record) -> bool {
    if !insert(key.ifindex, key, record) {
        return insert(ALL_FLOWS, key, record);
    }
    // What is left when the pod's own is pushed out: by then it counts as opened.
    record.state |= state::OPENED;
    insert(ALL_FLOWS, key, record);
    true
}

#[inline(always)]
fn insert(table: u32, key: &FlowKey, record: &Record) -> bool {
    let words: &Words = transmute_ref!(record);
    flows(table).is_some_and(|flows| flows.insert(key, words, BPF_ANY.into()).is_ok())
}

/// Forgets a flow.
#[inline(always)]
pub(crate) fn forget(key: &FlowKey) {
    // Absent is what is wanted.
    let _ = flows(key.ifindex).map(|own| own.remove(key));
    let _ = flows(ALL_FLOWS).map(|all| all.remove(key));
}
