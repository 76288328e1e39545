//! `Pipeline`: sends the commands and reads for one server, over the connection that all callers
//! share, or over one for large values.
//!
//! Invariant: a read over the connection for large values returns what the shared connection would
//! have returned. A write over it takes no effect before the shared connection commits it (see
//! [`Large`]).
//!
//! A [`Node`](super::node::Node) has one. The topologies send and read through it.

pub(crate) mod batch;
pub(crate) mod flushers;
pub(crate) mod large;
pub(crate) mod large_keys;
pub(crate) mod pipeliner;
pub(crate) mod queue;
pub(crate) mod replies;
pub(crate) mod request;
pub(crate) mod scatter_read;
pub(crate) mod trials;

use std::sync::Arc;

use redis::Cmd;

use super::breaker::Probe;
use super::connection::{Answer, Connection};
use crate::error::Result;
use crate::key::Key;
use crate::time::{Deadline, OnOutage, Priority};
use large::Large;
use large_keys::LargeKeys;
use pipeliner::Pipeliner;
use queue::{Limits, Queue};
use replies::{KeyReplies, MultiGet};
use scatter_read::KeyError;

/// Sends the commands and reads for one server.
#[derive(Debug)]
pub(crate) struct Pipeline {
    shared: Pipeliner,
    /// Sends large values over a connection of their own, if there is one.
    large: Option<Arc<Large>>,
    link: Arc<Connection>,
    limits: Limits,
}

impl Pipeline {
    pub(crate) fn new(
        link: Arc<Connection>,
        reads: MultiGet,
        pipelines: usize,
        limits: Limits,
    ) -> Self {
        let waiting = Queue::new(limits);
        Self {
            shared: Pipeliner::new(link.clone(), reads, pipelines, limits, waiting, None),
            large: None,
            link,
            limits,
        }
    }

    /// A pipeline that sends large values over a connection of their own.
    pub(crate) fn without_large_values(
        link: Arc<Connection>,
        reads: MultiGet,
        pipelines: usize,
        limits: Limits,
    ) -> Self {
        let (waiting, waiting_large) = Queue::pair(limits);
        let keys = Arc::<LargeKeys>::default();
        let large = Large::beside(&link, keys.clone(), reads, limits, waiting_large);
        Self {
            shared: Pipeliner::new(link.clone(), reads, pipelines, limits, waiting, Some(keys)),
            large: Some(large),
            link,
            limits,
        }
    }

    /// Sends one command and returns its reply.
    ///
    /// Cancel safety: if the caller leaves before the command was taken, it is not sent.
    pub(crate) async fn send(&self, command: &Cmd, deadline: Deadline) -> Result<Answer> {
        if deadline.priority == Priority::Apart
            && let Some(large) = &self.large
        {
            self.limits.admit(command)?;
            // A large value is not used as a probe: its transfer takes long, and until the probe
            // has ended, the breaker lets no other call through that heeds it.
            let outage = match deadline.on_outage {
                OnOutage::FailFast => self.link.breaker().outage(),
                OnOutage::KeepTrying => None,
            };
            if let Some(outage) = outage {
                return Err(self.link.located(outage));
            }
            if let Some(outcome) = Box::pin(large.send(command, deadline)).await {
                return outcome;
            }
            // It was not sent there, and the shared connection may take it.
        }
        self.shared.send(command, deadline).await
    }

    /// Reads string keys. A key of another type counts as missing.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(&self, keys: &[Key], deadline: Deadline) -> Result<KeyReplies> {
        let probe = self.shared.admit(deadline.on_outage)?;
        let deadline = Probe::limit(probe.as_ref(), deadline);
        // A probe goes over the shared connection, whose breaker it may close.
        if let Some(large) = self.for_large(keys)
            && probe.is_none()
            && let Some(outcome) = Box::pin(large.read(keys, deadline)).await
        {
            return outcome;
        }
        self.shared.read_admitted(keys, deadline).await
    }

    /// The connection for large values, if there is one and any of `keys` is known to be large.
    fn for_large(&self, keys: &[Key]) -> Option<&Arc<Large>> {
        self.large.as_ref().filter(|large| large.keys().knows(keys))
    }

    pub(crate) fn large(&self) -> Option<&Arc<Large>> {
        self.large.as_ref()
    }

    /// Reads keys that several servers may hold: each key through the pipeline of the same index.
    /// Either all keys are read, or the call fails. It heeds the breaker of each server.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn gather<'l>(
        keys: &[Key],
        pipelines: impl Iterator<Item = &'l Self> + Clone,
        deadline: Deadline,
    ) -> Result<KeyReplies, KeyError> {
        let mut places = keys.chunks(1).zip(pipelines.clone());
        if places.any(|(key, pipeline)| pipeline.for_large(key).is_some()) {
            let pipelines: Vec<&Self> = pipelines.clone().collect();
            if let Some(outcome) = Box::pin(Self::gather_large(keys, &pipelines, deadline)).await {
                return outcome;
            }
        }
        Pipeliner::gather(keys, pipelines.map(|it| &it.shared), deadline).await
    }

    /// Like [`gather`](Self::gather), with large values over connections of their own. Returns
    /// `None` if they cannot be read there.
    async fn gather_large(
        keys: &[Key],
        pipelines: &[&Self],
        deadline: Deadline,
    ) -> Option<Result<KeyReplies, KeyError>> {
        let mut ways = Vec::with_capacity(pipelines.len());
        let mut proofs = Vec::with_capacity(1);
        for (key, pipeline) in keys.chunks(1).zip(pipelines) {
            match pipeline.for_large(key) {
                Some(large) => {
                    proofs.push((large, large.proof()?));
                    ways.push(&large.pipeliner);
                }
                None => ways.push(&pipeline.shared),
            }
        }
        match Pipeliner::gather(keys, ways.into_iter(), deadline).await {
            // All proofs must still stand, or a part may come from another server process.
            Ok(cells) if proofs.iter().all(|(large, proof)| large.stands(*proof)) => {
                for ((key, cell), pipeline) in keys.iter().zip(&cells).zip(pipelines) {
                    if let Some(large) = pipeline.large() {
                        large.keys().learn(std::iter::once((key, cell)));
                    }
                }
                Some(Ok(cells))
            }
            Err((place, error)) if large::is_final(&error) => Some(Err((place, error))),
            Ok(_) | Err(_) => None,
        }
    }
}

/// How many pipelines may be under way at once to a server that is the only one. The server works
/// on one while the client unpacks the other.
pub(crate) const PIPELINES_TO_ONE: usize = 2;

/// How many pipelines may be under way at once to each of several servers. The other servers work
/// while the client unpacks, and fewer pipelines carry more commands each, which is cheaper.
pub(crate) const PIPELINES_TO_EACH: usize = 1;
