//! `Census`: which primary serves which slot, as far as known.
//!
//! Invariant: what is known is a hint; whoever follows it is corrected by the servers, and what
//! they say is taken over at once. A primary that serves nothing any more is left, so that nobody
//! waits for a connection to it. While a server is in trouble a steward asks again, and as long as
//! nobody has told the slots yet, a breaker makes that cheap.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rand::seq::SliceRandom as _;
use redis::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::slots::{Range, ranges};
use crate::background::Background;
use crate::client::breaker::{Breaker, Probe, is_out};
use crate::client::endpoint::{Address, Endpoint};
use crate::client::node::{Node, Style};
use crate::client::source::Source;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::key::SLOTS;
use crate::script::from_server;
use crate::time::Backoff;
use crate::time::{Deadline, OnOutage};

pub(super) struct Census {
    seeds: Vec<Endpoint>,
    style: Style,
    trouble: Arc<Notify>,
    /// Renews the map while a server is in trouble; see [`steward`].
    steward: Background,
    state: Mutex<State>,
    /// Of those who are asked for the slots.
    breaker: Breaker,
    /// Held by the one who asks for the slots; the others wait for what he learns.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    map: Arc<Map>,
}

/// What is known of the slots; another takes its place when that changes.
#[derive(Clone)]
pub(super) struct Map {
    /// The place in `primaries` of each slot's server; `NOBODY` where none is known.
    owners: Box<[u16]>,
    pub(super) primaries: Vec<Primary>,
    replicas: Vec<Address>,
}

#[derive(Clone)]
pub(super) struct Primary {
    pub(super) address: Arc<Address>,
    pub(super) node: Arc<Node>,
}

impl Census {
    pub(super) fn new(seeds: Vec<Endpoint>, style: Style) -> Arc<Self> {
        Arc::new_cyclic(|census: &Weak<Self>| {
            let census = census.clone();
            let on_trouble = Arc::new(move || {
                if let Some(census) = census.upgrade() {
                    census.suspect();
                }
            });
            let steward = Background::by(&style.spawner);
            Self {
                seeds,
                style: Style {
                    on_trouble: Some(on_trouble),
                    ..style
                },
                steward,
                trouble: Arc::default(),
                state: Mutex::default(),
                breaker: Breaker::default(),
                asking: tokio::sync::Mutex::new(()),
            }
        })
    }

    /// What is known without asking; at first, nothing.
    pub(super) fn known(&self) -> Arc<Map> {
        self.state().map.clone()
    }

    /// What is known of the slots, asked for first if that is nothing.
    pub(super) async fn map(self: &Arc<Self>, deadline: Deadline) -> Result<Arc<Map>> {
        let known = self.known();
        if !known.primaries.is_empty() {
            return Ok(known);
        }
        let probe = match deadline.on_outage {
            OnOutage::KeepTrying => None,
            OnOutage::FailFast => self.breaker.admit()?,
        };
        self.renew(Probe::limit(probe.as_ref(), deadline).at).await
    }

    /// The server of `slot`.
    pub(super) async fn primary(
        self: &Arc<Self>,
        slot: u16,
        deadline: Deadline,
    ) -> Result<Primary> {
        let map = self.map(deadline).await?;
        map.primary(slot).cloned().ok_or_else(|| {
            self.suspect();
            no_slots()
        })
    }

    /// Notes that `slot` is served at `address`, on the word of the server that served it before.
    pub(super) fn moved(self: &Arc<Self>, slot: u16, address: &Address) -> Primary {
        let mut state = self.state();
        if let Some(known) = state.map.primary(slot)
            && *known.address == *address
        {
            return known.clone();
        }
        let mut map = Map::clone(&state.map);
        let place = map.place(address, &state.map, self);
        map.owners[usize::from(slot)] = place;
        let primary = map.primaries[usize::from(place)].clone();
        state.map = Arc::new(map);
        drop(state);
        self.suspect();
        primary
    }

    /// The server at `address`, which is asked now and may serve no slot yet.
    pub(super) fn at(&self, address: &Address) -> Primary {
        let mut state = self.state();
        if let Some(place) = state.map.find(address) {
            return state.map.primaries[place].clone();
        }
        let mut map = Map::clone(&state.map);
        let place = map.place(address, &state.map, self);
        let primary = map.primaries[usize::from(place)].clone();
        state.map = Arc::new(map);
        primary
    }

    /// What is known may be wrong: has somebody ask.
    pub(super) fn suspect(self: &Arc<Self>) {
        self.trouble.notify_one();
        self.steward
            .ensure(|| steward(Arc::downgrade(self), self.trouble.clone()));
    }

