//! `Durable`: writes that wait until replicas have acknowledged them.
//!
//! Invariant: `WAIT` waits for the last write of the session that sends it, and blocks that session
//! meanwhile. So a write and its `WAIT`s travel over one session, on a connection that carries
//! nothing else. What is returned was executed by the server process that all other calls of the
//! node go to: both connections have named it. Each [`Node`](super::node::Node) has one of these.
//!
//! One task sends the writes of all callers. Whatever has come since its last turn travels
//! together, with one `WAIT` behind it. Waiting for a later write is waiting for more, so its count
//! holds for all that wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use redis::{Cmd, Pipeline, Value};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::connection::{Answer, Connection, Session};
use super::server_run::{question, run_of, server_run};
use crate::background::Background;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::wire::fault::from_server;
use crate::wire::value::integer;

/// The connection for writes that wait for replicas. Its socket is opened when it is first needed.
#[derive(Debug)]
pub(crate) struct Durable {
    link: Arc<Connection>,
    /// The connection for everything else.
    shared: Arc<Connection>,
    arrivals: Mutex<Vec<Arrival>>,
    /// Wakes the task when a write has arrived. A field of its own, so that the task can wait for
    /// it without this.
    added: Arc<Notify>,
    /// Sends what arrives. The first call starts it, and it ends with this. After a panic, or when
    /// its runtime has ended, its callers get an error, and the next call starts another.
    task: Background,
}

/// A write that has not been sent.
#[derive(Debug)]
struct Arrival {
    /// The write comes last, behind what must be directly in front of it.
    commands: Vec<Cmd>,
    asks: Asks,
    /// Set before it is sent.
    sent: Arc<AtomicBool>,
}

/// What the caller of a write asks for.
#[derive(Debug)]
struct Asks {
    replicas: usize,
    /// The replicas are waited for until then. A part of the time is left for the proof.
    until: Instant,
    deadline: Instant,
    tell: oneshot::Sender<Result<Told>>,
}

/// A write that was executed, and waits for replicas.
#[derive(Debug)]
struct Executed {
    asks: Asks,
    answer: Answer,
    /// How many replicas have acknowledged it, as far as known.
    count: usize,
}

/// What a caller is told.
#[derive(Debug)]
struct Told {
    answer: Answer,
    count: usize,
    /// Which server has executed it. `None` after an error reply.
    ran: Option<Ran>,
}

/// Which server has executed a write, and which one calls go to now.
#[derive(Debug, Clone)]
struct Ran {
    /// The session over which it was sent.
    epoch: u64,
    /// The run of the server behind that.
    run: String,
    now: Shared<BoxFuture<'static, Result<(u64, String)>>>,
}

/// The session of the task, and what waits on it.
#[derive(Debug, Default)]
struct Turns {
    epoch: u64,
    /// The run of the server behind the session. `None` before it was asked for.
    run: Option<Result<String>>,
    executed: Vec<Executed>,
}

impl Turns {
    /// Whether the server has said which run it is. After a refusal it is asked again: the right
    /// may have been granted meanwhile.
    fn is_known(&self) -> bool {
        matches!(self.run, Some(Ok(_)))
    }
}

impl Durable {
    pub(crate) fn beside(shared: &Arc<Connection>) -> Arc<Self> {
        Arc::new(Self {
            link: shared.for_waiting(),
            arrivals: Mutex::default(),
            added: Arc::default(),
            task: Background::by(shared.spawner()),
            shared: shared.clone(),
        })
    }

    /// Sends a write, the last of `commands`, with the others directly in front of it. Returns its
    /// answer, and the number of replicas that have acknowledged it: as soon as `replicas` have, or
    /// shortly before the deadline. An error reply is an answer.
    ///
    /// The write must change something whenever it is executed: `WAIT` does not wait for a write
    /// that changed nothing.
    ///
    /// Cancel safety: the write may still be executed.
    pub(crate) async fn send(
        self: &Arc<Self>,
        commands: Vec<Cmd>,
        replicas: usize,
        deadline: Instant,
    ) -> Result<(Answer, usize)> {
        let (tell, told) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        self.arrive(Arrival {
            commands,
            asks: Asks {
                replicas,
                until: deadline - deadline.saturating_duration_since(Instant::now()) / 4,
                deadline,
                tell,
            },
            sent: sent.clone(),
        })?;
        let (durable, added) = (Arc::downgrade(self), self.added.clone());
        self.task.ensure(|| in_turns(durable, added));
        self.added.notify_one();
        let ended = |kind, message| {
            Error::new(kind, message).with_fate(match sent.load(Ordering::Relaxed) {
                true => Fate::Unknown,
                false => Fate::NotExecuted,
            })
        };
        let late = || {
            ended(
                ErrorKind::Timeout,
                "{server} did not answer before the deadline",
            )
        };
        let gone = "the runtime of the connection to {server} has ended";
        let told = timeout_at(deadline, told).await.map_err(|_| late())?;
        let told = told.map_err(|_| ended(ErrorKind::Disconnected, gone))??;
        let Some(Ran { epoch, run, now }) = told.ran else {
            return Ok((told.answer, told.count));
        };
        let now = timeout_at(deadline, now).await.map_err(|_| late())?;
        let (shared, now) = now.map_err(unproved)?;
        if run == now {
            return Ok((told.answer, told.count));
        }
        // It is not known which of them leads to a former primary, whose writes are lost.
        self.link.abandon(epoch, None);
        self.shared.abandon(shared, None);
        Err(Error::new(
            ErrorKind::Disconnected,
            "the primary was replaced while its replicas were waited for",
        ))
    }

