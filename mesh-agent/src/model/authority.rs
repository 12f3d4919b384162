//! What a CONNECT request asks for.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Where a CONNECT wants to go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `10.1.2.3:80` or `[2001:db8::1]:80`.
    Address(SocketAddr),
    /// `<host name>:<port>`; the name in lower case, of letters, digits, `-`, `_` and dots.
    Host {
        /// The name, usually a service's.
        name: String,
        /// The service's port.
        port: u16,
    },
}

/// What is wrong with an authority; the peer's fault, answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// There is no `:port`.
    #[error("authority {0:?} has no port: expected <ip or host>:<port>")]
    NoPort(String),
    /// The port is no number from 1 to 65535.
    #[error("authority {0:?} has a port that is not 1 to 65535")]
    Port(String),
    /// The brackets do not hold an IPv6 address.
    #[error("authority {0:?} has no IPv6 address between its brackets")]
    Brackets(String),
    /// The host is neither an IPv4 address nor a host name.
    #[error("authority {0:?} has a host that is neither an address nor a host name")]
    Host(String),
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text
            .rsplit_once(':')
            .filter(|(_, port)| !port.ends_with(']'))
            .ok_or_else(|| AuthorityError::NoPort(text.to_owned()))?;
        let port = Some(port)
            .filter(|port| port.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|port| port.parse::<u16>().ok())
            .filter(|port| *port > 0)
            .ok_or_else(|| AuthorityError::Port(text.to_owned()))?;
        if let Some(inner) = host.strip_prefix('[') {
            return inner
                .strip_suffix(']')
                .and_then(|inner| inner.parse().ok())
                .map(|ip| Self::Address(SocketAddr::new(IpAddr::V6(ip), port)))
                .ok_or_else(|| AuthorityError::Brackets(text.to_owned()));
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        if is_host_name(host) {
            let name = host.to_ascii_lowercase();
            return Ok(Self::Host { name, port });
        }
        Err(AuthorityError::Host(text.to_owned()))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// RFC 1123 names with underscores, as DNS has them in practice; a name of digits alone is a broken address.
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253 && host.split('.').all(label) && host.bytes().any(|b| b.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        let check = |text: &str| {
            let parsed: Authority = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
            parsed
        };
        assert!(matches!(check("10.71.2.12:7000"), Authority::Address(a) if a.port() == 7000));
        assert!(matches!(check("[2001:db8::1]:1"), Authority::Address(a) if a.is_ipv6()));
        assert!(matches!(
            check("web.default.svc.cluster.local:80"),
            Authority::Host { .. }
        ));
        assert!(matches!(check("_a-b:65535"), Authority::Host { .. }));
        let upper: Authority = "Web:80".parse().unwrap();
        assert_eq!(upper.to_string(), "web:80");
    }

    #[test]
    fn broken_authorities() {
        let long = format!("{}:1", "a".repeat(64));
        for (text, expect) in [
            ("", AuthorityError::NoPort as fn(String) -> AuthorityError),
            ("10.1.2.3", AuthorityError::NoPort),
            ("[::1]", AuthorityError::NoPort),
            ("a:", AuthorityError::Port),
            ("a:0", AuthorityError::Port),
            ("a:65536", AuthorityError::Port),
            ("a:+1", AuthorityError::Port),
            ("[::1:80", AuthorityError::Brackets),
            ("[10.1.2.3]:80", AuthorityError::Brackets),
            ("[fe80::1%eth0]:80", AuthorityError::Brackets),
            ("::1:80", AuthorityError::Host),
            ("user@host:80", AuthorityError::Host),
            ("10.1.2:80", AuthorityError::Host),
            ("a..b:80", AuthorityError::Host),
            ("a b:80", AuthorityError::Host),
            (":80", AuthorityError::Host),
            (long.as_str(), AuthorityError::Host),
        ] {
            assert_eq!(text.parse::<Authority>(), Err(expect(text.to_owned())));
        }
    }
}
