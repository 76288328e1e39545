//! `ClientAddress`: which address a request comes from, behind proxies that are named.
//!
//! Invariant: nothing that a client can write decides, but for the client's own address. A header
//! field counts only if the peer is a proxy that is trusted, and then from the right: each entry
//! was written by the hop before, so the first entry that is no trusted proxy is the client. What
//! stands left of it is the client's own text. Without I/O. The layer calls it, and handlers do.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::header::{FORWARDED, HeaderName};
use http::request::Parts;
use http::{Extensions, HeaderMap};
use ipnet::IpNet;
use rfc7239::NodeName;

/// Where a request comes from: the peer of the connection, or the client for which trusted proxies
/// have forwarded it.
///
/// ```
/// use std::net::{IpAddr, SocketAddr};
/// use hedgerow::http::ClientAddress;
///
/// // With axum: `extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())`.
/// let direct = ClientAddress::peer(|extensions| {
///     extensions.get::<SocketAddr>().map(SocketAddr::ip)
/// });
/// let behind_a_balancer = direct.clone().x_forwarded_for(["10.0.0.0/8", "fd00::/8"])?;
/// # Ok::<(), hedgerow::http::InvalidProxy>(())
/// ```
///
/// Choose the header field that your proxies write, and see that they write it on every request: a
/// proxy that only passes a field on passes on what the client has made up.
///
/// IPv6 clients have a whole network each. They are limited by its [prefix](Self::ipv6_prefix),
/// `/64` by default, and IPv4 clients by their address. An IPv4 address that is mapped into IPv6 is
/// an IPv4 address.
#[derive(Clone)]
pub struct ClientAddress {
    peer: Arc<PeerOf>,
    source: Source,
    proxies: Arc<[IpNet]>,
    ipv6_prefix: u8,
}

type PeerOf = dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync;

/// Where the address of a client behind a proxy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Peer,
    Forwarded,
    XForwardedFor,
}

/// Why a request has no [address](ClientAddress::key).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoAddress {
    /// The request has no peer: the server is not set up to say it. The client can do nothing about
    /// that.
    NoPeer,
    /// A trusted proxy names no client, or the field cannot be read. A client can bring this about.
    Unreadable,
}

impl ClientAddress {
    /// Takes the peer of the connection, which the server has put into the extensions of the
    /// request. No header field is believed.
    pub fn peer(peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        Self {
            peer: Arc::new(peer),
            source: Source::Peer,
            proxies: Arc::default(),
            ipv6_prefix: 64,
        }
    }

    /// Believes the field `Forwarded` (RFC 7239) of these proxies: addresses or networks, such as
    /// `10.0.0.0/8`.
    ///
    /// # Errors
    /// If one of them is neither.
    pub fn forwarded<P: AsRef<str>>(
        self,
        proxies: impl IntoIterator<Item = P>,
    ) -> Result<Self, InvalidProxy> {
        self.behind(Source::Forwarded, proxies)
    }

    /// Believes the field `X-Forwarded-For` of these proxies: addresses or networks, such as
    /// `10.0.0.0/8`.
    ///
    /// # Errors
    /// If one of them is neither.
    pub fn x_forwarded_for<P: AsRef<str>>(
        self,
        proxies: impl IntoIterator<Item = P>,
    ) -> Result<Self, InvalidProxy> {
        self.behind(Source::XForwardedFor, proxies)
    }

