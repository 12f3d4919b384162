//! The calls of bpf(2) that aya does not make.

#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses that the compiler cannot check"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya::Pod;
use nix::libc;

/// `BPF_OBJ_GET_INFO_BY_FD` of `enum bpf_cmd`.
const GET_INFO: libc::c_int = 15;
/// `BPF_MAP_LOOKUP_BATCH`.
const LOOKUP_BATCH: libc::c_int = 24;
/// `BPF_LINK_GET_FD_BY_ID`.
const LINK_BY_ID: libc::c_int = 30;
/// `BPF_LINK_DETACH`.
const LINK_DETACH: libc::c_int = 34;

/// Member `batch` of `union bpf_attr`.
#[repr(C)]
#[expect(clippy::struct_field_names, reason = "the kernel's names")]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Member `info` of `union bpf_attr`.
#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    answer: u64,
}

/// The beginning of `struct bpf_link_info`, of a link to a network namespace.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    netns_ino: u32,
    attach_type: u32,
}

/// What a batch holds.
struct Read {
    /// Entries at the front of the buffers.
    count: usize,
    /// Where the next batch begins; `None` after the last.
    next: Option<u32>,
}

/// Entries read by one system call.
const BATCH: usize = 8192;

/// Where entries are read into; to be used for one map after another.
pub(super) struct Buffers<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Pod, V: Pod> Buffers<K, V> {
    /// Filled with a key and a value that stand for nothing.
    pub(super) fn new(key: K, value: V) -> Self {
        Self {
            keys: vec![key; BATCH],
            values: vec![value; BATCH],
        }
    }
}

/// Reads every entry of a hash map. As [`lookup_batch`].
pub(super) fn read_all<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    Buffers { keys, values }: &mut Buffers<K, V>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    let mut from = None;
    loop {
        let Read { count, next } = lookup_batch(map, from, keys, values)?;
        let read = keys[..count].iter().zip(values.iter());
        read.for_each(|(key, value)| each(key, value));
        if next.is_none() {
            return Ok(());
        }
        from = next;
    }
}

/// Reads entries of a hash map, bucket by bucket, from where an earlier batch ended. Needs Linux 5.6.
///
/// Ends however much the map changes meanwhile; an entry that stays is read exactly once.
///
/// # Errors
/// `ENOSPC` if a bucket holds more than the buffers.
fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Read> {
    let room = keys.len().min(values.len());
    let start = from.unwrap_or(0);
    let mut end = 0_u32;
    let mut batch = Batch {
        in_batch: from.map_or(0, |_| address(&raw const start)),
        out_batch: address(&raw mut end),
        keys: address(keys.as_mut_ptr()),
        values: address(values.as_mut_ptr()),
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attribute is of the size told. The kernel reads `start` and writes `end`, one word each for a hash map,
    // and at most `count` keys and values into buffers that hold as many of any bit pattern; the caller's map has keys and
    // values of these types, which aya checked when it was opened.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            LOOKUP_BATCH,
            &raw mut batch,
            size_of::<Batch>(),
        )
    };
    let error = (result < 0).then(io::Error::last_os_error);
    let next = match error {
        None => Some(end),
        Some(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
        Some(error) => return Err(error),
    };
    let count = room.min(batch.count as usize);
    Ok(Read { count, next })
}

/// A link by its number. Needs Linux 5.8.
pub(super) fn link(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: the attribute begins with the number, the kernel takes the rest as zero and writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, LINK_BY_ID, &raw const id, size_of::<u32>()) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Inode of the network namespace that a link is attached to, which is of that kind.
pub(super) fn link_netns(link: &OwnedFd) -> io::Result<u64> {
    let mut info = LinkInfo::default();
    let mut attribute = Info {
        fd: link.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
        answer: address(&raw mut info),
    };
    let size = size_of::<Info>();
    // SAFETY: the attribute is of the size told, and points to as many bytes for the answer as it tells, of any pattern.
    let result = unsafe { libc::syscall(libc::SYS_bpf, GET_INFO, &raw mut attribute, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.netns_ino.into())
}

/// Detaches a link from what it is attached to, whoever else holds it. Needs Linux 5.9.
pub(super) fn detach(link: &OwnedFd) -> io::Result<()> {
    let fd = link.as_raw_fd();
    // SAFETY: the attribute is the descriptor alone; the kernel writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, LINK_DETACH, &raw const fd, size_of::<u32>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
