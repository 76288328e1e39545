//! `Cluster`: sends each command to the cluster primary that serves the slot of its key.
//!
//! Invariant: a command is sent to one server at a time. It goes to another server only after the
//! one before has answered that it did not execute it (MOVED, ASK). A command that got no answer
//! fails as indeterminate; nothing here sends it again.
//!
//! `Refresher` keeps the slot map that is used here, and corrects it. `Topology` calls this module
//! for a client that was given the seeds of a cluster.

pub(crate) mod inquiry;
pub(crate) mod refresh;
pub(crate) mod slot_map;
pub(crate) mod verdict;
pub(crate) mod wire;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use redis::{Cmd, ServerError, Value};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::{Key, SLOTS};
use crate::net::address::Address;
use crate::net::connection::{Answer, Connection};
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};
use crate::net::pipeline::replies::{MultiGet, Values, cell};
use crate::net::pipeline::{PIPELINES_TO_EACH, Pipeline};
use crate::time::Deadline;
use crate::wire::command::plain;
use crate::wire::fault::from_server;
use refresh::Refresher;
use slot_map::{Primary, no_slots};
use wire::{Redirect, redirect};

/// A Redis Cluster: its primaries, found by slot.
pub(crate) struct Cluster(
    Arc<Refresher>,
    /// How many calls were sent to another server than the slot map says.
    AtomicU64,
);

impl Cluster {
    /// Returns the cluster that `seeds` belong to. Does no I/O: the first call that needs the slot
    /// map fetches it.
    pub(crate) fn new(seeds: &[String], style: &NodeConfig) -> Result<Self> {
        let seeds = Endpoint::parse_all(seeds, &style.approach)?;
        if seeds.is_empty() {
            return Err(Error::invalid("a cluster needs at least one seed"));
        }
        for seed in &seeds {
            if seed.db != 0 {
                return Err(Error::invalid(
                    "a cluster has database 0 only; leave it out of the URL",
                ));
            }
            if !matches!(seed.address, Address::Tcp(..)) {
                return Err(Error::invalid(
                    "the servers of a cluster are reached by TCP; use redis://",
                ));
            }
        }
        let style = NodeConfig {
            // An `MGET` whose keys lie in several slots is refused by the server.
            reads: MultiGet::OneByOne,
            // One pipeline to each server is enough: the other servers work meanwhile.
            pipelines: PIPELINES_TO_EACH,
            ..style.clone()
        };
        Ok(Self(Refresher::new(seeds, style), AtomicU64::default()))
    }

