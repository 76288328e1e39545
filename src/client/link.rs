//! `Link`: one supervised connection to one server.
//!
//! Invariant: a command is handed to a connection that is not known to be dead, at most once, and
//! never after its deadline. A connection gets an epoch, so that whoever depends on it can tell
//! that it changed. [`Lane`](super::lane::Lane) sends commands over one link, the push
//! [`Hub`](super::push::Hub) listens on another.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Pipeline, PushInfo, PushKind, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind, Fate, Result};
use crate::script::{from_driver, from_server, too_many_clients};

/// What is done with a push message; called on the connection's own task, so it must not block.
pub(crate) type OnPush = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// How a link gets its connection, and what it does while it has one.
pub(crate) struct Route {
    pub(crate) target: Target,
    /// The name that `CLIENT LIST` shows.
    pub(crate) name: String,
    pub(crate) connect_timeout: Duration,
    pub(crate) on_push: Option<OnPush>,
}

/// Where connections come from.
pub(crate) enum Target {
    /// Opened as needed.
    Server(Box<redis::Client>),
    /// Brought by the caller: when it is gone, it is gone.
    Brought(MultiplexedConnection),
}

pub(crate) struct Link {
    route: Route,
    state: Mutex<State>,
    /// Held by the one caller that is connecting; the others wait for its result.
    connecting: tokio::sync::Mutex<()>,
}

struct State {
    live: Option<Live>,
    epoch: u64,
    backoff: Backoff,
    last_error: Option<Error>,
}

/// A connection in use.
#[derive(Clone)]
pub(crate) struct Live {
    connection: MultiplexedConnection,
    epoch: u64,
    health: Arc<Health>,
}

/// What the watchdog looks at.
#[derive(Debug, Default)]
struct Health {
    dead: AtomicBool,
    /// Tells those who wait for a reply that there will be none.
    gone: Notify,
    in_flight: AtomicUsize,
    /// A caller has left without its reply.
    owes: AtomicBool,
    replies: AtomicU64,
}

impl Link {
    pub(crate) fn new(route: Route) -> Arc<Self> {
        Arc::new(Self {
            route,
            state: Mutex::new(State {
                live: None,
                epoch: 0,
                backoff: Backoff::default(),
                last_error: None,
            }),
            connecting: tokio::sync::Mutex::new(()),
        })
    }

    /// Sends one command and returns its reply; an error reply is an `Ok(Value::ServerError)`.
    pub(crate) async fn send(self: &Arc<Self>, command: &Cmd, deadline: Instant) -> Result<Value> {
        let mut live = self.live(deadline).await?;
        let health = live.health.clone();
        health
            .answer(live.connection.send_packed_command(command), deadline)
            .await
    }

