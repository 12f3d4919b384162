//! Fields that objects of several kinds have.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::model::{Key, Protocol};

/// A field has the right shape and a value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value:?}; write {expected}")]
pub struct Invalid {
    /// Path of the field.
    pub field: String,
    /// What it holds.
    pub value: String,
    /// What it should hold.
    pub expected: &'static str,
}

pub(super) const ADDRESS: &str = "an IP address such as 10.1.2.3 or fd00::7";
pub(super) const CIDR: &str = "an IP prefix such as 10.1.2.0/24 or fd00:1::/64";
pub(super) const PORT: &str = "a port from 1 to 65535";

/// The name of an object without namespace.
pub(super) fn name(meta: &ObjectMeta) -> Result<Arc<str>, Invalid> {
    match meta.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(name.into()),
        _ => Err(Invalid {
            field: "metadata.name".to_owned(),
            value: String::new(),
            expected: "the name of the object",
        }),
    }
}

/// The name of an object in a namespace, `default` when it tells none.
pub(super) fn key(meta: &ObjectMeta) -> Result<Key, Invalid> {
    let namespace = meta.namespace.as_deref().filter(|it| !it.is_empty());
    Ok(Key::new(namespace.unwrap_or("default"), name(meta)?))
}

/// Seconds since 1970; 0 when not told.
pub(super) fn created(time: Option<&Time>) -> i64 {
    time.map_or(0, |it| it.0.as_second())
}

pub(super) fn parse<T: FromStr>(
    field: &str,
    text: &str,
    expected: &'static str,
) -> Result<T, Invalid> {
    text.parse().map_err(|_| Invalid {
        field: field.to_owned(),
        value: text.to_owned(),
        expected,
    })
}

/// Parses a list; the error names the element.
pub(super) fn parse_all<'a, T: FromStr>(
    field: &str,
    texts: impl Iterator<Item = &'a String>,
    expected: &'static str,
) -> Result<Vec<T>, Invalid> {
    texts
        .enumerate()
        .map(|(i, text)| {
            text.parse().map_err(|_| Invalid {
                field: format!("{field}[{i}]"),
                value: text.clone(),
                expected,
            })
        })
        .collect()
}

/// A prefix without host bits; packets never carry IPv4 addresses in their IPv6 form, so neither may prefixes.
pub(super) fn not_mapped(field: &str, text: &str, prefix: IpNet) -> Result<IpNet, Invalid> {
    match prefix.addr() {
        IpAddr::V6(it) if it.to_ipv4_mapped().is_some() => Err(Invalid {
            field: field.to_owned(),
            value: text.to_owned(),
            expected: "an IPv4 prefix or address in its own form, such as 10.1.2.0/24",
        }),
        _ => Ok(prefix.trunc()),
    }
}

pub(super) fn port(field: impl FnOnce() -> String, number: i32) -> Result<u16, Invalid> {
    let port = u16::try_from(number).ok().filter(|it| *it != 0);
    port.ok_or_else(|| Invalid {
        field: field(),
        value: number.to_string(),
        expected: PORT,
    })
}

pub(super) fn protocol(
    field: impl FnOnce() -> String,
    name: Option<&str>,
) -> Result<Protocol, Invalid> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(Invalid {
            field: field(),
            value: other.to_owned(),
            expected: "TCP, UDP or SCTP",
        }),
    }
}
