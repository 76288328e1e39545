//! `InFlight`: the state of one session, and the wait for an answer on it.
//!
//! Invariant: no caller waits on a session that was given up, or whose socket task stands still,
//! and nothing is sent after its deadline. A command that was handed over and not answered is
//! `Unknown`, unless it is proved that the socket task has not taken it.
//!
//! [`Connection`](super::Connection) sends its commands through [`InFlight::answer`], the watchdog
//! ([`watch`](super::watch)) reads the counters, and the socket task reports its end.

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

/// The state of one session, shared by its callers, its watchdog and its socket task.
#[derive(Default)]
pub(crate) struct InFlight {
    dead: AtomicBool,
    /// Called once, when the session ends in any way, also with its runtime.
    on_end: Option<OnEnd>,
    /// Tells callers that wait for a reply that none will come.
    gone: Notify,
    /// How many callers wait for a reply.
    in_flight: AtomicUsize,
    /// A caller has left without its reply.
    // The server still owes that reply, so the watchdog must ask for a sign of life.
    owes: AtomicBool,
    /// How many replies have come.
    // A session that ends early and without any counts as a failed connect; see `ReconnectBackoff`.
    replies: AtomicU64,
    traffic: Arc<Traffic>,
    /// The pulse of the socket task. It is empty if the caller brought the connection, because the
    /// driver runs the task of that one.
    pulse: OnceLock<Arc<Pulse>>,
    /// The socket task of a dialled session. It is taken when the session ends, which closes the
    /// socket.
    wire: Mutex<Option<SocketTask>>,
    /// The task that re-authenticates the session.
    renewal: Background,
    /// Counts the session, if sessions are numbered.
    made: OnceLock<Arc<ConnectionChanges>>,
}

/// Reports the end of a session. It is called from any task, so it must not block.
pub(crate) type OnEnd = Box<dyn Fn() + Send + Sync>;

/// How a wait for an answer has ended.
enum Ended<T> {
    Answered(RedisResult<T>),
    /// The session was given up.
    GivenUp,
    /// The socket task stands still.
    StoodStill,
    /// The deadline has come.
    Late,
}

impl InFlight {
    /// The state of a session whose end is reported to `on_end`.
    pub(crate) fn reported(on_end: OnEnd) -> Self {
        Self {
            on_end: Some(on_end),
            ..Self::default()
        }
    }

