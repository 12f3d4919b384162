//! The kernel programs of Mesh CNI: one ELF object that the agent loads.
//!
//! Each hook reads: parse, decide (`mesh_common::steer`, shared with the host tests), act, count.
//! Needs Linux 5.10.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "atomic additions")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "helpers and context fields are wider than what they carry"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the program macros hand the context over by value"
)]

mod ctx;
mod hooks;
mod maps;
mod report;
mod traffic;

/// No helper that is reserved for GPL-compatible programs is used.
#[expect(
    unsafe_code,
    reason = "the kernel reads the licence from a section of this name"
)]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
