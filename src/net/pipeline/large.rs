//! `Large`: sends large values over a connection of their own, so that small calls do not wait for
//! their transfer.
//!
//! Invariant: a read here returns what the shared connection would have returned. It needs a proof
//! that both connections lead to the same server process: both report the same `run_id`. The proof
//! holds for the two sessions that gave it. If either has changed when the answer comes, the answer
//! is not used. A write here takes no effect before the shared connection commits it; see
//! [`Priority::Apart`](crate::time::Priority::Apart).
//!
//! A [`Pipeline`](super::Pipeline) reads keys here that were large when they were last seen, and
//! asks the shared connection while there is no proof.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::{Cmd, ServerError, Value};
use tokio::time::Instant;

use super::large_keys::LargeKeys;
use super::pipeliner::Pipeliner;
use super::queue::{Limits, Queue, RESERVE, overloaded};
use super::replies::{KeyReplies, MultiGet};
use super::request::arguments;
use super::trials::{Trials, Way};
use crate::background::Background;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::Key;
use crate::net::connection::{Answer, Connection};
use crate::net::server_run::server_run;
use crate::time::{Deadline, Priority};

/// The connection for large values of one server, and what is known about it.
#[derive(Debug)]
pub(crate) struct Large {
    /// The pipeliner of the connection for large values.
    pub(crate) pipeliner: Pipeliner,
    link: Arc<Connection>,
    /// The connection for everything else.
    shared: Arc<Connection>,
    keys: Arc<LargeKeys>,
    standing: Mutex<ProofState>,
    /// Knows which values may be larger than the server takes.
    // Learned by trying, because most users may not ask the server for its limit (`CONFIG GET`).
    trials: Trials,
    /// Sends these, each over a session of its own.
    // The server closes a connection on which a value is too large, and all calls on it would fail.
    alone: Arc<Connection>,
    /// Opens the connection and proves where it leads; see [`prove`].
    prover: Background,
}

/// Whether it is proved where the connection leads.
#[derive(Debug, Clone, Copy)]
enum ProofState {
    Unproved,
    Proved(Proof),
    /// The last proof failed. The next one starts at this instant at the earliest, after this
    /// pause.
    Failed(Instant, Duration),
}

/// The epochs of two sessions that led to one server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    shared: u64,
    own: u64,
}

/// What became of a value that was to be sent.
enum Sent {
    /// The call is over.
    Ended(Result<Answer>),
    /// The value was not sent.
    Not,
    /// The server, or a peer on the way, closed the connection while the value was sent.
    Lost,
}

impl Large {
    /// Makes the connection for large values beside `shared`. Its socket is opened when it is first
    /// needed.
    pub(crate) fn beside(
        shared: &Arc<Connection>,
        keys: Arc<LargeKeys>,
        reads: MultiGet,
        limits: Limits,
        waiting: Queue,
    ) -> Arc<Self> {
        let link = shared.for_large_values();
        Arc::new(Self {
            pipeliner: Pipeliner::of_large_values(link.clone(), reads, limits, waiting),
            prover: Background::by(link.spawner()),
            link,
            shared: shared.clone(),
            keys,
            standing: Mutex::new(ProofState::Unproved),
            // What waits for a trial is not in a queue, so it has a bound of its own.
            trials: Trials::new(limits.bytes / RESERVE),
            alone: shared.for_large_values(),
        })
    }

    /// Which keys were large when they were last seen.
    pub(crate) fn keys(&self) -> &LargeKeys {
        &self.keys
    }

    /// The proof that the server behind the shared connection answers here, too. Returns `None`
    /// while there is none; then a background task tries to prove it.
    pub(crate) fn proof(self: &Arc<Self>) -> Option<Proof> {
        let standing = *self.standing();
        match standing {
            ProofState::Proved(proof) if self.stands(proof) => return Some(proof),
            ProofState::Failed(until, _) if Instant::now() < until => return None,
            _ => {}
        }
        let (shared, own) = (self.shared.clone(), self.link.clone());
        let weak = Arc::downgrade(self);
        self.prover.ensure(|| prove(weak, shared, own));
        None
    }

    /// Whether both sessions of `proof` are still in use.
    pub(crate) fn stands(&self, proof: Proof) -> bool {
        let is = |link: &Connection, epoch| link.epoch() == epoch && link.is_up();
        is(&self.shared, proof.shared) && is(&self.link, proof.own)
    }