    /// Sets how many bits of an IPv6 address make a client: 64 by default, at most 128.
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }

    fn behind<P: AsRef<str>>(
        mut self,
        source: Source,
        proxies: impl IntoIterator<Item = P>,
    ) -> Result<Self, InvalidProxy> {
        let proxies = proxies.into_iter().map(|proxy| network(proxy.as_ref()));
        self.proxies = proxies.collect::<Result<_, _>>()?;
        self.source = source;
        Ok(self)
    }

    /// Returns the key of the client: its address, or the network of an IPv6 client. For a handler
    /// that limits by address itself, as [`RateLimitLayer`](super::RateLimitLayer) does. With axum,
    /// a handler takes the `Parts` of its request as one of its arguments.
    ///
    /// ```no_run
    /// use hedgerow::http::ClientAddress;
    /// use hedgerow::limit::RateLimits;
    /// use http::request::Parts;
    ///
    /// async fn may_log_in(
    ///     address: &ClientAddress,
    ///     logins: &RateLimits,
    ///     request: &Parts,
    ///     account: &str,
    /// ) -> Result<bool, Box<dyn std::error::Error>> {
    ///     let client = address.key(request)?;
    ///     let decided = logins.check([("address", &*client), ("account", account)]).await?;
    ///     Ok(decided.allowed())
    /// }
    /// ```
    ///
    /// # Errors
    /// If the request has no peer, or a trusted proxy names no client.
    pub fn key(&self, request: &Parts) -> Result<String, NoAddress> {
        Ok(match self.of(request)? {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => {
                let bits = u32::from(self.ipv6_prefix);
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                let network = Ipv6Addr::from_bits(address.to_bits() & mask);
                format!("{network}/{bits}")
            }
        })
    }

    fn of(&self, request: &Parts) -> Result<IpAddr, NoAddress> {
        let peer = (self.peer)(&request.extensions).ok_or(NoAddress::NoPeer)?;
        let mut hop = peer.to_canonical();
        let entries = match self.source {
            Source::Peer => return Ok(hop),
            _ if !self.trusts(hop) => return Ok(hop),
            Source::Forwarded => forwarded(&request.headers),
            Source::XForwardedFor => x_forwarded_for(&request.headers),
        };
        // From the right, which is the side that the last proxy has written.
        for entry in entries.into_iter().rev() {
            hop = entry.ok_or(NoAddress::Unreadable)?.to_canonical();
            if !self.trusts(hop) {
                return Ok(hop);
            }
        }
        // All of them are trusted: the first of them has made the request.
        Ok(hop)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.proxies
            .iter()
            .any(|proxies| proxies.contains(&address))
    }
}

/// The entries of `X-Forwarded-For`; `None` for what is no address.
fn x_forwarded_for(fields: &HeaderMap) -> Vec<Option<IpAddr>> {
    let mut entries = Vec::new();
    for line in fields.get_all(X_FORWARDED_FOR) {
        // Each for itself: what a client has written must not spoil what a proxy has appended.
        let cut = line.as_bytes().split(|byte| *byte == b',');
        entries.extend(cut.map(|entry| address(std::str::from_utf8(entry).ok()?.trim())));
    }
    entries
}

/// The entries of `Forwarded`; `None` for those that name no address.
fn forwarded(fields: &HeaderMap) -> Vec<Option<IpAddr>> {
    let mut entries = Vec::new();
    for line in fields.get_all(FORWARDED) {
        let elements = line.to_str().ok().and_then(elements);
        match elements {
            Some(elements) => entries.extend(elements.into_iter().map(node)),
            // Nobody can say what belongs to whom: a quote of the client's may reach into what the
            // proxy has appended.
            None => entries.push(None),
        }
    }
    entries
}

/// Cuts a line of `Forwarded` into its elements. `None` if a quote is not closed, or holds a
/// separator: the parser, which does not know of quotes, would cut there.
fn elements(line: &str) -> Option<Vec<&str>> {
    let (mut elements, mut start, mut quoted) = (Vec::new(), 0, false);
    for (at, character) in line.char_indices() {
        match character {
            '"' => quoted = !quoted,
            ',' | ';' | '\\' if quoted => return None,
            ',' => {
                elements.push(&line[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    elements.push(&line[start..]);
    (!quoted).then_some(elements)
}

/// The address that an element is `for`.
fn node(element: &str) -> Option<IpAddr> {
    let element = rfc7239::parse(element).next()?.ok()?;
    match element.forwarded_for?.name {
        NodeName::Ip(address) => Some(address),
        _ => None,
    }
}

/// An address, with or without a port. Some proxies write one.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

fn network(text: &str) -> Result<IpNet, InvalidProxy> {
    let address = text.parse::<IpAddr>().map(|it| it.to_canonical().into());
    address
        .or_else(|_| text.parse::<IpNet>())
        .map_err(|_| InvalidProxy(text.into()))
}

impl fmt::Debug for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAddress")
            .field("source", &self.source)
            .field("proxies", &self.proxies)
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for NoAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPeer => {
                "the server does not say where the request comes from; put the peer of the \
                 connection into the extensions of the request"
            }
            Self::Unreadable => "a trusted proxy names no client that can be read",
        })
    }
}

impl Error for NoAddress {}

/// What is neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidProxy(Box<str>);

impl fmt::Display for InvalidProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the proxy {:?} is neither an address nor a network; write it as 10.1.2.3 or 10.0.0.0/8",
            self.0
        )
    }
}

