//! CORE: `CNI_COMMAND`, and which variables and which version each command needs.

use std::fmt;

use crate::error::Error;
use crate::version::Version;

/// Reads a variable by its name.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Wire a container.
    Add,
    /// Undo an ADD.
    Del,
    /// Is the container wired as ADD left it?
    Check,
    /// Drop what no attachment names.
    Gc,
    /// Can an ADD succeed now?
    Status,
    /// Which versions do we speak?
    Version,
}

impl Command {
    const ALL: [Self; 6] = [
        Self::Add,
        Self::Del,
        Self::Check,
        Self::Gc,
        Self::Status,
        Self::Version,
    ];

    /// Reads `CNI_COMMAND`, which tells whether standard input matters at all.
    pub fn read(env: Env<'_>) -> Result<Self, Error> {
        let value = env(COMMAND).unwrap_or_default();
        let named = |command: &Self| command.as_str() == value;
        let reason = "must be ADD, DEL, CHECK, GC, STATUS or VERSION";
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| invalid(COMMAND, value, reason))
    }

    /// Makes sure that every variable of the command is set and not empty.
    pub(crate) fn require(self, env: Env<'_>) -> Result<(), Error> {
        let missing = |name: &&&str| env(name).is_none_or(|value| value.is_empty());
        let names: Vec<_> = self.required().iter().filter(missing).copied().collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(Error::MissingEnv {
            command: self,
            names,
        })
    }

    /// The version of the specification that brought the command; nothing below 0.3.0 is spoken.
    pub const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_3_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    const fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &[CONTAINERID, NETNS, IFNAME],
            Self::Del => &[CONTAINERID, IFNAME],
            Self::Gc => &[PATH],
            Self::Status | Self::Version => &[],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error about a variable.
pub(crate) fn invalid(name: &'static str, value: String, reason: &'static str) -> Error {
    Error::InvalidEnv {
        name,
        value,
        reason,
    }
}

const COMMAND: &str = "CNI_COMMAND";
pub(crate) const CONTAINERID: &str = "CNI_CONTAINERID";
pub(crate) const NETNS: &str = "CNI_NETNS";
pub(crate) const IFNAME: &str = "CNI_IFNAME";
pub(crate) const ARGS: &str = "CNI_ARGS";
pub(crate) const PATH: &str = "CNI_PATH";
