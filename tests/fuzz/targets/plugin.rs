//! [`mesh_fuzz::plugin`] as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::plugin(input));
