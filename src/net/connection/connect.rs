//! How a connection opens its session.
//!
//! A connect attempt is a task of its own, and all callers that need the session wait for it. Only
//! one attempt is under way at a time, unless the connection is urgent.
//!
//! Invariant: if this fails, no command of any caller was sent. A session is used only after its
//! handshake, and only if it still leads to the right server. An attempt that stands still with its
//! runtime blocks no caller.
//!
//! [`Connection::live`] calls this when no session is in use, and [`urgent`](super::urgent) to open
//! one beside it.

use std::pin::pin;
use std::sync::{Arc, Weak};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, PushKind};
use tokio::time::{Instant, sleep_until};

use super::dial::{dial, no_answer};
use super::in_flight::InFlight;
use super::target::{Locate, Target};
use super::urgent::Beside;
use super::{
    ConnectTask, Connecting, Connection, ConnectionConfig, Session, State, Use, disconnection,
    not_connected_in_time, reauth, watch,
};
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::net::address::Address;
use crate::net::endpoint::Endpoint;
use crate::pulse::TICK;
use crate::wire::fault::from_driver;

/// A session that is not in use yet.
struct Opened {
    connection: MultiplexedConnection,
    health: Arc<InFlight>,
    /// The locator that found the primary, and the address that it gave.
    primary: Option<(Arc<dyn Locate>, Address)>,
}

/// Whether a session was opened before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    First,
    Again,
}

/// What a caller that needs a session does next.
enum Next {
    Use(Session),
    GiveUp(Error),
    /// Wait for the attempt under way, but look again at this instant.
    // The attempt may stand still with another runtime, which wakes no caller.
    Await(Instant),
    /// Wait until an attempt may start.
    Pause(Instant),
}

