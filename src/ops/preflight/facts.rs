//! `Facts`: what one server reports about itself, and which calls it refuses.
//!
//! Invariant: a fact is what the server said, or what it said instead. Only a lost connection is an
//! error. Everything is sent over a separate connection, so that callers are not disturbed.
//! `preflight` gathers the facts, and `judge` reads them.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::{Pipeline, ServerError, Value, from_redis_value};
use tokio::time::Instant;

use super::clocks;
use super::clocks::Offset;
use crate::client::{Formats, Written};
use crate::error::Result;
use crate::key::Key;
use crate::net::connection::Connection;
use crate::ops::acl::{TRIALS, trial_call};
use crate::wire::command::plain;
use crate::wire::value::parsed;

/// What is known about one server.
pub(crate) struct Facts {
    pub(crate) address: String,
    /// The reply of `HELLO`, which needs no right.
    pub(crate) hello: BTreeMap<String, String>,
    pub(crate) info: Result<BTreeMap<String, String>>,
    pub(crate) config: Result<BTreeMap<String, String>>,
    /// The formats of the namespace that are recorded there, as far as the server reported them.
    pub(crate) formats: Vec<(Written, String)>,
    /// The trials that failed, with their errors.
    pub(crate) refused: Vec<(&'static str, ServerError)>,
    pub(crate) clock: Option<Offset>,
    /// Whether data on the way to the server can be read by others.
    pub(crate) is_readable: bool,
}

/// Asks the server behind `link`. `key` is a key and a channel that nobody uses; `formats` has the
/// format keys to read.
pub(crate) async fn gather(
    address: String,
    link: &Arc<Connection>,
    key: &Key,
    formats: &Formats,
    deadline: Instant,
) -> Result<Facts> {
    let own = link.another();
    let hello = own.send(&redis::cmd("HELLO"), deadline).await?;
    let clock = clocks::ask(&own, deadline).await?;

    let mut questions = Pipeline::with_capacity(2);
    questions.add_command(redis::cmd("INFO"));
    let mut settings = redis::cmd("CONFIG");
    settings.arg("GET").arg(&SETTINGS);
    questions.add_command(settings);
    let replies = own.send_all(&questions, deadline).await?;
    let [info, config] = replies.try_into().unwrap_or([Value::Nil, Value::Nil]);

    let mut questions = Pipeline::with_capacity(2);
    for (_, key) in formats.keys() {
        questions.add_command(plain("GET", key));
    }
    let replies = own.send_all(&questions, deadline).await?;
    // A server of a cluster refuses the keys of other slots. The servers of those slots answer.
    let formats = formats.keys().zip(replies);
    let formats = formats.filter_map(|((written, _), reply)| match reply {
        Value::BulkString(text) => Some((written, String::from_utf8_lossy(&text).into_owned())),
        _ => None,
    });

    // Not on a connection that others use: it would get their pushes, and `ASKING` would count for
    // a command of theirs.
    let trials = TRIALS
        .iter()
        .filter(|trial| own.is_ours() || !["SSUBSCRIBE CHANNEL", "ASKING"].contains(trial));
    let trials: Vec<&str> = trials.copied().collect();
    let mut calls = Pipeline::with_capacity(trials.len());
    for trial in &trials {
        calls.add_command(trial_call(trial, key));
    }
    let replies = own.send_all(&calls, deadline).await?;
    let refused = trials.into_iter().zip(replies);
    let refused = refused.filter_map(|(trial, reply)| match reply {
        Value::ServerError(error) => Some((trial, error)),
        _ => None,
    });
    Ok(Facts {
        address,
        hello: parsed::<BTreeMap<String, Value>>(hello.value)
            .map(|hello| hello.into_iter().filter_map(text).collect())
            .unwrap_or_default(),
        info: parsed::<String>(info).map(|info| fields(&info)),
        config: parsed(config),
        formats: formats.collect(),
        refused: refused.collect(),
        clock,
        is_readable: link.is_readable_on_the_way(),
    })
}

fn text((name, value): (String, Value)) -> Option<(String, String)> {
    Some((name, from_redis_value(value).ok()?))
}

/// Returns the `name:value` lines of `INFO`.
fn fields(info: &str) -> BTreeMap<String, String> {
    let lines = info.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The settings that are checked.
const SETTINGS: [&str; 7] = [
    "save",
    "appendonly",
    "maxmemory",
    "maxmemory-policy",
    "timeout",
    "min-replicas-to-write",
    "cluster-require-full-coverage",
];
