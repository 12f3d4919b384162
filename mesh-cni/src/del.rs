//! EDGE: DEL: best effort, and never an error: a runtime repeats a failing DEL, and the pod hangs until it succeeds.
//!
//! The device goes first, the address second. An agent that cannot take the release finds it in the directory
//! `released` beside its socket: one file an attachment, named [`Attachment::file_name`], holding it as JSON. It
//! replays them when it starts, after its socket listens; temporary files begin with a dot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh_common::cni::{Attachment, Reason, Request};

use crate::agent::Session;
use crate::apply::opened;
use crate::command::Command;
use crate::error::Error;
use crate::netlink::Netlink;
use crate::netns::Netns;
use crate::plan::{End, Mac, Undo};
use crate::request::Del;

/// Carries a DEL out.
pub(crate) fn run(del: &Del) {
    match remove_host_end(&del.attachment) {
        // The pod's end went with it.
        Ok(true) => {}
        Ok(false) => remove_pod_end(del).unwrap_or_else(|error| crate::warn(&error)),
        Err(error) => crate::warn(&error),
    }
    release(&del.socket, &del.attachment);
}

/// Gives the attachment back at the agent, or leaves word for it.
pub(crate) fn release(socket: &Path, attachment: &Attachment) {
    let Err(error) = tell(socket, attachment) else {
        return;
    };
    crate::warn(&error);
    let file = match leave_word(socket, attachment) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("mesh-cni: cannot leave word of a release for the agent: {error}");
            return;
        }
    };
    // An agent that started meanwhile may have looked for files before ours was there; if so, it listens by now.
    if matches!(error, Error::AgentUnreachable { .. }) && tell(socket, attachment).is_ok() {
        let _gone_or_replayed = fs::remove_file(file);
    }
}

/// An agent that does not know the attachment has nothing to release.
fn tell(socket: &Path, attachment: &Attachment) -> Result<(), Error> {
    let attachment = attachment.clone();
    let told = Session::connect(Command::Del, socket)?.done(Request::Release { attachment });
    match told {
        Err(Error::Refused { refusal, .. }) if refusal.reason == Reason::Unknown => Ok(()),
        told => told,
    }
}

/// Writes under another name first, so that the agent never reads half a file.
fn leave_word(socket: &Path, attachment: &Attachment) -> io::Result<PathBuf> {
    let directory = socket.with_file_name("released");
    fs::create_dir_all(&directory)?;
    let file = directory.join(attachment.file_name());
    let unfinished = directory.join(format!(
        ".{}.{}",
        attachment.host_ifname(),
        std::process::id()
    ));
    fs::write(&unfinished, serde_json::to_vec(attachment)?)?;
    fs::rename(&unfinished, &file)?;
    Ok(file)
}

fn remove_host_end(attachment: &Attachment) -> Result<bool, Error> {
    let host = attachment.host_ifname();
    let deleted = opened(Netlink::open())?.delete_link(&host);
    deleted.map_err(|source| Error::Undo {
        undo: Undo::DeleteVeth { host },
        source,
    })
}

/// For a host's end that somebody renamed. An interface that is not ours, known by its MAC address, is left alone.
fn remove_pod_end(del: &Del) -> Result<(), Error> {
    let Some(path) = del.netns.as_ref().filter(|path| path.exists()) else {
        return Ok(());
    };
    let failed = |source| Error::Kernel {
        what: "delete the pod's interface",
        source,
    };
    let ifname = &del.attachment.ifname;
    let mut pod = opened(Netns::open(path)?.inside(Netlink::open)?)?;
    let link = pod.link(ifname).map_err(failed)?;
    if link.and_then(|link| link.mac) == Some(Mac::of(&del.attachment, End::Pod)) {
        pod.delete_link(ifname).map_err(failed)?;
    }
    Ok(())
}
