//! `InFlight`: what is known of one connection, and the wait for an answer on it.
//!
//! Invariant: nobody waits on a connection that was given up, or whose task stands still, and
//! nothing is sent after its deadline. What was handed over and not answered is `Unknown`, unless
//! it is proved that the connection's task has not taken it.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redis::{RedisError, RedisResult};
use tokio::runtime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::changes::ConnectionChanges;
use crate::background::{Background, Task};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::net::stream::traffic::Traffic;
use crate::pulse::{Beat, Pulse, STANDSTILL, TICK};
use crate::wire::fault::from_driver;

/// What the watchdog looks at, and those who wait for answers.
#[derive(Default)]
pub(crate) struct InFlight {
    dead: AtomicBool,
    /// Called once, when the connection ends in whatever way, be it with its runtime.
    on_end: Option<OnEnd>,
    /// Tells those who wait for a reply that there will be none.
    gone: Notify,
    in_flight: AtomicUsize,
    /// A caller has left without its reply.
    owes: AtomicBool,
    replies: AtomicU64,
    traffic: Arc<Traffic>,
    /// Of the task that moves the bytes. Of a brought connection nothing is known of that.
    pulse: OnceLock<Arc<Pulse>>,
    /// Of a connection that we have dialled: taken, and so closed, when the connection ends.
    wire: Mutex<Option<SocketTask>>,
    renewal: Background,
    /// Counts the connection, if somebody must know.
    made: OnceLock<Arc<ConnectionChanges>>,
}

/// Called from any task, so it must not block.
pub(crate) type OnEnd = Box<dyn Fn() + Send + Sync>;

/// How a wait has ended.
enum Ended<T> {
    Answered(RedisResult<T>),
    GivenUp,
    StoodStill,
    Late,
}

impl InFlight {
    /// The health of a connection whose end is reported to `on_end`.
    pub(crate) fn reported(on_end: OnEnd) -> Self {
        Self {
            on_end: Some(on_end),
            ..Self::default()
        }
    }

