//! [`mesh_fuzz::connect`] as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::connect(input));
