//! `Connection`: one supervised connection to one server.
//!
//! It opens a [`Session`] (a socket that has passed the handshake) when a caller first needs one,
//! and opens another when that session is lost. Each session has an epoch, so code that depends on
//! the connection can tell that the session changed.
//!
//! Invariant: a command is handed to a session at most once, never to one that is known to be dead,
//! and never after the deadline of the command.
//!
//! A [`Pipeliner`](super::pipeline::pipeliner::Pipeliner) sends commands over one connection, and
//! [`PubSub`](super::pubsub::PubSub) listens on another.

pub(crate) mod backoff;
pub(crate) mod changes;
pub(crate) mod connect;
pub(crate) mod connecting;
pub(crate) mod dial;
pub(crate) mod in_flight;
pub(crate) mod race;
pub(crate) mod reauth;
pub(crate) mod target;
pub(crate) mod urgent;
pub(crate) mod watch;

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::breaker::{Breaker, is_out, is_refusal, says_out};
use crate::background::{Background, Spawner};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::wire::fault::from_server;
use backoff::{ConnectRate, ReconnectBackoff, Use};
use changes::ConnectionChanges;
use connecting::{ConnectTask, Connecting, not_connected_in_time};
use in_flight::InFlight;
use target::Target;

/// Receives a push message. It is called on the socket task of the session, so it must not block.
pub(crate) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Notifies the code that set it. It is called from any task, so it must not block.
pub(crate) type Signal = Arc<dyn Fn() + Send + Sync>;

/// Where a connection leads, how its sessions are opened, and which events it reports.
// Owned by an `Arc` of its own, so that a connect attempt holds it without the connection.
pub(crate) struct ConnectionConfig {
    pub(crate) source: Target,
    /// The name that `CLIENT LIST` shows.
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    /// Limits how often the server is connected to. All connections of the client to it share this.
    pub(crate) pace: Arc<ConnectRate>,
    pub(crate) spawner: Spawner,
    /// Set on subscriber connections only.
    // Such a connection owes no replies, so its watchdog sends a `PING` whenever it is quiet.
    pub(crate) on_push: Option<OnPush>,
    /// Numbers the sessions, if a caller must know which session an answer belongs to.
    pub(crate) made: Option<Arc<ConnectionChanges>>,
    /// Called when the server cannot be reached, or is not what it should be. The owner may know
    /// another server.
    pub(crate) on_trouble: Option<Signal>,
    /// Called when a session is open again and the previous one led to a server that has become a
    /// replica.
    pub(crate) after_demotion: Option<Signal>,
}

/// One supervised connection to one server.
pub(crate) struct Connection {
    route: Arc<ConnectionConfig>,
    state: Mutex<State>,
    /// Wakes the callers that wait for a session: one is open, a connect attempt is over, or none
    /// will be made any more.
    changed: Notify,
    breaker: Breaker,
    /// The task that keeps the server reachable while a lease is at stake; see [`urgent`].
    urging: Background,
}

/// The state of a connection, behind one lock.
struct State {
    /// The session in use. It may have died since; `tidy` removes it then.
    live: Option<Session>,
    /// Connect attempts under way, the oldest first. There is at most one, unless the connection is
    /// urgent.
    attempts: Vec<ConnectTask>,
    /// The epoch of the last session; 0 before the first.
    epoch: u64,
    backoff: ReconnectBackoff,
    last_error: Option<Error>,
    /// The primary that the sentinels named last.
    primary: Option<Arc<str>>,
    /// How many connect attempts have failed so far.
    // A caller compares this with what it saw on arrival: if it rose, an attempt failed meanwhile.
    failures: u64,
    /// How many connect attempts have failed since the last success.
    // The next attempt starts at another address of the host by this number; see `race`.
    failed_in_a_row: u32,
    /// Set while a lease is at stake. The caller that sets this starts the task, and only that task
    /// clears it, or [`Connection::retire`].
    urgent: Option<Urgent>,
    /// The last session led to a server that has become a replica.
    // The connection for pushes notices no refusal, so it is reset when this one is open again.
    demoted: bool,
    /// How many sessions this side gave up. Sessions ended by the server or by the network do not
    /// count.
    given_up: u64,
    /// No session is opened any more.
    retired: bool,
}

impl State {
    /// The last error. A refusal does not speak for a server that does not answer any more: if an
    /// attempt has begun since and is slow, the error is that of this attempt.
    fn last_error(&self) -> Option<Error> {
        let is_refusal = self.last_error.as_ref().is_some_and(is_refusal);
        let oldest = self.attempts.first().map(|oldest| &oldest.attempt);
        let since = oldest.filter(|it| it.failed_before() == self.failed_in_a_row);
        match since.filter(|it| it.is_slow()) {
            Some(slow) if is_refusal => Some(slow.late()),
            _ => self.last_error.clone(),
        }
    }
}

