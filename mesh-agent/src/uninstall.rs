//! EDGE: `mesh-agent uninstall`: a node as it was before.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::args::Uninstall;
use crate::causes::causes;
use crate::dataplane::remove::{remove_filters, remove_pins};
use crate::install::{CONFLIST, PLUGIN};
use crate::network::Network;
use crate::{dataplane, network};

/// What keeps a part of ours on the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was removed.
    #[error("an agent runs on --state {}; stop it first, or pass --force", .0.display())]
    Running(PathBuf),
    /// A file or directory.
    #[error("cannot remove {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Programs and maps.
    #[error("programs and maps")]
    Dataplane(#[from] dataplane::Error),
    /// Rules, routes, tables.
    #[error("the node's network")]
    Network(#[from] network::Error),
}

/// Removes everything that an agent made on this node, and says what; may be run again.
///
/// What cannot be removed does not keep the rest: it is told, and `false` is returned.
///
/// # Errors
/// [`Error::Running`]; then nothing was touched.
pub async fn uninstall(args: &Uninstall, say: impl Fn(&str)) -> Result<bool, Error> {
    let _lock = lock(args)?;
    let mut whole = true;
    let mut done = |result: Result<Option<String>, Error>| match result {
        Ok(Some(removed)) => say(&format!("removed {removed}")),
        Ok(None) => {}
        Err(error) => {
            whole = false;
            say(&format!("not removed: {}", causes(&error)));
        }
    };
    let wired = fs::read_dir(args.state.join("attachments")).map_or(0, Iterator::count);
    // First of all the word to the runtime that there is a network here.
    done(remove_file(&args.cni_conf_dir, CONFLIST));
    done(programs(args).await);
    for removed in node_network(&args.state).await {
        done(removed);
    }
    done(remove_file(&args.cni_bin_dir, PLUGIN));
    if args.purge_state {
        done(remove_directory(&args.run_dir));
        done(remove_directory(&args.state));
    }
    if wired > 0 {
        say(&format!(
            "left: {wired} pod interfaces; these pods run on without policy and encryption until they are deleted"
        ));
    }
    Ok(whole)
}

/// The lock that a running agent holds; none if there never was one.
fn lock(args: &Uninstall) -> Result<Option<Flock<File>>, Error> {
    let Ok(file) = File::open(args.state.join("lock")) else {
        return Ok(None);
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err(_) if args.force => Ok(None),
        Err(_) => Err(Error::Running(args.state.clone())),
    }
}

async fn programs(args: &Uninstall) -> Result<Option<String>, Error> {
    let links = remove_pins(&args.bpffs)?;
    let network = Network::open(&args.state)?;
    let mut filtered = 0;
    for link in network.links().await? {
        if remove_filters(&link.name)? {
            network.remove_empty_clsact(link.index).await?;
            filtered += 1;
        }
    }
    let links = links.map(|links| {
        format!(
            "programs, maps and {links} links in {}",
            args.bpffs.display()
        )
    });
    let filters = (filtered > 0).then(|| format!("filters of {filtered} interfaces"));
    Ok(match (links, filters) {
        (Some(links), Some(filters)) => Some(format!("{links}, {filters}")),
        (links, filters) => links.or(filters),
    })
}

async fn node_network(state: &Path) -> Vec<Result<Option<String>, Error>> {
    let network = match Network::open(state) {
        Ok(network) => network,
        Err(error) => return vec![Err(error.into())],
    };
    let some = |what: &str, count: usize| (count > 0).then(|| format!("{count} {what}"));
    let rules = network
        .remove_rules()
        .await
        .map(|count| some("rules", count));
    let routes = network
        .remove_routes()
        .await
        .map(|count| some("routes", count));
    let table = network.remove_masquerade().await;
    let table = table.map(|was| was.then(|| format!("nftables table inet {}", network::TABLE)));
    let settings = network.restore_settings();
    let settings = settings.map(|names| some("changes of kernel settings", names.len()));
    [rules, routes, table, settings]
        .into_iter()
        .map(|it| it.map_err(Error::from))
        .collect()
}

/// A file of ours, and what a killed agent left beside it.
fn remove_file(directory: &Path, name: &str) -> Result<Option<String>, Error> {
    remove(&directory.join(format!(".{name}.new")), |path| {
        fs::remove_file(path)
    })?;
    remove(&directory.join(name), |path| fs::remove_file(path))
}

fn remove_directory(path: &Path) -> Result<Option<String>, Error> {
    remove(path, |path| match fs::remove_dir_all(path) {
        // What somebody has mounted there stays mounted, and is empty.
        Err(error) if error.kind() == ErrorKind::ResourceBusy && is_empty(path) => Ok(()),
        removed => removed,
    })
}

fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut it| it.next().is_none())
}

fn remove(path: &Path, how: impl Fn(&Path) -> io::Result<()>) -> Result<Option<String>, Error> {
    match how(path) {
        Ok(()) => Ok(Some(path.display().to_string())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(Error::File {
            path: path.to_owned(),
            source,
        }),
    }
}
