//! CORE: the runtime's variables and standard input become a [`Request`]; past this file nothing is "maybe valid".
//!
//! Contract: CNI 1.1.0, sections "Parameters" and "CNI Operations". Keys that we do not know are ignored, because
//! runtimes add their own.

use std::path::PathBuf;

use mesh_common::cni::{Attachment, PodRef};

use crate::command::{ARGS, CONTAINERID, Command, Env, IFNAME, NETNS, invalid};
use crate::config::{self, NetworkConfig};
use crate::error::Error;
use crate::result::{CniResult, Dns};
use crate::version::Version;

/// What the runtime asks, complete and valid.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Wire a container.
    Add(Add),
    /// Undo an ADD.
    Del(Del),
    /// Compare a container with what ADD left.
    Check(Check),
    /// Drop every attachment of the network but these.
    Gc {
        /// Socket of the agent.
        socket: PathBuf,
        /// `name` of the network configuration.
        network: String,
        /// `cni.dev/valid-attachments`.
        keep: Vec<Attachment>,
    },
    /// Can an ADD succeed now?
    Status {
        /// Socket of the agent.
        socket: PathBuf,
    },
    /// Which versions do we speak?
    Version {
        /// The version asked with, as it was written; any.
        asked: String,
    },
}

/// An ADD.
#[derive(Debug, PartialEq, Eq)]
pub struct Add {
    /// Version of the result.
    pub version: Version,
    /// Socket of the agent.
    pub socket: PathBuf,
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: Attachment,
    /// The pod, if the runtime names one completely.
    pub pod: Option<PodRef>,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `dns` of the network configuration, for the result.
    pub dns: Option<Dns>,
}

/// A DEL.
#[derive(Debug, PartialEq, Eq)]
pub struct Del {
    /// Socket of the agent.
    pub socket: PathBuf,
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: Attachment,
    /// `CNI_NETNS`, unless the namespace is gone.
    pub netns: Option<PathBuf>,
}

/// A CHECK.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Socket of the agent.
    pub socket: PathBuf,
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub attachment: Attachment,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `prevResult`: what the whole chain made of the container.
    pub previous: CniResult,
}

impl Request {
    /// Reads the request for `command` out of the runtime's variables and standard input.
    ///
    /// # Errors
    /// The variables are judged first (code 4), then the version (1), the JSON (6), and what it says (7).
    pub fn parse(command: Command, env: Env<'_>, stdin: &[u8]) -> Result<Self, Error> {
        command.require(env)?;
        match command {
            Command::Add => add(env, stdin).map(Self::Add),
            Command::Del => {
                let attachment = attachment(env)?;
                let config = NetworkConfig::parse(command, stdin)?;
                Ok(Self::Del(Del {
                    socket: config.socket,
                    attachment,
                    netns: env(NETNS).map(PathBuf::from),
                }))
            }
            Command::Check => {
                let attachment = attachment(env)?;
                let config = NetworkConfig::parse(command, stdin)?;
                Ok(Self::Check(Check {
                    previous: config.previous_result()?,
                    socket: config.socket,
                    attachment,
                    netns: env(NETNS).unwrap_or_default().into(),
                }))
            }
            Command::Gc => {
                let config = NetworkConfig::parse(command, stdin)?;
                Ok(Self::Gc {
                    network: config.network()?,
                    keep: config.valid_attachments()?,
                    socket: config.socket,
                })
            }
            Command::Status => {
                let socket = NetworkConfig::parse(command, stdin)?.socket;
                Ok(Self::Status { socket })
            }
            Command::Version => {
                let asked = config::asked_version(stdin)?;
                Ok(Self::Version { asked })
            }
        }
    }
}

fn add(env: Env<'_>, stdin: &[u8]) -> Result<Add, Error> {
    let attachment = attachment(env)?;
    let pod = pod(env)?;
    let config = NetworkConfig::parse(Command::Add, stdin)?;
    config.refuse_previous_result()?;
    Ok(Add {
        version: config.version,
        network: config.network()?,
        socket: config.socket,
        attachment,
        pod,
        netns: env(NETNS).unwrap_or_default().into(),
        dns: config.dns,
    })
}

/// The attachment; its names go into a file name and to the kernel, so both are checked here.
fn attachment(env: Env<'_>) -> Result<Attachment, Error> {
    let container = env(CONTAINERID).unwrap_or_default();
    let ifname = env(IFNAME).unwrap_or_default();
    if let Some(reason) = bad_container(&container) {
        return Err(invalid(CONTAINERID, container, reason));
    }
    if let Some(reason) = bad_ifname(&ifname) {
        return Err(invalid(IFNAME, ifname, reason));
    }
    Ok(Attachment { container, ifname })
}

fn bad_container(id: &str) -> Option<&'static str> {
    if !is_cni_name(id) {
        return Some("must start with a letter or digit and hold only those and `_`, `.`, `-`");
    }
    (id.len() > MAX_CONTAINERID).then_some("must have at most 230 bytes")
}