    /// Reads `keys`. Returns `None` if the shared connection must be asked instead.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(
        self: &Arc<Self>,
        keys: &[Key],
        deadline: Deadline,
    ) -> Option<Result<KeyReplies>> {
        let proof = self.proof()?;
        match self.pipeliner.read(keys, deadline).await {
            // Checked after the answer: the session may have been replaced while this waited.
            Ok(cells) => self.stands(proof).then(|| {
                self.keys.learn(keys.iter().zip(&cells));
                Ok(cells)
            }),
            Err(error) => is_final(&error).then_some(Err(error)),
        }
    }

    /// Sends a command with a large argument. The command must take no effect until the shared
    /// connection commits it, because nothing proves here which server receives it. Returns `None`
    /// if it was not sent and the shared connection may send it, such as when no session was opened
    /// in half of the time.
    ///
    /// Cancel safety: the command may still be executed.
    pub(crate) async fn send(
        self: &Arc<Self>,
        command: &Cmd,
        deadline: Deadline,
    ) -> Option<Result<Answer>> {
        // The result is not needed: the task replaces the connection if it leads to another server.
        self.proof();
        let bytes = arguments(command).max().unwrap_or_default();
        loop {
            let sent = match self.trials.way(bytes, deadline.at).await {
                Way::Shared => self.beside_others(command, bytes, deadline).await,
                Way::Alone(_turn) => Sent::Ended(self.alone(command, bytes, deadline).await),
                Way::Refused => Sent::Ended(Err(self.too_long(bytes))),
                Way::Late => Sent::Ended(Err(untried())),
                Way::Crowded(calls, bytes) => Sent::Ended(Err(overloaded(calls, bytes))),
            };
            match sent {
                Sent::Ended(outcome) => return Some(outcome),
                Sent::Lost => {}
                // Not over the shared connection while in doubt: if the value is too large, the
                // server would close that connection for all callers. So this tries again.
                Sent::Not if self.trials.doubt(bytes) => {}
                Sent::Not => return None,
            }
        }
    }

    /// Sends a value over the connection that all large values share.
    async fn beside_others(&self, command: &Cmd, bytes: usize, deadline: Deadline) -> Sent {
        // Half of the time, so that the other half is left for the shared connection.
        let half = Instant::now() + deadline.remaining() / 2;
        let Ok(live) = self.link.live(half).await else {
            return Sent::Not;
        };
        let epoch = live.epoch();
        drop(live);
        // The breaker of this connection is not heeded: a value that is too large makes this
        // connection fail, which says nothing about the server.
        let deadline = Deadline {
            priority: Priority::Ordinary,
            ..deadline.keep_trying()
        };
        for attempt in 0_u8.. {
            let given_up = self.link.given_up();
            match self.pipeliner.send(command, deadline).await {
                Ok(answer) => return Sent::Ended(self.judged(bytes, answer)),
                Err(error) if error.kind() == ErrorKind::Disconnected => {
                    // If a value is too large, the server closes the connection at once. Its answer
                    // is then often lost, together with all other calls on the connection.
                    let by_us = self.link.given_up() != given_up;
                    // If the session is still in use, only the flusher of this command is gone.
                    let is_up = self.link.live_epoch() == Some(epoch);
                    if bytes >= LEAST_LIMIT && !by_us && !is_up {
                        self.trials.lost(bytes);
                        return Sent::Lost;
                    }
                    // Sent a second time: an upload has no effect by itself, so a repeat does no
                    // harm.
                    if attempt > 0 {
                        return Sent::Ended(Err(error));
                    }
                }
                Err(error) if error.fate() == Fate::NotExecuted && !is_final(&error) => {
                    return Sent::Not;
                }
                Err(error) => return Sent::Ended(Err(error)),
            }
        }
        unreachable!("it returns at the second attempt")
    }

    /// Sends a value that may be too large, over sessions that no other call uses.
    ///
    /// Cancel safety: the command may still be executed. A session that a dropped call leaves
    /// behind is closed before the next one is opened.
    async fn alone(&self, command: &Cmd, bytes: usize, deadline: Deadline) -> Result<Answer> {
        let link = &self.alone;
        for _ in 0..TRIALS {
            // A session of its own for each trial. A caller whose turn has lapsed keeps the session
            // before this one, and still gets its answer there.
            link.rest();
            // A session that serves a small command and is then closed by the large one, several
            // times in a row, is not closed by chance.
            let greeted = link.send(&redis::cmd("PING"), deadline.at).await;
            greeted.map_err(Error::of_own_question)?;
            let (epoch, given_up) = (link.epoch(), link.given_up());
            match link.send(command, deadline.at).await {
                Ok(answer) => {
                    if link.epoch() == epoch {
                        link.rest();
                    }
                    return self.judged(bytes, answer);
                }
                Err(error) => {
                    let is_lost = error.kind() == ErrorKind::Disconnected;
                    if !is_lost || link.given_up() != given_up || link.epoch() != epoch {
                        return Err(error);
                    }
                }
            }
        }
        Err(self.refused(bytes))
    }

    /// Learns from the answer to a value of this many bytes.
    fn judged(&self, bytes: usize, answer: Answer) -> Result<Answer> {
        match &answer.value {
            Value::ServerError(error) if says_too_long(error) => Err(self.refused(bytes)),
            _ => {
                self.trials.taken(bytes);
                Ok(answer)
            }
        }
    }

    fn refused(&self, bytes: usize) -> Error {
        self.trials.refused(bytes);
        self.too_long(bytes)
    }

    fn too_long(&self, bytes: usize) -> Error {
        self.link.located(
            Error::new(
                ErrorKind::TooLarge,
                format!(
                    "{{server}} closes the connection when it is sent a value of {bytes} bytes; \
                     raise its proto-max-bulk-len, or store less"
                ),
            )
            .with_fate(Fate::Refused),
        )
    }

    /// Ends the sessions, because they may lead to another server than the shared connection.
    pub(crate) fn reset(&self) {
        self.link.reset();
        self.alone.reset();
    }

    /// Opens no session any more; see [`Connection::retire`].
    pub(crate) fn retire(&self) {
        self.link.retire();
        self.alone.retire();
    }

    fn standing(&self) -> MutexGuard<'_, ProofState> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a call ends with this error, so that the shared connection is not asked.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Overloaded | ErrorKind::Timeout)
}

