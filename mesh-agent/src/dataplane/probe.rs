//! What of the kernel the programs need, asked by really making one of each, and where there are programs of ours.

use std::thread;

use aya::maps::MapType;
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use mesh_common::names::{PROGRAM_FROM_NET, PROGRAM_FROM_POD, PROGRAM_TO_NET, PROGRAM_TO_POD};
use nix::sched::{CloneFlags, unshare};

use crate::causes::causes;

/// A feature of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// The first Linux that has it.
    pub since: &'static str,
    /// What it is needed for.
    pub need: Need,
    /// Whether it is there; an error is that this process may not ask.
    pub present: Result<bool, String>,
}

/// What a feature is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The agent does not run without; the kernel's option that has it.
    Agent(&'static str),
    /// What is so without.
    Part(&'static str),
}

/// Every kind of program, map and attachment that the agent makes. Leaves nothing in the kernel.
pub fn features() -> Vec<Feature> {
    let feature = |name, since, need, present| Feature {
        name,
        since,
        need,
        present,
    };
    let class = Need::Agent("CONFIG_NET_CLS_BPF");
    let bpf = Need::Agent("CONFIG_BPF_SYSCALL");
    let no_errno =
        Need::Part("connect() does not fail with EPERM for what policy refuses, it is reset");
    let tc = ProgramType::SchedClassifier;
    let connect = ProgramType::CgroupSockAddr;
    let cookie = BpfHelper::BPF_FUNC_get_netns_cookie;
    vec![
        feature("programs at interfaces", "5.10", class, program(tc)),
        feature(
            "delivery to foreign sockets",
            "5.7",
            class,
            helper(tc, BpfHelper::BPF_FUNC_sk_assign),
        ),
        feature(
            "redirection into a pod",
            "5.10",
            class,
            helper(tc, BpfHelper::BPF_FUNC_redirect_peer),
        ),
        feature(
            "programs at socket look-up",
            "5.9",
            bpf,
            program(ProgramType::SkLookup),
        ),
        feature("programs at connect()", "5.14", no_errno, program(connect)),
        feature(
            "names of network namespaces at connect()",
            "5.14",
            no_errno,
            helper(connect, cookie),
        ),
        feature("longest prefix maps", "5.10", bpf, map(MapType::LpmTrie)),
        feature(
            "least recently used maps",
            "5.10",
            bpf,
            map(MapType::LruHash),
        ),
        feature("ring buffers", "5.8", bpf, map(MapType::RingBuf)),
        feature("socket maps", "5.10", bpf, map(MapType::SockMap)),
        feature(
            "clsact hooks",
            "5.10",
            Need::Agent("CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"),
            hooks(),
        ),
    ]
}

/// Programs of ours that are attached to an interface by tcx; none where the kernel has no tcx.
pub fn programs_at(ifname: &str) -> Vec<&'static str> {
    let ours = [
        (PROGRAM_FROM_POD, TcAttachType::Ingress),
        (PROGRAM_TO_POD, TcAttachType::Egress),
        (PROGRAM_FROM_NET, TcAttachType::Ingress),
        (PROGRAM_TO_NET, TcAttachType::Egress),
    ];
    let is_there = |name: &str, attach| {
        let present = SchedClassifier::query_tcx(ifname, attach);
        present.is_ok_and(|(_, all)| all.iter().any(|it| it.name_as_str() == Some(name)))
    };
    let found = ours.into_iter().filter(|(name, at)| is_there(name, *at));
    found.map(|(name, _)| name).collect()
}

fn program(kind: ProgramType) -> Result<bool, String> {
    is_program_supported(kind).map_err(|error| causes(&error))
}

fn helper(kind: ProgramType, helper: BpfHelper) -> Result<bool, String> {
    // Of a kind that is missing, its functions are missing, too.
    Ok(program(kind)? && is_helper_supported(kind, helper).map_err(|error| causes(&error))?)
}

fn map(kind: MapType) -> Result<bool, String> {
    is_map_supported(kind).map_err(|error| causes(&error))
}

/// Makes a clsact qdisc, in a network namespace that ends with its thread.
fn hooks() -> Result<bool, String> {
    let apart = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| causes(&error))?;
        Ok(qdisc_add_clsact("lo").is_ok())
    };
    let ended = thread::spawn(apart).join();
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