impl Error for InvalidProxy {}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

#[cfg(test)]
mod tests {
    use super::*;

    const PROXIES: [&str; 2] = ["10.0.0.0/8", "2001:db8:ffff::1"];

    fn by_peer() -> ClientAddress {
        ClientAddress::peer(|extensions| extensions.get::<IpAddr>().copied())
    }

    /// The key of a request from `peer` with these fields.
    fn key(
        address: &ClientAddress,
        peer: &str,
        fields: &[(HeaderName, &str)],
    ) -> Result<String, NoAddress> {
        let mut request = http::Request::new(());
        let peer: IpAddr = peer.parse().expect("an address");
        request.extensions_mut().insert(peer);
        for (name, value) in fields {
            let value = value.parse().expect("a header value");
            request.headers_mut().append(name, value);
        }
        address.key(&request.into_parts().0)
    }

    fn told(text: &str) -> Result<String, NoAddress> {
        Ok(text.to_owned())
    }

    #[test]
    fn the_peer_counts_and_no_field_that_it_has_written() {
        let fields = [(X_FORWARDED_FOR, "192.0.2.1"), (FORWARDED, "for=192.0.2.1")];
        assert_eq!(key(&by_peer(), "203.0.113.9", &fields), told("203.0.113.9"));
        let trusting = by_peer().x_forwarded_for(PROXIES).expect("good");
        assert_eq!(key(&trusting, "203.0.113.9", &fields), told("203.0.113.9"));
        let trusting = by_peer().forwarded(PROXIES).expect("good");
        assert_eq!(key(&trusting, "203.0.113.9", &fields), told("203.0.113.9"));
    }

