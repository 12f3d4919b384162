//! EDGE: puts plugin and configuration in place, and back when somebody takes them away.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_common::cni::Reason;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::PLUGIN;
use super::conflist::{CONFLIST, render, shadowing};
use super::place::{Done, Kept};
use super::portmap::Portmap;
use crate::args::Run;
use crate::world::Command;

/// How often what was put in place is looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often the world is asked whether it can wire pods.
pub(super) const IMPATIENCE: Duration = Duration::from_millis(200);

/// What is installed, and where; nothing where a directory is not given.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the runtime looks for plugins.
    pub bin_dir: Option<PathBuf>,
    /// Where the runtime looks for its network configuration.
    pub conf_dir: Option<PathBuf>,
    /// The plugin that is installed; by default that beside the agent's own executable.
    pub binary: Option<PathBuf>,
    /// The agent's socket, as the plugin finds it.
    pub socket: PathBuf,
}

impl From<&Run> for Options {
    fn from(config: &Run) -> Self {
        Self {
            bin_dir: config.cni_bin_dir.clone(),
            conf_dir: config.cni_conf_dir.clone(),
            binary: config.cni_binary.clone(),
            socket: config.cni_socket.clone(),
        }
    }
}

/// What keeps the agent from installing anything at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plugin to be installed is not there.
    #[error(
        "--cni-binary {path}: cannot read the plugin; put mesh-cni beside mesh-agent, or name it with this flag"
    )]
    Binary {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Keeps plugin and configuration in place.
#[derive(Debug)]
pub struct Installer {
    socket: PathBuf,
    plugin: Option<Kept>,
    conflist: Option<Kept>,
    portmap: Option<Portmap>,
    /// Files that a runtime prefers to ours, as they were told last.
    shadowing: Vec<String>,
    /// Whether the last attempt failed, which is told once.
    failed: bool,
}

impl Installer {
    /// Reads the plugin that is to be installed.
    pub fn new(options: Options) -> Result<Self, Error> {
        let mut plugin = options
            .bin_dir
            .as_deref()
            .map(|it| Kept::new(it, PLUGIN, 0o755));
        if let Some(plugin) = &mut plugin {
            plugin.set(read_plugin(options.binary)?);
        }
        Ok(Self {
            socket: options.socket,
            plugin,
            conflist: options
                .conf_dir
                .as_deref()
                .map(|it| Kept::new(it, CONFLIST, 0o644)),
            portmap: options.bin_dir.as_deref().map(Portmap::new),
            shadowing: Vec::new(),
            failed: false,
        })
    }

    /// Installs and keeps, until shutdown; what is installed then stays.
    pub async fn run(mut self, world: mpsc::Sender<Command>, shutdown: CancellationToken) {
        if self.plugin.is_none() && self.conflist.is_none() {
            return shutdown.cancelled().await;
        }
        let work = async {
            let mut ready = false;
            loop {
                ready = ready || is_ready(&world).await;
                let kept = self.keep(ready).await;
                self.tell(kept);
                sleep(if ready { INTERVAL } else { IMPATIENCE }).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    /// The plugin first: a configuration whose plugin is missing makes every pod fail.
    async fn keep(&mut self, ready: bool) -> Result<(), (PathBuf, io::Error)> {
        if let Some(plugin) = &mut self.plugin {
            keep(plugin)?;
        }
        let Some(conflist) = self.conflist.as_mut().filter(|_| ready) else {
            return Ok(());
        };
        let versions = match &mut self.portmap {
            Some(portmap) => portmap.versions().await,
            None => None,
        };
        conflist.set(render(&self.socket, versions).into_bytes());
        keep(conflist)?;
        let before = before_ours(conflist.directory());
        if before != self.shadowing && !before.is_empty() {
            warn!(
                files = before.join(", "),
                directory = %conflist.directory().display(),
                "the runtime prefers another network configuration to ours: remove these files, or move them out of the directory"
            );
        }
        self.shadowing = before;
        Ok(())
    }

    fn tell(&mut self, kept: Result<(), (PathBuf, io::Error)>) {
        match kept {
            Ok(()) => self.failed = false,
            Err((path, error)) => {
                if !self.failed {
                    let error = &error as &dyn std::error::Error;
                    error!(error, path = %path.display(), "cannot install, trying again every {} s", INTERVAL.as_secs());
                }
                self.failed = true;
            }
        }
    }
}

fn keep(kept: &mut Kept) -> Result<(), (PathBuf, io::Error)> {
    let path = kept.path();
    let done = kept.keep().map_err(|error| (path.clone(), error))?;
    let path = path.display();
    match done {
        Done::Nothing => {}
        Done::Placed => info!(%path, "installed"),
        Done::PutBack => warn!(%path, "somebody removed or changed it, put back"),
    }
    Ok(())
}

fn read_plugin(named: Option<PathBuf>) -> Result<Vec<u8>, Error> {
    let beside = || std::env::current_exe().map(|agent| agent.with_file_name(PLUGIN));
    let path = named
        .map_or_else(beside, Ok)
        .map_err(|source| Error::Binary {
            path: PLUGIN.into(),
            source,
        })?;
    fs::read(&path).map_err(|source| Error::Binary { path, source })
}

/// Whether an ADD could be served, were there an address for it.
pub(super) async fn is_ready(world: &mpsc::Sender<Command>) -> bool {
    let (reply, answer) = oneshot::channel();
    if world.send(Command::Status(reply)).await.is_err() {
        return false;
    }
    match answer.await {
        Ok(Ok(())) => true,
        Ok(Err(refusal)) => refusal.reason != Reason::TryAgain,
        Err(_gone) => false,
    }
}

fn before_ours(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    shadowing(names.iter().map(String::as_str))
        .into_iter()
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use mesh_common::cni::Refusal;

    use super::*;

    /// A world that answers as told.
    fn world(
        answer: impl Fn() -> Result<(), Refusal> + Send + 'static,
    ) -> (mpsc::Sender<Command>, tokio::task::JoinSet<()>) {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            while let Some(command) = receiver.recv().await {
                let Command::Status(reply) = command else {
                    panic!("{command:?}")
                };
                let _ = reply.send(answer());
            }
        });
        (sender, tasks)
    }

    fn refusal(reason: Reason) -> Refusal {
        crate::world::refusal(reason, "not now".to_owned(), "wait")
    }

    #[tokio::test]
    async fn a_node_without_addresses_is_ready_and_one_without_a_world_is_not() {
        let (sender, _tasks) = world(|| Ok(()));
        assert!(is_ready(&sender).await);
        let (sender, _tasks) = world(|| Err(refusal(Reason::TryAgain)));
        assert!(!is_ready(&sender).await);
        let (sender, _tasks) = world(|| Err(refusal(Reason::Unavailable)));
        assert!(is_ready(&sender).await);
    }

    #[tokio::test]
    async fn the_configuration_waits_for_the_agent_and_the_plugin_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("source");
        fs::write(&binary, "plugin").unwrap();
        let [bin, conf] = ["bin", "conf"].map(|name| directory.path().join(name));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&conf).unwrap();
        fs::write(conf.join("05-other.conflist"), "{}").unwrap();
        let mut installer = Installer::new(Options {
            bin_dir: Some(bin.clone()),
            conf_dir: Some(conf.clone()),
            binary: Some(binary),
            socket: "/run/x.sock".into(),
        })
        .unwrap();
        installer.keep(false).await.unwrap();
        assert_eq!(fs::read(bin.join(PLUGIN)).unwrap(), b"plugin");
        assert!(!conf.join(CONFLIST).exists());
        installer.keep(true).await.unwrap();
        let list = fs::read_to_string(conf.join(CONFLIST)).unwrap();
        assert!(list.contains("/run/x.sock"), "{list}");
        assert_eq!(installer.shadowing, ["05-other.conflist"]);
        fs::remove_file(conf.join(CONFLIST)).unwrap();
        installer.keep(true).await.unwrap();
        assert!(conf.join(CONFLIST).exists());
    }

    #[test]
    fn a_missing_plugin_is_told_at_the_start() {
        let options = Options {
            bin_dir: Some("/nowhere".into()),
            binary: Some("/nowhere/mesh-cni".into()),
            ..Options::default()
        };
        let error = Installer::new(options).unwrap_err().to_string();
        assert!(error.contains("--cni-binary /nowhere/mesh-cni"), "{error}");
    }
}