    /// Sends all commands of a pipeline in one go and returns their replies in order.
    pub(crate) async fn send_all(
        self: &Arc<Self>,
        pipeline: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>> {
        let mut live = self.live(deadline).await?;
        let health = live.health.clone();
        let sent = live
            .connection
            .send_packed_commands(pipeline, 0, pipeline.len());
        health.answer(sent, deadline).await
    }

    /// The connection in use, made first if there is none. Nothing has been sent when this fails.
    pub(crate) async fn live(self: &Arc<Self>, deadline: Instant) -> Result<Live> {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let Ok(_turn) = timeout_at(deadline, self.connecting.lock()).await else {
            return Err(self.not_connected());
        };
        loop {
            if let Some(live) = self.current() {
                return Ok(live);
            }
            let not_before = self.state().backoff.not_before;
            if let Some(at) = not_before {
                if at >= deadline {
                    return Err(self.not_connected());
                }
                tokio::time::sleep_until(at).await;
            }
            if Instant::now() >= deadline {
                return Err(self.not_connected());
            }
            match self.connect(deadline).await {
                Ok(live) => return Ok(live),
                Err(error) if error.fate() == Fate::NotExecuted => {
                    let mut state = self.state();
                    state.backoff.failed();
                    // That the deadline cut an attempt short says less than why the one before
                    // it failed.
                    if state.last_error.is_none() || Instant::now() < deadline {
                        state.last_error = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Why there was no connection before the deadline: what the last attempt failed with.
    fn not_connected(&self) -> Error {
        self.trouble().unwrap_or_else(not_connected_in_time)
    }

    /// What the last attempt to connect failed with, until one succeeds.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.state().last_error.clone()
    }

    fn current(&self) -> Option<Live> {
        let state = self.state();
        state.live.as_ref().filter(|live| !live.is_dead()).cloned()
    }

    async fn connect(self: &Arc<Self>, deadline: Instant) -> Result<Live> {
        let health = Arc::new(Health::default());
        let until = deadline.min(Instant::now() + self.route.connect_timeout);
        let connection = match &self.route.target {
            Target::Brought(connection) if self.state().epoch == 0 => connection.clone(),
            Target::Brought(_) => {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    "the connection that the caller brought is gone; bring a new one",
                )
                .with_fate(Fate::Refused));
            }
            Target::Server(client) => {
                let config = self.config(&health);
                match timeout_at(
                    until,
                    client.get_multiplexed_async_connection_with_config(&config),
                )
                .await
                {
                    Ok(Ok(connection)) => connection,
                    Ok(Err(error)) => return Err(self.refused(error).await),
                    Err(_) => {
                        return Err(Error::new(
                            ErrorKind::Unreachable,
                            "the server accepts no connection in time; is it hung, or behind a firewall?",
                        ));
                    }
                }
            }
        };
        let mut live = Live {
            connection,
            epoch: 0,
            health,
        };
        if matches!(self.route.target, Target::Server(_)) {
            self.introduce(&mut live, until).await?;
        }
        let mut state = self.state();
        state.epoch += 1;
        live.epoch = state.epoch;
        state.backoff = Backoff::default();
        state.last_error = None;
        state.live = Some(live.clone());
        drop(state);
        tracing::info!(target: "hedgerow::client", connection = self.route.name, epoch = live.epoch, "connected");
        tokio::spawn(watch(Arc::downgrade(self), live.epoch));
        Ok(live)
    }

    fn config(&self, health: &Arc<Health>) -> AsyncConnectionConfig {
        let on_push = self.route.on_push.clone();
        let health = Arc::downgrade(health);
        AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1024)
            .set_push_sender(move |info: PushInfo| {
                if info.kind == PushKind::Disconnection
                    && let Some(health) = health.upgrade()
                {
                    health.end();
                }
                if let Some(on_push) = &on_push {
                    on_push(info);
                }
                Ok::<(), redis::aio::SendError>(())
            })
    }

    /// Names the connection. A user without the right to do so is served all the same.
    async fn introduce(&self, live: &mut Live, until: Instant) -> Result<()> {
        let mut command = redis::cmd("CLIENT");
        command.arg("SETNAME").arg(&self.route.name);
        match timeout_at(until, live.connection.send_packed_command(&command)).await {
            Ok(Ok(Value::ServerError(error))) if error.code() == "NOAUTH" => {
                Err(from_server(&error))
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(from_driver(error).with_fate(Fate::NotExecuted)),
            Err(_) => Err(not_connected_in_time()),
        }
    }

    /// Explains why no connection could be made. The handshake is not a command of the caller's,
    /// so nothing of his was executed.
    async fn refused(&self, error: redis::RedisError) -> Error {
        // The handshake was answered, be it by the greeting of a server that is full.
        if let Some(code) = error.code() {
            if code == "ERR" && !error.detail().unwrap_or_default().contains("max number") {
                // Not repeated: a server that does not know the command repeats its arguments.
                return Error::new(
                    ErrorKind::Server,
                    "the server refuses the handshake (HELLO 3); Redis 7.0 or Valkey is needed",
                );
            }
            return from_driver(error);
        }
        if error.kind() == redis::ErrorKind::AuthenticationFailed {
            return Error::new(
                ErrorKind::Unauthenticated,
                "the server refuses the credentials; check user and password in the URL",
            );
        }
        if !error.is_connection_refusal() && self.turned_away().await {
            return too_many_clients();
        }
        Error::new(
            ErrorKind::Unreachable,
            "no connection to the server; is it running at this address?",
        )
        .with_source(error)
    }

    /// Whether the server greets a new connection with the `maxclients` error. It closes at once
    /// after that, so the handshake often fails before the greeting is read.
    async fn turned_away(&self) -> bool {
        use tokio::io::AsyncReadExt as _;
        let Target::Server(client) = &self.route.target else {
            return false;
        };
        let mut greeting = Vec::new();
        let patience = Instant::now() + Duration::from_millis(100);
        let read = async {
            match client.get_connection_info().addr() {
                redis::ConnectionAddr::Tcp(host, port) => {
                    let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                    stream.take(64).read_to_end(&mut greeting).await
                }
                #[cfg(unix)]
                redis::ConnectionAddr::Unix(path) => {
                    let stream = tokio::net::UnixStream::connect(path).await?;
                    stream.take(64).read_to_end(&mut greeting).await
                }
                _ => Ok(0),
            }
        };
        // The connection may be reset after the greeting: what was read counts, not how it ended.
        let _ = timeout_at(patience, read).await;
        greeting.starts_with(b"-ERR max number of clients")
    }

    /// Gives up the connection of `epoch`; the next caller makes a new one.
    fn abandon(&self, epoch: u64) {
        let mut state = self.state();
        if state.live.as_ref().is_some_and(|live| live.epoch == epoch) {
            state.live = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    pub(crate) fn is_dead(&self) -> bool {
        self.health.dead.load(Ordering::Acquire)
    }
}

impl Health {
    /// Sends by polling `sent`, and waits for the reply until `deadline`, or until the connection
    /// is given up.
    async fn answer<T>(
        &self,
        sent: impl Future<Output = redis::RedisResult<T>>,
        deadline: Instant,
    ) -> Result<T> {
        let mut gone = std::pin::pin!(self.gone.notified());
        gone.as_mut().enable();
        if self.dead.load(Ordering::Acquire) {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "the connection was lost before the command was sent",
            ));
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Timeout,
                "the command was not sent before its deadline",
            )
            .with_fate(Fate::NotExecuted));
        }
        let mut flight = self.enter();
        let outcome = tokio::select! {
            biased;
            outcome = timeout_at(deadline, sent) => outcome,
            () = gone => {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    "the connection was given up before the reply came",
                ));
            }
        };
        match outcome {
            Ok(Ok(value)) => {
                flight.answered = true;
                self.replies.fetch_add(1, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) => {
                if error.is_io_error() || error.is_connection_dropped() {
                    self.end();
                }
                Err(from_driver(error))
            }
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "the server did not answer before the deadline",
            )
            .with_fate(Fate::Unknown)),
        }
    }

    fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight {
            health: self,
            answered: false,
        }
    }

    /// The connection is not used any more.
    fn end(&self) {
        self.dead.store(true, Ordering::Release);
        self.gone.notify_waiters();
    }
}