    /// Ends the session, because it may lead to another server than the shared connection.
    pub(crate) fn reset(&self) {
        self.link.reset();
    }

    /// Opens no session any more; see [`Connection::retire`].
    pub(crate) fn retire(&self) {
        self.link.retire();
    }

    fn arrive(&self, arrival: Arrival) -> Result<()> {
        let mut arrivals = self.arrivals();
        if arrivals.len() >= MOST_WAITING {
            arrivals.retain(|arrival| !arrival.asks.tell.is_closed());
        }
        let waiting = arrivals.len();
        if waiting >= MOST_WAITING {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!(
                    "not sent: {waiting} writes wait for their turn to wait for replicas of \
                     {{server}} already; make fewer at once"
                ),
            ));
        }
        arrivals.push(arrival);
        Ok(())
    }

    /// Takes what has arrived and is still waited for, as much as one pipeline may have.
    fn taken(&self) -> Vec<Arrival> {
        let now = Instant::now();
        let mut arrivals = self.arrivals();
        arrivals.retain(|it| !it.asks.tell.is_closed() && now < it.asks.deadline);
        let most = arrivals.len().min(MOST_AT_ONCE);
        let taken = arrivals.drain(..most).collect();
        if !arrivals.is_empty() {
            self.added.notify_one();
        }
        taken
    }

    /// Sends what has arrived, and waits for replicas once.
    async fn turn(&self, turns: &mut Turns) {
        self.tell_done(turns);
        if self.link.live_epoch() != Some(turns.epoch) {
            // The session is gone, and what another one waits for is not these writes.
            self.tell(turns, turns.executed.len());
        }
        let arrivals = self.taken();
        let asks = || {
            let executed = turns.executed.iter().map(|it| &it.asks);
            arrivals.iter().map(|it| &it.asks).chain(executed)
        };
        let Some(least) = asks().map(|it| it.replicas).min() else {
            return;
        };
        let now = Instant::now();
        let until = asks().map(|it| it.until).min().unwrap_or(now);
        let deadline = asks().map(|it| it.deadline).max().unwrap_or(now);
        let live = match self.link.live(deadline).await {
            Ok(live) => live,
            Err(error) => return tell_all(arrivals, &error),
        };
        if live.epoch() != turns.epoch {
            self.tell(turns, turns.executed.len());
            turns.epoch = live.epoch();
            turns.run = None;
        }
        let wait = wait(least, until);
        let answered = self.sent(live, &arrivals, turns, wait, deadline).await;
        match answered {
            Ok(replies) => self.answered(turns, arrivals, replies),
            Err(error) => tell_all(arrivals, &error),
        }
    }

    async fn sent(
        &self,
        live: Session,
        arrivals: &[Arrival],
        turns: &Turns,
        wait: Cmd,
        deadline: Instant,
    ) -> Result<(Vec<Value>, Instant)> {
        let mut pipeline = Pipeline::new();
        if !turns.is_known() {
            pipeline.add_command(question());
        }
        for arrival in arrivals {
            arrival.sent.store(true, Ordering::Relaxed);
            for command in &arrival.commands {
                pipeline.add_command(command.clone());
            }
        }
        // The fewest that anyone asks for, so that nobody waits for the replicas of another caller.
        pipeline.add_command(wait);
        self.link.send_all_over(live, &pipeline, deadline).await
    }

    /// Notes the replies to a pipeline, and tells the callers that need not wait any longer.
    fn answered(
        &self,
        turns: &mut Turns,
        arrivals: Vec<Arrival>,
        (replies, sent): (Vec<Value>, Instant),
    ) {
        let mut replies = replies.into_iter();
        if !turns.is_known() {
            turns.run = Some(run_of(replies.next()));
        }
        for Arrival { commands, asks, .. } in arrivals {
            let value = replies.nth(commands.len() - 1).unwrap_or(Value::Nil);
            let answer = Answer { value, sent };
            if matches!(answer.value, Value::ServerError(_)) {
                let _ = asks.tell.send(Ok(Told {
                    answer,
                    count: 0,
                    ran: None,
                }));
                continue;
            }
            turns.executed.push(Executed {
                asks,
                answer,
                count: 0,
            });
        }
        match counted(replies.next().unwrap_or(Value::Nil)) {
            Ok(count) => {
                for executed in &mut turns.executed {
                    executed.count = executed.count.max(count);
                }
            }
            Err(error) => {
                for executed in turns.executed.drain(..) {
                    let _ = executed.asks.tell.send(Err(error.clone()));
                }
            }
        }
        self.tell_done(turns);
    }

    /// Tells the callers whose replicas have acknowledged their write, or whose time is over.
    fn tell_done(&self, turns: &mut Turns) {
        let (now, executed) = (Instant::now(), &mut turns.executed);
        let waits = |it: &Executed| it.count < it.asks.replicas && now < it.asks.until;
        executed.retain(|it| !it.asks.tell.is_closed());
        // Those that are done come first.
        executed.sort_by_key(waits);
        let done = executed.partition_point(|it| !waits(it));
        self.tell(turns, done);
    }

    /// Tells the callers of the first `done` writes how many replicas have them.
    fn tell(&self, turns: &mut Turns, done: usize) {
        let done = turns.executed.drain(..done);
        let Some(deadline) = done.as_slice().iter().map(|it| it.asks.deadline).max() else {
            return;
        };
        let run = turns.run.clone().unwrap_or_else(|| run_of(None));
        let shared = self.shared.clone();
        // Asked now and not before: a failover in between would not be noticed. Once for all of
        // them, by whoever polls it first.
        let now = async move { server_run(&shared, deadline).await };
        let now = now.boxed().shared();
        for Executed {
            asks,
            answer,
            count,
        } in done
        {
            let told = run.clone().map_err(unproved).map(|run| Told {
                answer,
                count,
                ran: Some(Ran {
                    epoch: turns.epoch,
                    run,
                    now: now.clone(),
                }),
            });
            let _ = asks.tell.send(told);
        }
    }

    fn arrivals(&self) -> MutexGuard<'_, Vec<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what arrives. It ends with its owner, and is aborted with it.
