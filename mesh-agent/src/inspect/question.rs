//! What can be asked, and how it is written.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::model::Key;
use crate::policy::IpProtocol;

/// Namespace of a name that tells none.
const DEFAULT_NAMESPACE: &str = "default";

/// What would become of a connection?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Who opens it.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// To which port; none where it follows from the destination or the protocol has none.
    pub port: Option<u16>,
    /// What it speaks.
    pub protocol: Transport,
}

/// An end of a connection, as people name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Whoever has the address.
    Address(IpAddr),
}

/// An end and a port, as people write them: `shop/web:80`, `svc/shop/web:80`, `10.0.0.1:80`, `[fd00::1]:80`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The end.
    pub end: End,
    /// The port, if there is one.
    pub port: Option<u16>,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP, or `ICMPv6`.
    Icmp,
}

impl From<Transport> for IpProtocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
            Transport::Sctp => Self::Sctp,
            Transport::Icmp => Self::Icmp,
        }
    }
}

/// The text names no end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Not the name of anything.
    #[error(
        "{0:?} is none of namespace/pod, pod, svc/namespace/service, service.namespace and an address"
    )]
    End(String),
    /// The port is no number from 1 to 65535.
    #[error("{0:?} has a port that is not 1 to 65535")]
    Port(String),
}

impl FromStr for End {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let own = |it: &str| it.to_owned();
        let pod = |namespace, name| Self::Pod {
            namespace: own(namespace),
            name: own(name),
        };
        let service = |namespace, name| Self::Service {
            namespace: own(namespace),
            name: own(name),
        };
        let parts: Vec<_> = text.split('/').collect();
        let is_name = |it: &str| {
            let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
            !it.is_empty() && it.bytes().all(known)
        };
        if !parts.iter().all(|it| is_name(it)) {
            return Err(Unreadable::End(own(text)));
        }
        match parts[..] {
            ["svc", name] => Ok(service(DEFAULT_NAMESPACE, name)),
            ["svc", namespace, name] => Ok(service(namespace, name)),
            ["pod", namespace, name] | [namespace, name] => Ok(pod(namespace, name)),
            [host] => match host.split('.').collect::<Vec<_>>()[..] {
                [name] => Ok(pod(DEFAULT_NAMESPACE, name)),
                [name, namespace] | [name, namespace, "svc", ..] => Ok(service(namespace, name)),
                _ => Err(Unreadable::End(own(text))),
            },
            _ => Err(Unreadable::End(own(text))),
        }
    }
}

impl FromStr for Destination {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        let bracketed = text.strip_prefix('[').and_then(|it| it.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => {
                match port.strip_prefix(':') {
                    None if port.is_empty() => (host, None),
                    port => (host, Some(port.unwrap_or_default())),
                }
            }
            _ if text.parse::<IpAddr>().is_ok() => (text, None),
            _ => text
                .split_once(':')
                .map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let number = |port: &str| {
            let number = port.parse().ok().filter(|it| *it > 0);
            number.ok_or_else(|| Unreadable::Port(text.to_owned()))
        };
        Ok(Self {
            end: host.parse()?,
            port: port.map(number).transpose()?,
        })
    }
}

/// Why a question has no answer here; the asker's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Half a world would answer wrongly.
    #[error("the agent of node {0} has not read its source yet")]
    NotSynced(String),
    /// The source does not tell the pod.
    #[error("no pod {pod} is known to the agent of node {node}")]
    UnknownPod {
        /// The pod asked for.
        pod: Key,
        /// This node.
        node: String,
    },
    /// No pod has the address.
    #[error("no pod at {address} is known to the agent of node {node}")]
    UnknownAddress {
        /// The address asked for.
        address: IpAddr,
        /// This node.
        node: String,
    },
    /// The source does not tell the service.
    #[error("no service {service} is known to the agent of node {node}")]
    UnknownService {
        /// The service asked for.
        service: Key,
        /// This node.
        node: String,
    },
    /// The pod has ended, or was not given an address yet.
    #[error("pod {0} has no address")]
    NoAddress(Key),
    /// The service has no cluster address and no endpoint.
    #[error("service {0} has no cluster address and no endpoint")]
    NoEndpoint(Key),
    /// One end has IPv4 alone and the other IPv6.
    #[error("the ends have no address family in common")]
    NoCommonFamily,
    /// A service is not who opens a connection, or whom policies select.
    #[error("{0} is a service, where a pod is asked for")]
    NotAPod(Key),
    /// The protocol has ports, and which is meant does not follow from the destination.
    #[error("the destination needs a port{}", choices(.0))]
    NoPort(Vec<u16>),
    /// The protocol has no ports.
    #[error("ICMP has no ports, and the destination names one")]
    PortOfIcmp,
}

fn choices(ports: &[u16]) -> String {
    if ports.is_empty() {
        return String::new();
    }
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    format!("; it names {}", ports.join(", "))
}

impl Problem {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotSynced(_) => "wait a moment, and see the agent's log",
            Self::UnknownPod { .. } => {
                "check namespace and name (a name alone is of namespace default), and what `mesh-agent policies` tells to be left out"
            }
            Self::UnknownAddress { .. } => {
                "name the pod; those in their node's network have no address of their own"
            }
            Self::UnknownService { .. } => {
                "write it as svc/namespace/service or service.namespace; a pod with dots in its name as namespace/pod"
            }
            Self::NoAddress(_) => "wait until the pod runs, or ask for an address instead",
            Self::NoEndpoint(_) => "check the service's selector and that its pods are ready",
            Self::NoCommonFamily => "ask for an address of the other family",
            Self::NotAPod(_) => "write a pod as namespace/pod",
            Self::NoPort(_) => "append :PORT",
            Self::PortOfIcmp => "leave it out",
        }
    }
}