/// Until when, and how eagerly, the server must be reached because a lease is at stake.
#[derive(Debug, Clone, Copy)]
struct Urgent {
    until: Instant,
    /// How long after one connect attempt the next may start.
    every: Duration,
    /// When a caller last asked for this.
    asked: Instant,
}

/// What a server answered to one command.
#[derive(Debug)]
pub(crate) struct Answer {
    /// An error reply is a `Value::ServerError`.
    pub(crate) value: Value,
    /// An instant at which the command had not been sent yet. What the reply grants for a time was
    /// granted no earlier than this.
    pub(crate) sent: Instant,
}

/// One socket that has passed the handshake, while the connection uses it.
#[derive(Clone)]
pub(crate) struct Session {
    connection: MultiplexedConnection,
    epoch: u64,
    health: Arc<InFlight>,
}

impl Connection {
    pub(crate) fn new(route: ConnectionConfig) -> Arc<Self> {
        let breaker = match route.on_push {
            // The connection for commands to the same server logs its outages already.
            Some(_) => Breaker::silent(),
            None => Breaker::default(),
        };
        Self::with(route, breaker)
    }

    fn with(route: ConnectionConfig, breaker: Breaker) -> Arc<Self> {
        let urging = Background::by(&route.spawner);
        Arc::new(Self {
            route: Arc::new(route),
            state: Mutex::new(State {
                live: None,
                attempts: Vec::new(),
                epoch: 0,
                backoff: ReconnectBackoff::default(),
                last_error: None,
                primary: None,
                failures: 0,
                failed_in_a_row: 0,
                urgent: None,
                demoted: false,
                given_up: 0,
                retired: false,
            }),
            changed: Notify::new(),
            breaker,
            urging,
        })
    }

    /// Another connection to the same server, without pushes. If the caller brought the connection,
    /// the new one uses the same.
    pub(crate) fn another(&self) -> Arc<Self> {
        Self::new(self.beside(""))
    }

    /// Another connection to the same server, for large values. It does not log outages of the
    /// server, because this one does.
    pub(crate) fn for_large_values(&self) -> Arc<Self> {
        Self::with(self.beside("-large"), Breaker::silent())
    }

    /// Another connection to the same server, for writes that wait for replicas. It does not log
    /// outages of the server, because this one does.
    pub(crate) fn for_waiting(&self) -> Arc<Self> {
        Self::with(self.beside("-wait"), Breaker::silent())
    }

    /// The configuration of another connection, whose name has this ending.
    fn beside(&self, ending: &str) -> ConnectionConfig {
        ConnectionConfig {
            source: self.route.source.clone(),
            name: format!("{}{ending}", self.route.name),
            connect_timeout: self.route.connect_timeout,
            pace: self.route.pace.clone(),
            spawner: self.route.spawner.clone(),
            on_push: None,
            made: None,
            on_trouble: None,
            after_demotion: None,
        }
    }

