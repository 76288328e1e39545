//! `Endpoint`: where one server is, and how to introduce oneself there.
//!
//! Invariant: nothing here prints a password. An endpoint that was parsed can be dialled: what is
//! wrong with a URL is said before a client exists, and without repeating the URL.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use redis::{ConnectionAddr, IntoConnectionInfo as _};

use crate::error::{Error, ErrorKind, Result};

/// One server, as a client is told of it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    pub(crate) db: i64,
    pub(crate) login: Option<Credentials>,
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A user of the server, and the proof of it.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: String,
}

impl Endpoint {
    /// Parses `redis://[user[:password]@]host[:port][/db]` or `unix:///path[?db=n&user=..&pass=..]`.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        if url.starts_with("rediss://") || url.starts_with("valkeys://") {
            return Err(invalid("TLS is not built in; use redis:// or unix://"));
        }
        let info = url.into_connection_info().map_err(|_| not_understood())?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(not_understood()),
        };
        let settings = info.redis_settings();
        Ok(Self {
            address,
            db: settings.db(),
            login: settings.password().map(|password| Credentials {
                user: settings.username().map(str::to_owned),
                password: password.to_owned(),
            }),
        })
    }

    /// Whether what is sent there leaves the machine, and nothing hides it.
    pub(crate) fn is_readable_on_the_way(&self) -> bool {
        match &self.address {
            Address::Unix(_) => false,
            Address::Tcp(host, _) => match host.parse::<IpAddr>() {
                Ok(address) => !address.is_loopback(),
                Err(_) => host != "localhost",
            },
        }
    }

    /// Another server of the same installation: reached and logged into in the same way.
    pub(crate) fn at(&self, address: Address) -> Self {
        Self {
            address,
            ..self.clone()
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .field("db", &self.db)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// The URL itself is not repeated: it may hold a password.
fn not_understood() -> Error {
    invalid(
        "the URL is not understood; use redis://[user[:password]@]host[:port][/db] or unix:///path",
    )
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_the_machine_is_read_by_nobody() {
        for (url, readable) in [
            ("unix:///run/redis", false),
            ("redis://127.0.0.1", false),
            ("redis://127.9.9.9:7000", false),
            ("redis://[::1]:7000", false),
            ("redis://localhost", false),
            ("redis://10.0.0.1", true),
            ("redis://[2001:db8::1]", true),
            ("redis://localhost.example", true),
        ] {
            let endpoint = Endpoint::parse(url).expect("a good URL");
            assert_eq!(endpoint.is_readable_on_the_way(), readable, "{url}");
        }
    }
}
