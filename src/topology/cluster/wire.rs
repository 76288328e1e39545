//! The slots of a cluster: who serves which, and what a server says when it is not the one.
//!
//! Invariant: what is parsed here names only servers that can be dialled; one that a client is told
//! no address of has none, and does not invalidate the others. Everything is pure but for the
//! address map.

use std::collections::HashMap;

use redis::{ServerError, Value};

use crate::key::SLOTS;
use crate::net::address::Address;
use crate::net::address_map::Addresses;

/// Consecutive slots and their servers, as a server tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::topology) struct Range {
    pub(in crate::topology) first: u16,
    pub(in crate::topology) last: u16,
    /// `None` where the server tells no address that a client may use.
    pub(in crate::topology) primary: Option<Address>,
    /// The name of the primary in the cluster.
    pub(in crate::topology) id: String,
    pub(in crate::topology) replicas: Vec<Address>,
    /// Of the primary's configuration, higher with each failover and migration; 0 if not told.
    pub(in crate::topology) epoch: u64,
}

/// Where a server sends us instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::topology) enum Redirect {
    /// For good: the slot has another owner.
    Moved(u16, Address),
    /// For this once: the slot is on its way there.
    Ask(Address),
    /// To a server that it tells no address of. `CLUSTER SLOTS` may tell more.
    Nameless,
}

/// How what a server tells is read: what it leaves out is as it was asked.
#[derive(Clone, Copy)]
pub(in crate::topology) struct Asked<'a> {
    pub(in crate::topology) address: &'a Address,
    pub(in crate::topology) addresses: &'a Addresses,
}

impl Range {
    /// Whether both name the same server.
    pub(in crate::topology) fn is_by_same(&self, other: &Self) -> bool {
        match self.id.is_empty() {
            true => self.primary == other.primary,
            false => self.id == other.id,
        }
    }

    /// Whether both say the same of their slots.
    pub(in crate::topology) fn is_of(&self, other: &Self) -> bool {
        self.is_by_same(other) && self.primary == other.primary && self.epoch == other.epoch
    }
}

/// Reads the replies of `CLUSTER SLOTS` and `CLUSTER NODES`, in the order of the slots; `None` when
/// the first is not one. Without the right to send the second, epochs are unknown.
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

/// The configuration epochs of the servers, by their names in the cluster.
fn epochs(nodes: &Value) -> HashMap<&str, u64> {
    let lines = match nodes {
        Value::VerbatimString { text, .. } => text.as_str(),
        other => text(other).unwrap_or_default(),
    };
    let epoch = |line: &'_ str| -> Option<(usize, u64)> {
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

/// Where a server is that is told by address, port, name and whatever else is known of it.
fn address(parts: &[Value], asked: Asked<'_>) -> Option<Address> {
    let [host, Value::Int(port), rest @ ..] = parts else {
        return None;
    };
    let host = match host {
        Value::Nil => "",
        host => text(host)?,
    };
    // It has no host name, where clients are to be told host names: it has an IP address all the
    // same, but for one that does not know its own.
    let host = match host {
        UNKNOWN => rest.get(1).and_then(|more| field(more, "ip"))?,
        host => host,
    };
    named(host, u16::try_from(*port).ok()?, asked)
}

/// A field of a map, or of names and values in turn.
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

/// A server that is told by these. One that does not know its own host says none, or an empty one:
/// then it means the one that was dialled.
fn named(host: &str, port: u16, asked: Asked<'_>) -> Option<Address> {
    let host = match (host, asked.address) {
        (UNKNOWN, _) | ("", Address::Unix(_)) => return None,
        // That was mapped already, if it was to be.
        ("", Address::Tcp(host, _)) => return (port > 0).then(|| Address::Tcp(host.clone(), port)),
        (host, _) => host,
    };
    (port > 0).then(|| asked.addresses.reached(host, port))
}

/// Whether `error`, which a server has answered that was asked so, sends us elsewhere.
pub(in crate::topology) fn redirect(error: &ServerError, asked: Asked<'_>) -> Option<Redirect> {
    let mut words = error.details()?.split(' ');
    let slot = words.next()?.parse().ok().and_then(slot)?;
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

/// Instead of a host that the cluster does not know.
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

    /// One that has no host name.
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
