//! `Sentinels`: asks Redis Sentinels which server is the primary of a service.
//!
//! Invariant: of all answers the one with the highest configuration epoch counts; a sentinel that
//! was cut off while the others failed over has a lower one. Connections of this client lead to the
//! server that is known as the primary, and to no other. When the primary changes, the connections
//! to the old one are ended, since writes that it still acknowledges may be lost.
//!
//! A [`Connection`] calls this through [`Locate`] whenever it connects; `Replicated` sets up which
//! connections follow.

pub(crate) mod primary_view;
pub(crate) mod wire;

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use redis::{PushInfo, PushKind};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::replica::Replicas;
use crate::background::Background;
use crate::error::{Error, ErrorKind, Fate, Result, shortened};
use crate::net::address::Address;
use crate::net::address_map::Addresses;
use crate::net::connection::target::{Locate, Target};
use crate::net::connection::{Connection, ConnectionConfig, OnPush};
use crate::net::credentials::Login;
use crate::net::durable::Durable;
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};
use crate::net::pipeline::large::Large;
use crate::net::pubsub::PubSub;
use crate::time::jittered;
use primary_view::{PrimaryView, Said};
use wire::{About, SentinelReply, best, switch};

pub(crate) struct Sentinels {
    service: String,
    peers: Vec<SentinelPeer>,
    /// How data nodes are reached: everything except the address.
    data: Endpoint,
    /// Maps the addresses that sentinels report to those that are reached from here.
    addresses: Addresses,
    /// What is known of the primary. A `watch`, since connections wait for it to change.
    known: watch::Sender<Option<PrimaryView>>,
    /// The connections that follow the primary. Set after this struct is shared, since they refer
    /// to it.
    led: OnceLock<Followers>,
    /// The task that polls the sentinels and asks after an announcement; see [`follow`].
    watcher: Background,
}

/// One sentinel and the connection to it.
struct SentinelPeer {
    address: Address,
    link: Arc<Connection>,
}

/// Held weakly: these own the sentinels, not the other way round.
struct Followers {
    commands: Weak<Connection>,
    large: Option<Weak<Large>>,
    pushes: Option<Weak<PubSub>>,
    durable: Option<Weak<Durable>>,
    replicas: Weak<Replicas>,
}

/// How many answers a query waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quorum {
    /// Most of them, and those that come within `GRACE` after that.
    ForMost,
    ForAll,
}

