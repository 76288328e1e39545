//! How a link gets its connection: one caller makes it, the others wait for what comes of that.
//!
//! Invariant: nothing has been sent for anybody when this fails, and a connection is introduced, and
//! still that to the server to ask, before it is used.

use std::sync::Arc;

use redis::{AsyncConnectionConfig, PushInfo, PushKind};
use tokio::time::{Instant, timeout_at};

use super::{Link, Live, not_connected_in_time, watch};
use crate::client::backoff::Backoff;
use crate::client::dial::dial;
use crate::client::endpoint::Endpoint;
use crate::client::health::Health;
use crate::client::source::Source;
use crate::client::topology::Sentinels;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::script::from_driver;

impl Link {
    pub(super) async fn made(self: &Arc<Self>, deadline: Instant) -> Result<Live> {
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
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.route.source.news() => {}
                }
            }
            if Instant::now() >= deadline {
                return Err(self.not_connected());
            }
            match self.connect(deadline).await {
                Ok(live) => return Ok(live),
                Err(error) if error.fate() == Fate::NotExecuted => {
                    // A password that is being rotated is no outage.
                    if error.kind() != ErrorKind::Unauthenticated {
                        self.breaker.failed(&error);
                    }
                    let mut state = self.state();
                    state.backoff.failed();
                    // That the deadline cut an attempt short says less than why the one before
                    // it failed.
                    if state.last_error.is_none() || Instant::now() < deadline {
                        state.last_error = Some(error);
                    }
                    drop(state);
                    self.trouble();
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn connect(self: &Arc<Self>, deadline: Instant) -> Result<Live> {
        let until = deadline.min(Instant::now() + self.route.connect_timeout);
        let endpoint = match &self.route.source {
            Source::Server(endpoint) => Some(endpoint),
            Source::Brought(_) => None,
            Source::Sentinels(sentinels) => return self.follow(sentinels, until).await,
        };
        self.opened(endpoint, until).await
    }

    /// Connects to the primary, unless that is another one by then.
    async fn follow(self: &Arc<Self>, sentinels: &Arc<Sentinels>, until: Instant) -> Result<Live> {
        let endpoint = sentinels.primary(until).await?;
        let live = tokio::select! {
            live = self.opened(Some(&endpoint), until) => live?,
            () = sentinels.left(&endpoint.address) => return Err(moved_meanwhile()),
        };
        // Who learnt of another primary before the connection was in use has not ended it.
        if !sentinels.names(&endpoint.address) {
            self.reset();
            return Err(moved_meanwhile());
        }
        Ok(live)
    }

    /// Opens a connection to `endpoint`, or takes the brought one, and puts it into use.
    async fn opened(self: &Arc<Self>, endpoint: Option<&Endpoint>, until: Instant) -> Result<Live> {
        let health = Arc::new(Health::default());
        let connection = match (endpoint, &self.route.source) {
            (Some(endpoint), _) => {
                let (connection, wire) = dial(endpoint, self.config(&health), until).await?;
                health.hold(wire);
                connection
            }
            (None, Source::Brought(connection)) if self.state().epoch == 0 => connection.clone(),
            (None, _) => {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    "the connection that the caller brought is gone; bring a new one",
                )
                .with_fate(Fate::Refused));
            }
        };
        let mut live = Live {
            connection,
            epoch: 0,
            health,
        };
        self.introduce(&mut live, until).await?;
        let mut state = self.state();
        state.epoch += 1;
        live.epoch = state.epoch;
        state.backoff = Backoff::default();
        state.last_error = None;
        state.live = Some(live.clone());
        drop(state);
        tracing::info!(target: "hedgerow::client", connection = self.route.name, epoch = live.epoch, "connected");
        watch::start(self, &live);
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

    /// What a new connection is told, and asked, before it is used.
    async fn introduce(&self, live: &mut Live, until: Instant) -> Result<()> {
        let Some(hello) = self.route.source.hello(&self.route.name) else {
            return Ok(());
        };
        let sent = live.connection.send_packed_commands(&hello, 0, hello.len());
        match timeout_at(until, sent).await {
            Ok(Ok(replies)) => self.route.source.accept(&replies),
            Ok(Err(error)) => Err(from_driver(error).with_fate(Fate::NotExecuted)),
            Err(_) => Err(not_connected_in_time()),
        }
    }
}

fn moved_meanwhile() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "the primary has moved to another server meanwhile",
    )
}