fn bad_ifname(name: &str) -> Option<&'static str> {
    if name.len() > MAX_IFNAME {
        return Some("must have at most 15 bytes");
    }
    if name == "." || name == ".." {
        return Some("must not be `.` or `..`");
    }
    name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        .then_some("must not contain `/`, `:` or white space")
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`, the specification's form of container ids and network names.
pub(crate) fn is_cni_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The pod in `CNI_ARGS`: podman names one without a namespace, which is none of ours.
fn pod(env: Env<'_>) -> Result<Option<PodRef>, Error> {
    let text = env(ARGS).unwrap_or_default();
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid(ARGS, text, "must be KEY=VALUE pairs between `;`"));
        };
        let value = Some(value.to_owned()).filter(|value| !value.is_empty());
        match key {
            "K8S_POD_NAMESPACE" => namespace = value,
            "K8S_POD_NAME" => name = value,
            "K8S_POD_UID" => uid = value,
            _ => {}
        }
    }
    Ok(namespace.zip(name).map(|(namespace, name)| PodRef {
        namespace,
        name,
        uid,
    }))
}

/// The kernel's `IFNAMSIZ`, less the final NUL.
const MAX_IFNAME: usize = 15;
/// What keeps [`Attachment::file_name`] below the kernel's `NAME_MAX`.
const MAX_CONTAINERID: usize = 230;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::command::PATH;

    const GOOD: [(&str, &str); 5] = [
        (CONTAINERID, "c1"),
        (NETNS, "/run/netns/x"),
        (IFNAME, "eth0"),
        (
            ARGS,
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=",
        ),
        (PATH, "/opt/cni/bin"),
    ];

    fn parse(command: Command, changes: &[(&str, &str)], config: &str) -> Result<Request, Error> {
        let env = |name: &str| {
            let all = GOOD.iter().chain(changes);
            let (_, value) = all.rev().find(|(key, _)| *key == name)?;
            Some((*value).to_owned())
        };
        Request::parse(command, &env, config.as_bytes())
    }

    fn config(changes: Value) -> String {
        let mut config = json!({"cniVersion": "1.1.0", "name": "mesh", "type": "mesh-cni"});
        let Value::Object(changes) = changes else {
            panic!("an object is needed");
        };
        config.as_object_mut().unwrap().extend(changes);
        config.to_string()
    }

    /// Checks the code, and that the message names `named`.
    fn fails(answer: Result<Request, Error>, code: u32, named: &str) {
        let error = answer.expect_err(named);
        let text = error.with_causes();
        assert_eq!(error.code(), code, "{text}");
        assert!(text.contains(named), "{named:?} is not in {text:?}");
        assert!(!error.remedy().is_empty());
    }

    #[test]
    fn an_add() {
        let Ok(Request::Add(add)) = parse(Command::Add, &[], &config(json!({}))) else {
            panic!("an ADD is needed");
        };
        assert_eq!(add.version, Version::V1_1_0);
        assert_eq!(add.socket, PathBuf::from("/run/mesh-cni/cni.sock"));
        assert_eq!(add.network, "mesh");
        assert_eq!(add.attachment.file_name(), "c1@eth0");
        let pod = add.pod.unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("ns", "web"));
        assert_eq!(pod.uid, None);
        assert_eq!(add.dns, None);
    }

    #[test]
    fn keys_of_runtimes_are_ignored() {
        for extra in [
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80}, {"HostPort": 81}]}}),
            json!({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": null}}),
            json!({"runtimeConfig": null, "capabilities": {"portMappings": true}, "args": 7}),
            json!({"prevResult": null, "dns": null, "socket": null}),
            json!({"ipam": {"type": "host-local"}, "ipMasq": true, "mtu": 512}),
        ] {
            parse(Command::Add, &[], &config(extra)).unwrap();
        }
    }

    #[test]
    fn podman_names_a_pod_without_a_namespace() {
        let args = [(ARGS, "IgnoreUnknown=1;K8S_POD_NAME=web;")];
        let Ok(Request::Add(add)) = parse(Command::Add, &args, &config(json!({}))) else {
            panic!("an ADD is needed");
        };
        assert_eq!(add.pod, None);
    }

    #[test]
    fn bad_variables() {
        let long = "c".repeat(231);
        for (name, value) in [
            (CONTAINERID, ""),
            (CONTAINERID, "-c"),
            (CONTAINERID, "a/b"),
            (CONTAINERID, "é"),
            (CONTAINERID, &long),
            (IFNAME, ""),
            (IFNAME, "sixteen-bytes-xx"),
            (IFNAME, ".."),
            (IFNAME, "a/b"),
            (IFNAME, "a:b"),
            (IFNAME, "a b"),
            (NETNS, ""),
            (ARGS, "K8S_POD_NAME"),
        ] {
            let answer = parse(Command::Add, &[(name, value)], &config(json!({})));
            fails(answer, 4, name);
        }
    }

    #[test]
    fn each_command_requires_its_own_variables() {
        let none = [(CONTAINERID, ""), (NETNS, ""), (IFNAME, ""), (PATH, "")];
        let full = config(json!({"prevResult": {}, "cni.dev/valid-attachments": []}));
        for (command, named) in [
            (Command::Add, "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
            (Command::Check, "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
            (Command::Del, "CNI_CONTAINERID, CNI_IFNAME"),
            (Command::Gc, "CNI_PATH"),
        ] {
            fails(parse(command, &none, &full), 4, named);
        }
        parse(Command::Status, &none, &full).unwrap();
        parse(Command::Version, &none, &full).unwrap();
        let env = |_: &str| Some("add".to_owned());
        assert_eq!(Command::read(&env).unwrap_err().code(), 4);
    }

    #[test]
    fn versions() {
        for asked in ["", "0.1.0", "0.2.0", "1.2.0", "one"] {
            let config = config(json!({"cniVersion": asked}));
            let answer = parse(Command::Add, &[], &config);
            let remedy = answer.as_ref().unwrap_err().remedy();
            assert!(remedy.contains("0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"));
            fails(answer, 1, "cniVersion");
            fails(parse(Command::Del, &[], &config), 1, "cniVersion");
        }
        fails(parse(Command::Add, &[], "{}"), 1, "cniVersion");
        for (command, too_old) in [
            (Command::Check, "0.3.1"),
            (Command::Gc, "1.0.0"),
            (Command::Status, "0.4.0"),
        ] {
            let answer = parse(command, &[], &config(json!({"cniVersion": too_old})));
            fails(
                answer,
                1,
                &format!("config version does not allow {command}"),
            );
        }
    }

    #[test]
    fn bad_json() {
        for text in ["", "{", "[]", "7", r#"{"cniVersion": 7}"#, "{} {}"] {
            for command in [Command::Add, Command::Del, Command::Status] {
                fails(parse(command, &[], text), 6, "network configuration");
            }
        }
        for (changes, path) in [
            (json!({"name": 7}), "at name"),
            (json!({"socket": []}), "at socket"),
            (
                json!({"dns": {"nameservers": ["a", 7]}}),
                "at dns.nameservers[1]",
            ),
        ] {
            fails(parse(Command::Add, &[], &config(changes)), 6, path);
        }
    }

    #[test]
    fn bad_values() {
        let long = format!("/{}", "s".repeat(107));
        for (changes, key) in [
            (json!({"name": null}), "name"),
            (json!({"name": "a b"}), "name"),
            (json!({"socket": "cni.sock"}), "socket"),
            (json!({"socket": long}), "socket"),
            (json!({"prevResult": {"cniVersion": "1.1.0"}}), "prevResult"),
        ] {
            fails(parse(Command::Add, &[], &config(changes)), 7, key);
        }
        // DEL asks for as little as it can.
        let bare = config(json!({"name": null, "prevResult": {"ips": 7}}));
        parse(Command::Del, &[(NETNS, "")], &bare).unwrap();
    }

    #[test]
    fn check_needs_the_previous_result() {
        fails(
            parse(Command::Check, &[], &config(json!({}))),
            7,
            "prevResult",
        );
        for (previous, path) in [
            (json!(7), "prevResult"),
            (
                json!({"ips": [{"address": "10.0.0.300/32"}]}),
                "prevResult.ips[0].address",
            ),
            (
                json!({"interfaces": [{"name": 7}]}),
                "prevResult.interfaces[0].name",
            ),
        ] {
            let config = config(json!({"prevResult": previous}));
            fails(parse(Command::Check, &[], &config), 6, path);
        }
        let nulls = json!({"interfaces": null, "ips": null, "routes": null, "dns": {}});
        parse(Command::Check, &[], &config(json!({"prevResult": nulls}))).unwrap();
    }

    #[test]
    fn gc_tells_none_from_missing() {
        fails(
            parse(Command::Gc, &[], &config(json!({}))),
            7,
            "cni.dev/valid-attachments",
        );
        let keep = |attachments: Value| {
            let config = config(json!({"cni.dev/valid-attachments": attachments}));
            match parse(Command::Gc, &[], &config) {
                Ok(Request::Gc { keep, .. }) => keep,
                other => panic!("not a GC: {other:?}"),
            }
        };
        assert_eq!(keep(json!(null)), []);
        assert_eq!(keep(json!([])), []);
        let one = keep(json!([{"containerID": "c1", "ifname": "eth0"}]));
        assert_eq!(one[0].file_name(), "c1@eth0");
        let bad = config(json!({"cni.dev/valid-attachments": [{"containerID": "c1"}]}));
        fails(
            parse(Command::Gc, &[], &bad),
            6,
            "cni.dev/valid-attachments[0]",
        );
    }

    #[test]
    fn version_echoes() {
        for (stdin, echo) in [
            ("", "1.1.0"),
            ("{}", "1.1.0"),
            (r#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
            (r#"{"cniVersion":"0.2.0"}"#, "0.2.0"),
        ] {
            let asked = echo.to_owned();
            let answer = parse(Command::Version, &[], stdin).unwrap();
            assert_eq!(answer, Request::Version { asked });
        }
    }
}
