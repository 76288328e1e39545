//! `AddressMap`: translates the addresses that a cluster or sentinels announce into those that this
//! machine can reach.
//!
//! Invariant: an address that is not in the map stays as announced. Only announced addresses are
//! mapped, never those that the caller gave.
//!
//! The topologies map every address that a server announces.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::address::Address;
use crate::error::{Error, Result};

/// Maps the addresses that servers announce to those at which this machine reaches them: behind
/// NAT, in containers, or through a tunnel. See
/// [`ClientBuilder::address_map`](crate::ClientBuilder::address_map).
#[derive(Clone)]
pub struct AddressMap(Form);

#[derive(Clone)]
enum Form {
    /// As the caller wrote it. It is checked when the client is built.
    Table(Vec<(String, String)>),
    By(By),
}

/// Maps a host and a port. `None` keeps them.
type By = Arc<dyn Fn(&str, u16) -> Option<(String, u16)> + Send + Sync>;

impl<F> From<F> for AddressMap
where
    F: Fn(&str, u16) -> Option<(String, u16)> + Send + Sync + 'static,
{
    fn from(map: F) -> Self {
        Self(Form::By(Arc::new(map)))
    }
}

impl<A: Into<String>, B: Into<String>, const N: usize> From<[(A, B); N]> for AddressMap {
    fn from(table: [(A, B); N]) -> Self {
        Self::from(Vec::from(table))
    }
}

impl<A: Into<String>, B: Into<String>> From<Vec<(A, B)>> for AddressMap {
    fn from(table: Vec<(A, B)>) -> Self {
        let rows = table.into_iter();
        let rows = rows.map(|(told, here)| (told.into(), here.into()));
        Self(Form::Table(rows.collect()))
    }
}

impl<A: Into<String>, B: Into<String>, S> From<HashMap<A, B, S>> for AddressMap {
    fn from(table: HashMap<A, B, S>) -> Self {
        Self::from(table.into_iter().collect::<Vec<_>>())
    }
}

impl AddressMap {
    /// Checks the map.
    pub(crate) fn addresses(self) -> Result<Addresses> {
        let table = match self.0 {
            Form::By(by) => return Ok(Addresses(Some(by))),
            Form::Table(rows) => rows,
        };
        let (mut servers, mut hosts) = (HashMap::new(), HashMap::new());
        for (told, here) in &table {
            let twice = match (place(told), place(here)) {
                (Some((told, Some(port))), Some((here, Some(to)))) => {
                    servers.insert((told, port), (here, to)).is_some()
                }
                (Some((told, None)), Some((here, None))) => hosts.insert(told, here).is_some(),
                _ => {
                    return Err(Error::invalid(format!(
                        "the address map has {told:?} to {here:?}; write host:port on both sides, or a host on both"
                    )));
                }
            };
            if twice {
                return Err(Error::invalid(format!(
                    "the address map has {told:?} twice; leave one of them"
                )));
            }
        }
        let by = move |host: &str, port: u16| {
            // A row with a port is more specific, so it wins over one for the whole host.
            let server = servers.get(&(host.to_owned(), port)).cloned();
            server.or_else(|| Some((hosts.get(host)?.clone(), port)))
        };
        Ok(Addresses(Some(Arc::new(by))))
    }
}

/// The map as topologies use it.
#[derive(Clone, Default)]
pub(crate) struct Addresses(Option<By>);

impl Addresses {
    /// The reachable address of the server that announces `host` and `port`.
    pub(crate) fn reached(&self, host: &str, port: u16) -> Address {
        let mapped = self.0.as_ref().and_then(|by| by(host, port));
        // If a closure returns no valid address, the announced one is used.
        let mapped = mapped.filter(|(host, port)| !host.is_empty() && *port > 0);
        let (host, port) = mapped.unwrap_or_else(|| (host.to_owned(), port));
        Address::Tcp(host, port)
    }

    /// The reachable address of the server that announces `told`.
    pub(crate) fn mapped(&self, told: Address) -> Address {
        match told {
            Address::Tcp(host, port) => self.reached(&host, port),
            // A path has no host that could be mapped.
            Address::Unix(_) => told,
        }
    }
}

/// Parses a host, and a port if there is one. An IPv6 address needs brackets before a port.
fn place(text: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, _)) if host.contains(':') && !host.starts_with('[') => (text, None),
        Some((host, port)) if !host.starts_with('[') || host.ends_with(']') => {
            let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
            (host, Some(port))
        }
        _ => (text, None),
    };
    let host = host.trim_matches(['[', ']']);
    let is_one = !host.is_empty() && !host.contains(['/', '@', ' ']);
    is_one.then(|| (host.to_owned(), port))
}

impl fmt::Debug for AddressMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Table(rows) => f.debug_map().entries(rows.iter().cloned()).finish(),
            Form::By(_) => f.write_str("AddressMap(a closure)"),
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Addresses").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn a_table_maps_servers_and_hosts_and_leaves_the_rest() {
        let map = AddressMap::from([
            ("10.0.0.1:6379", "localhost:7001"),
            ("10.0.0.1", "proxy"),
            ("[2001:db8::1]:6379", "[::1]:7002"),
            ("2001:db8::2", "::1"),
        ]);
        let map = map.addresses().expect("a good table");
        for (told, reached) in [
            (("10.0.0.1", 6379), tcp("localhost", 7001)),
            (("10.0.0.1", 6380), tcp("proxy", 6380)),
            (("10.0.0.2", 6379), tcp("10.0.0.2", 6379)),
            (("2001:db8::1", 6379), tcp("::1", 7002)),
            (("2001:db8::2", 6379), tcp("::1", 6379)),
        ] {
            assert_eq!(map.reached(told.0, told.1), reached);
        }
    }

    #[test]
    fn a_closure_maps_what_it_answers_for() {
        let map = AddressMap::from(|host: &str, port: u16| {
            (host == "a").then(|| ("b".to_owned(), port + 1))
        });
        let map = map.addresses().expect("a closure is good");
        assert_eq!(map.reached("a", 1), tcp("b", 2));
        assert_eq!(map.reached("c", 1), tcp("c", 1));
        assert_eq!(Addresses::default().reached("c", 1), tcp("c", 1));
    }

    #[test]
    fn a_table_that_is_none_is_refused() {
        for (told, here) in [
            ("10.0.0.1:6379", "localhost"),
            ("10.0.0.1", "localhost:1"),
            ("10.0.0.1:x", "localhost:1"),
            ("10.0.0.1:0", "localhost:1"),
            ("redis://10.0.0.1:1", "localhost:1"),
            ("", ""),
            (":1", ":2"),
        ] {
            let error = AddressMap::from([(told, here)]).addresses();
            assert!(error.is_err(), "{told:?} to {here:?}");
        }
    }
}
