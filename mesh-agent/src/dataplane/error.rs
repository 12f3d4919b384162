//! What can go wrong between the agent and the kernel.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use mesh_common::maps::Slot;
use nix::libc;

/// A failure of the kernel's side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The build has no object: the operator built with plain `cargo build`.
    #[error(
        "this mesh-agent was built without its kernel programs: build it with `cargo xtask build`"
    )]
    NoObject,
    /// The pin directory cannot be had; the operator passes another `--bpffs`.
    #[error("--bpffs {path}: {what}")]
    Bpffs {
        /// The directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Pinned maps are of a newer agent's version.
    #[error(
        "--bpffs {path}: the pinned maps have ABI version {found}, this agent knows none after {wanted}: start the agent \
         that made them or a newer one, or delete the directory (which ends the connections it carries)"
    )]
    AbiVersion {
        /// The directory.
        path: PathBuf,
        /// Version of the pinned maps.
        found: u32,
        /// [`mesh_common::ABI_VERSION`].
        wanted: u32,
    },
    /// The object is not accepted as a whole.
    #[error("the kernel refused the programs' maps or the object is damaged")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program the agent needs is not in the object.
    #[error("the object has no usable program {0}")]
    NoProgram(&'static str),
    /// The verifier refused a program.
    #[error("the kernel refused program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A program cannot be attached.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// The interface or namespace.
        target: String,
        /// The kernel's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No tree of cgroups is mounted.
    #[error(
        "no file system of type cgroup2 is mounted: mount it, or name the pods' cgroup with --cgroup"
    )]
    NoCgroup,
    /// The cgroup cannot be opened.
    #[error("--cgroup {path}")]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A map cannot be opened, read or written.
    #[error("map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A map has no room for another entry; what is not in it is refused, never let through.
    #[error("map {map} is full: have fewer of its entries on this node")]
    Full {
        /// Its name.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The ring buffer of refusals cannot be waited for.
    #[error("reading refusals")]
    Events(#[source] io::Error),
    /// The records of flows cannot be read.
    #[error("reading the records of flows")]
    Flows(#[source] io::Error),
    /// A listener cannot be put into its slot.
    #[error("cannot publish the {slot:?} listener")]
    Listener {
        /// The slot.
        slot: Slot,
        /// The kernel's answer.
        #[source]
        source: Box<aya::maps::MapError>,
    },
}

impl Error {
    /// Whatever else goes wrong with a map.
    pub(super) fn of_map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map {
            map,
            source: Box::new(source),
        }
    }

    /// A map that cannot be written. The kernel says `E2BIG` of a full hash map, `ENOSPC` of a trie.
    pub(super) fn written(map: &'static str, source: MapError) -> Self {
        let is_full = match &source {
            MapError::SyscallError(error) => error
                .io_error
                .raw_os_error()
                .is_some_and(|it| [libc::E2BIG, libc::ENOSPC].contains(&it)),
            _ => false,
        };
        let source = Box::new(source);
        if is_full {
            Self::Full { map, source }
        } else {
            Self::Map { map, source }
        }
    }
}