    /// Nobody uses this any more.
    pub(super) fn close(&self) {
        self.steward.end();
    }

    /// Where the primaries are, or the seeds as long as no primary is known.
    pub(super) fn addresses(&self) -> Vec<String> {
        let known = self.known();
        if known.primaries.is_empty() {
            return self.seeds.iter().map(|it| it.address.to_string()).collect();
        }
        known.addresses().map(Address::to_string).collect()
    }

    /// Asks for the slots.
    async fn renew(self: &Arc<Self>, deadline: Instant) -> Result<Arc<Map>> {
        let before = self.known();
        let Ok(_turn) = timeout_at(deadline, self.asking.lock()).await else {
            return Err(nobody_knows());
        };
        let present = self.known();
        if !Arc::ptr_eq(&before, &present) && !present.primaries.is_empty() {
            // Somebody has asked meanwhile.
            return Ok(present);
        }
        let outcome = self.ask(&present, deadline).await;
        match &outcome {
            Ok(_) => self.breaker.succeeded(),
            Err(error) if is_out(error) => self.breaker.failed(error),
            Err(_) => {}
        }
        outcome.map(|ranges| self.learn(&ranges))
    }

    /// Asks a few of the primaries that are known, and where none answers soon, others.
    async fn ask(&self, known: &Map, deadline: Instant) -> Result<Vec<Range>> {
        let witnesses = Self::primaries(known).into_iter();
        let mut answers: FuturesUnordered<_> =
            witnesses.map(|it| testimony(it, deadline)).collect();
        let mut others = self.others(known);
        let head_start = Instant::now() + HEAD_START;
        let mut worst = nobody_knows();
        loop {
            let answer = match others.is_empty() {
                true => answers.next().await,
                false => timeout_at(head_start, answers.next()).await.unwrap_or(None),
            };
            match answer {
                Some(Ok(ranges)) => return Ok(ranges),
                Some(Err(error)) => worst = error,
                None if others.is_empty() => return Err(worst),
                None => answers.extend(others.drain(..).map(|it| testimony(it, deadline))),
            }
        }
    }

    /// A few of the primaries that are known.
    fn primaries(map: &Map) -> Vec<Primary> {
        let mut primaries = map.primaries.clone();
        primaries.shuffle(&mut rand::rng());
        primaries.truncate(WITNESSES);
        primaries
    }

    /// A few of the seeds, and of the replicas, which may be primaries by now; their connections
    /// end with the question.
    fn others(&self, known: &Map) -> Vec<Primary> {
        let style = Style {
            on_trouble: None,
            ..self.style.clone()
        };
        let replica = |address: &Address| self.seeds[0].at(address.clone());
        let replicas = known.replicas.iter().map(replica).collect();
        let mut witnesses = Vec::with_capacity(2 * WITNESSES);
        for mut kind in [self.seeds.clone(), replicas] {
            kind.shuffle(&mut rand::rng());
            kind.truncate(WITNESSES);
            witnesses.append(&mut kind);
        }
        let witness = |endpoint: Endpoint| Primary {
            address: Arc::new(endpoint.address.clone()),
            node: Arc::new(Node::mute(
                endpoint.address.to_string(),
                Source::Server(endpoint),
                &style,
            )),
        };
        witnesses.into_iter().map(witness).collect()
    }

