//! The wire format of cluster slots: the replies that list them, and the redirects of a server that
//! does not serve one.
//!
//! Invariant: every address that is parsed here can be dialled. A server that is reported without a
//! usable address gets none, and does not invalidate the others. Everything is pure except for the
//! address map. `SlotQuery` and `Cluster` call this.

use std::collections::HashMap;

use redis::{ServerError, Value};

use crate::key::SLOTS;
use crate::net::address::Address;
use crate::net::address_map::Addresses;

/// Consecutive slots and their servers, as one server reports them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::topology) struct Range {
    pub(in crate::topology) first: u16,
    pub(in crate::topology) last: u16,
    /// `None` if the server reports no address that a client can use.
    pub(in crate::topology) primary: Option<Address>,
    /// The node ID of the primary.
    pub(in crate::topology) id: String,
    pub(in crate::topology) replicas: Vec<Address>,
    /// The configuration epoch of the primary, which rises with each failover and migration; 0 if
    /// not reported.
    pub(in crate::topology) epoch: u64,
}

/// Where a server redirects a call to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::topology) enum Redirect {
    /// MOVED: the slot has another owner, which also gets all later calls.
    /// For good: the slot has another owner.
    Moved(u16, Address),
    /// ASK: the slot is being migrated there; this call only.
    Ask(Address),
    /// To a server without a reported address. `CLUSTER SLOTS` may report more.
    Nameless,
}

/// The server that was asked, and the address map. What a reply leaves out is taken from the
/// address that was asked.
#[derive(Clone, Copy)]
pub(in crate::topology) struct Asked<'a> {
    pub(in crate::topology) address: &'a Address,
    pub(in crate::topology) addresses: &'a Addresses,
}

impl Range {
    /// Returns whether both name the same server.
    pub(in crate::topology) fn is_by_same(&self, other: &Self) -> bool {
        // Addresses may differ from view to view, node IDs do not.
        match self.id.is_empty() {
            true => self.primary == other.primary,
            false => self.id == other.id,
        }
    }

    /// Returns whether both say the same about their slots.
    pub(in crate::topology) fn is_of(&self, other: &Self) -> bool {
        self.is_by_same(other) && self.primary == other.primary && self.epoch == other.epoch
    }
}

/// Parses the replies of `CLUSTER SLOTS` and `CLUSTER NODES`, sorted by slot. Returns `None` if the
/// first reply is malformed. If the user is not permitted to send the second, epochs are unknown.
pub(in crate::topology) fn ranges(
    slots: &Value,
    nodes: &Value,
    asked: Asked<'_>,
) -> Option<Vec<Range>> {
    let Value::Array(rows) = slots else {
        return None;
    };
    let epochs = epochs(nodes);
    let ranges = rows.iter().map(|row| range(row, &epochs, asked));
    let mut ranges = ranges.collect::<Option<Vec<_>>>()?;
    ranges.sort_unstable_by_key(|range| range.first);
    Some(ranges)
}

fn range(row: &Value, epochs: &HashMap<&str, u64>, asked: Asked<'_>) -> Option<Range> {
    let Value::Array(parts) = row else {
        return None;
    };
    let [
        Value::Int(first),
        Value::Int(last),
        Value::Array(primary),
        replicas @ ..,
    ] = parts.as_slice()
    else {
        return None;
    };
    let (first, last) = (slot(*first)?, slot(*last)?);
    let id = primary.get(2).and_then(text).unwrap_or_default();
    let replicas = replicas.iter().filter_map(|replica| match replica {
        Value::Array(parts) => address(parts, asked),
        _ => None,
    });
    (first <= last).then(|| Range {
        first,
        last,
        primary: address(primary, asked),
        epoch: epochs.get(id).copied().unwrap_or_default(),
        id: id.to_owned(),
        replicas: replicas.collect(),
    })
}

/// Returns the configuration epochs of the servers, by node ID.
fn epochs(nodes: &Value) -> HashMap<&str, u64> {
    let lines = match nodes {
        Value::VerbatimString { text, .. } => text.as_str(),
        other => text(other).unwrap_or_default(),
    };
    let epoch = |line: &'_ str| -> Option<(usize, u64)> {
        // The fields: id, address, flags, primary, ping-sent, pong-received, config-epoch.
        let epoch = line.split(' ').nth(6)?.parse().ok()?;
        Some((line.find(' ')?, epoch))
    };
    let epochs = lines.lines().filter_map(|line| {
        let (end, epoch) = epoch(line)?;
        Some((&line[..end], epoch))
    });
    epochs.collect()
}

