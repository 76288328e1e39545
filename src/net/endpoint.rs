//! `Endpoint`: where one server is, and the credentials and encryption to use there.
//!
//! Invariant: nothing here prints a password. An endpoint that was parsed can be dialled: a bad URL
//! is reported before a client exists, and the error does not repeat the URL.
//!
//! `ClientBuilder` parses the URLs; [`dial`](super::connection::dial) connects.

use std::fmt;
use std::net::IpAddr;
#[cfg(feature = "tls")]
use std::sync::{Arc, OnceLock};

use redis::{ConnectionAddr, IntoConnectionInfo as _};

use super::address::Address;
use super::address_map::Addresses;
use super::credentials::Login;
#[cfg(feature = "tls")]
use super::tls::{Channel, Tls};
use super::url::{Encryption, Url, not_understood};
use crate::error::{Error, Result};

/// One server: its address, and how to connect and log in.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: Address,
    pub(crate) db: i64,
    pub(crate) login: Option<Login>,
    /// How the connection is encrypted, if it is.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Channel>,
}

/// How the caller wants servers to be reached, apart from their URLs.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// Replaces the credentials in URLs.
    pub(crate) login: Option<Login>,
    /// Maps the addresses that servers announce.
    pub(crate) addresses: Addresses,
    /// TLS for all servers. If it is set, every URL must ask for TLS.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Channel>,
    /// TLS with default settings, for URLs that ask for TLS while `tls` is not set. The first such
    /// URL makes it.
    // Made once, because it loads the trusted roots of the system.
    #[cfg(feature = "tls")]
    usual: Arc<OnceLock<Channel>>,
}

impl Endpoint {
    /// Parses a URL; see [`Url`].
    pub(crate) fn parse(url: &str, approach: &Access) -> Result<Self> {
        let url = Url::parse(url)?;
        let asks_for_tls = url.encryption == Encryption::Tls;
        // Checked first, so that this error comes before any about the rest of the URL.
        #[cfg(not(feature = "tls"))]
        if asks_for_tls {
            return Err(Error::invalid(
                "TLS is not built in; enable the feature `tls` of hedgerow, or use redis:// or unix://",
            ));
        }
        let info = url.server.as_str().into_connection_info();
        let info = info.map_err(|_| not_understood())?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(_) if asks_for_tls => return Err(not_understood()),
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(not_understood()),
        };
        // The credentials that the caller set win over those in the URL.
        let login = match &approach.login {
            Some(login) => Some(login.clone()),
            None => url.credentials()?.map(Login::Fixed),
        };
        Ok(Self {
            address,
            db: url.db.unwrap_or_default(),
            login,
            #[cfg(feature = "tls")]
            tls: approach.channel(url.encryption)?,
        })
    }

    /// Parses several URLs, which must agree on TLS, so that any of them can stand for others.
    pub(crate) fn parse_all(urls: &[String], approach: &Access) -> Result<Vec<Self>> {
        let parsed = urls.iter().map(|url| Self::parse(url, approach));
        let endpoints: Vec<Self> = parsed.collect::<Result<_>>()?;
        #[cfg(feature = "tls")]
        if let [first, rest @ ..] = endpoints.as_slice()
            && rest
                .iter()
                .any(|it| it.tls.is_some() != first.tls.is_some())
        {
            return Err(Error::invalid(
                "some of the URLs ask for TLS and some do not; use rediss:// for all, or redis://",
            ));
        }
        Ok(endpoints)
    }

    /// Whether commands leave this machine unencrypted.
    pub(crate) fn is_readable_on_the_way(&self) -> bool {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return false;
        }
        match &self.address {
            Address::Unix(_) => false,
            Address::Tcp(host, _) => match host.parse::<IpAddr>() {
                Ok(address) => !address.is_loopback(),
                // Only this name: any other may resolve to another machine.
                Err(_) => host != "localhost",
            },
        }
    }

    /// Another server of the same installation, with the same credentials and encryption.
    pub(crate) fn at(&self, address: Address) -> Self {
        Self {
            address,
            ..self.clone()
        }
    }
}

impl Access {
    /// The same, but with the credentials in the URLs.
    pub(crate) fn as_urls_log_in(&self) -> Self {
        let mut same = self.clone();
        same.login = None;
        same
    }

    /// The TLS of a server, by what its URL asks for; `None` for a plain connection.
    #[cfg(feature = "tls")]
    fn channel(&self, asked: Encryption) -> Result<Option<Channel>> {
        match (&self.tls, asked) {
            (given, Encryption::Tls) => {
                if let Some(channel) = given.as_ref().or_else(|| self.usual.get()) {
                    return Ok(Some(channel.clone()));
                }
                let channel = Tls::new().channel()?;
                Ok(Some(self.usual.get_or_init(|| channel).clone()))
            }
            // A caller that sets TLS up believes that it is used. Silence would send the password
            // in the clear.
            (Some(_), Encryption::None) => Err(Error::invalid(
                "TLS is set up, but the URL does not ask for it; use rediss:// instead of redis:// \
                 (a Unix socket has no TLS)",
            )),
            (None, Encryption::None) => Ok(None),
        }
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
            let endpoint = Endpoint::parse(url, &Access::default()).expect("a good URL");
            assert_eq!(endpoint.is_readable_on_the_way(), readable, "{url}");
        }
    }
}