    /// Takes over what a server says of the slots.
    fn learn(&self, ranges: &[Range]) -> Arc<Map> {
        let mut state = self.state();
        let before = state.map.clone();
        let mut map = Map::default();
        for range in ranges {
            let place = map.place(&range.primary, &before, self);
            map.owners[usize::from(range.first)..=usize::from(range.last)].fill(place);
            map.replicas.extend_from_slice(&range.replicas);
        }
        map.replicas.sort_unstable();
        map.replicas.dedup();
        let map = Arc::new(map);
        state.map = map.clone();
        drop(state);
        for old in &before.primaries {
            if map.find(&old.address).is_none() {
                old.node.retire();
            }
        }
        let losers = before.losers(&map);
        if !losers.is_empty() {
            tracing::info!(target: "hedgerow::client", primaries = map.primaries.len(), "slots have moved");
        }
        for hub in losers.into_iter().filter_map(|it| it.node.hub.as_ref()) {
            hub.alert();
        }
        map
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Map {
    pub(super) fn primary(&self, slot: u16) -> Option<&Primary> {
        let place = self.owners[usize::from(slot)];
        self.primaries.get(usize::from(place))
    }

    fn find(&self, address: &Address) -> Option<usize> {
        self.addresses().position(|known| known == address)
    }

    fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.primaries.iter().map(|primary| &*primary.address)
    }

    /// The primaries that have lost slots when `later` is the case.
    fn losers(&self, later: &Self) -> Vec<&Primary> {
        let mut lost = vec![false; self.primaries.len()];
        for slot in 0..SLOTS {
            let place = usize::from(self.owners[usize::from(slot)]);
            if let Some(owner) = self.primaries.get(place)
                && !lost[place]
            {
                let heir = later.primary(slot);
                lost[place] = heir.is_none_or(|heir| heir.address != owner.address);
            }
        }
        let primaries = self.primaries.iter().zip(lost);
        primaries
            .filter_map(|(it, lost)| lost.then_some(it))
            .collect()
    }

    /// The place of the server at `address`: known here, or taken over from `before`, or new.
    fn place(&mut self, address: &Address, before: &Self, census: &Census) -> u16 {
        let place = self.find(address).unwrap_or_else(|| {
            let known = before
                .find(address)
                .map(|place| before.primaries[place].clone());
            self.primaries.push(known.unwrap_or_else(|| Primary {
                address: Arc::new(address.clone()),
                node: Arc::new(Node::new(
                    &census.seeds[0].at(address.clone()),
                    &census.style,
                )),
            }));
            self.primaries.len() - 1
        });
        debug_assert!(place < usize::from(SLOTS), "no more primaries than slots");
        place as u16
    }
}

impl Default for Map {
    fn default() -> Self {
        Self {
            owners: vec![NOBODY; usize::from(SLOTS)].into(),
            primaries: Vec::new(),
            replicas: Vec::new(),
        }
    }
}

/// Renews what is known while a server is in trouble: spawned with the first trouble, it ends with
/// the census (or with its runtime, after which the next trouble starts another).
async fn steward(census: Weak<Census>, trouble: Arc<Notify>) {
    loop {
        trouble.notified().await;
        let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE, 0.5..1.0);
        let until = Instant::now() + VIGIL;
        loop {
            let Some(census) = census.upgrade() else {
                return;
            };
            if let Err(error) = census.renew(Instant::now() + PATIENCE).await {
                tracing::debug!(target: "hedgerow::client", %error, "nobody tells the slots");
            }
            let known = census.known();
            let all_well = known.primaries.iter().all(|it| it.node.link.is_well());
            drop(census);
            tokio::time::sleep(backoff.pause()).await;
            if all_well || Instant::now() >= until {
                break;
            }
        }
    }
}

/// Asks one server for the slots. Nothing of a caller's is sent.
async fn testimony(witness: Primary, deadline: Instant) -> Result<Vec<Range>> {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let deadline = deadline.min(Instant::now() + PATIENCE);
    let reply = witness.node.link.send(&command, deadline).await;
    match reply.map_err(not_executed)? {
        Value::ServerError(error)
            if error
                .details()
                .unwrap_or_default()
                .contains("cluster support") =>
        {
            Err(Error::invalid(
                "the server is not part of a cluster; name it with `url`",
            ))
        }
        Value::ServerError(error) => Err(from_server(&error)),
        reply => match ranges(&reply, &witness.address) {
            Some(ranges) if !ranges.is_empty() => Ok(ranges),
            _ => Err(no_slots()),
        },
    }
}

/// A question of ours that stays open is no call of the caller's that was sent.
fn not_executed(error: Error) -> Error {
    match error.fate() {
        Fate::Unknown => error.with_fate(Fate::NotExecuted),
        _ => error,
    }
}

pub(super) fn no_slots() -> Error {
    Error::new(
        ErrorKind::ClusterDown,
        "no server of the cluster serves this slot; check CLUSTER INFO",
    )
}

fn nobody_knows() -> Error {
    Error::new(
        ErrorKind::Unreachable,
        "no server of the cluster tells the slots; are the seeds up?",
    )
}

/// A place that no primary has.
const NOBODY: u16 = u16::MAX;

/// How many servers of a kind are asked for the slots at once.
const WITNESSES: usize = 3;

/// How long the primaries may take before others are asked, too.
const HEAD_START: Duration = Duration::from_millis(200);

/// How long a server may take to tell the slots.
const PATIENCE: Duration = Duration::from_secs(1);

/// The pauses between two questions while a server is in trouble, and how long that goes on.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const VIGIL: Duration = Duration::from_secs(10);