    /// How many calls were sent to another server than the slot map says so far.
    pub(crate) fn detours(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    /// Returns the server of `key` according to the slot map, without asking any server.
    pub(crate) fn node(&self, key: &Key) -> Option<Arc<Node>> {
        let map = self.0.known();
        map.primary(key.slot()).map(|primary| primary.node.clone())
    }

    /// Returns the first of `candidates` whose slot is served by the primary that serves `key`.
    pub(crate) fn beside(&self, key: &Key, candidates: impl Iterator<Item = Key>) -> Option<Key> {
        let map = self.0.known();
        let home = &map.primary(key.slot())?.address;
        // Bounded, since the candidates are endless and a server may own few slots.
        candidates.take(usize::from(SLOTS)).find(|candidate| {
            let primary = map.primary(candidate.slot());
            primary.is_some_and(|primary| primary.address == *home)
        })
    }

    /// Sends `command` to the server of `key`, and follows redirects.
    pub(crate) async fn send(
        &self,
        command: &Cmd,
        key: &Key,
        deadline: Deadline,
    ) -> Result<Answer> {
        let slot = key.slot();
        let mut to = self.0.primary(slot, deadline).await?;
        let mut reply = self.watched(to.node.pipeline.send(command, deadline).await)?;
        // Bounded: while slots move, servers may redirect to each other for a while.
        for _ in 0..MOST_REDIRECTS {
            let redirect = self.redirected(&reply.value, &to.address);
            if redirect.is_some() {
                self.1.fetch_add(1, Ordering::Relaxed);
            }
            match redirect {
                None => return Ok(reply),
                Some(Redirect::Moved(_, address)) => {
                    to = self.0.moved(slot, &address);
                    reply = self.watched(to.node.pipeline.send(command, deadline).await)?;
                }
                // ASK holds for this command only. The slot still belongs to the old owner, so the
                // next command goes there again.
                Some(Redirect::Ask(address)) => {
                    to = self.0.at(&address);
                    reply = self.watched(Box::pin(ask(&to.node, command, deadline.at)).await)?;
                }
                Some(Redirect::Nameless) => {
                    to = self.0.elsewhere(slot, &to.address, deadline.at).await?;
                    reply = self.watched(to.node.pipeline.send(command, deadline).await)?;
                }
            }
        }
        match self.redirected(&reply.value, &to.address) {
            None => Ok(reply),
            Some(_) => Err(restless()),
        }
    }

    /// Sends a write of `key` to its server, waits for replicas, and follows redirects: see
    /// [`Durable::send`](crate::net::durable::Durable::send).
    pub(crate) async fn send_durably(
        &self,
        command: &Cmd,
        key: &Key,
        replicas: usize,
        deadline: Deadline,
    ) -> Result<(Answer, usize)> {
        let slot = key.slot();
        let mut to = self.0.primary(slot, deadline).await?;
        let mut commands = vec![command.clone()];
        for _ in 0..=MOST_REDIRECTS {
            let sent = to.node.send_durably(commands, replicas, deadline.at).await;
            let (answer, count) = self.watched(sent)?;
            commands = vec![command.clone()];
            match self.redirected(&answer.value, &to.address) {
                None => return Ok((answer, count)),
                Some(Redirect::Moved(_, address)) => to = self.0.moved(slot, &address),
                Some(Redirect::Ask(address)) => {
                    to = self.0.at(&address);
                    commands.insert(0, redis::cmd("ASKING"));
                }
                Some(Redirect::Nameless) => {
                    to = self.0.elsewhere(slot, &to.address, deadline.at).await?;
                }
            }
        }
        Err(restless())
    }

    /// Sends `command` to every primary. Fails with the first error that any of them reports.
    pub(crate) async fn send_to_all(
        &self,
        command: &Cmd,
        deadline: Deadline,
    ) -> Result<Option<Answer>> {
        let map = self.0.map(deadline).await?;
        let sent = map.primaries.iter().map(|primary| async move {
            let answer = self.watched(primary.node.pipeline.send(command, deadline).await)?;
            match &answer.value {
                Value::ServerError(error) => Err(self.refused(error)),
                _ => Ok(answer),
            }
        });
        let replies = try_join_all(sent).await?;
        Ok(replies.into_iter().next())
    }

    /// Sends `command` to every primary and returns as soon as one of them has served it. If none
    /// does, fails with a refusal if there was one, and else with the last error.
    pub(crate) async fn send_to_any(&self, command: &Cmd, deadline: Deadline) -> Result<()> {
        let map = self.0.map(deadline).await?;
        let sent = map.primaries.iter().map(|primary| async move {
            let answer = self.watched(primary.node.pipeline.send(command, deadline).await)?;
            match &answer.value {
                Value::ServerError(error) => Err(self.refused(error)),
                _ => Ok(()),
            }
        });
        let mut answers: FuturesUnordered<_> = sent.collect();
        let mut worst = no_slots();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(error) => {
                    // A refusal is kept: it tells the caller what to mend, and waiting does not end
                    // it.
                    if worst.fate() != Fate::Refused || error.fate() == Fate::Refused {
                        worst = error;
                    }
                }
            }
        }
        Err(worst)
    }

    /// Reads each of `keys` from its server, in parallel.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<Values> {
        let map = self.0.map(deadline).await?;
        let owners = |key: &Key| {
            map.primary(key.slot()).ok_or_else(|| {
                self.0.suspect();
                map.unserved(key.slot())
            })
        };
        // A slot without a server fails the read before anything is sent.
        let mut asked: Vec<&Primary> = Vec::with_capacity(keys.len());
        for key in keys {
            asked.push(owners(key)?);
        }
        let pipelines = asked.iter().map(|primary| &primary.node.pipeline);
        let answer = Pipeline::gather(keys, pipelines, deadline).await;
        let answer = answer.map_err(|(place, error)| asked[place].node.link.located(error));
        let cells = self.watched(answer)?;
        // The usual case: no slot has moved, and no key needs a second trip.
        if cells.iter().all(Result::is_ok) {
            return Ok(cells.into_iter().flatten().collect());
        }
        let found = keys.iter().zip(asked).zip(cells);
        try_join_all(found.map(|((key, asked), cell)| async move {
            match cell {
                Ok(value) => Ok(value),
                Err(error) => {
                    let read = self.elsewhere(key, error, &asked.address, deadline).await;
                    read.map_err(|error| asked.node.link.located(error))
                }
            }
        }))
        .await
    }

    /// Follows the redirect after the server at `asked` has refused to read `key` with `error`.
    async fn elsewhere(
        &self,
        key: &Key,
        error: ServerError,
        asked: &Address,
        deadline: Deadline,
    ) -> Result<Option<Bytes>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        match redirect(&error, self.0.asked(asked)) {
            None => return Err(self.refused(&error)),
            Some(Redirect::Moved(slot, address)) => drop(self.0.moved(slot, &address)),
            // `send` below asks the owner again, gets the same answer and follows it.
            Some(Redirect::Ask(_) | Redirect::Nameless) => {}
        }
        let reply = self.send(&plain("GET", key), key, deadline).await?.value;
        cell(reply)?.map_err(|error| self.refused(&error))
    }

    /// Returns the primaries. Fetches the slot map first if no primary is known.
    pub(crate) async fn nodes(&self, deadline: Deadline) -> Result<Vec<(String, Arc<Connection>)>> {
        let map = self.0.map(deadline).await?;
        let node = |primary: &Primary| (primary.address.to_string(), primary.node.link.clone());
        Ok(map.primaries.iter().map(node).collect())
    }

    /// Returns the primaries, as the servers report them now.
    pub(crate) async fn primaries(&self, deadline: Deadline) -> Result<Vec<Arc<Node>>> {
        let map = self.0.renew(deadline.at).await?;
        Ok(map.primaries.iter().map(|it| it.node.clone()).collect())
    }

    /// Returns the addresses of the primaries, or of the seeds if no primary is known.
    pub(crate) fn address(&self) -> String {
        self.0.addresses().join(",")
    }

    /// Returns the redirect in `reply`, if it is one. Any other error that puts the slot map in
    /// doubt starts a refresh.
    fn redirected(&self, reply: &Value, asked: &Address) -> Option<Redirect> {
        let Value::ServerError(error) = reply else {
            return None;
        };
        let redirect = redirect(error, self.0.asked(asked));
        if redirect.is_none() {
            self.note(error);
        }
        redirect
    }

    fn refused(&self, error: &ServerError) -> Error {
        self.note(error);
        from_server(error)
    }

    /// Starts a refresh after an error that says the server cannot serve the slot: another server
    /// may serve it now.
    fn note(&self, error: &ServerError) {
        if matches!(error.code(), "CLUSTERDOWN" | "MASTERDOWN" | "READONLY") {
            self.0.suspect();
        }
    }

    /// Starts a refresh if the server did not answer: another server may have taken over its slots.
    fn watched<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome
            && !is_refused_here(error)
        {
            self.0.suspect();
        }
        outcome
    }
}

