//! Where a server listens, as flags tell it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// Where a server listens, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

/// The text is neither an address with a port, nor `off`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is something else.
    #[error("{0:?} is neither ADDRESS:PORT, such as [::]:15020, nor off")]
    Address(String),
    /// Others than processes of the node could reach it.
    #[error("{0} is no loopback address; name one, such as 127.0.0.1:15000, or off")]
    NotLoopback(SocketAddr),
}

impl Address {
    /// Reads an address that only processes of the node can reach.
    ///
    /// # Errors
    /// The text is none.
    pub fn loopback(text: &str) -> Result<Self, Unreadable> {
        match text.parse()? {
            Self::At(address) if !address.ip().is_loopback() => {
                Err(Unreadable::NotLoopback(address))
            }
            read => Ok(read),
        }
    }
}

impl FromStr for Address {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Self, Unreadable> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text.parse().map(Self::At);
        address.map_err(|_| Unreadable::Address(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_is_not() {
        assert_eq!("off".parse(), Ok(Address::Off));
        let any = Address::At("[::]:15020".parse().unwrap());
        assert_eq!("[::]:15020".parse(), Ok(any));
        for text in ["", "15020", ":15020", "localhost:15020"] {
            let told = text.parse::<Address>().unwrap_err().to_string();
            assert!(told.contains("nor off"), "{told}");
        }
    }

    #[test]
    fn only_loopback_will_do_for_what_is_the_operators() {
        for text in ["off", "127.0.0.1:15000", "[::1]:15000", "127.8.0.1:1"] {
            assert!(Address::loopback(text).is_ok(), "{text}");
        }
        for text in ["0.0.0.0:15000", "[::]:15000", "10.0.0.1:15000"] {
            let told = Address::loopback(text).unwrap_err().to_string();
            assert!(told.contains("no loopback address"), "{told}");
        }
    }
}
