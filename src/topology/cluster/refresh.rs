//! `Refresher`: keeps the slot map of a cluster up to date.
//!
//! Invariant: the slot map is a hint. A server that does not serve a slot redirects the call, and
//! a `MOVED` changes the map at once. No server is believed alone where others may know better:
//! several are asked, and the newest claim counts, or else that of most (see [`verdict`]).
//! Primaries that no longer serve a slot are retired, and calls that wait for them fail.
//!
//! While a server is in trouble a background task asks again. Until the slots are known, a breaker
//! refuses fail-fast calls without a query. `Cluster` is the only caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rand::seq::SliceRandom as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::inquiry::{HEAD_START, RefreshTask, SLOTS_TIMEOUT, SlotQuery};
use super::slot_map::{NAMELESS, Primary, SlotMap, nameless};
use super::verdict::verdict;
use super::wire::Asked;
use crate::background::Background;
use crate::error::{Error, ErrorKind, Fate, Result};
use crate::net::address::Address;
use crate::net::breaker::{Breaker, Probe, is_out, is_refusal};
use crate::net::connection::target::Target;
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};
use crate::time::Backoff;
use crate::time::{Deadline, OnOutage};

pub(in crate::topology) struct Refresher {
    /// Also the template for the servers that are found: they are reached with the login and TLS of
    /// the first seed.
    seeds: Vec<Endpoint>,
    style: NodeConfig,
    /// Wakes the background task.
    trouble: Arc<Notify>,
    /// Refreshes the map while a server is in trouble; see [`refresh`].
    refresh: Background,
    state: Mutex<State>,
    /// The breaker for slot queries. It matters only while no primary is known: after that, each
    /// server has a breaker.
    breaker: Breaker,
}

#[derive(Default)]
struct State {
    map: Arc<SlotMap>,
    /// The last query that was started.
    inquiry: Option<Arc<RefreshTask>>,
    /// The seeds and replicas that were asked, by address. Their nodes are kept between queries, so
    /// that the pace of connecting and their last refusal count over all queries.
    peers: HashMap<Address, Arc<Node>>,
    /// Servers that calls were sent to by `ASK`, and when. They may own no slot yet, so no query
    /// names them; they are kept in the map for `REFRESH_FOR`.
    importing: Vec<(Arc<Address>, Instant)>,
}

impl Refresher {
    pub(in crate::topology) fn new(seeds: Vec<Endpoint>, style: NodeConfig) -> Arc<Self> {
        Arc::new_cyclic(|refresher: &Weak<Self>| {
            let refresher = refresher.clone();
            // Weak: the refresher owns the map, and the map the nodes that call this.
            let on_trouble = Arc::new(move || {
                if let Some(refresher) = refresher.upgrade() {
                    refresher.suspect();
                }
            });
            let refresh = Background::by(&style.spawner);
            Self {
                seeds,
                style: NodeConfig {
                    on_trouble: Some(on_trouble),
                    ..style
                },
                refresh,
                trouble: Arc::default(),
                state: Mutex::default(),
                breaker: Breaker::default(),
            }
        })
    }

    /// Returns the map without asking any server. At first it is empty.
    pub(in crate::topology) fn known(&self) -> Arc<SlotMap> {
        self.state().map.clone()
    }

