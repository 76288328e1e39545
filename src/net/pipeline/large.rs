//! `Large`: large values have a connection of their own, so that small calls do not wait for their
//! transfer.
//!
//! Invariant: what is read here is what the shared connection would have answered. It is proved
//! that both connections lead to one process, by the id of its run, and a proof holds for the two
//! connections on which it was given: if either has changed when the answer comes, the answer is
//! not used. A [`Pipeline`](super::Pipeline) reads here what was large when it was last seen, and
//! asks the shared connection where nothing is proved.
//!
//! What is written here takes no effect before the shared connection commits it; see
//! [`Priority::Apart`](crate::time::Priority::Apart).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::{Cmd, Pipeline, ServerError, Value};
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
use crate::time::{Deadline, Priority};
use crate::wire::fault::from_server;

#[derive(Debug)]
pub(crate) struct Large {
    /// Of the connection for large values.
    pub(crate) pipeliner: Pipeliner,
    link: Arc<Connection>,
    /// The connection that everything else goes by.
    shared: Arc<Connection>,
    keys: Arc<LargeKeys>,
    standing: Mutex<ProofState>,
    /// Which values may be larger than the server takes.
    trials: Trials,
    /// Where these are sent, each over a connection of its own.
    alone: Arc<Connection>,
    /// Makes the connection and proves where it leads; see [`prove`].
    prover: Background,
}

/// What is known of where the connection leads.
#[derive(Debug, Clone, Copy)]
enum ProofState {
    Unproved,
    Proved(Proof),
    /// There was no proof; the next is sought at this moment at the earliest, after this pause.
    Failed(Instant, Duration),
}

/// Both connections led to one process: those of these epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    shared: u64,
    own: u64,
}

/// What has become of a value.
enum Sent {
    Ended(Result<Answer>),
    /// It was not sent.
    Not,
    /// The server, or somebody on the way, has ended its connection.
    Lost,
}