    /// Sends by polling `sent`, and waits for the reply until `deadline`, or until the session is
    /// given up, or its socket task stands still. Returns the reply and an instant just before the
    /// command was sent. The future in `sent` is dropped before this returns.
    pub(crate) async fn answer<T>(
        &self,
        mut sent: Pin<&mut Option<impl Future<Output = RedisResult<T>>>>,
        deadline: Instant,
    ) -> Result<(T, Instant)> {
        // Enabled before `dead` is read, so that an end in between is not missed.
        let mut gone = pin!(self.gone.notified());
        gone.as_mut().enable();
        if self.is_dead() {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the connection to {server} was lost before the command was sent",
            ));
        }
        // Checked here and not by the caller: waiting for a session may have used up the time.
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
        // Taken before the first poll of `sent`: a beat after this may be the one that takes it.
        let before = pulse.map(|pulse| pulse.now());
        let ended = match sent.as_mut().as_pin_mut() {
            Some(sent) => self.wait(sent, before, gone.as_mut(), now, deadline).await,
            None => Ended::GivenUp,
        };
        // Dropping the future closes its reply channel, and the driver does not send a command
        // whose reply channel is closed. So a command that the socket task could not take until now
        // will never be sent. This must come before `untouched`: while the future exists, the
        // socket task may take the command right after that check.
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
                    // The socket task may stand still. The wake-up starts the clock, so that the
                    // next callers find out sooner.
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

    /// Polls `sent` until it answers, the session is given up, its socket task stands still, or the
    /// deadline comes. `before` is the beat of the socket task before `sent` was first polled.
    async fn wait<T>(
        &self,
        mut sent: Pin<&mut impl Future<Output = RedisResult<T>>>,
        before: Option<Beat>,
        mut gone: Pin<&mut impl Future<Output = ()>>,
        now: Instant,
        deadline: Instant,
    ) -> Ended<T> {
        // A timer of its own, because the runtime of the socket task may not wake this caller.
        let mut timer = pin!(sleep_until(deadline.min(now + TICK)));
        let pulse = self.pulse.get();
        let (mut seen, mut still) = (before, 0);
        loop {
            tokio::select! {
                // An answer that has come counts, even if the session was given up by now.
                biased;
                answer = &mut sent => return Ended::Answered(answer),
                () = &mut gone => return Ended::GivenUp,
                () = &mut timer => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Ended::Late;
            }
            // Counts looks instead of elapsed time: if the whole process was stopped, the clock has
            // moved on although the socket task had no chance to run.
            if let Some(pulse) = pulse {
                let beat = pulse.now();
                let patience = match before == Some(beat) {
                    true => UNTAKEN,
                    false => TAKEN,
                };
                // Any poll counts as progress, also one for another command.
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

    /// Whether this error means that no answers come any more. A brought connection may have a
    /// response timeout of the driver, which does not end it; a timeout of a dialled socket does.
    fn is_end(&self, error: &RedisError) -> bool {
        let is_brought = self.pulse.get().is_none();
        (error.is_io_error() || error.is_unrecoverable_error())
            && !(is_brought && error.is_timeout())
    }

    /// Ties the socket task to this session: the socket closes when the session ends.
    pub(crate) fn hold(&self, wire: SocketTask) {
        let _ = self.pulse.set(wire.pulse().clone());
        *self.wire() = Some(wire);
    }

    /// The runtime of the socket task.
    pub(crate) fn runtime(&self) -> Option<runtime::Id> {
        self.pulse.get()?.runtime()
    }

    /// When the credentials that this session opened with expire, if they do.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.wire().as_ref()?.expires()
    }

    /// The task that shows the server fresh credentials before that.
    pub(crate) fn renewal(&self) -> &Background {
        &self.renewal
    }

    /// Counts the session in `made`, now and once more when it ends. Call it before the session is
    /// used.
    pub(crate) fn counted_by(&self, made: &Arc<ConnectionChanges>) {
        made.begins();
        let _ = self.made.set(made.clone());
    }

    /// Ends the session: callers that wait get no answer, and the socket closes.
    pub(crate) fn end(&self) {
        // Several sides may end the session; only the first one reports it.
        let was_dead = self.dead.swap(true, Ordering::AcqRel);
        if let (false, Some(made)) = (was_dead, self.made.get()) {
            made.ends();
        }
        self.gone.notify_waiters();
        self.renewal.end();
        // Taken first, so that the socket task is not dropped under the lock.
        let wire = self.wire().take();
        drop(wire);
        if let Some(on_end) = self.on_end.as_ref().filter(|_| !was_dead) {
            on_end();
        }
    }

    fn wire(&self) -> MutexGuard<'_, Option<SocketTask>> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the session has ended.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Whether the socket task was woken and is not polled.
    pub(crate) fn stands_still(&self) -> bool {
        self.pulse.get().is_some_and(|pulse| pulse.stands_still())
    }

    /// Wakes the socket task, so that a later look can tell whether it is polled.
    pub(crate) fn knock(&self) {
        if let Some(pulse) = self.pulse.get() {
            pulse.knock();
        }
    }

    /// Like [`stands_still`](Self::stands_still), for callers that wait for pushes and so send
    /// nothing that would wake the socket task.
    pub(crate) fn stands_still_when_asked(&self) -> bool {
        let pulse = self.pulse.get();
        pulse.is_some_and(|pulse| pulse.stands_still_when_asked())
    }

    /// Whether the caller brought this connection, so that only its answers are seen.
    pub(crate) fn is_brought(&self) -> bool {
        self.pulse.get().is_none()
    }

    /// The bytes that the session moves.
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

    /// Whether a caller waits for a reply.
    pub(crate) fn owes_now(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0
    }

    /// Makes a reply due that never comes.
    #[cfg(test)]
    pub(crate) fn owing(&self) -> impl Sized + '_ {
        self.enter()
    }

    /// Counts one more command in flight.
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
        f.debug_struct("InFlight")
            .field("dead", &self.dead)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Counts a command as in flight while its caller waits for the reply.
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

/// The task that moves the bytes of one session. Dropping this ends the task and closes the socket.
#[derive(Debug)]
pub(crate) struct SocketTask {
    task: Task,
    /// When the credentials that the server was shown expire, if they do.
    expires: Option<Instant>,
}

impl SocketTask {
    pub(crate) fn new(task: Task) -> Self {
        Self {
            task,
            expires: None,
        }
    }

    /// Sets when the credentials that the server was shown expire.
    pub(crate) fn expiring(mut self, at: Option<Instant>) -> Self {
        self.expires = at;
        self
    }

    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        self.task.pulse()
    }

    /// When the credentials that the server was shown expire, if they do.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.expires
    }
}

impl Drop for SocketTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The error of a command that the socket task has not taken. It is not executed, so it may be sent
/// elsewhere.
fn lost_unsent() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the connection was lost before the command was sent",
    )
}

/// In how many looks in a row the socket task may stand still before a caller gives up: `UNTAKEN`
/// if the task has not taken its command, `TAKEN` otherwise.
// A caller whose command was not taken loses nothing and sends it elsewhere. Any other caller is
// left with a command of unknown fate, so it waits longer.
const UNTAKEN: u128 = STANDSTILL.as_millis() / TICK.as_millis();
const TAKEN: u128 = 3 * UNTAKEN;

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::*;

    /// Polls the socket task between the last look at a command and the end of the wait for it.
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