    /// Returns the map. If no primary is known, the servers are asked first.
    pub(in crate::topology) async fn map(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<Arc<SlotMap>> {
        let known = self.known();
        if !known.primaries.is_empty() {
            return Ok(known);
        }
        let probe = match deadline.on_outage {
            // A call that waits out an outage does not heed the breaker.
            OnOutage::KeepTrying => None,
            OnOutage::FailFast => self.breaker.admit()?,
        };
        self.renew(Probe::limit(probe.as_ref(), deadline).at).await
    }

    /// Returns the server of `slot`.
    pub(in crate::topology) async fn primary(
        self: &Arc<Self>,
        slot: u16,
        deadline: Deadline,
    ) -> Result<Primary> {
        let map = self.map(deadline).await?;
        map.primary(slot).cloned().ok_or_else(|| {
            self.suspect();
            map.unserved(slot)
        })
    }

    /// Returns the server of `slot` after the server at `asked` has redirected a call without
    /// saying where to. Asks the servers for the slots.
    pub(in crate::topology) async fn elsewhere(
        self: &Arc<Self>,
        slot: u16,
        asked: &Address,
        deadline: Instant,
    ) -> Result<Primary> {
        let map = self.renew(deadline).await?;
        let primary = map.primary(slot).cloned();
        let other = primary.filter(|primary| *primary.address != *asked);
        other.ok_or_else(|| {
            self.suspect();
            nameless()
        })
    }

    /// How to read what the server at `address` reports.
    pub(in crate::topology) fn asked<'a>(&'a self, address: &'a Address) -> Asked<'a> {
        Asked {
            address,
            addresses: &self.style.approach.addresses,
        }
    }

    /// Records that `slot` is served at `address`. Its former owner has said so with `MOVED`.
    pub(in crate::topology) fn moved(self: &Arc<Self>, slot: u16, address: &Address) -> Primary {
        let mut state = self.state();
        if let Some(known) = state.map.primary(slot)
            && *known.address == *address
        {
            return known.clone();
        }
        let mut map = SlotMap::clone(&state.map);
        let place = map.place(address, [&*state.map], |it| self.node(it));
        map.owners[usize::from(slot)] = place;
        let primary = map.primaries[usize::from(place)].clone();
        state.map = Arc::new(map);
        drop(state);
        self.suspect();
        primary
    }

    /// Returns the server at `address`, which an `ASK` has named. It may own no slot yet.
    pub(in crate::topology) fn at(&self, address: &Address) -> Primary {
        let mut state = self.state();
        state.importing.retain(|(it, _)| **it != *address);
        let noted = (Arc::new(address.clone()), Instant::now());
        state.importing.push(noted);
        if let Some(place) = state.map.find(address) {
            return state.map.primaries[place].clone();
        }
        let mut map = SlotMap::clone(&state.map);
        let place = map.place(address, [&*state.map], |it| self.node(it));
        let primary = map.primaries[usize::from(place)].clone();
        state.map = Arc::new(map);
        primary
    }

    /// Reports that the map may be wrong, and has the background task ask the servers.
    pub(in crate::topology) fn suspect(self: &Arc<Self>) {
        self.trouble.notify_one();
        self.refresh
            .ensure(|| refresh(Arc::downgrade(self), self.trouble.clone()));
    }

    /// Ends the tasks. The cluster is being dropped.
    pub(in crate::topology) fn close(&self) {
        self.refresh.end();
        // Dropped without the lock: its drop aborts the task.
        let inquiry = self.state().inquiry.take();
        drop(inquiry);
    }

    /// Returns the addresses of the primaries, or of the seeds while no primary is known.
    pub(in crate::topology) fn addresses(&self) -> Vec<String> {
        let known = self.known();
        if known.primaries.is_empty() {
            return self.seeds.iter().map(|it| it.address.to_string()).collect();
        }
        known.addresses().map(Address::to_string).collect()
    }

    /// Asks the servers for the slots, and waits for the outcome until `deadline`.
    pub(in crate::topology) async fn renew(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<Arc<SlotMap>> {
        let mut inquiry = self.inquiry();
        loop {
            if let Some(outcome) = inquiry.outcome(deadline).await {
                return outcome;
            }
            if Instant::now() >= deadline {
                return Err(self.nobody_knows());
            }
            if let Some(task) = inquiry.failed() {
                // The runtime of the task stands still or has ended. Other tasks must not go there
                // either.
                self.style.spawner.distrust(task.pulse().runtime());
                inquiry = self.inquiry();
            }
        }
    }

    /// Returns the running query, or starts one. A query takes as long as servers may need, also if
    /// its first caller leaves earlier. Otherwise callers with short deadlines would keep all
    /// others from an answer.
    fn inquiry(self: &Arc<Self>) -> Arc<RefreshTask> {
        let mut state = self.state();
        let known = state.inquiry.as_ref();
        if let Some(known) = known.filter(|it| !it.is_over() && it.failed().is_none()) {
            return known.clone();
        }
        let inquiry = RefreshTask::new();
        let until = Instant::now() + HEAD_START + SLOTS_TIMEOUT + HEAD_START;
        let (refresher, told) = (self.clone(), Arc::downgrade(&inquiry));
        // Spawned before another caller can see the query, since spawning panics outside of a
        // runtime. The task ends by itself at `until`. If it panics, or its runtime stands still,
        // callers start another.
        inquiry.spawned(self.style.spawner.spawn(async move {
            let outcome = refresher.inquire(until).await;
            if let Some(told) = told.upgrade() {
                told.ends(outcome);
            }
        }));
        let replaced = state.inquiry.replace(inquiry.clone());
        drop(state);
        drop(replaced);
        inquiry
    }

    async fn inquire(&self, until: Instant) -> Result<Arc<SlotMap>> {
        let present = self.known();
        let mut query = SlotQuery::new(until);
        let outcome = self.ask(&mut query, &present).await;
        match &outcome {
            Ok(()) => self.breaker.succeeded(),
            // A query has a deadline of its own, which is long enough for servers that are there.
            Err(error) if is_out(error) || error.kind() == ErrorKind::Timeout => {
                self.breaker.failed(error);
            }
            // Any other error is an answer, so the servers are there.
            Err(error) => self.breaker.refused(error),
        }
        let outcome = outcome.map(|()| self.learn(&query));
        // The connections to seeds and replicas are closed after the query. They serve no calls.
        let peers: Vec<_> = self.state().peers.values().cloned().collect();
        for peer in peers {
            peer.link.rest();
        }
        outcome
    }

    /// Asks a few of the known primaries and, if none answers soon, others. Answers of seeds and
    /// replicas are compared with those of the primaries that they name. A seed or a replica may
    /// have left the cluster, or be cut off from it.
    async fn ask<'c>(&'c self, query: &mut SlotQuery<'c>, known: &SlotMap) -> Result<()> {
        let now = Instant::now();
        let addresses = &self.style.approach.addresses;
        query.ask(addresses, Self::primaries(known));
        query.listen(now + HEAD_START).await;
        if query.heard.is_empty() {
            query.ask(addresses, self.others(known));
            query.listen(query.deadline).await;
            let named = self.named(query, known);
            query.named.primaries.clone_from(&named);
            query.ask(addresses, named);
            query.listen(Instant::now() + HEAD_START).await;
        }
        match query.heard.is_empty() {
            true => Err(query.failure().unwrap_or_else(|| self.nobody_knows())),
            false => Ok(()),
        }
    }

    /// The error if no server has reported the slots in time: what one of the servers has run into
    /// so far, if anything. An attempt to connect that is refused is repeated until its deadline,
    /// which may be the caller's, so it may still be running. The error is a
    /// refusal only if all servers refuse: otherwise one of them may yet answer.
    fn nobody_knows(&self) -> Error {
        let state = self.state();
        let primaries = state.map.primaries.iter().map(|it| &it.node);
        let asked = state.peers.values().chain(primaries);
        let met = asked.map(|node| Some(node.link.located(node.link.last_error()?)));
        let met: Vec<Option<Error>> = met.collect();
        let all_refuse = met.iter().all(|it| it.as_ref().is_some_and(is_refusal));
        let worst = met.into_iter().flatten().min_by_key(is_refusal);
        let silence = Error::new(
            ErrorKind::Unreachable,
            "no server of the cluster reported its slots; check that the seeds are up",
        );
        match worst {
            Some(error) if all_refuse => error,
            Some(error) if !is_refusal(&error) => error.with_fate(Fate::NotExecuted),
            Some(refusal) => silence.because(format!("one server says: {}", refusal.brief())),
            None => silence,
        }
    }

    /// Returns a few of the primaries that the answers name and that were not asked yet. Returns
    /// none if enough of the servers that were asked are primaries themselves.
    fn named(&self, query: &SlotQuery<'_>, known: &SlotMap) -> Vec<Primary> {
        let mut map = SlotMap::default();
        for range in verdict(&query.heard) {
            if let Some(address) = &range.primary {
                map.place(address, [known], |it| self.node(it));
            }
        }
        let enough = map.primaries.len().min(PEERS);
        let all = map.primaries.len();
        let mut named = map.primaries;
        named.retain(|it| !query.asked.contains(&it.address));
        let asked = all - named.len();
        named.shuffle(&mut rand::rng());
        named.truncate(enough.saturating_sub(asked));
        named
    }

    /// Returns a few of the known primaries.
    fn primaries(map: &SlotMap) -> Vec<Primary> {
        let mut primaries = map.primaries.clone();
        primaries.shuffle(&mut rand::rng());
        primaries.truncate(PEERS);
        primaries
    }

    /// Returns a few of the seeds and a few of the replicas, which may have been promoted.
    fn others(&self, known: &SlotMap) -> Vec<Primary> {
        let style = NodeConfig {
            // A seed that is out must not start another refresh: it serves no slot of the map.
            on_trouble: None,
            ..self.style.clone()
        };
        let replica = |address: &Address| self.seeds[0].at(address.clone());
        let replicas = known.replicas.iter().map(replica).collect();
        let mut peers = Vec::with_capacity(2 * PEERS);
        for mut kind in [self.seeds.clone(), replicas] {
            kind.shuffle(&mut rand::rng());
            kind.truncate(PEERS);
            peers.append(&mut kind);
        }
        let mut state = self.state();
        let seeds: Vec<_> = self.seeds.iter().map(|it| &it.address).collect();
        state
            .peers
            .retain(|it, _| seeds.contains(&it) || known.replicas.contains(it));
        let peer = |endpoint: Endpoint| {
            let address = endpoint.address.clone();
            let new = || {
                let source = Target::Server(endpoint);
                Arc::new(Node::mute(address.to_string(), source, &style))
            };
            let node = state.peers.entry(address.clone()).or_insert_with(new);
            Primary {
                node: node.clone(),
                address: Arc::new(address),
            }
        };
        peers.into_iter().map(peer).collect()
    }

    /// Makes the new map from the answers, and retires the servers that are no longer in it.
    fn learn(&self, query: &SlotQuery<'_>) -> Arc<SlotMap> {
        let mut state = self.state();
        let before = state.map.clone();
        let mut map = SlotMap::default();
        for range in &verdict(&query.heard) {
            let place = match &range.primary {
                Some(primary) => map.place(primary, [&*before, &query.named], |it| self.node(it)),
                None => NAMELESS,
            };
            map.owners[usize::from(range.first)..=usize::from(range.last)].fill(place);
            map.replicas.extend_from_slice(&range.replicas);
        }
        state.importing.retain(|(_, at)| at.elapsed() < REFRESH_FOR);
        // A server that imports its first slot is in no answer. It must not be retired while calls
        // are redirected to it.
        for (address, _) in &state.importing {
            if before.find(address).is_some() {
                map.place(address, [&*before], |it| self.node(it));
            }
        }
        // A replica is reported once for each range of its primary.
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
        // Only the waiters subscribed at these servers re-check. If all did, each migrated slot
        // would make the whole client query at once.
        let losers = before.losers(&map);
        if !losers.is_empty() {
            tracing::info!(target: "hedgerow::client", primaries = map.primaries.len(), "slots have moved");
        }
        for pubsub in losers.into_iter().filter_map(|it| it.node.pubsub.as_ref()) {
            pubsub.alert();
        }
        map
    }

    /// Makes a new node for the server at `address`.
    fn node(&self, address: &Address) -> Arc<Node> {
        let endpoint = self.seeds[0].at(address.clone());
        Arc::new(Node::new(&endpoint, &self.style))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refreshes the map while a server is in trouble. The first trouble starts this task. It ends with
/// the refresher, or with its runtime; then the next trouble starts another.
async fn refresh(refresher: Weak<Refresher>, trouble: Arc<Notify>) {
    loop {
        trouble.notified().await;
        let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE, 0.5..1.0);
        let until = Instant::now() + REFRESH_FOR;
        loop {
            let Some(refresher) = refresher.upgrade() else {
                return;
            };
            if let Err(error) = refresher.renew(Instant::now() + SLOTS_TIMEOUT).await {
                tracing::debug!(target: "hedgerow::client", %error, "nobody tells the slots");
            }
            let known = refresher.known();
            let all_well = known.primaries.iter().all(|it| it.node.link.is_well());
            // Not kept over the pause: the last owner must be able to drop the refresher.
            drop(refresher);
            tokio::time::sleep(backoff.pause()).await;
            if all_well || Instant::now() >= until {
                break;
            }
        }
    }
}

/// How many primaries, seeds or replicas are asked for the slots at once.
const PEERS: usize = 3;

/// The pauses between two queries while a server is in trouble, and for how long these go on.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const REFRESH_FOR: Duration = Duration::from_secs(10);
