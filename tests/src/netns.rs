//! Named network namespaces, made and entered as `ip netns` would, without its remounting of /sys.
//!
//! Nothing here moves the calling thread: whatever runs inside runs in a thread of its own. Sockets and processes that are
//! made there stay there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` looks for names.
const DIRECTORY: &str = "/run/netns";

/// A named network namespace. Dropping the value leaves the namespace; see [`Netns::remove`].
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace, with its loopback device up.
    ///
    /// # Errors
    /// When the name is taken, or without root.
    pub fn create(name: &str) -> Result<Self> {
        share_directory().context("cannot prepare /run/netns")?;
        let path = Path::new(DIRECTORY).join(name);
        File::create_new(&path)
            .with_context(|| format!("cannot create the network namespace {name}"))?;
        let made = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    bind(
                        Path::new("/proc/thread-self/ns/net"),
                        &path,
                        MsFlags::MS_BIND,
                    )
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        });
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error)
                .with_context(|| format!("cannot create the network namespace {name}"));
        }
        let netns = Self::open(name)?;
        netns.exec("ip", ["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Opens a namespace that exists.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(DIRECTORY).join(name);
        let file = File::open(&path)
            .with_context(|| format!("cannot open the network namespace {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
        })
    }

    /// Takes the name away; the namespace goes with its last process and socket. Fine when there is none.
    pub fn remove(name: &str) -> Result<()> {
        let path = Path::new(DIRECTORY).join(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // Not mounted: a creation that was cut short. Not there: nothing to do.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => bail!("cannot unmount {}: {error}", path.display()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Names of all namespaces that begin with a prefix.
    pub fn names(prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(DIRECTORY).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path by which other programs enter it (`CNI_NETNS`).
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs a closure in a thread inside the namespace; a panic goes on in the caller.
    ///
    /// # Panics
    /// When the closure does, or when the kernel refuses to enter the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                self.enter();
                work()
            });
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Panics
    /// When the kernel refuses, which takes a lack of privilege.
    pub fn enter(&self) {
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("root may enter any network namespace");
    }

    /// Runs a program inside to its end, whatever its exit code.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.run(|| command.output()).with_context(|| {
            format!(
                "cannot start {} in {}",
                command.get_program().display(),
                self.name
            )
        })
    }

    /// Runs a program inside and returns what it wrote to its standard output.
    ///
    /// # Errors
    /// When its exit code is not 0, with what it wrote to its standard error.
    pub fn exec(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item: AsRef<OsStr>>,
    ) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        let output = self.output(&mut command)?;
        if !output.status.success() {
            bail!(
                "{command:?} in {}: {}: {}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` inside, one command a line; empty lines and indentation do not matter.
    pub fn ip(&self, commands: &str) -> Result<()> {
        for line in commands
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
        {
            self.exec("ip", line.split_whitespace())?;
        }
        Ok(())
    }
}

/// Makes the directory a shared mount, as `ip netns add` does: names made by either are then seen and removed by both.
fn share_directory() -> Result<()> {
    let directory = Path::new(DIRECTORY);
    fs::create_dir_all(directory)?;
    let share = || {
        let none: Option<&str> = None;
        mount(
            none,
            directory,
            none,
            MsFlags::MS_SHARED | MsFlags::MS_REC,
            none,
        )
    };
    match share() {
        Err(Errno::EINVAL) => {
            bind(directory, directory, MsFlags::MS_BIND | MsFlags::MS_REC)?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}

fn bind(source: &Path, target: &Path, flags: MsFlags) -> Result<()> {
    let none: Option<&str> = None;
    Ok(mount(Some(source), target, none, flags, none)?)
}