impl Connection {
    /// Waits until a session is open, and starts an attempt when none is under way. Fails at the
    /// deadline, or as soon as the server refuses the client.
    ///
    /// Cancel safety: safe; the attempt goes on.
    pub(crate) async fn made(self: &Arc<Self>, deadline: Instant) -> Result<Session> {
        let seen = self.state().failures;
        loop {
            // Enabled before the state is read, so that no change in between is missed.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(live) = self.current() {
                return Ok(live);
            }
            let news = match self.next(seen, deadline) {
                Next::Use(live) => return Ok(live),
                Next::GiveUp(error) => return Err(self.located(error)),
                Next::Await(until) => {
                    tokio::select! {
                        () = changed => {}
                        () = sleep_until(until) => {}
                    }
                    false
                }
                Next::Pause(until) => tokio::select! {
                    () = changed => false,
                    () = sleep_until(until) => false,
                    () = self.route.source.news() => true,
                },
            };
            // The primary may be elsewhere now, so the pause for the old address does not count.
            if news {
                self.state().backoff.skip();
            }
        }
    }

    /// What a caller with this `deadline` does next, if `seen` attempts had failed when it came.
    /// Starts an attempt if it is time for one.
    fn next(self: &Arc<Self>, seen: u64, deadline: Instant) -> Next {
        let now = Instant::now();
        let mut state = self.state();
        if state.retired {
            return Next::GiveUp(super::retired_error());
        }
        self.tidy(&mut state);
        if let Some(live) = &state.live {
            return Next::Use(live.clone());
        }
        if now >= deadline {
            return Next::GiveUp(self.late(state));
        }
        if !state.attempts.is_empty() {
            return Next::Await((now + TICK).min(deadline));
        }
        let not_before = self.not_before(&state, now);
        let refused = state.last_error.as_ref();
        let refused = refused.filter(|error| error.fate() != Fate::NotExecuted);
        if let Some(error) = refused
            && (not_before.is_some() || state.failures > seen)
        {
            // The server refused the client (such as its credentials), and waiting does not change
            // that. The caller fails at once, and the next attempt comes when the backoff allows
            // it.
            return Next::GiveUp(error.clone());
        }
        match not_before {
            Some(at) if at >= deadline => Next::GiveUp(self.late(state)),
            Some(at) => Next::Pause(at),
            None => {
                self.begin(&mut state, None);
                Next::Await((now + TICK).min(deadline))
            }
        }
    }

    /// Removes a session that has ended, and attempts that have ended or stand still.
    pub(super) fn tidy(&self, state: &mut State) {
        if let Some(dead) = state.live.take_if(|live| live.is_dead()) {
            let had = match dead.health.replies() {
                0 => Use::Nothing,
                _ => Use::Answers,
            };
            state.backoff.lost(had);
        }
        state.attempts.retain(|it| {
            let goes_on = !it.is_over() && !it.stands_still();
            if !goes_on {
                // An attempt removes itself when it ends. It is still here, so its runtime has
                // ended or stands still.
                self.route.spawner.distrust(it.runtime());
            }
            goes_on
        });
    }

    /// When the next attempt may start, or `None` if it may start now.
    fn not_before(&self, state: &State, now: Instant) -> Option<Instant> {
        // The backoff belongs to this connection, the rate to all connections to the server.
        let at = state.backoff.not_before.max(self.route.pace.not_before());
        let at = match state.urgent.filter(|urgent| urgent.until > now) {
            Some(urgent) => at
                .zip(state.backoff.last_try())
                .map(|(at, last)| at.min(last + urgent.every)),
            None => at,
        };
        at.filter(|at| *at > now)
    }

    /// The error of a caller whose deadline has come.
    fn late(&self, state: std::sync::MutexGuard<'_, State>) -> Error {
        let Some(oldest) = state.attempts.first() else {
            return state
                .last_error
                .clone()
                .unwrap_or_else(not_connected_in_time);
        };
        // The oldest attempt has had the most time, so it says the most about the server.
        let (late, is_slow) = (oldest.attempt.late(), oldest.attempt.is_slow());
        let last_error = state.last_error();
        drop(state);
        // The error of the last attempt has a cause; the deadline alone says only that time is up.
        // But a refusal from before a slow attempt is over: the server does not answer now.
        let error = last_error.unwrap_or(late);
        if is_slow {
            self.breaker.failed(&error);
        }
        error
    }

    /// Starts an attempt. `beside` names the session in use that it is to replace, if there is one.
    pub(super) fn begin(self: &Arc<Self>, state: &mut State, beside: Option<Beside>) {
        // Both count when an attempt starts: one that hangs must delay the next one, too.
        state.backoff.tries();
        self.route.pace.note();
        let attempt = Arc::new(Connecting::new(
            self.route.connect_timeout,
            state.failed_in_a_row,
        ));
        // Only the first session may use a connection that the caller brought.
        let turn = match state.epoch {
            0 => Try::First,
            _ => Try::Again,
        };
        let ends = Ends {
            link: Arc::downgrade(self),
            attempt: attempt.clone(),
        };
        let (link, route) = (Arc::downgrade(self), self.route.clone());
        let work = {
            let attempt = attempt.clone();
            async move {
                let _ends = ends;
                attempted(link, route, attempt, turn, beside).await;
            }
        };
        state
            .attempts
            .push(ConnectTask::start(attempt, self.spawner(), work));
    }

    /// Puts a session into use.
    fn install(
        self: &Arc<Self>,
        opened: Opened,
        attempt: &Arc<Connecting>,
        beside: Option<Beside>,
    ) -> Result<()> {
        let mut state = self.state();
        if state.retired {
            return Err(super::retired_error());
        }
        let used = state.live.as_ref().filter(|live| !live.is_dead());
        if used.is_some_and(|live| beside.is_none_or(|it| it.epoch != live.epoch)) {
            // Another attempt was faster; this session is closed.
            return Ok(());
        }
        let replaced = state.live.take();
        state.epoch += 1;
        let live = Session {
            connection: opened.connection,
            epoch: state.epoch,
            health: opened.health,
        };
        let demoted = std::mem::take(&mut state.demoted);
        // The backoff is not reset: a session may turn out to be of no use.
        state.backoff.made();
        state.failed_in_a_row = 0;
        state.last_error = None;
        if let Some((_, address)) = &opened.primary {
            state.primary = Some(address.to_string().into());
        }
        // Counted before it can be used, so that no answer of it carries an old number.
        if let Some(made) = &self.route.made {
            live.health.counted_by(made);
        }
        state.live = Some(live.clone());
        let (own, others) = std::mem::take(&mut state.attempts)
            .into_iter()
            .partition(|it| Arc::ptr_eq(&it.attempt, attempt));
        state.attempts = own;
        drop(state);
        drop::<Vec<ConnectTask>>(others);
        // The old session is not ended: it may be only slow, and then its callers still get their
        // answers. Its watchdog ends it otherwise.
        drop(replaced);
        self.changed.notify_waiters();
        tracing::info!(target: "hedgerow::client", connection = self.route.name, address = self.address().as_deref(), epoch = live.epoch, "connected");
        watch::start(self, &live);
        reauth::start(self, &live);
        // A locator that learned of another primary before the session was in use could not end it,
        // so this asks again.
        if let Some((locator, address)) = opened.primary
            && !locator.names(&address)
        {
            self.reset();
            return Err(moved_meanwhile());
        }
        if demoted && let Some(after_demotion) = &self.route.after_demotion {
            after_demotion();
        }
        Ok(())
    }

    /// Records why an attempt failed.
    fn not_made(&self, error: &Error) {
        let is_outage = error.fate() == Fate::NotExecuted;
        let mut state = self.state();
        if state.live.as_ref().is_some_and(|live| !live.is_dead()) {
            // Another attempt has succeeded meanwhile.
            return;
        }
        state.backoff.failed();
        state.failures += 1;
        state.failed_in_a_row = state.failed_in_a_row.saturating_add(1);
        state.last_error = Some(error.clone());
        drop(state);
        // A refused password is not counted: it may be in rotation, and the server is up.
        match is_outage && error.kind() != ErrorKind::Unauthenticated {
            true => self.breaker.failed(error),
            false => self.breaker.refused(error),
        }
        if is_outage {
            self.trouble();
        }
    }

    /// Removes an attempt from those under way, and wakes the callers that wait for it.
    fn is_over(&self, attempt: &Arc<Connecting>) {
        let mut state = self.state();
        let (own, others) = std::mem::take(&mut state.attempts)
            .into_iter()
            .partition(|it| Arc::ptr_eq(&it.attempt, attempt));
        state.attempts = others;
        drop(state);
        drop::<Vec<ConnectTask>>(own);
        self.changed.notify_waiters();
    }
}

