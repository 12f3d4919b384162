//! CORE: the descriptive headers of a CONNECT: `baggage`, `forwarded`.
//!
//! They inform telemetry only. A peer can write anything into them, so no decision rests on them.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// What one end tells the other about its workload (W3C Baggage with Istio's keys). Absent members are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// `k8s.<kind>.name`: what kind of controller owns the workload, and its name.
    pub workload: Option<(WorkloadKind, String)>,
    /// `service.name`: the canonical service.
    pub service: Option<String>,
    /// `service.version`: the canonical revision.
    pub revision: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
}

/// The kinds of workload that baggage can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A Deployment.
    Deployment,
    /// A `CronJob`.
    CronJob,
    /// A Job.
    Job,
    /// A bare pod, or one of any other controller.
    Pod,
}

impl WorkloadKind {
    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Job => "k8s.job.name",
            Self::Pod => "k8s.pod.name",
        }
    }
}

impl Baggage {
    /// Reads a list of members: any order, unknown keys and malformed members skipped, the last of a key wins.
    ///
    /// Several header lines are one list; join them with commas (RFC 9110, 5.2).
    pub fn parse(list: &str) -> Self {
        let mut baggage = Self::default();
        for member in list.split(',') {
            // Properties after a semicolon are allowed and mean nothing here.
            let member = member.split(';').next().unwrap_or(member);
            if let Some((key, value)) = member.split_once('=') {
                baggage.set(key.trim(), value.trim());
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &str) {
        let Some(value) = decode(value).filter(|value| !value.is_empty()) else {
            return;
        };
        match key {
            "k8s.cluster.name" => self.cluster = Some(value),
            "k8s.namespace.name" => self.namespace = Some(value),
            "k8s.deployment.name" => self.workload = Some((WorkloadKind::Deployment, value)),
            "k8s.cronjob.name" => self.workload = Some((WorkloadKind::CronJob, value)),
            "k8s.job.name" => self.workload = Some((WorkloadKind::Job, value)),
            "k8s.pod.name" => self.workload = Some((WorkloadKind::Pod, value)),
            "service.name" => self.service = Some(value),
            "service.version" => self.revision = Some(value),
            "cloud.region" => self.region = Some(value),
            "cloud.availability_zone" => self.zone = Some(value),
            _ => {}
        }
    }

    /// The members that are there, in the order of the contract.
    fn members(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let workload = self
            .workload
            .as_ref()
            .map(|(kind, name)| (kind.key(), name));
        [
            self.cluster.as_ref().map(|v| ("k8s.cluster.name", v)),
            self.namespace.as_ref().map(|v| ("k8s.namespace.name", v)),
            workload,
            self.service.as_ref().map(|v| ("service.name", v)),
            self.revision.as_ref().map(|v| ("service.version", v)),
            self.region.as_ref().map(|v| ("cloud.region", v)),
            self.zone.as_ref().map(|v| ("cloud.availability_zone", v)),
        ]
        .into_iter()
        .flatten()
        .map(|(key, value)| (key, value.as_str()))
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (key, value)) in self.members().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{key}={}", encode(value))?;
        }
        Ok(())
    }
}

/// Percent-encodes whatever is no baggage-octet (W3C Baggage, 3.3.1).
fn encode(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\%".contains(&byte);
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    value
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// Undoes percent-encoding; none if what it stands for is not UTF-8.
fn decode(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).ok()
}

/// The client behind the tunnel (RFC 7239): `for="10.1.2.3:43210"`, and for service traffic `;host=<service>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The host name of the service the client asked for.
    pub host: Option<String>,
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

/// The text is no `forwarded` header with an address and port in `for`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("forwarded has no for=\"<ip>:<port>\" in its first element")]
pub struct NotForwarded;

impl FromStr for Forwarded {
    type Err = NotForwarded;

    fn from_str(text: &str) -> Result<Self, NotForwarded> {
        let (mut client, mut host) = (None, None);
        // The first element is the one next to the client; addresses and host names hold neither comma nor semicolon.
        for pair in text.split(',').next().unwrap_or(text).split(';') {
            let Some((name, value)) = pair.trim().split_once('=') else {
                continue;
            };
            let value = value.trim_matches('"');
            if name.eq_ignore_ascii_case("for") {
                client = value.parse().ok();
            } else if name.eq_ignore_ascii_case("host") && !value.is_empty() {
                host = Some(value.to_owned());
            }
        }
        let client = client.ok_or(NotForwarded)?;
        Ok(Self { client, host })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baggage_is_what_peers_write_and_back() {
        let text = "k8s.cluster.name=Kubernetes,k8s.namespace.name=bench,k8s.deployment.name=web,\
                    service.name=web,service.version=v1,cloud.region=eu,cloud.availability_zone=eu-1";
        let baggage = Baggage::parse(text);
        assert_eq!(
            baggage.workload,
            Some((WorkloadKind::Deployment, "web".into()))
        );
        assert_eq!(baggage.zone.as_deref(), Some("eu-1"));
        assert_eq!(baggage.to_string(), text);
    }

    #[test]
    fn baggage_skips_what_it_does_not_know() {
        let baggage = Baggage::parse(
            " service.name = a%20b ;p=1 , nonsense,x=y,k8s.pod.name=,cloud.region=r",
        );
        assert_eq!(baggage.service.as_deref(), Some("a b"));
        assert_eq!(baggage.workload, None);
        assert_eq!(baggage.to_string(), "service.name=a%20b,cloud.region=r");
        assert_eq!(Baggage::parse(""), Baggage::default());
        assert_eq!(
            Baggage::parse("service.name=%").service.as_deref(),
            Some("%")
        );
        assert_eq!(Baggage::parse("service.name=%ff").service, None);
    }

    #[test]
    fn forwarded() {
        let check = |text: &str, client: &str, host: Option<&str>| {
            let forwarded: Forwarded = text.parse().unwrap();
            assert_eq!(forwarded.client, client.parse().unwrap(), "{text}");
            assert_eq!(forwarded.host.as_deref(), host, "{text}");
        };
        check("for=\"10.71.1.2:39994\"", "10.71.1.2:39994", None);
        check(
            "for=\"10.1.2.3:1\";host=a.b.svc",
            "10.1.2.3:1",
            Some("a.b.svc"),
        );
        check(
            "For=\"[2001:db8::1]:47\" ; proto=http",
            "[2001:db8::1]:47",
            None,
        );
        check("for=10.1.2.3:1, for=9.9.9.9:2", "10.1.2.3:1", None);
        for bad in ["", "for=unknown", "for=\"_x\"", "host=a", "for=10.1.2.3"] {
            assert_eq!(bad.parse::<Forwarded>(), Err(NotForwarded), "{bad}");
        }
        let built = Forwarded {
            client: "[::1]:9".parse().unwrap(),
            host: Some("h".into()),
        };
        assert_eq!(built.to_string(), "for=\"[::1]:9\";host=h");
        assert_eq!(built.to_string().parse(), Ok(built));
    }
}