    #[test]
    fn behind_trusted_proxies_the_first_address_from_the_right_that_is_none_of_them_counts() {
        let address = by_peer().x_forwarded_for(PROXIES).expect("good");
        let of = |lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| (X_FORWARDED_FOR, *line)).collect();
            key(&address, "10.1.1.1", &lines)
        };
        assert_eq!(
            of(&["6.6.6.6, 198.51.100.7, 10.2.2.2"]),
            told("198.51.100.7")
        );
        // In several lines, the last proxy has written the last.
        assert_eq!(
            of(&["6.6.6.6", "198.51.100.7,10.2.2.2"]),
            told("198.51.100.7")
        );
        assert_eq!(of(&["198.51.100.7:4711"]), told("198.51.100.7"));
        assert_eq!(of(&["[2001:db8:1:2:3::4]:4711"]), told("2001:db8:1:2::/64"));
        // A proxy that made the request itself.
        assert_eq!(of(&["10.3.3.3"]), told("10.3.3.3"));
        assert_eq!(of(&[]), told("10.1.1.1"));
    }

    #[test]
    fn an_entry_of_a_trusted_proxy_that_is_no_address_is_not_passed_over() {
        let address = by_peer().x_forwarded_for(PROXIES).expect("good");
        for line in ["unknown", "", "6.6.6.6, nonsense", "6.6.6.6,"] {
            let fields = [(X_FORWARDED_FOR, line)];
            let found = key(&address, "10.1.1.1", &fields);
            assert_eq!(found, Err(NoAddress::Unreadable), "{line:?}");
        }
        // What the client has written is never looked at.
        let fields = [(X_FORWARDED_FOR, "nonsense, 198.51.100.7")];
        assert_eq!(key(&address, "10.1.1.1", &fields), told("198.51.100.7"));
        let mut fields = HeaderMap::new();
        let line = http::HeaderValue::from_bytes(b"\xff, 198.51.100.7");
        fields.insert(X_FORWARDED_FOR, line.expect("a header value"));
        let entries = x_forwarded_for(&fields);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0], None);
        assert!(entries[1].is_some(), "not spoilt by what stands left of it");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        let address = by_peer().forwarded(PROXIES).expect("good");
        let of = |line: &str| key(&address, "10.1.1.1", &[(FORWARDED, line)]);
        assert_eq!(
            of("for=6.6.6.6, For=198.51.100.7;proto=https;by=10.9.9.9, for=10.2.2.2"),
            told("198.51.100.7")
        );
        assert_eq!(
            of("for=\"[2001:db8:1:2:3::4]:4711\""),
            told("2001:db8:1:2::/64")
        );
        for unreadable in ["for=unknown", "for=_hidden", "proto=https", "", "for"] {
            assert_eq!(of(unreadable), Err(NoAddress::Unreadable), "{unreadable:?}");
        }
    }

    #[test]
    fn a_quote_of_the_client_does_not_reach_into_what_the_proxy_has_written() {
        let address = by_peer().forwarded(PROXIES).expect("good");
        let of = |line: &str| key(&address, "10.1.1.1", &[(FORWARDED, line)]);
        // The client has opened a quote, and the proxy has appended.
        assert_eq!(
            of("for=6.6.6.6;x=\", for=198.51.100.7"),
            Err(NoAddress::Unreadable)
        );
        assert_eq!(
            of("for=\", for=\"[2001:db8::1]\""),
            Err(NoAddress::Unreadable)
        );
        // The client has sent a Host that looks like parameters.
        for host in ["a;for=6.6.6.6", "a, for=6.6.6.6", "a\\\";for=6.6.6.6"] {
            let line = format!("for=198.51.100.7;host=\"{host}\"");
            assert_eq!(of(&line), Err(NoAddress::Unreadable), "{host}");
        }
    }

    #[test]
    fn an_ipv6_client_is_its_network_and_a_mapped_address_is_ipv4() {
        let address = by_peer();
        let of = |peer: &str| key(&address, peer, &[]);
        assert_eq!(of("2001:db8:1:2:aaaa::1"), of("2001:db8:1:2:bbbb::2"));
        assert_eq!(of("::ffff:192.0.2.1"), told("192.0.2.1"));
        let wider = by_peer().ipv6_prefix(48);
        assert_eq!(key(&wider, "2001:db8:1:2::1", &[]), told("2001:db8:1::/48"));
        let whole = by_peer().ipv6_prefix(200);
        assert_eq!(key(&whole, "2001:db8::1", &[]), told("2001:db8::1/128"));
        let all = by_peer().ipv6_prefix(0);
        assert_eq!(key(&all, "2001:db8::1", &[]), told("::/0"));
    }

    #[test]
    fn a_mapped_peer_is_trusted_as_ipv4() {
        let address = by_peer()
            .x_forwarded_for(["::ffff:10.1.1.1"])
            .expect("good");
        let fields = [(X_FORWARDED_FOR, "198.51.100.7")];
        assert_eq!(
            key(&address, "::ffff:10.1.1.1", &fields),
            told("198.51.100.7")
        );
        assert_eq!(key(&address, "10.1.1.1", &fields), told("198.51.100.7"));
    }

    #[test]
    fn a_request_without_a_peer_has_no_address_and_a_bad_proxy_is_named() {
        let parts = http::Request::new(()).into_parts().0;
        assert_eq!(by_peer().key(&parts), Err(NoAddress::NoPeer));
        let error = by_peer()
            .forwarded(["10.0.0.0/33"])
            .expect_err("no network");
        assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    }
}
