//! CORE: the result of an ADD, in the form of each version, and the `prevResult` that CHECK gets back.
//!
//! Contract: CNI 1.1.0, section "Success", and the same of 0.3.1, 0.4.0 and 1.0.0.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use mesh_common::cni::{Attachment, Wiring};
use serde::{Deserialize, Serialize};

use crate::plan::{self, End, Mac};
use crate::version::Version;

/// A result; on the way in everything is optional, as other plugins may have had their hands on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CniResult {
    /// The version it is written for.
    pub cni_version: Option<String>,
    /// The interfaces: first the host's end of the veth, then the pod's.
    #[serde(deserialize_with = "null_is_empty")]
    pub interfaces: Vec<Interface>,
    /// The pod's addresses.
    #[serde(deserialize_with = "null_is_empty")]
    pub ips: Vec<Ip>,
    /// The pod's routes.
    #[serde(deserialize_with = "null_is_empty")]
    pub routes: Vec<Route>,
    /// The configuration's `dns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address, in colons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU in bytes, from 1.1.0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `CNI_NETNS`, or empty on the host.
    pub sandbox: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// "4" or "6", before 1.0.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Index into the interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address with its prefix.
    pub address: IpNet,
    /// The next hop of the default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its destination.
    pub dst: IpNet,
    /// Its next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// Name servers, which we only pass through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers, by preference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nameservers: Option<Vec<String>>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains, by preference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Vec<String>>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Vec<String>>,
}

impl CniResult {
    /// The result of an ADD that wired `attachment` as `wiring` says.
    pub fn of_add(
        version: Version,
        attachment: &Attachment,
        netns: &Path,
        wiring: &Wiring,
        dns: Option<Dns>,
    ) -> Self {
        let interface = |name: String, end, sandbox| Interface {
            name,
            mac: Some(Mac::of(attachment, end).to_string()),
            mtu: (version >= Version::V1_1_0).then_some(wiring.mtu),
            sandbox,
        };
        let sandbox = netns.to_string_lossy().into_owned();
        let addresses = || wiring.addresses.iter().copied();
        Self {
            cni_version: Some(version.as_str().to_owned()),
            interfaces: vec![
                interface(attachment.host_ifname(), End::Host, String::new()),
                interface(attachment.ifname.clone(), End::Pod, sandbox),
            ],
            ips: addresses().map(|address| ip(version, address)).collect(),
            routes: addresses().map(default_route).collect(),
            dns,
        }
    }
}

fn ip(version: Version, address: IpAddr) -> Ip {
    let family = if address.is_ipv4() { "4" } else { "6" };
    Ip {
        version: (version < Version::V1_0_0).then(|| family.to_owned()),
        interface: Some(POD_INTERFACE),
        address: address.into(),
        gateway: Some(plan::gateway(address)),
    }
}

fn default_route(address: IpAddr) -> Route {
    Route {
        dst: plan::default_destination(address),
        gw: Some(plan::gateway(address)),
    }
}

/// Go marshals an empty list as `null`.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Index of the pod's end among the interfaces.
const POD_INTERFACE: usize = 1;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn result(version: Version, addresses: &[&str], dns: Option<Dns>) -> Value {
        let attachment = Attachment {
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let wiring = Wiring {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mtu: 1400,
        };
        let netns = Path::new("/run/netns/x");
        let result = CniResult::of_add(version, &attachment, netns, &wiring, dns);
        serde_json::to_value(result).unwrap()
    }

    /// The dual-stack result, with the extras that depend on the version.
    fn expected(version: &str, mtu: Value, families: [Value; 2]) -> Value {
        let attachment = Attachment {
            container: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let mut host = json!({
            "name": attachment.host_ifname(),
            "mac": Mac::of(&attachment, End::Host).to_string(),
            "sandbox": "",
        });
        let mut pod = json!({
            "name": "eth0",
            "mac": Mac::of(&attachment, End::Pod).to_string(),
            "sandbox": "/run/netns/x",
        });
        let mut v4 = json!({"interface": 1, "address": "10.0.0.9/32", "gateway": "169.254.1.1"});
        let mut v6 = json!({"interface": 1, "address": "fd00::9/128", "gateway": "fe80::1"});
        if mtu != Value::Null {
            host["mtu"] = mtu.clone();
            pod["mtu"] = mtu;
        }
        let [four, six] = families;
        if four != Value::Null {
            v4["version"] = four;
            v6["version"] = six;
        }
        json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": [v4, v6],
            "routes": [
                {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
                {"dst": "::/0", "gw": "fe80::1"},
            ],
        })
    }

    #[test]
    fn every_version_in_its_form() {
        let none = || [Value::Null, Value::Null];
        let both = || [json!("4"), json!("6")];
        for (version, mtu, families) in [
            (Version::V0_3_0, Value::Null, both()),
            (Version::V0_3_1, Value::Null, both()),
            (Version::V0_4_0, Value::Null, both()),
            (Version::V1_0_0, Value::Null, none()),
            (Version::V1_1_0, json!(1400), none()),
        ] {
            assert_eq!(
                result(version, &["10.0.0.9", "fd00::9"], None),
                expected(version.as_str(), mtu, families),
            );
        }
    }

    #[test]
    fn one_family_has_one_route() {
        let only = result(Version::V1_0_0, &["fd00::9"], None);
        assert_eq!(only["routes"], json!([{"dst": "::/0", "gw": "fe80::1"}]));
        assert_eq!(only["ips"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn dns_passes_through() {
        let given = json!({"nameservers": ["10.0.0.10"], "search": []});
        let dns = serde_json::from_value(given.clone()).unwrap();
        let with = result(Version::V1_1_0, &["10.0.0.9"], Some(dns));
        assert_eq!(with["dns"], given);
        assert_eq!(
            result(Version::V1_1_0, &["10.0.0.9"], None).get("dns"),
            None
        );
    }

    #[test]
    fn a_result_reads_back() {
        for version in Version::ALL {
            let written = result(version, &["10.0.0.9", "fd00::9"], None);
            let read: CniResult = serde_json::from_value(written.clone()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), written);
        }
    }
}
