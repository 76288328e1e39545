//! `Replicas`: servers that follow one primary and may answer reads of a cache.
//!
//! Invariant: a replica is asked only if it is proved to have applied everything that its primary
//! had at some moment. That moment is not longer ago than [`MOST_LAG`], and later than the end of
//! each write of the keys by this client. The proof: after that moment the primary reported its
//! replication offset, and the replica, with the same history, has reached that offset. A proof
//! belongs to a connection, since the process behind the next connection may have restarted with
//! older data. Without a proof no replica is asked, and the primary answers.
//!
//! `Replicated` calls this for caches that read from replicas.

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
    /// Asked for its replication offset, which the replicas are compared with.
    primary: Arc<Connection>,
    /// The recent writes of this client: a replica must have applied them before it is read.
    writes: Arc<RecentWrites>,
    style: NodeConfig,
    /// The task that compares the replicas with the primary; see [`probe`].
    prober: Background,
    state: Mutex<State>,
}

struct State {
    members: Vec<Arc<Member>>,
    /// Without reads for a while, replicas are not probed.
    last_read: Option<Instant>,
}

struct Member {
    node: Node,
    proof: Mutex<Option<Proof>>,
}

/// Proves that a replica has applied everything that its primary had at this moment.
#[derive(Debug, Clone, Copy)]
struct Proof {
    at: Instant,
    /// The connection on which the replica answered.
    epoch: u64,
}

impl Replicas {
    /// Makes the replicas of the server behind `primary`. `writes` must record everything that
    /// this client writes there.
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
                // A replica that is out is no reason to look for another primary: the primary
                // answers instead.
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

    /// Replaces the list of replicas. Replicas that stay keep their connections and proofs.
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

    /// Returns whether any cache has read from here in the last 10 s.
    pub(crate) fn are_read(&self) -> bool {
        let last = self.state().last_read;
        last.is_some_and(|last| last.elapsed() < IDLE)
    }

    /// Reads `keys` at one of the replicas. All values are of one moment, which is not before any
    /// write of the keys by this client, and not longer ago than [`MOST_LAG`]. `None` if no replica
    /// may be asked, or the one that was asked does not answer.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(self: &Arc<Self>, keys: &[Key], deadline: Instant) -> Option<Values> {
        let (member, proof) = self.choose(self.writes.latest(keys))?;
        let now = Instant::now();
        // If the replica does not answer, the primary must still have time to.
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
        // After a reconnect, another process may have answered than the one that gave the proof.
        let found = found.filter(|_| member.node.link.epoch() == proof.epoch);
        if found.is_none() {
            tracing::debug!(target: "hedgerow::client", replica = member.node.address(), "the replica does not answer; asking the primary");
            member.doubt();
        }
        found
    }

    /// Chooses a replica at random among those that are proved to have everything up to `written`.
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

    /// Asks the primary for its offset, and then the replicas whether they have reached it.
    async fn round(&self, history: &mut History) {
        // Taken before the query: the answer includes everything that was written before this
        // moment.
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
    /// Asks the replica for its offset, and records what that proves.
    async fn examine(&self, history: &History) {
        let link = &self.node.link;
        let epoch = link.epoch();
        match replication_state(link, Instant::now() + REPLICATION_TIMEOUT).await {
            // The epoch was the same before and after, so the answer came on that connection.
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

    /// Returns whether the connection that a proof was given on is still in use.
    fn stands(&self, proof: Proof) -> bool {
        self.node.link.is_up() && self.node.link.epoch() == proof.epoch
    }

    fn proof(&self) -> Option<Proof> {
        *self.lock()
    }

    /// Forgets the proof. The replica must be probed again.
    fn doubt(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Proof>> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Probes the replicas at intervals. The first read spawns this task. It ends when nothing was read
/// for a while, with the client, or with its runtime; after that, the next read starts another.
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
        // Not kept over the pause: the client must be able to end.
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

/// The mean time between two probes. Until the next probe, keys that this client has written are
/// read at the primary.
const ROUND: Duration = Duration::from_millis(250);

/// How long a server may take to report its offset.
const REPLICATION_TIMEOUT: Duration = Duration::from_millis(500);

/// How long replicas are probed after the last read.
const IDLE: Duration = Duration::from_secs(10);
