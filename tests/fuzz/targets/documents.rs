//! [`mesh_fuzz::documents`] as a fuzz target.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| mesh_fuzz::documents(input));
