//! A short run of `cargo xtask chaos`: one fault after another, and after each of them everything holds that must.

use std::process::Command;

use anyhow::{Result, ensure};

#[test]
fn a_short_run() -> Result<()> {
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_mesh-chaos"));
    chaos.args(["--seed", "7", "--steps", "25", "--lab", "chaos_short"]);
    let output = chaos.output()?;
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
