//! `Cluster`: a Redis Cluster, each key asked of the primary that serves its slot.
//!
//! Invariant: a command is sent to one server at a time, and to another only when the one before
//! has answered that it did not execute it (MOVED, ASK). Whatever is not answered is told as
//! unknown; nothing here sends it again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use redis::{Cmd, Pipeline, ServerError, Value};
use tokio::time::Instant;

use super::census::{Census, Primary};
use super::slots::{Redirect, SLOTS, redirect};
use crate::client::builder::{ClientBuilder, Place, invalid};
use crate::client::endpoint::{Address, Endpoint};
use crate::client::lane::{Cell, Reads};
use crate::client::link::Link;
use crate::client::node::{Node, Style};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::script::{Found, from_server, plain};

impl ClientBuilder {
    /// A Redis Cluster, found by any of `seeds`: `redis://[user[:password]@]host[:port]`. All of
    /// its servers are reached with the credentials of the first seed.
    ///
    /// The slots are asked for with the first call; when servers fail over or slots are moved, the
    /// client finds out, within the deadline of the calls that meet it.
    pub fn cluster<S: Into<String>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        self.place = Some(Place::Cluster(seeds.into_iter().map(S::into).collect()));
        self
    }
}

/// The primaries of a cluster, by slot.
pub(crate) struct Cluster(Arc<Census>);

impl Cluster {
    /// The cluster that `seeds` belong to; it is looked up when it is first needed.
    pub(crate) fn new(seeds: &[String], style: &Style) -> Result<Self> {
        let seeds = seeds.iter().map(|url| Endpoint::parse(url));
        let seeds: Vec<Endpoint> = seeds.collect::<Result<_>>()?;
        if seeds.is_empty() {
            return Err(invalid("a cluster needs at least one seed"));
        }
        for seed in &seeds {
            if seed.db != 0 {
                return Err(invalid(
                    "a cluster has database 0 only; leave it out of the URL",
                ));
            }
            if !matches!(seed.address, Address::Tcp(..)) {
                return Err(invalid(
                    "the servers of a cluster are reached by TCP; use redis://",
                ));
            }
        }
        let style = Style {
            reads: Reads::OneByOne,
            ..style.clone()
        };
        Ok(Self(Census::new(seeds, style)))
    }

    /// The server of `key`, as far as known without asking.
    pub(crate) fn node(&self, key: &Key) -> Option<Arc<Node>> {
        let map = self.0.known();
        map.primary(key.slot()).map(|primary| primary.node.clone())
    }

    /// The first of `candidates` that is served where `key` is.
    pub(crate) fn beside(&self, key: &Key, candidates: impl Iterator<Item = Key>) -> Option<Key> {
        let map = self.0.known();
        let home = &map.primary(key.slot())?.address;
        candidates.take(usize::from(SLOTS)).find(|candidate| {
            let primary = map.primary(candidate.slot());
            primary.is_some_and(|primary| primary.address == *home)
        })
    }

    /// Sends `command` to the server of `key`, and follows where that sends us.
    pub(crate) async fn send(&self, command: &Cmd, key: &Key, deadline: Instant) -> Result<Value> {
        let slot = key.slot();
        let mut to = self.0.primary(slot, deadline).await?;
        let mut reply = self.watched(to.node.lane.send(command, deadline).await)?;
        for _ in 0..MOST_REDIRECTS {
            match self.redirected(&reply, &to.address) {
                None => return Ok(reply),
                Some(Redirect::Moved(_, address)) => {
                    to = self.0.moved(slot, &address);
                    reply = self.watched(to.node.lane.send(command, deadline).await)?;
                }
                // For this command only; the next is asked of the owner again.
                Some(Redirect::Ask(address)) => {
                    to = self.0.at(&address);
                    reply = self.watched(ask(&to.node, command, deadline).await)?;
                }
            }
        }
        match self.redirected(&reply, &to.address) {
            None => Ok(reply),
            Some(_) => Err(restless()),
        }
    }

    /// Sends `command` to every primary; the first error of one is the answer.
    pub(crate) async fn send_to_all(&self, command: &Cmd, deadline: Instant) -> Result<Value> {
        let map = self.0.map(deadline).await?;
        let sent = map.primaries.iter().map(|primary| async move {
            match self.watched(primary.node.lane.send(command, deadline).await)? {
                Value::ServerError(error) => Err(self.refused(&error)),
                value => Ok(value),
            }
        });
        let replies = try_join_all(sent).await?;
        Ok(replies.into_iter().next().unwrap_or(Value::Nil))
    }

