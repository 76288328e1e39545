//! `Connection`: one supervised connection to one server.
//!
//! Invariant: a command is handed to a connection that is not known to be dead, at most once, and
//! never after its deadline. A connection gets an epoch, so that whoever depends on it can tell
//! that it changed. [`Lane`](super::pipeline::Lane) sends commands over one link, the push
//! [`Hub`](super::pubsub::Hub) listens on another.

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

use super::breaker::{Breaker, is_out, says_out};
use crate::background::{Background, Spawner};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::wire::fault::from_server;
use backoff::{ConnectRate, ReconnectBackoff, Use};
use changes::ConnectionChanges;
use connecting::{ConnectTask, Connecting, not_connected_in_time};
use in_flight::InFlight;
use target::Target;

/// What is done with a push message; called on the connection's own task, so it must not block.
pub(crate) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// Tells somebody of something; called from any task, so it must not block.
pub(crate) type Signal = Arc<dyn Fn() + Send + Sync>;

/// How a link gets its connection, and what it does while it has one.
pub(crate) struct ConnectionConfig {
    pub(crate) source: Target,
    /// The name that `CLIENT LIST` shows.
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    /// Shared by all connections of the client to the server.
    pub(crate) pace: Arc<ConnectRate>,
    pub(crate) spawner: Spawner,
    pub(crate) on_push: Option<OnPush>,
    /// Numbers the connections, if somebody must know.
    pub(crate) made: Option<Arc<ConnectionChanges>>,
    /// The server cannot be reached or is not what it should be: somebody may know of another.
    pub(crate) on_trouble: Option<Signal>,
    /// There is a connection again, after the last had led to a server that has become a replica.
    pub(crate) after_demotion: Option<Signal>,
}

pub(crate) struct Connection {
    route: Arc<ConnectionConfig>,
    state: Mutex<State>,
    /// Wakes those who wait for a connection: there is one, an attempt is over, or none will be
    /// made.
    changed: Notify,
    breaker: Breaker,
    /// Sees to the way to the server while a lease is at stake.
    urging: Background,
}

struct State {
    live: Option<Session>,
    /// Attempts under way, the oldest first: one, unless it is urgent.
    attempts: Vec<ConnectTask>,
    epoch: u64,
    backoff: ReconnectBackoff,
    last_error: Option<Error>,
    /// The primary that the sentinels named last.
    primary: Option<Arc<str>>,
    /// How many attempts have failed.
    failures: u64,
    /// The same since the last that did not.
    failed_in_a_row: u32,
    /// While this is set, a task sees to it: who sets it starts one, and who clears it is that
    /// task.
    urgent: Option<Urgent>,
    /// The last connection led to a server that has become a replica.
    demoted: bool,
    /// How many connections were given up here, and not ended by the server or on the way.
    given_up: u64,
    retired: bool,
}

/// A lease is at stake.
#[derive(Debug, Clone, Copy)]
struct Urgent {
    until: Instant,
    /// How soon after one attempt to connect comes the next.
    every: Duration,
    /// When somebody last said so.
    asked: Instant,
}

/// What a server has answered to one command.
#[derive(Debug)]
pub(crate) struct Answer {
    /// An error reply is a `Value::ServerError`.
    pub(crate) value: Value,
    /// When the command had not been sent yet: what it grants for a time is not older than this.
    pub(crate) sent: Instant,
}

/// A connection in use.
#[derive(Clone)]
pub(crate) struct Session {
    connection: MultiplexedConnection,
    epoch: u64,
    health: Arc<InFlight>,
}

impl Connection {
    pub(crate) fn new(route: ConnectionConfig) -> Arc<Self> {
        let breaker = match route.on_push {
            // The connection for commands to the same server reports.
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

    /// Another connection to the same server, which hears no pushes. A connection that the caller
    /// brought is used again.
    pub(crate) fn another(&self) -> Arc<Self> {
        Self::new(self.beside(""))
    }

    /// The same for large values. The outages of the server are reported by this one.
    pub(crate) fn for_large_values(&self) -> Arc<Self> {
        Self::with(self.beside("-large"), Breaker::silent())
    }

    /// The route of another connection, whose name has this ending.
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

    /// Whether nobody else uses the connection.
    pub(crate) fn is_ours(&self) -> bool {
        !matches!(self.route.source, Target::Brought(_))
    }

    /// Whether what is sent can be read on the way, as far as known.
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
            // Pinned here: each callee that takes it by value would hold a copy of its own.
            let sent = pin!(Some(live.connection.send_packed_command(command)));
            health.answer(sent, deadline).await
        };
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

    /// The same over this connection; if it is gone, nothing is sent. Answers also an instant right
    /// before that.
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
        // One refusal that the driver does not understand stands for all of them.
        let answer = answer.map_err(|error| match error.fate() {
            Fate::Refused => error.with_fate(Fate::Unknown),
            _ => error,
        });
        let (replies, sent) = self.observed(&live, answer)?;
        self.judge(&replies, live.epoch);
        Ok((replies, sent))
    }

    /// The connection in use, made first if there is none. Nothing has been sent when this fails.
    pub(crate) async fn live(self: &Arc<Self>, deadline: Instant) -> Result<Session> {
        match self.current() {
            Some(live) => Ok(live),
            // Seldom needed, and large: callers in a queue are many.
            None => Box::pin(self.made(deadline)).await,
        }
    }

    /// Where the tasks live that need the connection.
    pub(crate) fn spawner(&self) -> &Spawner {
        &self.route.spawner
    }

