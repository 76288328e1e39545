//! How a link gets its connection: an attempt at a time, which all who need it wait for.
//!
//! Invariant: nothing has been sent for anybody when this fails, and a connection is introduced, and
//! still that to the server to ask, before it is used.

use std::sync::{Arc, Weak};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, PushInfo, PushKind};
use tokio::time::{Instant, timeout_at};

use super::{Attempt, Link, Live, Route, Running, Waiting, not_connected_in_time, reauth, watch};
use crate::client::dial::{dial, no_answer};
use crate::client::endpoint::{Address, Endpoint};
use crate::client::health::Health;
use crate::client::source::Source;
use crate::client::topology::Sentinels;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::script::from_driver;

/// A connection that is not in use yet.
struct Opened {
    connection: MultiplexedConnection,
    health: Arc<Health>,
    /// Who knows whether it still leads to the primary, and where that was.
    primary: Option<(Arc<Sentinels>, Address)>,
}

impl Link {
    pub(super) async fn made(self: &Arc<Self>, deadline: Instant) -> Result<Live> {
        loop {
            if let Some(live) = self.current() {
                return Ok(live);
            }
            let not_before = self.state().backoff.not_before;
            if let Some(at) = not_before.filter(|at| *at > Instant::now()) {
                if at >= deadline {
                    return Err(self.last_error().unwrap_or_else(not_connected_in_time));
                }
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.route.source.news() => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(self.last_error().unwrap_or_else(not_connected_in_time));
            }
            let mut waiting = self.attempt();
            match timeout_at(deadline, waiting.outcome()).await {
                Ok(Some(Ok(()))) => return self.current().ok_or_else(lost_at_once),
                Ok(Some(Err(error))) if error.fate() != Fate::NotExecuted => return Err(error),
                Ok(Some(Err(_))) => {}
                // Its runtime has ended, and perhaps ours.
                Ok(None) => tokio::task::yield_now().await,
                Err(_) => {
                    let late = waiting.attempt.late();
                    if waiting.attempt.is_slow() {
                        self.breaker.failed(&late);
                    }
                    return Err(self.last_error().unwrap_or(late));
                }
            }
        }
    }

    /// The attempt under way, begun if there is none.
    fn attempt(self: &Arc<Self>) -> Waiting {
        let mut state = self.state();
        let running = state.attempt.as_ref().and_then(Running::join);
        running.unwrap_or_else(|| {
            let attempt = Arc::new(Attempt::new(self.route.connect_timeout));
            let first = state.epoch == 0;
            let work = attempted(
                Arc::downgrade(self),
                self.route.clone(),
                attempt.clone(),
                first,
            );
            let running = Running::start(attempt, work);
            let waiting = running.waiting.clone();
            state.attempt = Some(running);
            waiting
        })
    }

    /// Puts a connection into use.
    fn install(self: &Arc<Self>, opened: Opened) -> Result<()> {
        let mut state = self.state();
        if state.retired {
            return Err(super::retired_error());
        }
        state.epoch += 1;
        let live = Live {
            connection: opened.connection,
            epoch: state.epoch,
            health: opened.health,
        };
        let demoted = std::mem::take(&mut state.demoted);
        state.backoff.made(demoted);
        state.last_error = None;
        state.live = Some(live.clone());
        drop(state);
        tracing::info!(target: "hedgerow::client", connection = self.route.name, epoch = live.epoch, "connected");
        watch::start(self, &live);
        reauth::start(self, &live);
        // Who learnt of another primary before the connection was in use has not ended it.
        if let Some((sentinels, address)) = opened.primary
            && !sentinels.names(&address)
        {
            self.reset();
            return Err(moved_meanwhile());
        }
        if demoted && let Some(after_demotion) = &self.route.after_demotion {
            after_demotion();
        }
        Ok(())
    }

    /// Notes why there is no connection.
    fn not_made(&self, error: &Error) {
        if error.fate() != Fate::NotExecuted {
            return;
        }
        // A password that is being rotated is no outage.
        if error.kind() != ErrorKind::Unauthenticated {
            self.breaker.failed(error);
        }
        let mut state = self.state();
        state.backoff.failed();
        state.last_error = Some(error.clone());
        drop(state);
        self.trouble();
    }
}

/// Makes an attempt for `link`, without keeping it.
async fn attempted(
    link: Weak<Link>,
    route: Arc<Route>,
    attempt: Arc<Attempt>,
    first: bool,
) -> Result<()> {
    let opened = route.connect(&attempt, first).await;
    let Some(link) = link.upgrade() else {
        return Err(super::retired_error());
    };
    let outcome = opened.and_then(|opened| link.install(opened));
    if let Err(error) = &outcome {
        link.not_made(error);
    }
    outcome
}

impl Route {
    async fn connect(&self, attempt: &Attempt, first: bool) -> Result<Opened> {
        let sentinels = match &self.source {
            Source::Server(endpoint) => return self.opened(endpoint, attempt).await,
            Source::Brought(connection) if first => return Ok(Opened::from(connection.clone())),
            Source::Brought(_) => return Err(brought_and_gone()),
            Source::Sentinels(sentinels) => sentinels,
        };
        let endpoint = sentinels.primary(attempt.until()).await?;
        let opened = tokio::select! {
            opened = self.opened(&endpoint, attempt) => opened?,
            () = sentinels.left(&endpoint.address) => return Err(moved_meanwhile()),
        };
        Ok(Opened {
            primary: Some((sentinels.clone(), endpoint.address)),
            ..opened
        })
    }

    /// Opens a connection to `endpoint`.
    async fn opened(&self, endpoint: &Endpoint, attempt: &Attempt) -> Result<Opened> {
        let health = Arc::new(Health::default());
        let (mut connection, wire) = dial(endpoint, self.config(&health), &health, attempt).await?;
        health.hold(wire);
        self.introduce(&mut connection, attempt).await?;
        Ok(Opened {
            connection,
            health,
            primary: None,
        })
    }

    fn config(&self, health: &Arc<Health>) -> AsyncConnectionConfig {
        let on_push = self.on_push.clone();
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

    /// What a new connection is told, and asked, before it is used.
    async fn introduce(
        &self,
        connection: &mut MultiplexedConnection,
        attempt: &Attempt,
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
    /// A connection that the caller has opened and introduced.
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
        "the primary has moved to another server meanwhile",
    )
}

fn lost_at_once() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the connection was lost as soon as it was made",
    )
}

fn brought_and_gone() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the connection that the caller brought is gone; bring a new one",
    )
    .with_fate(Fate::Refused)
}
