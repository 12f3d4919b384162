//! The one system call that aya does not make.

#![expect(
    unsafe_code,
    reason = "bpf(2) takes addresses that the compiler cannot check"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;
use nix::libc;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const LOOKUP_BATCH: libc::c_int = 24;

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

/// What a batch holds.
pub(super) struct Read {
    /// Entries at the front of the buffers.
    pub(super) count: usize,
    /// Where the next batch begins; `None` after the last.
    pub(super) next: Option<u32>,
}

/// Reads entries of a hash map, bucket by bucket, from where an earlier batch ended. Needs Linux 5.6.
///
/// Ends however much the map changes meanwhile; an entry that stays is read exactly once.
///
/// # Errors
/// `ENOSPC` if a bucket holds more than the buffers.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
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

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