impl Sentinels {
    pub(crate) fn new(urls: &[String], service: &str, style: &NodeConfig) -> Result<Arc<Self>> {
        if service.is_empty() || service.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid(
                "the service that the sentinels know is empty or has blanks",
            ));
        }
        let endpoints = Endpoint::parse_all(urls, &style.approach.as_urls_log_in())?;
        let Some(first) = endpoints.first() else {
            return Err(Error::invalid("no sentinel is given"));
        };
        // The login of a URL here is that of the sentinel, not that of the data nodes.
        let data = Endpoint {
            login: style.approach.login.clone(),
            ..first.clone()
        };
        if endpoints.iter().any(|endpoint| endpoint.db != 0) {
            return Err(Error::invalid(
                "sentinels have no databases; leave it out of their URLs",
            ));
        }
        Ok(Arc::new_cyclic(|sentinels| Self {
            service: service.to_owned(),
            peers: endpoints
                .into_iter()
                .map(|endpoint| SentinelPeer::new(endpoint, style, sentinels))
                .collect(),
            data,
            addresses: style.approach.addresses.clone(),
            known: watch::Sender::new(None),
            led: OnceLock::new(),
            watcher: Background::by(&style.spawner),
        }))
    }

    /// Sets which connections follow: those of `primary` lead to the primary that is known, and
    /// `replicas` to its replicas. Called once.
    pub(in crate::topology) fn lead(&self, primary: &Node, replicas: &Arc<Replicas>) {
        let led = Followers {
            commands: Arc::downgrade(&primary.link),
            large: primary.large().map(Arc::downgrade),
            pushes: primary.pubsub.as_ref().map(Arc::downgrade),
            durable: primary.durable().map(Arc::downgrade),
            replicas: Arc::downgrade(replicas),
        };
        debug_assert!(self.led.get().is_none(), "sentinels lead one client");
        let _ = self.led.set(led);
    }

    fn endpoint(&self, address: Address) -> Endpoint {
        self.data.at(address)
    }

    /// Asks all sentinels at once, and takes over the answer that counts.
    async fn ask(self: &Arc<Self>, patience: Quorum, deadline: Instant) -> Result<()> {
        let until = deadline.min(Instant::now() + SENTINEL_TIMEOUT);
        // Only a client that has read from replicas lately asks for them.
        let replicas = self.replicas().filter(|replicas| replicas.are_read());
        let about = match replicas {
            Some(_) => About::Replicas,
            None => About::Primary,
        };
        let mut open: FuturesUnordered<_> = self
            .peers
            .iter()
            .map(|peer| peer.testify(&self.service, about, until))
            .collect();
        let mut heard: Vec<SentinelReply> = Vec::new();
        let mut silent: Vec<(&Address, Error)> = Vec::new();
        let mut end = until;
        while let Ok(Some((address, outcome))) = timeout_at(end, open.next()).await {
            match outcome {
                Ok(reply) => heard.push(reply.mapped(&self.addresses)),
                Err(error) => {
                    tracing::debug!(target: "hedgerow::client", sentinel = %address, %error, "the sentinel does not answer");
                    silent.push((address, error));
                }
            }
            // A sentinel that is slow or out must not delay the connection that waits for this.
            if patience == Quorum::ForMost && self.is_most(heard.len()) {
                end = end.min(Instant::now() + GRACE);
            }
        }
        let Some((best, address)) = best(&heard) else {
            // Most have answered and none knows the service: that is a wrong name, not an outage.
            return Err(if self.is_most(heard.len()) {
                unknown_service(&self.service)
            } else {
                nobody_tells(&self.service, &silent)
            });
        };
        if let Some(replicas) = replicas {
            // A list from shortly after a failover may still hold the new primary.
            let followers = best.replicas.iter().filter(|it| *it != address);
            let followers: Vec<Endpoint> = followers.map(|it| self.endpoint(it.clone())).collect();
            replicas.set(&followers);
        }
        let agree = heard
            .iter()
            .filter(|it| it.primary.as_ref() == Some(address));
        let said = match self.is_most(agree.count()) {
            true => Said::ByMost,
            false => Said::BySome,
        };
        self.learn(address.clone(), best.epoch, said);
        Ok(())
    }

    fn is_most(&self, count: usize) -> bool {
        2 * count > self.peers.len()
    }

    /// Records that the primary is at `address`, unless what is known counts more.
    fn learn(&self, address: Address, epoch: u64, said: Said) {
        // Compared and replaced under one lock, so that concurrent answers cannot undo each other.
        let moved = self.known.send_if_modified(|known| {
            let new = known.as_ref().is_none_or(|known| known.yields_to(&address, epoch, said));
            if new {
                let same = known.as_ref().is_some_and(|known| known.names(&address));
                if !same {
                    tracing::info!(target: "hedgerow::client", service = self.service, %address, epoch, "the sentinels name the primary");
                }
                *known = Some(PrimaryView::next(known.as_ref(), address, epoch));
                return !same;
            }
            false
        });
        // The same address again, with a higher epoch, leaves the connections alone.
        if moved {
            self.leave();
        }
    }

    /// Records the announcement of a sentinel that the primary is at `old` no longer. The new
    /// address is taken from the answers only, by epoch.
    fn announced(&self, old: &Address) {
        let left = self.known.send_if_modified(|known| match known {
            Some(known) if known.names(old) => {
                // The view stays, so that late answers with the old address do not bring it back.
                known.left = Some(Instant::now());
                true
            }
            _ => false,
        });
        if left {
            tracing::info!(target: "hedgerow::client", service = self.service, address = %old, "the primary is given up");
            self.leave();
        }
    }

    /// Ends the connections to the old primary.
    fn leave(&self) {
        let Some(led) = self.led.get() else { return };
        if let Some(commands) = led.commands.upgrade() {
            commands.reset();
        }
        if let Some(large) = led.large.as_ref().and_then(Weak::upgrade) {
            large.reset();
        }
        if let Some(pushes) = led.pushes.as_ref().and_then(Weak::upgrade) {
            pushes.reset();
        }
        if let Some(durable) = led.durable.as_ref().and_then(Weak::upgrade) {
            durable.reset();
        }
    }

    fn replicas(&self) -> Option<Arc<Replicas>> {
        self.led.get()?.replicas.upgrade()
    }

    fn be_watched(self: &Arc<Self>) {
        self.watcher
            .ensure(|| follow(Arc::downgrade(self), self.known.subscribe()));
    }
}