    /// Whether this client opened the connection, so that nothing else uses it.
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self.route.source, Target::Brought(_))
    }

    /// Whether commands travel unencrypted to another machine, as far as known.
    pub(crate) fn is_readable_on_the_way(&self) -> bool {
        match &self.route.source {
            Target::Server(endpoint) => endpoint.is_readable_on_the_way(),
            Target::Located(locator) => locator.is_readable_on_the_way(),
            Target::Brought(_) => false,
        }
    }

    /// Sends one command and returns its reply; an error reply is an `Ok(Value::ServerError)`.
    pub(crate) async fn send(self: &Arc<Self>, command: &Cmd, deadline: Instant) -> Result<Answer> {
        let mut live = self.live(deadline).await?;
        let health = live.health.clone();
        let reply = {
            // Pinned here: each callee that took the future by value would hold a copy of it.
            let sent = pin!(Some(live.connection.send_packed_command(command)));
            health.answer(sent, deadline).await
        };
        // `observed` sees what did not come, and `judge` what came.
        let (value, sent) = self.observed(&live, reply)?;
        self.judge(std::slice::from_ref(&value), live.epoch);
        Ok(Answer { value, sent })
    }

    /// Sends all commands of a pipeline in one go and returns their replies in order.
    pub(crate) async fn send_all(
        self: &Arc<Self>,
        pipeline: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>> {
        let live = self.live(deadline).await?;
        let answered = self.send_all_over(live, pipeline, deadline).await;
        answered.map(|(replies, _)| replies)
    }

    /// Sends all commands of a pipeline over the session `live`; sends nothing if that is gone.
    /// Also returns an instant right before they were sent.
    pub(crate) async fn send_all_over(
        &self,
        mut live: Session,
        pipeline: &Pipeline,
        deadline: Instant,
    ) -> Result<(Vec<Value>, Instant)> {
        let health = live.health.clone();
        let commands = pipeline.len();
        let answer = {
            let sent = pin!(Some(
                live.connection.send_packed_commands(pipeline, 0, commands)
            ));
            health.answer(sent, deadline).await
        };
        // The driver reports one refusal that it does not understand for the whole pipeline, so the
        // other commands may have been executed.
        let answer = answer.map_err(|error| match error.fate() {
            Fate::Refused => error.with_fate(Fate::Unknown),
            _ => error,
        });
        let (replies, sent) = self.observed(&live, answer)?;
        self.judge(&replies, live.epoch);
        Ok((replies, sent))
    }

    /// Returns the session in use, and opens one first if there is none. If this fails, nothing was
    /// sent.
    pub(crate) async fn live(self: &Arc<Self>, deadline: Instant) -> Result<Session> {
        match self.current() {
            Some(live) => Ok(live),
            // Boxed because it is large and rarely needed, and many queued callers hold this
            // future.
            None => Box::pin(self.made(deadline)).await,
        }
    }

    /// Spawns the tasks that use the connection.
    pub(crate) fn spawner(&self) -> &Spawner {
        &self.route.spawner
    }

    /// Gives the session up if its socket task stands still. Callers that wait for pushes need
    /// this; callers that wait for a reply notice by themselves.
    pub(crate) fn check(&self) {
        let live = self.current();
        if let Some(live) = live.filter(|live| live.health.stands_still_when_asked()) {
            self.leave(&live);
        }
    }

    /// Wakes the socket task of the session in use, so that a later look can tell whether it is
    /// polled.
    pub(crate) fn knock(&self) {
        if let Some(live) = &self.state().live {
            live.health.knock();
        }
    }

    /// The error of the last connect attempt, or why the last session was given up. It is cleared
    /// when an attempt succeeds. A refusal ends when the next attempt is slow.
    pub(crate) fn last_error(&self) -> Option<Error> {
        self.state().last_error()
    }

    /// The epoch of the session that was opened last; 0 if none ever was.
    pub(crate) fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// The epoch of the session in use, if there is one.
    pub(crate) fn live_epoch(&self) -> Option<u64> {
        self.current().map(|live| live.epoch)
    }

    /// How many sessions this side gave up. A command that was lost with one of them says nothing
    /// about the server.
    pub(crate) fn given_up(&self) -> u64 {
        self.state().given_up
    }

    /// Whether a session is in use now.
    pub(crate) fn is_up(&self) -> bool {
        self.current().is_some()
    }

    /// Whether there is no known problem: a session is in use, or none was ever needed.
    pub(crate) fn is_well(&self) -> bool {
        let state = self.state();
        match &state.live {
            Some(live) => !live.is_dead(),
            None => state.epoch == 0 && state.last_error.is_none(),
        }
    }

    /// The session in use, unless it is dead or stands still.
    fn current(&self) -> Option<Session> {
        let state = self.state();
        let live = state.live.as_ref().filter(|live| !live.is_dead())?;
        if live.health.stands_still() {
            // `leave` takes the lock itself.
            let live = live.clone();
            drop(state);
            self.leave(&live);
            return None;
        }
        Some(live.clone())
    }

    /// The address of the server that this leads to, as far as known.
    pub(crate) fn address(&self) -> Option<Arc<str>> {
        match &self.route.source {
            Target::Server(endpoint) => Some(endpoint.address.to_string().into()),
            Target::Located(_) => self.state().primary.clone(),
            Target::Brought(_) => None,
        }
    }

    /// The numbers of its sessions, if they are numbered.
    pub(crate) fn counted(&self) -> Option<&ConnectionChanges> {
        self.route.made.as_deref()
    }

    /// Adds the address of the server to `error`.
    pub(crate) fn located(&self, error: Error) -> Error {
        match self.address() {
            Some(address) => error.at_address(&address),
            None => error,
        }
    }

    /// Reports a missing answer to the breaker and to the owner.
    fn observed<T>(&self, live: &Session, outcome: Result<T>) -> Result<T> {
        let outcome = outcome.map_err(|error| self.located(error));
        if let Err(error) = &outcome {
            if live.health.stands_still() {
                // The error comes from a runtime of this process, so the breaker must not count it.
                self.leave(live);
                return outcome;
            }
            if is_out(error) {
                self.breaker.failed(error);
            }
            if matches!(
                error.kind(),
                // Not for a timeout: the server may only be slow.
                ErrorKind::Disconnected | ErrorKind::Unreachable
            ) {
                self.trouble();
            }
        }
        outcome
    }

    /// The circuit breaker of the server.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Notes what answers say about the server itself. A server that becomes a replica keeps its
    /// connections open, so this gives the session up. The next connect finds out what is at this
    /// address now, or where the primary is.
    fn judge(&self, replies: &[Value], epoch: u64) {
        let mut out = None;
        for reply in replies {
            let Value::ServerError(error) = reply else {
                continue;
            };
            // A brought connection is kept, because it cannot be opened again.
            if error.code() == "READONLY" && !matches!(self.route.source, Target::Brought(_)) {
                self.abandon(epoch, Some(from_server(error)));
                self.trouble();
            }
            if says_out(error) {
                out = Some(from_server(error));
            }
        }
        match out {
            Some(error) => self.breaker.failed(&error),
            None => self.breaker.succeeded(),
        }
    }

    /// Tells the owner that another server may be the one to ask.
    fn trouble(&self) {
        if let Some(on_trouble) = &self.route.on_trouble {
            on_trouble();
        }
    }

    /// Gives up the session of `epoch`; the next caller opens a new one. Callers that wait for an
    /// answer on the old session may still get it. `why` is set if the server refused to write: if
    /// no session is opened in time, callers then fail with it.
    pub(crate) fn abandon(&self, epoch: u64, why: Option<Error>) {
        let mut state = self.state();
        // The answer may be late, and the session in use another one by now.
        if state.live.as_ref().is_some_and(|live| live.epoch == epoch) {
            self.counts();
            state.live = None;
            state.given_up += 1;
            if why.is_some() {
                // The next connect may reach the same server again, so it must not happen in a
                // loop.
                state.backoff.demoted();
                state.demoted = true;
            }
            state.last_error = why;
        }
    }

    /// Drops the session and all connect attempts, because nothing needs them for now. Callers that
    /// wait for answers on the session still get them.
    pub(crate) fn rest(&self) {
        let mut state = self.state();
        // What the attempts have met so far is not forgotten with them.
        state.last_error = state.last_error();
        let live = state.live.take();
        let attempts = std::mem::take(&mut state.attempts);
        // Dropped outside the lock: this ends tasks and closes sockets.
        drop(state);
        drop((live, attempts));
    }

    /// Gives up a session whose socket task stands still together with its runtime. If that runtime
    /// resumes, callers that wait for answers on the session get them.
    fn leave(&self, live: &Session) {
        let mut state = self.state();
        if state.live.as_ref().is_none_or(|it| it.epoch != live.epoch) {
            return;
        }
        self.counts();
        state.live = None;
        state.given_up += 1;
        drop(state);
        tracing::warn!(target: "hedgerow::client", connection = self.route.name, epoch = live.epoch, "the runtime of the connection stands still; making another");
        // The next session must not be opened on the same runtime.
        self.route.spawner.distrust(live.health.runtime());
        if let Some(on_push) = &self.route.on_push {
            // The socket task would report its end itself, but it stands still.
            on_push(disconnection());
        }
    }

    /// Counts that the session in use is not used any more.
    fn counts(&self) {
        if let Some(made) = &self.route.made {
            made.ends();
        }
    }

    /// Ends the present session. Callers that wait on it get no answer any more.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        let live = state.live.take();
        state.given_up += u64::from(live.is_some());
        drop(state);
        // Outside the lock: `end` calls `on_end`, which takes locks of its owner.
        if let Some(live) = live {
            live.health.end();
        }
    }

    /// Opens no session any more, because this is no longer the server to ask. Callers that wait
    /// for a session fail; replies under way may still arrive.
    pub(crate) fn retire(&self) {
        let mut state = self.state();
        state.retired = true;
        state.live = None;
        state.urgent = None;
        let attempts = std::mem::take(&mut state.attempts);
        drop(state);
        drop(attempts);
        self.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.health.is_dead()
    }
}

fn disconnection() -> PushInfo {
    PushInfo {
        kind: PushKind::Disconnection,
        data: Vec::new(),
    }
}

/// The error of a caller that waits for a session of a retired connection.
fn retired_error() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "{server} is no longer the one that serves this key",
    )
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Connection")
            .field("name", &self.route.name)
            .field("epoch", &state.epoch)
            .field("connected", &state.live.is_some())
            .finish()
    }
}