/// Counts a command as in flight while somebody waits for its reply.
struct InFlight<'h> {
    health: &'h Health,
    answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.health.owes.store(true, Ordering::Relaxed);
        }
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The watchdog of one connection: spawned by [`Link::connect`], it ends when the link or this
/// connection is gone. A connection that owes replies and has given none for a whole round is
/// asked for a PING; if that is not answered within a round either, it is given up. (TCP alone
/// never notices a peer that has silently gone, or a server that is stopped.)
async fn watch(link: Weak<Link>, epoch: u64) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(WATCH_ROUND).await;
        let Some(strong) = link.upgrade() else { return };
        let Some(mut live) = strong.current().filter(|live| live.epoch == epoch) else {
            return;
        };
        let replies = live.health.replies.load(Ordering::Relaxed);
        let owes = live.health.owes.swap(false, Ordering::Relaxed);
        let idle = !owes && live.health.in_flight.load(Ordering::Relaxed) == 0;
        let listens = strong.route.on_push.is_some();
        let connection = strong.route.name.clone();
        if replies != seen || (idle && !listens) {
            seen = replies;
            continue;
        }
        drop(strong);
        let ping = redis::cmd("PING");
        let pong = timeout_at(
            Instant::now() + WATCH_ROUND,
            live.connection.send_packed_command(&ping),
        );
        let alive = matches!(pong.await, Ok(Ok(_)));
        if alive || live.health.replies.load(Ordering::Relaxed) != seen {
            continue;
        }
        tracing::warn!(target: "hedgerow::client", connection, epoch, "the connection is silent; giving it up");
        live.health.end();
        if let Some(link) = link.upgrade() {
            link.abandon(epoch);
            if let Some(on_push) = &link.route.on_push {
                on_push(disconnection());
            }
        }
        return;
    }
}

fn disconnection() -> PushInfo {
    PushInfo {
        kind: PushKind::Disconnection,
        data: Vec::new(),
    }
}

fn not_connected_in_time() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "no connection to the server before the deadline",
    )
}

/// When the next attempt to connect may start: 10 ms doubling to 1 s, with full jitter above a
/// quarter.
#[derive(Debug)]
struct Backoff {
    pause: Duration,
    not_before: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(10),
            not_before: None,
        }
    }
}

impl Backoff {
    fn failed(&mut self) {
        self.not_before = Some(Instant::now() + self.pause.mul_f64(rand::random_range(0.25..1.0)));
        self.pause = (self.pause * 2).min(Duration::from_secs(1));
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Link")
            .field("name", &self.route.name)
            .field("epoch", &state.epoch)
            .field("connected", &state.live.is_some())
            .finish()
    }
}

/// How long a connection may owe a reply before it is asked for a sign of life.
const WATCH_ROUND: Duration = Duration::from_secs(1);