impl Locate for Sentinels {
    fn primary(self: Arc<Self>, deadline: Instant) -> BoxFuture<'static, Result<Endpoint>> {
        Box::pin(async move {
            self.be_watched();
            // Asked before each connection, also when a primary is known: an announcement may have
            // been missed.
            self.ask(Quorum::ForMost, deadline).await?;
            let known = self.known.borrow().clone();
            match known {
                Some(PrimaryView {
                    address,
                    left: None,
                    ..
                }) => Ok(self.endpoint(address)),
                // The old primary was announced to be gone, and no answer names a newer one yet.
                _ => Err(moving(&self.service)),
            }
        })
    }

    fn names(&self, address: &Address) -> bool {
        let known = self.known.borrow();
        known.as_ref().is_some_and(|known| known.names(address))
    }

    fn left<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let mut known = self.known.subscribe();
            let elsewhere = |known: &Option<PrimaryView>| {
                known.as_ref().is_some_and(|known| !known.names(address))
            };
            // An error cannot occur here: `self` holds the sender.
            if known.wait_for(elsewhere).await.is_err() {
                std::future::pending().await
            }
        })
    }

    fn news(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if self.known.subscribe().changed().await.is_err() {
                std::future::pending().await
            }
        })
    }

    fn login(&self) -> Option<&Login> {
        self.data.login.as_ref()
    }

    fn is_readable_on_the_way(&self) -> bool {
        let known = self.known.borrow().clone();
        known.is_some_and(|known| self.endpoint(known.address).is_readable_on_the_way())
    }
}

impl SentinelPeer {
    fn new(endpoint: Endpoint, style: &NodeConfig, sentinels: &Weak<Sentinels>) -> Self {
        let sentinels = sentinels.clone();
        let on_push: OnPush = Arc::new(move |info: PushInfo| {
            if info.kind == PushKind::Message
                && let Some(sentinels) = sentinels.upgrade()
                && let Some(old) = switch(&info.data, &sentinels.service)
            {
                sentinels.announced(&sentinels.addresses.mapped(old));
            }
        });
        Self {
            address: endpoint.address.clone(),
            link: Connection::new(ConnectionConfig {
                source: Target::Server(endpoint),
                name: format!("{}-sentinel", style.name),
                connect_timeout: SENTINEL_TIMEOUT,
                pace: Arc::default(),
                spawner: style.spawner.clone(),
                on_push: Some(on_push),
                made: None,
                on_trouble: None,
                after_demotion: None,
            }),
        }
    }

    /// Asks the sentinel about `service`. The query also subscribes to announcements, each time.
    /// That costs nothing on a connection that is subscribed already, and so nothing needs to
    /// remember which connections are.
    async fn testify(
        &self,
        service: &str,
        about: About,
        until: Instant,
    ) -> (&Address, Result<SentinelReply>) {
        let question = SentinelReply::question(service, about);
        let replies = self.link.send_all(&question, until).await;
        let reply = replies
            .map_err(Error::of_own_question)
            .and_then(SentinelReply::parse);
        (&self.address, reply)
    }
}