    /// Reads each of `keys` where it is served, in parallel.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Instant) -> Result<Found> {
        let mut found: Found = vec![None; keys.len()];
        let mut left: Vec<usize> = (0..keys.len()).collect();
        for _ in 0..=MOST_REDIRECTS {
            left = self.round(keys, &left, &mut found, deadline).await?;
            if left.is_empty() {
                return Ok(found);
            }
        }
        Err(restless())
    }

    /// Reads the keys at `places`, and answers those places that have to be read once more.
    async fn round(
        &self,
        keys: &[Key],
        places: &[usize],
        found: &mut [Option<Bytes>],
        deadline: Instant,
    ) -> Result<Vec<usize>> {
        let mut groups: Vec<(Primary, Vec<usize>)> = Vec::with_capacity(2);
        for &place in places {
            let primary = self.0.primary(keys[place].slot(), deadline).await?;
            match groups
                .iter_mut()
                .find(|(of, _)| Arc::ptr_eq(&of.node, &primary.node))
            {
                Some((_, group)) => group.push(place),
                None => groups.push((primary, vec![place])),
            }
        }
        let answers = join_all(groups.iter().map(|(primary, group)| async move {
            if group.len() == keys.len() {
                return primary.node.lane.read(keys, deadline).await;
            }
            let own: Vec<Key> = group.iter().map(|&place| keys[place].clone()).collect();
            primary.node.lane.read(&own, deadline).await
        }));
        let mut again = Vec::new();
        for (answer, (primary, group)) in answers.await.into_iter().zip(&groups) {
            for (cell, &place) in self.watched(answer)?.into_iter().zip(group) {
                let cell = self.cell(cell, &keys[place], &primary.address, deadline);
                match cell.await? {
                    Some(value) => found[place] = value,
                    None => again.push(place),
                }
            }
        }
        Ok(again)
    }

    /// What a cell comes to; `None` when the key must be read once more.
    async fn cell(
        &self,
        cell: Cell,
        key: &Key,
        asked: &Address,
        deadline: Instant,
    ) -> Result<Option<Option<Bytes>>> {
        let error = match cell {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        match redirect(&error, asked) {
            Some(Redirect::Moved(slot, address)) => {
                self.0.moved(slot, &address);
                Ok(None)
            }
            Some(Redirect::Ask(address)) => {
                let to = self.0.at(&address);
                let get = plain("GET", key);
                let reply = self.watched(ask(&to.node, &get, deadline).await)?;
                match crate::client::lane::cell(reply)? {
                    Ok(value) => Ok(Some(value)),
                    Err(error) if redirect(&error, &to.address).is_some() => Ok(None),
                    Err(error) => Err(self.refused(&error)),
                }
            }
            None => Err(self.refused(&error)),
        }
    }

    /// The primaries, asked for if none is known.
    pub(crate) async fn nodes(&self, deadline: Instant) -> Result<Vec<(String, Arc<Link>)>> {
        let map = self.0.map(deadline).await?;
        let node = |primary: &Primary| (primary.address.to_string(), primary.node.link.clone());
        Ok(map.primaries.iter().map(node).collect())
    }

    /// Where the primaries are, as far as known.
    pub(crate) fn address(&self) -> String {
        self.0.addresses().join(",")
    }

    /// Where `reply` sends us, if it does. What else it may say of the cluster is noted.
    fn redirected(&self, reply: &Value, asked: &Address) -> Option<Redirect> {
        let Value::ServerError(error) = reply else {
            return None;
        };
        let redirect = redirect(error, asked);
        if redirect.is_none() {
            self.note(error);
        }
        redirect
    }

    fn refused(&self, error: &ServerError) -> Error {
        self.note(error);
        from_server(error)
    }

    /// A server that cannot serve the slot may not be the one to ask.
    fn note(&self, error: &ServerError) {
        if matches!(error.code(), "CLUSTERDOWN" | "MASTERDOWN" | "READONLY") {
            self.0.suspect();
        }
    }

    /// A server that does not answer may not be the one to ask.
    fn watched<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.0.suspect();
        }
        outcome
    }
}

/// Sends `command` where a slot is on its way to. The permission counts for the next command on
/// the connection, so both travel in one pipeline, which nothing comes between.
async fn ask(node: &Node, command: &Cmd, deadline: Instant) -> Result<Value> {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.add_command(redis::cmd("ASKING"));
    pipeline.add_command(command.clone());
    let replies = node.link.send_all(&pipeline, deadline).await?;
    let reply = replies.into_iter().nth(1);
    reply.ok_or_else(|| restless().with_fate(Fate::Unknown))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cluster").field(&self.address()).finish()
    }
}

fn restless() -> Error {
    Error::new(
        ErrorKind::ClusterDown,
        "the servers of the cluster send us from one to another; are slots being moved?",
    )
}

/// How often one command follows a redirect before it pauses.
const MOST_REDIRECTS: usize = 5;