/// Makes one attempt for `link`, without keeping that alive.
async fn attempted(
    link: Weak<Connection>,
    route: Arc<ConnectionConfig>,
    attempt: Arc<Connecting>,
    turn: Try,
    beside: Option<Beside>,
) {
    // Only a `Weak` of the connection is held here, so a dropped client ends its attempts.
    let opened = route.connect(&attempt, turn).await;
    let is_wanted = match (&opened, beside) {
        (Ok(_), Some(beside)) => Connection::is_to_be_replaced(&link, beside).await,
        _ => true,
    };
    let Some(link) = link.upgrade() else { return };
    if !is_wanted {
        link.is_over(&attempt);
        return;
    }
    let outcome = opened.and_then(|opened| link.install(opened, &attempt, beside));
    // An attempt beside a session in use says nothing about the server: that session may answer.
    if let Err(error) = &outcome
        && beside.is_none()
    {
        link.not_made(error);
    }
    link.is_over(&attempt);
}

/// Notes that the task of an attempt is gone, even if its runtime ended it. This must not lock the
/// state of the connection: the caller that spawns the task may hold it, and a runtime that is
/// shutting down drops the task at once.
struct Ends {
    link: Weak<Connection>,
    attempt: Arc<Connecting>,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.attempt.end();
        if let Some(link) = self.link.upgrade() {
            // A panic comes from inside the task, so the caller that spawned it does not hold the
            // state here.
            if std::thread::panicking() {
                link.not_made(&panicked());
                link.is_over(&self.attempt);
            }
            link.changed.notify_waiters();
        }
    }
}