    /// Sends by polling `sent`, and waits for the reply until `deadline`, or until the connection
    /// is given up, or its task stands still. Returns the reply and an instant just before the
    /// command was sent. The future in `sent` is dropped before this returns.
    pub(crate) async fn answer<T>(
        &self,
        mut sent: Pin<&mut Option<impl Future<Output = RedisResult<T>>>>,
        deadline: Instant,
    ) -> Result<(T, Instant)> {
        let mut gone = pin!(self.gone.notified());
        gone.as_mut().enable();
        if self.is_dead() {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the connection to {server} was lost before the command was sent",
            ));
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::new(
                ErrorKind::Timeout,
                "the command for {server} was not sent before its deadline; allow more time or send less at once",
            )
            .with_fate(Fate::NotExecuted));
        }
        let mut flight = self.enter();
        let pulse = self.pulse.get();
        let before = pulse.map(|pulse| pulse.now());
        let ended = match sent.as_mut().as_pin_mut() {
            Some(sent) => self.wait(sent, before, gone.as_mut(), now, deadline).await,
            None => Ended::GivenUp,
        };
        // Closes the place of the reply. The driver does not send what nobody waits for any more: a
        // command that its task has not had the chance to take until now never will be sent. While
        // the future is still there, that task may take the command right after it was judged.
        sent.set(None);
        let untouched = || {
            let both = pulse.zip(before);
            both.is_some_and(|(pulse, before)| pulse.has_stood_since(before))
        };
        match ended {
            Ended::Answered(Ok(value)) => {
                flight.answered = true;
                self.replies.fetch_add(1, Ordering::Relaxed);
                Ok((value, now))
            }
            Ended::Answered(Err(error)) => {
                let unsent = untouched();
                if self.is_end(&error) {
                    self.end();
                }
                Err(match unsent {
                    true => lost_unsent().with_source(error),
                    false => from_driver(error),
                })
            }
            Ended::GivenUp | Ended::StoodStill if untouched() => Err(lost_unsent()),
            Ended::GivenUp => Err(Error::new(
                ErrorKind::Disconnected,
                "the connection to {server} was given up before the reply came",
            )),
            Ended::StoodStill => Err(Error::new(
                ErrorKind::Disconnected,
                "the runtime of the connection to {server} stands still",
            )),
            Ended::Late => {
                let fate = match untouched() {
                    true => Fate::NotExecuted,
                    false => Fate::Unknown,
                };
                if let Some((pulse, before)) = pulse.zip(before)
                    && pulse.now() == before
                {
                    // Perhaps it stands still: others need not wait for as long to find out.
                    pulse.knock();
                }
                Err(Error::new(
                    ErrorKind::Timeout,
                    "{server} did not answer before the deadline",
                )
                .with_fate(fate))
            }
        }
    }

    async fn wait<T>(
        &self,
        mut sent: Pin<&mut impl Future<Output = RedisResult<T>>>,
        before: Option<Beat>,
        mut gone: Pin<&mut impl Future<Output = ()>>,
        now: Instant,
        deadline: Instant,
    ) -> Ended<T> {
        let mut timer = pin!(sleep_until(deadline.min(now + TICK)));
        let pulse = self.pulse.get();
        let (mut seen, mut still) = (before, 0);
        loop {
            tokio::select! {
                biased;
                answer = &mut sent => return Ended::Answered(answer),
                () = &mut gone => return Ended::GivenUp,
                () = &mut timer => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Ended::Late;
            }
            // By looks of its own, not by the clock: if this process was stopped, that passes, too.
            if let Some(pulse) = pulse {
                let beat = pulse.now();
                let patience = match before == Some(beat) {
                    true => UNTAKEN,
                    false => TAKEN,
                };
                if seen.replace(beat) != Some(beat) {
                    still = 0;
                } else if still >= patience {
                    return Ended::StoodStill;
                } else {
                    still += 1;
                    pulse.knock();
                }
            }
            timer.as_mut().reset(deadline.min(now + TICK));
        }
    }

    /// Whether there will be no answers any more. A brought connection may have a response timeout
    /// of the driver's, which says nothing about the connection; a timeout of our own socket does.
    fn is_end(&self, error: &RedisError) -> bool {
        let is_brought = self.pulse.get().is_none();
        (error.is_io_error() || error.is_unrecoverable_error())
            && !(is_brought && error.is_timeout())
    }

    /// Ties the life of the socket to this.
    pub(crate) fn hold(&self, wire: SocketTask) {
        let _ = self.pulse.set(wire.pulse().clone());
        *self.wire() = Some(wire);
    }

    /// Where the task lives that moves the bytes.
    pub(crate) fn runtime(&self) -> Option<runtime::Id> {
        self.pulse.get()?.runtime()
    }

    /// When the credentials expire that the server was shown on this connection, if they do.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.wire().as_ref()?.expires()
    }

    /// What shows the server fresh credentials before that.
    pub(crate) fn renewal(&self) -> &Background {
        &self.renewal
    }

    /// The connection is about to be used, and `made` counts it; and once more when it ends.
    pub(crate) fn counted_by(&self, made: &Arc<ConnectionChanges>) {
        made.begins();
        let _ = self.made.set(made.clone());
    }

    /// The connection is not used any more.
    pub(crate) fn end(&self) {
        let was_dead = self.dead.swap(true, Ordering::AcqRel);
        if let (false, Some(made)) = (was_dead, self.made.get()) {
            made.ends();
        }
        self.gone.notify_waiters();
        self.renewal.end();
        let wire = self.wire().take();
        drop(wire);
        if let Some(on_end) = self.on_end.as_ref().filter(|_| !was_dead) {
            on_end();
        }
    }

    fn wire(&self) -> MutexGuard<'_, Option<SocketTask>> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether the task that moves the bytes does not do so when it is asked to.
    pub(crate) fn stands_still(&self) -> bool {
        self.pulse.get().is_some_and(|pulse| pulse.stands_still())
    }

    /// Wakes the task that moves the bytes, to see whether it is polled then.
    pub(crate) fn knock(&self) {
        if let Some(pulse) = self.pulse.get() {
            pulse.knock();
        }
    }

    /// As [`stands_still`](Self::stands_still), for callers that wait for pushes and have sent
    /// nothing.
    pub(crate) fn stands_still_when_asked(&self) -> bool {
        let pulse = self.pulse.get();
        pulse.is_some_and(|pulse| pulse.stands_still_when_asked())
    }

    /// Whether nothing is known of it but what it answers: a connection of the caller's.
    pub(crate) fn is_brought(&self) -> bool {
        self.pulse.get().is_none()
    }

    /// The bytes that it moves.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// How many replies have come so far.
    pub(crate) fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Whether a reply is due, or was when this was asked last.
    pub(crate) fn owes(&self) -> bool {
        self.owes.swap(false, Ordering::Relaxed) || self.owes_now()
    }

    /// Whether somebody waits for a reply.
    pub(crate) fn owes_now(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// A reply is due that nobody waits for.
    #[cfg(test)]
    pub(crate) fn owing(&self) -> impl Sized + '_ {
        self.enter()
    }

    fn enter(&self) -> PendingReply<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        PendingReply {
            health: self,
            answered: false,
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health")
            .field("dead", &self.dead)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Counts a command as in flight while somebody waits for its reply.
struct PendingReply<'h> {
    health: &'h InFlight,
    answered: bool,
}

