//! [`mesh_fuzz::packets`] as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::packets(input));