fn untried() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "not sent before the deadline: values that may be larger than {server} takes are tried one \
         at a time",
    )
    .with_fate(Fate::NotExecuted)
}

/// Opens the connection for large values, and asks both connections which server process they lead
/// to. The first call that needs a proof spawns this task. It ends with the answers, and is aborted
/// with its owner. After a panic the next call starts another.
async fn prove(large: Weak<Large>, shared: Arc<Connection>, own: Arc<Connection>) {
    let deadline = Instant::now() + PROOF_TIMEOUT;
    let asked =
        async { tokio::try_join!(server_run(&shared, deadline), server_run(&own, deadline)) };
    let outcome = asked.await;
    let Some(large) = large.upgrade() else { return };
    let standing = match outcome {
        Ok(((shared, one), (own, other))) if one == other => {
            ProofState::Proved(Proof { shared, own })
        }
        Ok(_) => {
            tracing::info!(target: "hedgerow::client", address = shared.address().as_deref(), "the connection for large values leads to another server; making another");
            own.reset();
            // Behind a load balancer this happens again and again, and each time it ends the calls
            // under way there. So the pause grows.
            large.standing().failed_again()
        }
        Err(error) => {
            tracing::debug!(target: "hedgerow::client", %error, "no connection for large values");
            let pause = match error.fate() {
                Fate::Refused => LONG_PAUSE,
                _ => PAUSE,
            };
            ProofState::failed(pause)
        }
    };
    *large.standing() = standing;
}

impl ProofState {
    /// No proof, and no other try for `pause`.
    fn failed(pause: Duration) -> Self {
        Self::Failed(Instant::now() + pause, pause)
    }

    /// The state after one more proof that failed: the pause is twice as long.
    fn failed_again(self) -> Self {
        Self::failed(match self {
            Self::Failed(_, pause) => (2 * pause).min(LONG_PAUSE),
            Self::Unproved | Self::Proved(_) => PAUSE,
        })
    }
}

/// Whether the server reports a value above its `proto-max-bulk-len`.
fn says_too_long(error: &ServerError) -> bool {
    error
        .details()
        .is_some_and(|text| text.contains("invalid bulk length"))
}

/// Redis accepts no lower limit than this for `proto-max-bulk-len`, so no server refuses a smaller
/// value.
const LEAST_LIMIT: usize = 1 << 20;

/// How often a value is lost on a session of its own before it counts as refused.
// Two, because a `CLIENT KILL` or a failover may close one by chance.
const TRIALS: u8 = 2;

/// How long it may take to open the connection and prove where it leads.
const PROOF_TIMEOUT: Duration = Duration::from_secs(3);

/// How long no proof is tried after one has failed: at first, and at most. The longest pause is
/// also used when the server refused to answer.
const PAUSE: Duration = Duration::from_secs(1);
const LONG_PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pauses_between_proofs_that_fail_double_up_to_a_minute() {
        let mut standing = ProofState::Unproved;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            standing = standing.failed_again();
            if let ProofState::Failed(until, _) = standing {
                pauses.push((until - Instant::now()).as_secs());
            }
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
