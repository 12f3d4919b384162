//! CORE: what can go wrong, and the CNI error that tells of it.
//!
//! Error codes of the specification are chosen here and nowhere else (CNI 1.1.0, "Error"): 1 to 99 are the
//! specification's, 100 and above our own.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use mesh_common::cni::{Reason, Refusal};
use serde::Serialize;

use crate::command::Command;
use crate::plan::{Step, Undo};
use crate::version::{self, Version};

/// Our own code: the kernel or the agent did what the contract does not foresee.
const OWN_FAILURE: u32 = 100;
/// Our own code: the interface exists already.
const OWN_EXISTS: u32 = 101;
/// Our own code: CHECK found a difference.
const OWN_DIFFERS: u32 = 102;

/// Every way in which a command fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime left out variables that the command needs.
    #[error("{} not set, which {command} needs", names.join(", "))]
    MissingEnv {
        /// The command.
        command: Command,
        /// The variables.
        names: Vec<&'static str>,
    },
    /// A variable of the runtime has a value that nothing can be done with.
    #[error("{name}={value:?}: {reason}")]
    InvalidEnv {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration is written for a version that we do not speak.
    #[error("cniVersion {asked:?} is not supported")]
    UnsupportedVersion {
        /// The version asked for.
        asked: String,
    },
    /// The command came with a later version of the specification than the configuration is of.
    #[error("config version does not allow {command}")]
    CommandNotInVersion {
        /// The command.
        command: Command,
        /// The version of the configuration.
        version: Version,
    },
    /// Standard input could not be read.
    #[error("standard input cannot be read")]
    ReadConfig(#[source] io::Error),
    /// Standard input is not the JSON that we expect.
    #[error("the network configuration cannot be decoded at {path}")]
    Decode {
        /// Where, as a path of keys and indices.
        path: String,
        /// What the decoder found.
        #[source]
        source: serde_json::Error,
    },
    /// A key of the network configuration is missing or not acceptable.
    #[error("{key} of the network configuration: {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// `CNI_NETNS` cannot be used.
    #[error("CNI_NETNS {} is not a network namespace that can be entered", path.display())]
    Netns {
        /// Its value.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `CNI_NETNS` is the namespace that we run in.
    #[error("CNI_NETNS {} is the plugin's own network namespace", path.display())]
    OwnNetns {
        /// Its value.
        path: PathBuf,
    },
    /// Nothing takes a connection where the agent should be.
    #[error("the agent at {} cannot be reached", socket.display())]
    AgentUnreachable {
        /// The command.
        command: Command,
        /// Where it should be.
        socket: PathBuf,
        /// The failed call.
        #[source]
        source: io::Error,
    },
    /// The agent took the connection and closed it, or let the deadline pass.
    #[error("the agent at {} does not answer", socket.display())]
    AgentSilent {
        /// The command.
        command: Command,
        /// Where it is.
        socket: PathBuf,
        /// The failed call.
        #[source]
        source: io::Error,
    },
    /// The agent answered something that does not belong to the protocol.
    #[error("the agent at {} {what}", socket.display())]
    AgentAnswer {
        /// Where it is.
        socket: PathBuf,
        /// What is wrong with the answer.
        what: String,
    },
    /// The agent refused.
    #[error("{}", refusal.message)]
    Refused {
        /// The command.
        command: Command,
        /// Its words.
        refusal: Refusal,
    },
    /// `CNI_IFNAME` is taken.
    #[error("CNI_IFNAME {ifname}: an interface of that name exists already in {}", netns.display())]
    InterfaceExists {
        /// The name.
        ifname: String,
        /// The namespace.
        netns: PathBuf,
    },
    /// The agent gave an IPv6 address, and the pod's namespace has no IPv6.
    #[error("an IPv6 address is reserved, but {what}")]
    NoIpv6 {
        /// What stands in the way.
        what: &'static str,
    },
    /// The kernel refused a step of the wiring.
    #[error("cannot {step}")]
    Step {
        /// The step.
        step: Step,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to take a step back.
    #[error("cannot {undo}")]
    Undo {
        /// The step back.
        undo: Undo,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to tell something.
    #[error("cannot {what}")]
    Kernel {
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// CHECK: the interface is not as ADD left it.
    #[error("{subject}: expected {expected}, found {found}")]
    Differs {
        /// What was compared.
        subject: String,
        /// What ADD made of it.
        expected: String,
        /// What it is now.
        found: String,
    },
}

impl Error {
    /// The CNI error code.
    pub fn code(&self) -> u32 {
        match self {
            Self::UnsupportedVersion { .. } | Self::CommandNotInVersion { .. } => 1,
            Self::MissingEnv { .. } | Self::InvalidEnv { .. } | Self::Netns { .. } => 4,
            Self::ReadConfig(_) => 5,
            Self::Decode { .. } => 6,
            Self::Config { .. } => 7,
            Self::OwnNetns { .. } => 8,
            Self::AgentUnreachable { command, .. } | Self::AgentSilent { command, .. } => {
                unavailable_code(*command)
            }
            Self::Refused { command, refusal } => refusal_code(*command, refusal.reason),
            Self::AgentAnswer { .. }
            | Self::NoIpv6 { .. }
            | Self::Step { .. }
            | Self::Undo { .. }
            | Self::Kernel { .. } => OWN_FAILURE,
            Self::InterfaceExists { .. } => OWN_EXISTS,
            Self::Differs { .. } => OWN_DIFFERS,
        }
    }

    /// What to do about it, for the `details` of the CNI error.
    pub fn remedy(&self) -> String {
        match self {
            Self::MissingEnv { .. } => "the container runtime must set them".to_owned(),
            Self::InvalidEnv { .. } => "the container runtime must set it as the CNI \
                 specification says, section \"Parameters\""
                .to_owned(),
            Self::UnsupportedVersion { .. } => {
                format!("set cniVersion to one of {}", version::supported_list())
            }
            Self::CommandNotInVersion { command, version } => format!(
                "{command} came with version {} of the specification, and cniVersion is {version}",
                command.since()
            ),
            Self::ReadConfig(_) => {
                "the container runtime must write the network configuration to it".to_owned()
            }
            Self::Decode { .. } => "correct the network configuration".to_owned(),
            Self::Config { remedy, .. } => (*remedy).to_owned(),
            Self::Netns { .. } => {
                "the container runtime must make the network namespace before ADD, and run the \
                 plugin with CAP_SYS_ADMIN"
                    .to_owned()
            }
            Self::OwnNetns { .. } => "pods of the host network need no CNI plugin".to_owned(),
            Self::AgentUnreachable { .. } | Self::AgentSilent { .. } => {
                "see that the mesh agent runs on this node, and that `socket` names its socket; \
                 then try again"
                    .to_owned()
            }
            Self::AgentAnswer { .. } => {
                "install the mesh-cni binary and the agent from the same release".to_owned()
            }
            Self::Refused { refusal, .. } => refusal.remedy.clone(),
            Self::InterfaceExists { .. } => {
                "DEL the attachment first, or put no other plugin in front of mesh-cni".to_owned()
            }
            Self::NoIpv6 { .. } => {
                "enable IPv6 for pods, or give the node no IPv6 pod CIDR".to_owned()
            }
            Self::Step { source, .. } | Self::Undo { source, .. } | Self::Kernel { source, .. } => {
                errno_remedy(source).to_owned()
            }
            Self::Differs { .. } => "delete the pod, so that it is wired anew".to_owned(),
        }
    }

    /// The JSON document for standard output; `version` is the one asked for, where it could be read.
    pub fn to_json(&self, version: Option<&str>) -> String {
        let newest = Version::NEWEST.as_str();
        crate::to_json(&Document {
            cni_version: version.unwrap_or(newest),
            code: self.code(),
            msg: self.with_causes(),
            details: self.remedy(),
        })
    }

    /// The message with what caused it, in one line.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(rename = "cniVersion")]
    cni_version: &'a str,
    code: u32,
    msg: String,
    details: String,
}

fn refusal_code(command: Command, reason: Reason) -> u32 {
    match reason {
        Reason::Version | Reason::Kernel => OWN_FAILURE,
        Reason::Invalid => 7,
        Reason::Unknown => 3,
        Reason::TryAgain | Reason::Unavailable => unavailable_code(command),
    }
}

/// "Try again later", which STATUS says in a way of its own.
fn unavailable_code(command: Command) -> u32 {
    match command {
        Command::Status => 50,
        Command::Add | Command::Del | Command::Check | Command::Gc | Command::Version => 11,
    }
}

fn errno_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run the plugin as root, with CAP_NET_ADMIN",
        io::ErrorKind::Unsupported => {
            "use a kernel with veth (CONFIG_VETH) and, for IPv6 addresses, IPv6"
        }
        io::ErrorKind::AlreadyExists => {
            "another interface of the node holds it: see `ip route` and `ip neigh`"
        }
        _ => "nothing is left behind; see the kernel's log, and try again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(command: Command, reason: Reason) -> Error {
        let refusal = Refusal {
            reason,
            message: "no address is left".to_owned(),
            remedy: "delete pods".to_owned(),
        };
        Error::Refused { command, refusal }
    }

    #[test]
    fn refusals_have_the_codes_of_their_reasons() {
        for (command, reason, code) in [
            (Command::Add, Reason::Version, 100),
            (Command::Add, Reason::Invalid, 7),
            (Command::Check, Reason::Unknown, 3),
            (Command::Add, Reason::TryAgain, 11),
            (Command::Add, Reason::Unavailable, 11),
            (Command::Gc, Reason::Kernel, 100),
            (Command::Status, Reason::TryAgain, 50),
            (Command::Status, Reason::Unavailable, 50),
        ] {
            assert_eq!(
                refused(command, reason).code(),
                code,
                "{command} {reason:?}"
            );
        }
    }

    #[test]
    fn the_document_has_the_four_keys() {
        assert_eq!(
            refused(Command::Add, Reason::Unavailable).to_json(Some("0.4.0")),
            r#"{"cniVersion":"0.4.0","code":11,"msg":"no address is left","details":"delete pods"}"#
        );
        let unknown = refused(Command::Add, Reason::Invalid).to_json(None);
        assert!(unknown.starts_with(r#"{"cniVersion":"1.1.0","code":7,"#));
    }

    #[test]
    fn the_message_names_the_cause() {
        let error = Error::Step {
            step: Step::PodRoute([10, 0, 0, 1].into()),
            source: io::Error::from_raw_os_error(17),
        };
        assert_eq!(
            error.with_causes(),
            "cannot add the route to 10.0.0.1 to the host: File exists (os error 17)"
        );
        assert!(error.remedy().contains("ip route"));
    }
}
