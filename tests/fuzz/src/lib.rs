//! Arbitrary input for everything that reads what others wrote: frames, tunnels, certificates, objects, the plugin's input
//! and its talk with the agent, the agent's files.
//!
//! A target is one function of bytes that must return, whatever they are; it panics when the code under it does, or when
//! what came out contradicts itself. `cargo xtask fuzz` lets libFuzzer choose the bytes (`targets/`); the test below gives
//! each function everything that was ever worth keeping: `corpus/NAME`, one file a behaviour, and `regressions/NAME`, one
//! file a bug that was fixed.

#![forbid(unsafe_code)]
#![expect(
    clippy::missing_panics_doc,
    reason = "a panic is how a target tells of a finding"
)]

mod certificates;
mod connect;
mod documents;
mod frames;
mod packets;
mod plugin;
mod socket;
mod state;

pub use certificates::certificates;
pub use connect::connect;
pub use documents::documents;
pub use frames::frames;
pub use packets::packets;
pub use plugin::plugin;
pub use socket::socket;
pub use state::state;

/// One target's function.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its files.
pub const TARGETS: [(&str, Target); 8] = [
    ("packets", packets),
    ("connect", connect),
    ("frames", frames),
    ("plugin", plugin),
    ("socket", socket),
    ("documents", documents),
    ("certificates", certificates),
    ("state", state),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic::catch_unwind;
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn what_was_found_stays_fixed() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut failed = Vec::new();
        for (name, target) in TARGETS {
            let folders = ["corpus", "regressions"].map(|it| here.join(it).join(name));
            let entries = folders.iter().filter_map(|it| fs::read_dir(it).ok());
            for entry in entries.flatten() {
                let path = entry.unwrap().path();
                let input = fs::read(&path).unwrap();
                if catch_unwind(|| target(&input)).is_err() {
                    failed.push(path);
                }
            }
        }
        assert!(failed.is_empty(), "{failed:#?}");
    }
}