impl ConnectionConfig {
    /// Opens a session to the target.
    async fn connect(&self, attempt: &Connecting, turn: Try) -> Result<Opened> {
        let locator = match &self.source {
            Target::Server(endpoint) => {
                let opened = self.opened(endpoint, attempt).await;
                return opened
                    .map_err(|error| error.at_address(&endpoint.address.to_string().into()));
            }
            // A brought connection is the first session. Nothing here can open it again.
            Target::Brought(connection) if turn == Try::First => {
                return Ok(Opened::from(connection.clone()));
            }
            Target::Brought(_) => return Err(brought_and_gone()),
            Target::Located(locator) => locator,
        };
        let endpoint = locator.clone().primary(attempt.until()).await?;
        // A connect to an address that the primary has left would only waste the deadline.
        let opened = tokio::select! {
            opened = self.opened(&endpoint, attempt) => opened,
            () = locator.left(&endpoint.address) => Err(moved_meanwhile()),
        };
        let opened =
            opened.map_err(|error| error.at_address(&endpoint.address.to_string().into()))?;
        Ok(Opened {
            primary: Some((locator.clone(), endpoint.address)),
            ..opened
        })
    }

    /// Opens a session to `endpoint`.
    async fn opened(&self, endpoint: &Endpoint, attempt: &Connecting) -> Result<Opened> {
        let health = Arc::new(match self.on_push.clone() {
            Some(on_push) => InFlight::reported(Box::new(move || on_push(disconnection()))),
            None => InFlight::default(),
        });
        let (mut connection, wire) =
            dial(endpoint, self.config(&health), &health, &self.pace, attempt).await?;
        health.hold(wire);
        self.introduce(&mut connection, attempt).await?;
        Ok(Opened {
            connection,
            health,
            primary: None,
        })
    }

    /// The settings of the driver.
    fn config(&self, health: &Arc<InFlight>) -> AsyncConnectionConfig {
        let on_push = self.on_push.clone();
        let health = Arc::downgrade(health);
        // No timeouts of the driver: attempts and calls have deadlines of their own.
        AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1024)
            .set_push_sender(move |info: PushInfo| {
                if info.kind == PushKind::Disconnection {
                    // `end` calls `on_push` itself, and only once.
                    if let Some(health) = health.upgrade() {
                        health.end();
                    }
                } else if let Some(on_push) = &on_push {
                    on_push(info);
                }
                Ok::<(), redis::aio::SendError>(())
            })
    }

    /// Sends the opening commands of a new session, and checks their replies, before it is used.
    async fn introduce(
        &self,
        connection: &mut MultiplexedConnection,
        attempt: &Connecting,
    ) -> Result<()> {
        let Some(hello) = self.source.hello(&self.name) else {
            return Ok(());
        };
        let sent = connection.send_packed_commands(&hello, 0, hello.len());
        match attempt.step(no_answer, sent).await? {
            Ok(replies) => self.source.accept(&replies),
            Err(error) => Err(from_driver(error).with_fate(Fate::NotExecuted)),
        }
    }
}

impl From<MultiplexedConnection> for Opened {
    /// A session over a connection that the caller brought, with its handshake done.
    fn from(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            health: Arc::default(),
            primary: None,
        }
    }
}

fn moved_meanwhile() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the primary has moved away from {server} meanwhile",
    )
}

/// Names the provider of credentials, which is the only foreign code that runs in an attempt.
fn panicked() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the attempt to connect to {server} panicked; check the provider given to credentials_from",
    )
}

fn brought_and_gone() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the connection that the caller brought is gone; bring a new one",
    )
    .with_fate(Fate::Refused)
}
