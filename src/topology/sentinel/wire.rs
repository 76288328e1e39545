//! The wire format of sentinels: the query, the replies and the announcements.
//!
//! Invariant: every address that is parsed here can be dialled. Everything is pure. `Sentinels` is
//! the only caller.

use redis::{Pipeline, ServerError, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::net::address::Address;
use crate::net::address_map::Addresses;
use crate::wire::fault::from_server;

/// What one sentinel knows about a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::topology) struct SentinelReply {
    /// `None` if the sentinel does not know the service.
    pub(in crate::topology) primary: Option<Address>,
    /// The configuration epoch, which rises with each failover; 0 if not reported.
    pub(in crate::topology) epoch: u64,
    /// The replicas in working order, if the query was about them.
    pub(in crate::topology) replicas: Vec<Address>,
}

/// What a query is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::topology) enum About {
    Primary,
    /// The primary and its replicas.
    Replicas,
}

impl SentinelReply {
    /// Builds the query. It asks for the epoch before the address. During a failover a sentinel may
    /// therefore report an epoch that is too low for the address, but never one that is too high.
    pub(in crate::topology) fn question(service: &str, about: About) -> Pipeline {
        let mut question = Pipeline::with_capacity(4);
        question.cmd("SUBSCRIBE").arg(SWITCH);
        question.cmd("SENTINEL").arg("MASTER").arg(service);
        question
            .cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(service);
        if about == About::Replicas {
            question.cmd("SENTINEL").arg("REPLICAS").arg(service);
        }
        question
    }

    /// Parses the replies. A user who may not subscribe, or not ask for more than the address,
    /// still gets the address.
    pub(in crate::topology) fn parse(replies: Vec<Value>) -> Result<Self> {
        // The first reply is that of `SUBSCRIBE`. If it was refused, the poll finds the primary.
        let mut replies = replies.into_iter().skip(1);
        let (master, address) = (replies.next(), replies.next());
        let replicas = replies.next();
        let primary = match address {
            Some(Value::Nil) => None,
            Some(Value::Array(parts)) => match parts.as_slice() {
                [host, port] => Some(addressed(text(host), text(port)).ok_or_else(malformed)?),
                _ => return Err(malformed()),
            },
            Some(Value::ServerError(error)) => return Err(refused(&error)),
            _ => return Err(malformed()),
        };
        let epoch = master.as_ref().and_then(|row| field(row, "config-epoch"));
        let rows = match &replicas {
            Some(Value::Array(rows)) => rows.as_slice(),
            _ => &[],
        };
        Ok(Self {
            primary,
            // Without the right to ask for it, the epoch counts as the lowest.
            epoch: epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0),
            replicas: rows.iter().filter_map(usable).collect(),
        })
    }

    /// Returns the same reply with the addresses that are reached from here.
    pub(in crate::topology) fn mapped(self, addresses: &Addresses) -> Self {
        let reached = |told| addresses.mapped(told);
        Self {
            primary: self.primary.map(reached),
            replicas: self.replicas.into_iter().map(reached).collect(),
            ..self
        }
    }
}

/// Returns the answer that counts and the primary that it names: the one with the highest epoch,
/// since a sentinel that was cut off during a failover is behind. Of several with that epoch, the
/// address that most sentinels agree with.
pub(in crate::topology) fn best(heard: &[SentinelReply]) -> Option<(&SentinelReply, &Address)> {
    let votes = |address: &Address| {
        let agree = heard
            .iter()
            .filter(|it| it.primary.as_ref() == Some(address));
        agree.count()
    };
    heard
        .iter()
        .filter_map(|it| Some((it, it.primary.as_ref()?)))
        .max_by_key(|(it, address)| (it.epoch, votes(address)))
}

/// Returns the old address from an announcement that `service` has another primary.
pub(in crate::topology) fn switch(message: &[Value], service: &str) -> Option<Address> {
    let [channel, announcement] = message else {
        return None;
    };
    if text(channel) != SWITCH {
        return None;
    }
    let words: Vec<&str> = text(announcement).split(' ').collect();
    match words.as_slice() {
        // The new address is left out: only answers, which have an epoch, say where the primary is.
        [name, host, port, _, _] if *name == service => addressed(host, port),
        _ => None,
    }
}

/// Returns the address of a replica that the sentinel considers to be in working order.
fn usable(row: &Value) -> Option<Address> {
    let flags = field(row, "flags")?;
    let ill = ["s_down", "o_down", "disconnected"];
    if flags.split(',').any(|flag| ill.contains(&flag)) {
        return None;
    }
    // A replica without its primary falls behind.
    if field(row, "master-link-status") != Some("ok") {
        return None;
    }
    addressed(field(row, "ip")?, field(row, "port")?)
}

/// Returns a field of a row, which is a map or a flat list of names and values.
fn field<'r>(row: &'r Value, name: &str) -> Option<&'r str> {
    match row {
        Value::Map(fields) => {
            let (_, value) = fields.iter().find(|(key, _)| text(key) == name)?;
            Some(text(value))
        }
        Value::Array(parts) => {
            let pair = parts.chunks_exact(2).find(|pair| text(&pair[0]) == name)?;
            Some(text(&pair[1]))
        }
        _ => None,
    }
}

