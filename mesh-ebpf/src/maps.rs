//! Every map of the object, pinned by name in the agent's directory so that the kernel carries on without the agent.

#![expect(
    unsafe_code,
    reason = "map values are read through raw kernel pointers"
)]

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SockMap};
use mesh_common::addr::Addr;
use mesh_common::maps::{
    ClassKey, Config, Flow, FlowKey, Pod, PodCidr, PolicyEntry, PolicyKey, Service, Slot, Workload,
    flags,
};
use mesh_common::policy::Policies;
use mesh_common::steer::World;
use mesh_common::verdict::COUNTERS as COUNTER_COUNT;

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
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(131_072, 0);
#[map]
pub(crate) static PLAIN_FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(131_072, 0);
#[map]
pub(crate) static POD_CIDRS: LpmTrie<PodCidr, u32> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static LISTENERS: SockMap = SockMap::pinned(Slot::COUNT, 0);
#[map]
static NAMESPACES: HashMap<u64, u32> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static PODS: HashMap<u32, Pod> = HashMap::pinned(4_096, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SERVICES: HashMap<Addr, Service> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static WORKLOADS: HashMap<Addr, Workload> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

/// The maps as [`mesh_common::steer`] sees them.
pub(crate) struct Maps;

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
        // SAFETY: an evicted entry may be reused while it is read; the value is one aligned word, old or new.
        let flow = unsafe { FLOWS.get(key) };
        // SAFETY: as above.
        flow.or_else(|| unsafe { PLAIN_FLOWS.get(key) })
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
fn revision() -> u32 {
    CONFIG.get(0).map_or(0, |config| config.revision)
}

/// Records a flow of a pod with these flags, judged now; `false` when the kernel has no room.
#[inline(always)]
pub(crate) fn record(pod_flags: u32, key: &FlowKey, neighbour: u32, opener: u32) -> bool {
    let flow = Flow {
        neighbour,
        opener,
        revision: revision(),
    };
    let any = u64::from(BPF_ANY);
    if pod_flags & flags::SOCKETS != 0 {
        FLOWS.insert(key, flow, any).is_ok()
    } else {
        PLAIN_FLOWS.insert(key, flow, any).is_ok()
    }
}

/// Records that a flow was judged again.
#[inline(always)]
pub(crate) fn renew(key: &FlowKey) {
    let flow = FLOWS
        .get_ptr_mut(key)
        .or_else(|| PLAIN_FLOWS.get_ptr_mut(key));
    if let Some(flow) = flow {
        // SAFETY: an evicted entry may be reused meanwhile: then another flow counts as judged under a revision that it
        // was recorded under moments ago, or is judged once more.
        unsafe { (*flow).revision = revision() };
    }
}

/// Forgets a flow.
#[inline(always)]
pub(crate) fn forget(key: &FlowKey) {
    // Absent is what is wanted.
    let _ = FLOWS.remove(key);
    let _ = PLAIN_FLOWS.remove(key);
}