async fn in_turns(durable: Weak<Durable>, added: Arc<Notify>) {
    let mut turns = Turns::default();
    loop {
        if turns.executed.is_empty() {
            added.notified().await;
        }
        let Some(durable) = durable.upgrade() else {
            return;
        };
        durable.turn(&mut turns).await;
    }
}

fn tell_all(arrivals: Vec<Arrival>, error: &Error) {
    for arrival in arrivals {
        let _ = arrival.asks.tell.send(Err(error.clone()));
    }
}

/// The command that waits for `replicas`, not beyond `until`, and never for long.
fn wait(replicas: usize, until: Instant) -> Cmd {
    let left = until.saturating_duration_since(Instant::now());
    // At least 1 ms: with 0, the server waits for ever.
    let millis = left.min(SLICE).as_millis().max(1) as u64;
    let mut wait = redis::cmd("WAIT");
    wait.arg(replicas).arg(millis);
    wait
}

/// Reads the reply to `WAIT`.
fn counted(reply: Value) -> Result<usize> {
    if let Value::ServerError(error) = &reply {
        let words = error.details().unwrap_or_default();
        let is_for_good = error.code() == "NOPERM" || words.starts_with("unknown command");
        // Any other refusal may mean that the server is no primary any more.
        return Err(match is_for_good {
            true => unproved(from_server(error)),
            false => from_server(error).with_fate(Fate::Unknown),
        });
    }
    let count = integer(reply)?.and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| {
        Error::new(
            ErrorKind::Server,
            "{server} does not say how many replicas have acknowledged a write",
        )
        .with_fate(Fate::Unknown)
    })
}

/// The error of a write that was executed, if it could not be found out who has it.
fn unproved(error: Error) -> Error {
    match error.fate() {
        // It will be refused again, so the write need not be repeated.
        Fate::Refused => error
            .with_fate(Fate::Executed)
            .advising("to wait for replicas, WAIT and INFO must be allowed"),
        // Perhaps by another server.
        _ => error.with_fate(Fate::Unknown),
    }
}

/// How long one `WAIT` blocks the connection at most.
const SLICE: Duration = Duration::from_millis(50);

/// How many writes travel together at most.
const MOST_AT_ONCE: usize = 512;

/// How many writes wait for their turn at most.
const MOST_WAITING: usize = 4096;