impl Large {
    /// Beside the connection of `shared`; made when it is first needed.
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
            trials: Trials::new(limits.bytes / RESERVE),
            alone: shared.for_large_values(),
        })
    }

    /// Which keys were large when they were last seen.
    pub(crate) fn keys(&self) -> &LargeKeys {
        &self.keys
    }

    /// That what is asked here is answered by the server behind the shared connection. `None` while
    /// that is not proved; then the proof is sought in the background.
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

    /// Whether both connections are still those of `proof`.
    pub(crate) fn stands(&self, proof: Proof) -> bool {
        let is = |link: &Connection, epoch| link.epoch() == epoch && link.is_up();
        is(&self.shared, proof.shared) && is(&self.link, proof.own)
    }

    /// Reads `keys`; `None` where the shared connection must be asked.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn read(
        self: &Arc<Self>,
        keys: &[Key],
        deadline: Deadline,
    ) -> Option<Result<KeyReplies>> {
        let proof = self.proof()?;
        match self.pipeliner.read(keys, deadline).await {
            Ok(cells) => self.stands(proof).then(|| {
                self.keys.learn(keys.iter().zip(&cells));
                Ok(cells)
            }),
            Err(error) => is_final(&error).then_some(Err(error)),
        }
    }

    /// Sends a command with a large argument, which must not matter until the shared connection
    /// commits it: nothing proves here which server takes it. `None` where it was not sent and the
    /// shared connection may take it, as when no connection is made in half of the time.
    ///
    /// Cancel safety: the command may still be executed.
    pub(crate) async fn send(
        self: &Arc<Self>,
        command: &Cmd,
        deadline: Deadline,
    ) -> Option<Result<Answer>> {
        // If the connection leads elsewhere, it is replaced.
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
                // Where the server would not take it, it would end the shared connection for all.
                Sent::Not if self.trials.doubt(bytes) => {}
                Sent::Not => return None,
            }
        }
    }

    /// Sends a value on the connection of all large ones.
    async fn beside_others(&self, command: &Cmd, bytes: usize, deadline: Deadline) -> Sent {
        let half = Instant::now() + deadline.remaining() / 2;
        let Ok(live) = self.link.live(half).await else {
            return Sent::Not;
        };
        let epoch = live.epoch();
        drop(live);
        // The breaker of this connection says nothing of the server: a value that is too large ends
        // it.
        let deadline = Deadline {
            priority: Priority::Ordinary,
            ..deadline.keep_trying()
        };
        for attempt in 0_u8.. {
            let given_up = self.link.given_up();
            match self.pipeliner.send(command, deadline).await {
                Ok(answer) => return Sent::Ended(self.judged(bytes, answer)),
                Err(error) if error.kind() == ErrorKind::Disconnected => {
                    // The server closes the connection at once when a value is too large, so its
                    // answer is often lost, and with it whatever else was on its way.
                    let by_us = self.link.given_up() != given_up;
                    // Where it is up, only who carried the command is gone.
                    let is_up = self.link.live_epoch() == Some(epoch);
                    if bytes >= LEAST_LIMIT && !by_us && !is_up {
                        self.trials.lost(bytes);
                        return Sent::Lost;
                    }
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

    /// Sends a value that may be too large, on connections that nobody else uses.
    ///
    /// Cancel safety: the command may still be executed. A connection that is left here is let go
    /// before the next is made.
    async fn alone(&self, command: &Cmd, bytes: usize, deadline: Deadline) -> Result<Answer> {
        let link = &self.alone;
        for _ in 0..TRIALS {
            // One whose turn has lapsed keeps its connection, and gets its answer.
            link.rest();
            // What serves a small command and ends with the large one is not ended by chance,
            // time after time.
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

    /// Notes what an answer says of values of so many bytes.
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

    /// Ends the connections: they may lead to another server than the shared one.
    pub(crate) fn reset(&self) {
        self.link.reset();
        self.alone.reset();
    }

    /// Makes no connection any more: see [`Connection::retire`].
    pub(crate) fn retire(&self) {
        self.link.retire();
        self.alone.retire();
    }

    fn standing(&self) -> MutexGuard<'_, ProofState> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the shared connection need not be asked after this.
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

/// Makes the connection and asks both which process they lead to. Spawned by the first read that
/// has use for it, and ends with the answer; aborted with its owner. After a panic the next read
/// starts another.
async fn prove(large: Weak<Large>, shared: Arc<Connection>, own: Arc<Connection>) {
    let deadline = Instant::now() + PROOF_TIMEOUT;
    let asked = async { tokio::try_join!(run(&shared, deadline), run(&own, deadline)) };
    let outcome = asked.await;
    let Some(large) = large.upgrade() else { return };
    let standing = match outcome {
        Ok(((shared, one), (own, other))) if one == other => {
            ProofState::Proved(Proof { shared, own })
        }
        Ok(_) => {
            tracing::info!(target: "hedgerow::client", address = shared.address().as_deref(), "the connection for large values leads to another server; making another");
            own.reset();
            // Behind a balancer that goes on, and ends what is under way there each time.
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
    fn failed(pause: Duration) -> Self {
        Self::Failed(Instant::now() + pause, pause)
    }

    /// There was no proof again, so the pause is twice as long.
    fn failed_again(self) -> Self {
        Self::failed(match self {
            Self::Failed(_, pause) => (2 * pause).min(LONG_PAUSE),
            Self::Unproved | Self::Proved(_) => PAUSE,
        })
    }
}

/// Which process the connection of `link` leads to, and the epoch of that connection.
async fn run(link: &Arc<Connection>, deadline: Instant) -> Result<(u64, String)> {
    let live = link.live(deadline).await?;
    let epoch = live.epoch();
    let mut question = Pipeline::with_capacity(1);
    question.cmd("INFO").arg("server");
    let (replies, _) = link.send_all_over(live, &question, deadline).await?;
    let info = match replies.into_iter().next() {
        Some(Value::ServerError(error)) => return Err(from_server(&error)),
        Some(Value::VerbatimString { text, .. }) => text,
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
        _ => String::new(),
    };
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    match id {
        Some(id) => Ok((epoch, id.trim().to_owned())),
        None => Err(Error::new(
            ErrorKind::Server,
            "{server} does not say which run of the server it is",
        )),
    }
}

/// Whether the server has read a length above its `proto-max-bulk-len`.
fn says_too_long(error: &ServerError) -> bool {
    error
        .details()
        .is_some_and(|text| text.contains("invalid bulk length"))
}

/// Redis takes no lower limit for `proto-max-bulk-len`: no server refuses less.
const LEAST_LIMIT: usize = 1 << 20;

/// How often a value that was lost is sent by itself before it counts as refused.
const TRIALS: u8 = 2;

/// How long making the connection and proving where it leads may take.
const PROOF_TIMEOUT: Duration = Duration::from_secs(3);

/// How long nothing is tried after that has failed, and at most, as after the server has refused to
/// say.
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