    /// Gives the connection up if its task stands still. For those who wait for pushes: others find
    /// out by the answers that they miss.
    pub(crate) fn check(&self) {
        let live = self.current();
        if let Some(live) = live.filter(|live| live.health.stands_still_when_asked()) {
            self.leave(&live);
        }
    }

    /// Wakes the task of the connection in use, to see whether it is polled then.
    pub(crate) fn knock(&self) {
        if let Some(live) = &self.state().live {
            live.health.knock();
        }
    }

    /// What the last attempt to connect failed with, or why the last connection was left, until an
    /// attempt succeeds.
    pub(crate) fn last_error(&self) -> Option<Error> {
        self.state().last_error.clone()
    }

    /// The number of the connection that was made last; 0 when none ever was.
    pub(crate) fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// The epoch of the connection in use, if there is one.
    pub(crate) fn live_epoch(&self) -> Option<u64> {
        self.current().map(|live| live.epoch)
    }

    /// How many connections were given up here: what was lost with one of them says nothing of the
    /// server.
    pub(crate) fn given_up(&self) -> u64 {
        self.state().given_up
    }

    /// Whether a connection is in use now.
    pub(crate) fn is_up(&self) -> bool {
        self.current().is_some()
    }

    /// Whether nothing is known against the server: it is connected, or was never needed.
    pub(crate) fn is_well(&self) -> bool {
        let state = self.state();
        match &state.live {
            Some(live) => !live.is_dead(),
            None => state.epoch == 0 && state.last_error.is_none(),
        }
    }

    fn current(&self) -> Option<Session> {
        let state = self.state();
        let live = state.live.as_ref().filter(|live| !live.is_dead())?;
        if live.health.stands_still() {
            let live = live.clone();
            drop(state);
            self.leave(&live);
            return None;
        }
        Some(live.clone())
    }

    /// Where the server is that the connections lead to, as far as known.
    pub(crate) fn address(&self) -> Option<Arc<str>> {
        match &self.route.source {
            Target::Server(endpoint) => Some(endpoint.address.to_string().into()),
            Target::Located(_) => self.state().primary.clone(),
            Target::Brought(_) => None,
        }
    }

    /// The numbers of its connections, if they have any.
    pub(crate) fn counted(&self) -> Option<&ConnectionChanges> {
        self.route.made.as_deref()
    }

    /// Says in `error` where the server is.
    pub(crate) fn located(&self, error: Error) -> Error {
        match self.address() {
            Some(address) => error.at_address(&address),
            None => error,
        }
    }

    /// Notes that an answer never came.
    fn observed<T>(&self, live: &Session, outcome: Result<T>) -> Result<T> {
        let outcome = outcome.map_err(|error| self.located(error));
        if let Err(error) = &outcome {
            if live.health.stands_still() {
                // That says nothing about the server.
                self.leave(live);
                return outcome;
            }
            if is_out(error) {
                self.breaker.failed(error);
            }
            if matches!(
                error.kind(),
                ErrorKind::Disconnected | ErrorKind::Unreachable
            ) {
                self.trouble();
            }
        }
        outcome
    }

    /// What is known of the health of the server.
    pub(crate) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Notes what answers say of the server itself. One that has become a replica keeps its
    /// connections, so it is left by us: what is at this address now, or is the primary now, is
    /// found out when we connect again.
    fn judge(&self, replies: &[Value], epoch: u64) {
        let mut out = None;
        for reply in replies {
            let Value::ServerError(error) = reply else {
                continue;
            };
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

    fn trouble(&self) {
        if let Some(on_trouble) = &self.route.on_trouble {
            on_trouble();
        }
    }

    /// Gives up the connection of `epoch`; the next caller makes a new one. Those who wait for an
    /// answer on it may still get it; if no connection is made in time, callers fail with `why`, if
    /// it was a refusal to write.
    fn abandon(&self, epoch: u64, why: Option<Error>) {
        let mut state = self.state();
        if state.live.as_ref().is_some_and(|live| live.epoch == epoch) {
            self.counts();
            state.live = None;
            state.given_up += 1;
            if why.is_some() {
                // What answers there may be the same server again.
                state.backoff.demoted();
                state.demoted = true;
            }
            state.last_error = why;
        }
    }

    /// Lets the connection go, and attempts to get one: nothing is needed of it for now. Callers
    /// that wait for answers on it still get them.
    pub(crate) fn rest(&self) {
        let mut state = self.state();
        let live = state.live.take();
        let attempts = std::mem::take(&mut state.attempts);
        drop(state);
        drop((live, attempts));
    }

    /// Gives up a connection whose task stands still, with its runtime. Should that go on, those
    /// who wait for answers there get them.
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
        self.route.spawner.distrust(live.health.runtime());
        if let Some(on_push) = &self.route.on_push {
            on_push(disconnection());
        }
    }

    /// The connection in use changes.
    fn counts(&self) {
        if let Some(made) = &self.route.made {
            made.ends();
        }
    }

    /// Ends the present connection: nobody gets an answer on it any more.
    pub(crate) fn reset(&self) {
        let mut state = self.state();
        let live = state.live.take();
        state.given_up += u64::from(live.is_some());
        drop(state);
        if let Some(live) = live {
            live.health.end();
        }
    }

    /// Makes no connection any more: the server is not the one to ask. Callers that wait for a
    /// connection fail; replies under way may still arrive.
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

fn retired_error() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "{server} is no longer the one that serves this key",
    )
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Link")
            .field("name", &self.route.name)
            .field("epoch", &state.epoch)
            .field("connected", &state.live.is_some())
            .finish()
    }
}
