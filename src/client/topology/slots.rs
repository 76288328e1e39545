//! The slots of a cluster: who serves which, and what a server says when it is not the one.
//!
//! Invariant: what is parsed here names only servers that can be dialled. Everything is pure.

use redis::{ServerError, Value};

use crate::client::endpoint::Address;
use crate::key::SLOTS;

/// Consecutive slots and their servers, as `CLUSTER SLOTS` tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) primary: Address,
    pub(super) replicas: Vec<Address>,
}

/// Where a server sends us instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// For good: the slot has another owner.
    Moved(u16, Address),
    /// For this once: the slot is on its way there.
    Ask(Address),
}

/// Reads the reply of `CLUSTER SLOTS` that `asked` has given; `None` when it is not one.
///
/// A server that does not know its own name says nothing, or an empty name: then it means the
/// one that was dialled.
pub(super) fn ranges(reply: &Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(rows) = reply else {
        return None;
    };
    rows.iter().map(|row| range(row, asked)).collect()
}

fn range(row: &Value, asked: &Address) -> Option<Range> {
    let Value::Array(parts) = row else {
        return None;
    };
    let [Value::Int(first), Value::Int(last), servers @ ..] = parts.as_slice() else {
        return None;
    };
    let mut servers = servers.iter().map(|server| address(server, asked));
    Some(Range {
        first: slot(*first)?,
        last: slot(*last)?,
        primary: servers.next()??,
        // A replica that cannot be dialled is no reason to lose the primary.
        replicas: servers.flatten().collect(),
    })
}

fn slot(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|slot| *slot < SLOTS)
}

fn address(server: &Value, asked: &Address) -> Option<Address> {
    let Value::Array(parts) = server else {
        return None;
    };
    let [host, Value::Int(port), ..] = parts.as_slice() else {
        return None;
    };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    named(host, u16::try_from(*port).ok()?, asked)
}

fn named(host: &str, port: u16, asked: &Address) -> Option<Address> {
    match (host, asked) {
        // The host is known to the cluster by no name that a client may use.
        ("?", _) => None,
        ("", Address::Tcp(host, _)) => Some(Address::Tcp(host.clone(), port)),
        ("", Address::Unix(_)) => None,
        (host, _) => Some(Address::Tcp(host.to_owned(), port)),
    }
}

/// Whether `error`, which `asked` has answered, sends us elsewhere.
pub(super) fn redirect(error: &ServerError, asked: &Address) -> Option<Redirect> {
    let mut words = error.details()?.split(' ');
    let slot = words.next()?.parse().ok().and_then(slot)?;
    let (host, port) = words.next()?.rsplit_once(':')?;
    let host = host.trim_matches(['[', ']']);
    let address = named(host, port.parse().ok()?, asked)?;
    match error.code() {
        "MOVED" => Some(Redirect::Moved(slot, address)),
        "ASK" => Some(Redirect::Ask(address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    fn server(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), Value::Nil])
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn parse(rows: Vec<Vec<Value>>) -> Option<Vec<Range>> {
        let rows = rows.into_iter().map(Value::Array).collect();
        ranges(&Value::Array(rows), &tcp("seed", 7000))
    }

    #[test]
    fn ranges_are_read_with_their_servers() {
        let row = vec![
            Value::Int(0),
            Value::Int(5460),
            server(text("10.0.0.1"), 7001),
            server(text("10.0.0.2"), 7002),
        ];
        assert_eq!(
            parse(vec![row]),
            Some(vec![Range {
                first: 0,
                last: 5460,
                primary: tcp("10.0.0.1", 7001),
                replicas: vec![tcp("10.0.0.2", 7002)],
            }])
        );
    }

    #[test]
    fn a_server_without_a_name_is_the_one_that_was_asked() {
        for host in [text(""), Value::Nil] {
            let row = vec![Value::Int(0), Value::Int(1), server(host, 7001)];
            let ranges = parse(vec![row]).expect("it is understood");
            assert_eq!(ranges[0].primary, tcp("seed", 7001));
        }
    }

    #[test]
    fn what_cannot_be_dialled_or_is_no_slot_is_refused() {
        let good = || server(text("a"), 7001);
        for row in [
            vec![Value::Int(0), Value::Int(1), server(text("?"), 7001)],
            vec![Value::Int(0), Value::Int(16_384), good()],
            vec![Value::Int(-1), Value::Int(1), good()],
            vec![Value::Int(0), Value::Int(1), server(text("a"), 70_000)],
            vec![Value::Int(0), Value::Int(1)],
            vec![],
        ] {
            assert_eq!(parse(vec![row]), None);
        }
        assert_eq!(ranges(&Value::Okay, &tcp("seed", 7000)), None);
    }

    #[test]
    fn redirects_are_read_with_names_with_addresses_and_without() {
        let read = |line: &str| {
            let Ok((Value::ServerError(error), _)) = parsed(line) else {
                panic!("{line} is an error reply");
            };
            redirect(&error, &tcp("seed", 7000))
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