impl Drop for PendingReply<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.health.owes.store(true, Ordering::Relaxed);
        }
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The task that moves the bytes of one connection; dropping this ends it and closes the socket.
#[derive(Debug)]
pub(crate) struct SocketTask {
    task: Task,
    /// When the credentials expire that the server was shown, if they do.
    expires: Option<Instant>,
}

impl SocketTask {
    pub(crate) fn new(task: Task) -> Self {
        Self {
            task,
            expires: None,
        }
    }

    /// The same, where the server was shown credentials that expire at `at`.
    pub(crate) fn expiring(mut self, at: Option<Instant>) -> Self {
        self.expires = at;
        self
    }

    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        self.task.pulse()
    }

    /// When the credentials expire that the server was shown, if they do.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.expires
    }
}

impl Drop for SocketTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lost_unsent() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the connection was lost before the command was sent",
    )
}

/// In how many looks in a row the task of a connection may stand still before its callers leave.
/// One whose command it has not taken loses nothing and sends it elsewhere; others are left with a
/// command whose fate is unknown, and so wait longer.
const UNTAKEN: u128 = STANDSTILL.as_millis() / TICK.as_millis();
const TAKEN: u128 = 3 * UNTAKEN;

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    /// What the task of a connection does between the last look at a command and the end of the
    /// wait for it.
    struct PolledLate(Arc<Pulse>);

    impl Drop for PolledLate {
        fn drop(&mut self) {
            let poll = self.0.of(async {}).now_or_never();
            poll.expect("it does not wait");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_could_be_taken_until_its_caller_left_may_have_been_sent() {
        let pulse = Arc::<Pulse>::default();
        let health = InFlight::default();
        health.pulse.set(pulse.clone()).expect("it has none");
        let deadline = || Instant::now() + Duration::from_millis(50);

        let sent = pin!(Some(pending::<RedisResult<()>>()));
        let error = health.answer(sent, deadline()).await.expect_err("no reply");
        assert_eq!(
            error.fate(),
            Fate::NotExecuted,
            "nobody has polled the task"
        );

        let late = PolledLate(pulse);
        let sent = pin!(Some(async move {
            let _late = late;
            pending::<RedisResult<()>>().await
        }));
        let error = health.answer(sent, deadline()).await.expect_err("no reply");
        assert_eq!(error.fate(), Fate::Unknown);
    }
}
