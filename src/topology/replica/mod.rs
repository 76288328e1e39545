//! `Replicas`: servers that follow one primary and may be asked what a cache holds.
//!
//! Invariant: a replica is asked only if it is proved to have applied all that its primary had at
//! some moment, not longer ago than [`MOST_LAG`] and later than the end of each of this client's
//! writes of the keys. The proof: the primary said its replication offset after that moment, and
//! the replica, of the same history, has reached it. A proof belongs to a connection: what answers
//! on the next one may be a process that has started again with older data. Without proof nobody
//! is asked, and the primary answers.

pub(crate) mod proof;
pub(crate) mod recent_writes;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use crate::background::Background;
use crate::key::Key;
use crate::net::connection::Connection;
use crate::net::connection::target::Target;
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};
use crate::net::pipeline::replies::Values;
use crate::time::Deadline;
use crate::time::jittered;
use proof::{History, replication_state};
use recent_writes::{MOST_LAG, RecentWrites};

pub(crate) struct Replicas {
    primary: Arc<Connection>,
    writes: Arc<RecentWrites>,
    style: NodeConfig,
    /// Gives the replicas occasion to prove themselves; see [`probe`].
    prober: Background,
    state: Mutex<State>,
}

struct State {
    members: Vec<Arc<Member>>,
    last_read: Option<Instant>,
}

struct Member {
    node: Node,
    proof: Mutex<Option<Proof>>,
}

/// That a replica has applied all that its primary had at this moment.
#[derive(Debug, Clone, Copy)]
struct Proof {
    at: Instant,
    /// The connection on which it was given.
    epoch: u64,
}

impl Replicas {
    /// The replicas of the server behind `primary`; `writes` is told of all that this client
    /// writes there.
    pub(crate) fn new(
        primary: Arc<Connection>,
        writes: Arc<RecentWrites>,
        style: &NodeConfig,
    ) -> Arc<Self> {
        Arc::new(Self {
            primary,
            writes,
            style: NodeConfig {
                name: format!("{}-replica", style.name),
                on_trouble: None,
                ..style.clone()
            },
            prober: Background::by(&style.spawner),
            state: Mutex::new(State {
                members: Vec::new(),
                last_read: None,
            }),
        })
    }

    /// These are the replicas from now on.
    pub(crate) fn set(&self, endpoints: &[Endpoint]) {
        let mut state = self.state();
        let before = std::mem::take(&mut state.members);
        for endpoint in endpoints {
            let address = endpoint.address.to_string();
            let known = before.iter().find(|known| known.node.address() == address);
            let member = known.cloned().unwrap_or_else(|| {
                let source = Target::Server(endpoint.clone());
                Arc::new(Member {
                    node: Node::mute(address, source, &self.style),
                    proof: Mutex::new(None),
                })
            });
            state.members.push(member);
        }
        for old in before {
            let kept = |member| Arc::ptr_eq(member, &old);
            if !state.members.iter().any(kept) {
                old.node.retire();
            }
        }
    }

    /// Whether anybody has read from here lately.
    pub(crate) fn are_read(&self) -> bool {
        let last = self.state().last_read;
        last.is_some_and(|last| last.elapsed() < IDLE)
    }

    /// What one of the replicas finds, at one moment that is not before any write of this client
    /// nor longer ago than [`MOST_LAG`]; `None` when nobody can be asked, or does not answer.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(self: &Arc<Self>, keys: &[Key], deadline: Instant) -> Option<Values> {
        let (member, proof) = self.choose(self.writes.latest(keys))?;
        let now = Instant::now();
        // The primary must have time to answer in its place.
        let patience = deadline.saturating_duration_since(now) / 4;
        let cells = member
            .node
            .pipeline
            .read(keys, Deadline::after(patience))
            .await;
        let found: Option<Values> = match cells {
            Ok(cells) => cells.into_iter().map(Result::ok).collect(),
            Err(_) => None,
        };
        // Nobody may have come in the place of the one that gave the proof.
        let found = found.filter(|_| member.node.link.epoch() == proof.epoch);
        if found.is_none() {
            tracing::debug!(target: "hedgerow::client", replica = member.node.address(), "the replica does not answer; asking the primary");
            member.doubt();
        }
        found
    }

    /// One that is proved to have all that was written up to `written`.
    fn choose(self: &Arc<Self>, written: Option<Instant>) -> Option<(Arc<Member>, Proof)> {
        let now = Instant::now();
        let mut state = self.state();
        state.last_read = Some(now);
        self.prober.ensure(|| probe(Arc::downgrade(self)));
        let fit = |member: &Arc<Member>| {
            let proof = member.proof()?;
            let is_new = now.saturating_duration_since(proof.at) < MOST_LAG;
            let has_all = written.is_none_or(|written| written < proof.at);
            (is_new && has_all && member.stands(proof)).then(|| (member.clone(), proof))
        };
        let fit: Vec<_> = state.members.iter().filter_map(fit).collect();
        match fit.len() {
            0 => None,
            count => fit.into_iter().nth(rand::random_range(0..count)),
        }
    }

    /// Asks the primary how far it is, and the replicas whether they have come that far.
    async fn round(&self, history: &mut History) {
        let asked = Instant::now();
        match replication_state(&self.primary, asked + REPLICATION_TIMEOUT).await {
            Ok(replication_state) if replication_state.is_primary => {
                history.note(asked, replication_state)
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(target: "hedgerow::client", %error, "the primary does not say how far it is");
            }
        }
        let members = self.state().members.clone();
        let history = &*history;
        join_all(members.iter().map(|member| member.examine(history))).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Asks the replica how far it is, and notes what that proves.
    async fn examine(&self, history: &History) {
        let link = &self.node.link;
        let epoch = link.epoch();
        match replication_state(link, Instant::now() + REPLICATION_TIMEOUT).await {
            // The answer is of the connection whose epoch it was before and after.
            Ok(replication_state) if replication_state.follows && link.epoch() == epoch => {
                if let Some(at) = history.reached(&replication_state) {
                    *self.lock() = Some(Proof { at, epoch });
                }
            }
            Ok(_) => self.doubt(),
            Err(error) => {
                tracing::debug!(target: "hedgerow::client", replica = self.node.address(), %error, "the replica does not say how far it is");
                self.doubt();
            }
        }
    }

    /// Whether the connection that a proof was given on is still in use.
    fn stands(&self, proof: Proof) -> bool {
        self.node.link.is_up() && self.node.link.epoch() == proof.epoch
    }

    fn proof(&self) -> Option<Proof> {
        *self.lock()
    }

    /// It must prove itself again.
    fn doubt(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Proof>> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the replicas occasion to prove themselves: spawned by the first read, it ends when nobody
/// has read for a while, or with the client (or with its runtime, after which the next read starts
/// another).
async fn probe(replicas: Weak<Replicas>) {
    let mut history = History::default();
    loop {
        let Some(replicas) = replicas.upgrade() else {
            return;
        };
        if !replicas.are_read() {
            return;
        }
        replicas.round(&mut history).await;
        drop(replicas);
        tokio::time::sleep(jittered(ROUND, 0.75..1.25)).await;
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.state().members.clone();
        f.debug_list()
            .entries(members.iter().map(|member| member.node.address()))
            .finish()
    }
}

/// How often replicas prove themselves, about: until then what this client has written is asked of
/// the primary.
const ROUND: Duration = Duration::from_millis(250);

/// How long a server may take to say how far it is.
const REPLICATION_TIMEOUT: Duration = Duration::from_millis(500);

/// How long replicas are asked to prove themselves after the last read.
const IDLE: Duration = Duration::from_secs(10);
