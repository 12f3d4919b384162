//! [`mesh_fuzz::socket`] as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::socket(input));