fn slot(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|slot| *slot < SLOTS)
}

/// Returns the address of a server, which is reported as host, port, node ID and possibly more
/// fields.
fn address(parts: &[Value], asked: Asked<'_>) -> Option<Address> {
    let [host, Value::Int(port), rest @ ..] = parts else {
        return None;
    };
    let host = match host {
        Value::Nil => "",
        host => text(host)?,
    };
    // With `cluster-preferred-endpoint-type hostname`, `?` means that the server has no host name.
    // Its IP address is a field, unless the server does not know its own.
    let host = match host {
        UNKNOWN => rest.get(1).and_then(|more| field(more, "ip"))?,
        host => host,
    };
    named(host, u16::try_from(*port).ok()?, asked)
}

/// Returns a field of a map, or of a flat list of names and values.
fn field<'v>(more: &'v Value, name: &str) -> Option<&'v str> {
    let is_it = |key: &Value| text(key) == Some(name);
    match more {
        Value::Map(fields) => {
            let (_, value) = fields.iter().find(|(key, _)| is_it(key))?;
            text(value)
        }
        Value::Array(parts) => text(&parts.chunks_exact(2).find(|pair| is_it(&pair[0]))?[1]),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Returns the address for a reported host and port. A server that does not know its own host
/// reports none or an empty one. It then means the host that was dialled.
fn named(host: &str, port: u16, asked: Asked<'_>) -> Option<Address> {
    let host = match (host, asked.address) {
        (UNKNOWN, _) | ("", Address::Unix(_)) => return None,
        // The dialled host is mapped already; mapping it twice could lead elsewhere.
        ("", Address::Tcp(host, _)) => return (port > 0).then(|| Address::Tcp(host.clone(), port)),
        (host, _) => host,
    };
    (port > 0).then(|| asked.addresses.reached(host, port))
}

/// Returns the redirect in `error`, which the server that was asked has answered.
pub(in crate::topology) fn redirect(error: &ServerError, asked: Asked<'_>) -> Option<Redirect> {
    let mut words = error.details()?.split(' ');
    let slot = words.next()?.parse().ok().and_then(slot)?;
    // From the right: an IPv6 address holds colons, too.
    let (host, port) = words.next()?.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let address = named(host, port.parse().ok()?, asked);
    match (error.code(), address) {
        ("MOVED", Some(address)) => Some(Redirect::Moved(slot, address)),
        ("ASK", Some(address)) => Some(Redirect::Ask(address)),
        ("MOVED" | "ASK", None) => Some(Redirect::Nameless),
        _ => None,
    }
}

/// Stands for a host that the server does not know.
const UNKNOWN: &str = "?";

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    fn server(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk("id")])
    }

    /// A server without a host name.
    fn nameless(more: Value) -> Value {
        Value::Array(vec![bulk("?"), Value::Int(7001), bulk("id"), more])
    }

    fn row(first: i64, last: i64, primary: Value) -> Vec<Value> {
        vec![Value::Int(first), Value::Int(last), primary]
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn parse(rows: Vec<Vec<Value>>) -> Option<Vec<Range>> {
        let rows = rows.into_iter().map(Value::Array).collect();
        read(&Value::Array(rows), &Value::Nil)
    }

    fn read(slots: &Value, nodes: &Value) -> Option<Vec<Range>> {
        let asked = Asked {
            address: &tcp("seed", 7000),
            addresses: &Addresses::default(),
        };
        ranges(slots, nodes, asked)
    }

    fn primaries(rows: Vec<Vec<Value>>) -> Vec<Option<Address>> {
        let ranges = parse(rows).expect("it is understood");
        ranges.into_iter().map(|range| range.primary).collect()
    }

    #[test]
    fn ranges_are_read_with_their_servers_and_epochs() {
        let mut row = row(0, 5460, server(bulk("10.0.0.1"), 7001));
        row.push(server(bulk("10.0.0.2"), 7002));
        let slots = Value::Array(vec![Value::Array(row)]);
        let lines = "other 10.0.0.3:1@2 master - 0 0 9 connected 6000\n\
                     id 10.0.0.1:7001@17001,a.example myself,master - 0 0 4 connected 0-5460\n";
        let expected = |epoch| {
            Some(vec![Range {
                first: 0,
                last: 5460,
                primary: Some(tcp("10.0.0.1", 7001)),
                id: "id".to_owned(),
                replicas: vec![tcp("10.0.0.2", 7002)],
                epoch,
            }])
        };
        let verbatim = Value::VerbatimString {
            format: redis::VerbatimFormat::Text,
            text: lines.to_owned(),
        };
        assert_eq!(read(&slots, &verbatim), expected(4));
        assert_eq!(read(&slots, &bulk(lines)), expected(4));
        for refused in [Value::Nil, bulk("id"), bulk("id a b c d e f\n\n")] {
            assert_eq!(read(&slots, &refused), expected(0));
        }
    }

    #[test]
    fn a_server_without_a_host_is_the_one_that_was_asked() {
        for host in [bulk(""), Value::Nil] {
            let found = primaries(vec![row(0, 1, server(host, 7001))]);
            assert_eq!(found, [Some(tcp("seed", 7001))]);
        }
    }

    #[test]
    fn a_server_without_a_host_name_is_found_by_its_ip_address() {
        let pair = || (bulk("ip"), bulk("10.0.0.9"));
        let known = [
            nameless(Value::Map(vec![(bulk("hostname"), bulk("")), pair()])),
            nameless(Value::Array(vec![pair().0, pair().1])),
        ];
        for known in known {
            let found = primaries(vec![row(0, 1, known)]);
            assert_eq!(found, [Some(tcp("10.0.0.9", 7001))]);
        }
        let itself = nameless(Value::Map(vec![(bulk("ip"), bulk(""))]));
        assert_eq!(
            primaries(vec![row(0, 1, itself)]),
            [Some(tcp("seed", 7001))]
        );
    }

    #[test]
    fn what_cannot_be_dialled_takes_nobody_along() {
        for none in [
            nameless(Value::Nil),
            nameless(Value::Map(Vec::new())),
            nameless(Value::Map(vec![(bulk("ip"), bulk("?"))])),
            Value::Array(vec![bulk("?"), Value::Int(7001)]),
            server(bulk("a"), 70_000),
            server(bulk("a"), 0),
        ] {
            let rows = vec![row(2, 3, none), row(0, 1, server(bulk("a"), 7001))];
            assert_eq!(primaries(rows), [Some(tcp("a", 7001)), None]);
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let good = || server(bulk("a"), 7001);
        for row in [
            row(0, 16_384, good()),
            row(-1, 1, good()),
            row(2, 1, good()),
            vec![Value::Int(0), Value::Int(1)],
            row(0, 1, bulk("a")),
            vec![],
        ] {
            assert_eq!(parse(vec![row]), None);
        }
        assert_eq!(read(&Value::Okay, &Value::Nil), None);
    }

    #[test]
    fn redirects_are_read_with_names_with_addresses_and_without() {
        let read = |line: &str| {
            let Ok((Value::ServerError(error), _)) = parsed(line) else {
                panic!("{line} is an error reply");
            };
            let asked = Asked {
                address: &tcp("seed", 7000),
                addresses: &Addresses::default(),
            };
            redirect(&error, asked)
        };
        let moved = |slot, address| Some(Redirect::Moved(slot, address));
        assert_eq!(
            read("-MOVED 3999 127.0.0.1:6381\r\n"),
            moved(3999, tcp("127.0.0.1", 6381))
        );
        assert_eq!(read("-MOVED 1 :6381\r\n"), moved(1, tcp("seed", 6381)));
        assert_eq!(read("-MOVED 1 ::1:6381\r\n"), moved(1, tcp("::1", 6381)));
        assert_eq!(
            read("-ASK 3999 db.example:6381\r\n"),
            Some(Redirect::Ask(tcp("db.example", 6381)))
        );
        assert_eq!(read("-MOVED 1 ?:6381\r\n"), Some(Redirect::Nameless));
        assert_eq!(read("-ASK 1 ?:6381\r\n"), Some(Redirect::Nameless));
        for other in [
            "-MOVED 16384 a:1\r\n",
            "-MOVED x a:1\r\n",
            "-MOVED 1\r\n",
            "-ERR 1 a:1\r\n",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    fn parsed(line: &str) -> redis::RedisResult<(Value, ())> {
        redis::parse_redis_value(line.as_bytes()).map(|value| (value, ()))
    }
}
