//! CORE: the network configuration on standard input.
//!
//! Our own keys beside the specification's: `socket`, the path of the agent's socket.

use std::path::PathBuf;

use mesh_common::cni::Attachment;
use mesh_common::names;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::command::Command;
use crate::error::Error;
use crate::request::is_cni_name;
use crate::result::{CniResult, Dns};
use crate::version::Version;

/// What a command may need of the configuration; what only some commands need is checked when they ask.
#[derive(Debug)]
pub(crate) struct NetworkConfig {
    /// `cniVersion`.
    pub(crate) version: Version,
    /// `socket`.
    pub(crate) socket: PathBuf,
    /// `dns`.
    pub(crate) dns: Option<Dns>,
    name: Option<String>,
    previous: Option<Value>,
    valid_attachments: Option<Vec<ValidAttachment>>,
}

impl NetworkConfig {
    /// Decodes the configuration for a command, and makes sure that its version has the command.
    pub(crate) fn parse(command: Command, stdin: &[u8]) -> Result<Self, Error> {
        let asked = asked(stdin)?.unwrap_or_default();
        let version = Version::parse(&asked).ok_or(Error::UnsupportedVersion { asked })?;
        if version < command.since() {
            return Err(Error::CommandNotInVersion { command, version });
        }
        let raw: Raw = decode(stdin)?;
        let socket = raw.socket.unwrap_or_else(|| names::CNI_SOCKET.into());
        if !socket.is_absolute() || socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(BAD_SOCKET);
        }
        Ok(Self {
            version,
            socket,
            dns: raw.dns,
            name: raw.name,
            previous: raw.previous,
            valid_attachments: raw.valid_attachments,
        })
    }

    /// `name`.
    pub(crate) fn network(&self) -> Result<String, Error> {
        let name = self.name.clone().ok_or(MISSING_NAME)?;
        if is_cni_name(&name) {
            Ok(name)
        } else {
            Err(BAD_NAME)
        }
    }

    /// `cni.dev/valid-attachments`: `null` and `[]` both mean "none is valid", but a missing key does not.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        let listed = self.valid_attachments.as_ref().ok_or(MISSING_ATTACHMENTS)?;
        Ok(listed
            .iter()
            .map(|valid| Attachment {
                container: valid.container.clone(),
                ifname: valid.ifname.clone(),
            })
            .collect())
    }

    /// `prevResult`, which CHECK must have.
    pub(crate) fn previous_result(&self) -> Result<CniResult, Error> {
        let value = self.previous.as_ref().ok_or(MISSING_PREVIOUS)?;
        serde_path_to_error::deserialize(value).map_err(|error| Error::Decode {
            path: format!("prevResult.{}", error.path()),
            source: error.into_inner(),
        })
    }

    /// Refuses a `prevResult` on ADD: behind another plugin the interface would not be ours alone.
    pub(crate) fn refuse_previous_result(&self) -> Result<(), Error> {
        if self.previous.is_some() {
            return Err(UNEXPECTED_PREVIOUS);
        }
        Ok(())
    }
}

/// The version that VERSION echoes; its configuration may be empty.
pub(crate) fn asked_version(stdin: &[u8]) -> Result<String, Error> {
    let asked = if stdin.trim_ascii().is_empty() {
        None
    } else {
        asked(stdin)?
    };
    Ok(asked.unwrap_or_else(|| Version::NEWEST.as_str().to_owned()))
}

/// The `cniVersion`, if there is one and it can be read: an error is told in the version it was asked with.
pub(crate) fn readable_version(stdin: &[u8]) -> Option<String> {
    asked(stdin).ok().flatten()
}

#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "cniVersion")]
    cni_version: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    name: Option<String>,
    socket: Option<PathBuf>,
    dns: Option<Dns>,
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    #[serde(
        rename = "cni.dev/valid-attachments",
        default,
        deserialize_with = "null_is_empty"
    )]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// A Go runtime without attachments writes `null`, which must not look like a missing key.
fn null_is_empty<'de, D>(deserializer: D) -> Result<Option<Vec<ValidAttachment>>, D::Error>
where
    D: Deserializer<'de>,
{
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
}

fn asked(stdin: &[u8]) -> Result<Option<String>, Error> {
    Ok(decode::<Asked>(stdin)?.cni_version)
}

fn decode<T: DeserializeOwned>(stdin: &[u8]) -> Result<T, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(stdin);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let source = error.into_inner();
        Error::Decode { path, source }
    })?;
    deserializer.end().map_err(|source| Error::Decode {
        path: ".".to_owned(),
        source,
    })?;
    Ok(value)
}

/// The kernel's `sun_path`, less the final NUL.
const MAX_SOCKET_PATH: usize = 107;

const BAD_SOCKET: Error = Error::Config {
    key: "socket",
    reason: "must be an absolute path of at most 107 bytes",
    remedy: "set the path of the agent's socket, or leave the key out",
};
const MISSING_NAME: Error = Error::Config {
    key: "name",
    reason: "is missing",
    remedy: "name the network",
};
const BAD_NAME: Error = Error::Config {
    key: "name",
    reason: "must start with a letter or digit and hold only those and `_`, `.`, `-`",
    remedy: "rename the network",
};
const MISSING_ATTACHMENTS: Error = Error::Config {
    key: "cni.dev/valid-attachments",
    reason: "is missing",
    remedy: "list the attachments in use; an empty list releases all of the network",
};
const MISSING_PREVIOUS: Error = Error::Config {
    key: "prevResult",
    reason: "is missing",
    remedy: "the container runtime must pass the result of ADD to CHECK",
};
const UNEXPECTED_PREVIOUS: Error = Error::Config {
    key: "prevResult",
    reason: "another plugin stands in front of mesh-cni",
    remedy: "make mesh-cni the first plugin of the list",
};