fn text(value: &Value) -> &str {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        Value::SimpleString(text) => text,
        _ => "",
    }
}

fn addressed(host: &str, port: &str) -> Option<Address> {
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && port > 0).then(|| Address::Tcp(host.to_owned(), port))
}

fn refused(error: &ServerError) -> Error {
    // An unknown command: a data node does not know `SENTINEL`.
    if error.code() == "ERR" {
        return Error::invalid("the server is not a sentinel; name data nodes with `url`");
    }
    from_server(error)
}

fn malformed() -> Error {
    Error::new(
        ErrorKind::Server,
        "a sentinel answered in a way that this version does not know",
    )
}

const SWITCH: &str = "+switch-master";

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn row(fields: &[(&str, &str)]) -> Value {
        let fields = fields.iter().map(|(name, value)| (bulk(name), bulk(value)));
        Value::Map(fields.collect())
    }

    fn at(port: u16) -> Address {
        Address::Tcp("127.0.0.1".into(), port)
    }

    #[test]
    fn an_answer_names_the_primary_its_epoch_and_the_replicas_in_working_order() {
        let replica = |port: &str, flags: &str, link: &str| {
            row(&[
                ("ip", "127.0.0.1"),
                ("port", port),
                ("flags", flags),
                ("master-link-status", link),
            ])
        };
        let flat = Value::Array(vec![
            bulk("ip"),
            bulk("127.0.0.1"),
            bulk("port"),
            bulk("6"),
            bulk("flags"),
            bulk("slave"),
            bulk("master-link-status"),
            bulk("ok"),
        ]);
        let replies = vec![
            Value::Okay,
            row(&[("name", "s"), ("config-epoch", "7")]),
            Value::Array(vec![bulk("127.0.0.1"), bulk("1")]),
            Value::Array(vec![
                replica("2", "slave", "ok"),
                replica("3", "s_down,slave", "ok"),
                replica("4", "slave,disconnected", "ok"),
                replica("5", "slave", "err"),
                flat,
                Value::Nil,
            ]),
        ];
        let expected = SentinelReply {
            primary: Some(at(1)),
            epoch: 7,
            replicas: vec![at(2), at(6)],
        };
        assert_eq!(SentinelReply::parse(replies).expect("an answer"), expected);
    }

    #[test]
    fn an_answer_to_half_of_the_question_is_one_and_another_type_is_not() {
        let denied = || match redis::parse_redis_value(b"-NOPERM no\r\n") {
            Ok(error @ Value::ServerError(_)) => error,
            other => panic!("{other:?} is no error reply"),
        };
        let address = || Value::Array(vec![bulk("127.0.0.1"), bulk("1")]);
        let half = SentinelReply::parse(vec![denied(), denied(), address()]);
        assert_eq!(half.expect("an answer").primary, Some(at(1)));
        let unknown = SentinelReply::parse(vec![Value::Okay, denied(), Value::Nil]);
        assert_eq!(unknown.expect("an answer").primary, None);
        let bad = |value: Value| SentinelReply::parse(vec![Value::Okay, Value::Nil, value]);
        assert!(bad(denied()).is_err_and(|error| error.kind() == ErrorKind::Forbidden));
        for wrong in [
            Value::Okay,
            Value::Array(vec![bulk("h")]),
            Value::Array(vec![bulk("h"), bulk("70000")]),
            Value::Array(vec![bulk(""), bulk("1")]),
        ] {
            assert!(bad(wrong).is_err_and(|error| error.kind() == ErrorKind::Server));
        }
        assert!(SentinelReply::parse(Vec::new()).is_err());
    }

    #[test]
    fn the_highest_epoch_counts_and_then_the_most_voices() {
        let heard = |answers: &[(u16, u64)]| -> Option<Address> {
            let reply = |&(port, epoch): &(u16, u64)| SentinelReply {
                primary: (port > 0).then(|| at(port)),
                epoch,
                replicas: Vec::new(),
            };
            let heard: Vec<SentinelReply> = answers.iter().map(reply).collect();
            best(&heard).map(|(_, address)| address.clone())
        };
        assert_eq!(heard(&[]), None);
        assert_eq!(heard(&[(0, 9)]), None);
        assert_eq!(heard(&[(1, 3), (1, 3), (2, 4)]), Some(at(2)));
        assert_eq!(heard(&[(2, 4), (1, 3), (0, 9)]), Some(at(2)));
        assert_eq!(heard(&[(1, 3), (2, 3), (1, 3)]), Some(at(1)));
    }

    #[test]
    fn an_announcement_is_heard_if_it_is_about_the_service() {
        let message = |channel: &str, text: &str| [bulk(channel), bulk(text)];
        let own = message(SWITCH, "s 127.0.0.1 1 127.0.0.1 2");
        assert_eq!(switch(&own, "s"), Some(at(1)));
        assert_eq!(switch(&own, "t"), None);
        let other = message("+sdown", "s 127.0.0.1 1 127.0.0.1 2");
        assert_eq!(switch(&other, "s"), None);
        for nonsense in ["", "s", "s 127.0.0.1 x 127.0.0.1 2"] {
            assert_eq!(switch(&message(SWITCH, nonsense), "s"), None);
        }
    }
}