/// Sends `command` to a server that is importing its slot. `ASKING` counts only for the next
/// command on the connection. Both travel in one pipeline, so that no other command comes between
/// them.
async fn ask(node: &Node, command: &Cmd, deadline: Instant) -> Result<Answer> {
    let mut pipeline = redis::Pipeline::with_capacity(2);
    pipeline.add_command(redis::cmd("ASKING"));
    pipeline.add_command(command.clone());
    let sent = Instant::now();
    let replies = node.link.send_all(&pipeline, deadline).await?;
    let value = replies.into_iter().nth(1);
    let answer = value.map(|value| Answer { value, sent });
    // The pipeline was sent, so the effect of a command whose reply is missing is unknown.
    answer.ok_or_else(|| restless().with_fate(Fate::Unknown))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A running query owns the refresher and would keep it alive.
        self.0.close();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.address()).finish()
    }
}

/// Returns whether the client itself refused the call. Nothing was sent, so the error says nothing
/// new about the server.
fn is_refused_here(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::CircuitOpen | ErrorKind::Overloaded | ErrorKind::TooLarge
    )
}

fn restless() -> Error {
    Error::new(
        ErrorKind::ClusterDown,
        "the cluster redirected the call 5 times; check whether slots are being moved",
    )
}

/// How many redirects one command follows. After that the call fails, and the retry pauses before
/// it tries again.
const MOST_REDIRECTS: usize = 5;