/// Polls the sentinels, in case an announcement was missed, and asks at once after one. The first
/// connection spawns this task. It ends with the sentinels, or with its runtime; then the next
/// connection starts another.
async fn follow(sentinels: Weak<Sentinels>, mut news: watch::Receiver<Option<PrimaryView>>) {
    loop {
        let pause = jittered(POLL, 0.75..1.25);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = news.changed() => if changed.is_err() { return },
        }
        let Some(sentinels) = sentinels.upgrade() else {
            return;
        };
        if let Err(error) = sentinels
            // No call waits for this, so slow sentinels may answer, too.
            .ask(Quorum::ForAll, Instant::now() + SENTINEL_TIMEOUT)
            .await
        {
            tracing::debug!(target: "hedgerow::client", service = sentinels.service, %error, "the sentinels do not say where the primary is");
        }
    }
}

fn unknown_service(service: &str) -> Error {
    Error::invalid(format!(
        "the sentinels know no service \"{}\"; compare it with their `sentinel monitor`",
        shortened(service)
    ))
    .at_no_address()
}

/// The error if no sentinel has said where the primary is. It counts as a refusal of credentials
/// only if all sentinels refuse: otherwise one of them may yet answer.
fn nobody_tells(service: &str, silent: &[(&Address, Error)]) -> Error {
    let message = format!(
        "no sentinel says where the primary of \"{}\" is; check the sentinels, one of them must answer",
        shortened(service)
    );
    let each = silent
        .iter()
        .map(|(address, error)| format!("{address} ({})", error.brief()));
    let each = each.collect::<Vec<_>>().join(", ");
    let refused = silent
        .iter()
        .all(|(_, error)| error.fate() == Fate::Refused);
    let error = match silent.first() {
        Some((_, error)) if refused => Error::new(error.kind(), message)
            .with_fate(Fate::Refused)
            .because(each),
        Some(_) => Error::new(ErrorKind::Unreachable, message).because(each),
        None => Error::new(ErrorKind::Unreachable, message),
    };
    error.at_no_address()
}

fn moving(service: &str) -> Error {
    Error::new(
        ErrorKind::Unreachable,
        format!(
            "the primary of \"{}\" has moved, and the sentinels do not say where yet",
            shortened(service)
        ),
    )
    .at_no_address()
}

/// Shows the service and the addresses of the sentinels, without credentials.
impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of", self.service)?;
        for (place, peer) in self.peers.iter().enumerate() {
            let before = if place == 0 { " " } else { "," };
            write!(f, "{before}{}", peer.address)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinels")
            .field("service", &self.service)
            .field("known", &*self.known.borrow())
            .finish_non_exhaustive()
    }
}

/// How long one sentinel may take to answer. A sentinel that stands still must not use up the
/// deadline of a call.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the other sentinels are waited for once most have answered.
const GRACE: Duration = Duration::from_millis(50);

/// The mean time between two polls.
const POLL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::endpoint::Access;
    use crate::net::pipeline::replies::MultiGet;

    #[test]
    fn what_goes_to_a_primary_elsewhere_can_be_read_on_the_way() {
        let style = NodeConfig {
            name: "hedgerow".to_owned(),
            spawner: crate::background::Spawner::default(),
            connect_timeout: SENTINEL_TIMEOUT,
            approach: Access::default(),
            reads: MultiGet::Together,
            pipelines: 1,
            limits: crate::net::pipeline::queue::Limits::default(),
            paces: crate::net::connection::backoff::ConnectRates::default(),
            on_trouble: None,
        };
        let readable = |scheme: &str, host: &str| {
            let url = format!("{scheme}://127.0.0.1:26379");
            let sentinels = Sentinels::new(&[url], "main", &style).expect("a good URL");
            assert!(!sentinels.is_readable_on_the_way(), "nothing is known yet");
            sentinels.learn(Address::Tcp(host.to_owned(), 6379), 1, Said::ByMost);
            sentinels.is_readable_on_the_way()
        };
        assert!(readable("redis", "10.0.0.1"));
        assert!(!readable("redis", "127.0.0.1"));
        #[cfg(feature = "tls")]
        assert!(!readable("rediss", "10.0.0.1"));
    }
}
