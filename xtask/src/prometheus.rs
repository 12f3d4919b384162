//! Prometheus, as Debian's package has it: downloaded and unpacked under `target/tools`, never installed, so that no service
//! of it begins on this machine.

use std::env;
use std::ffi::OsString;
use std::{fs, io};

use anyhow::{Result, bail};

use crate::shell::{command, is_installed, run, step, target};

/// The value of `PATH` with which its programs are found: the machine's own where it has them.
pub(crate) fn path() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    if is_installed("prometheus") && is_installed("promtool") {
        return Ok(path);
    }
    let home = target().join("tools/prometheus");
    if !home.is_dir() {
        if !is_installed("apt-get") {
            bail!(
                "prometheus and promtool are missing. Remedy: put them into a directory of PATH; no service is needed"
            );
        }
        step("downloading Prometheus");
        let unpacked = target().join("tools/prometheus.part");
        let _ = fs::remove_dir_all(&unpacked);
        fs::create_dir_all(&unpacked)?;
        run(&mut command("apt-get", &["update", "-qq"]))?;
        // The unprivileged user of apt may not write under `target`.
        let download = ["-qq", "-o", "APT::Sandbox::User=root", "download"];
        let mut download = command("apt-get", &download);
        run(download.arg("prometheus").current_dir(&unpacked))?;
        let packages: Vec<_> = fs::read_dir(&unpacked)?.collect::<io::Result<_>>()?;
        for package in packages {
            let package = package.path();
            run(command("dpkg-deb", &["-x"]).arg(&package).arg(&unpacked))?;
            fs::remove_file(package)?;
        }
        fs::rename(unpacked, &home)?;
    }
    let paths = [home.join("usr/bin")];
    Ok(env::join_paths(
        paths.into_iter().chain(env::split_paths(&path)),
    )?)
}
