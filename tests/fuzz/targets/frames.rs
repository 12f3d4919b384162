//! [`mesh_fuzz::frames`] as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::frames(input));
