//! `Refresher`: which primary serves which slot, as far as known.
//!
//! Invariant: what is known is a hint; whoever follows it is corrected by the servers, and what
//! they say is taken over at once. Primaries that no longer serve a slot are retired, and calls
//! that wait for them fail. No server's word counts alone where others may know better: several are
//! asked, and what is newest, or what most say, is believed (see [`verdict`]). While a server is in
//! trouble a steward asks again, and until the slots are known a breaker makes that cheap.

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
use crate::net::breaker::{Breaker, Probe, is_out};
use crate::net::connection::target::Target;
use crate::net::endpoint::Endpoint;
use crate::net::node::{Node, NodeConfig};
use crate::time::Backoff;
use crate::time::{Deadline, OnOutage};

pub(in crate::topology) struct Refresher {
    seeds: Vec<Endpoint>,
    style: NodeConfig,
    trouble: Arc<Notify>,
    /// Renews the map while a server is in trouble; see [`refresh`].
    refresh: Background,
    state: Mutex<State>,
    /// Of those who are asked for the slots.
    breaker: Breaker,
}

#[derive(Default)]
struct State {
    map: Arc<SlotMap>,
    /// The last that was begun.
    inquiry: Option<Arc<RefreshTask>>,
    /// Seeds and replicas that were asked, by address: how often they are connected to, and what
    /// they refused, counts over all inquiries.
    witnesses: HashMap<Address, Arc<Node>>,
    /// Servers that calls were sent to by `ASK`, and when: they need not have a slot yet.
    importing: Vec<(Arc<Address>, Instant)>,
}

impl Refresher {
    pub(in crate::topology) fn new(seeds: Vec<Endpoint>, style: NodeConfig) -> Arc<Self> {
        Arc::new_cyclic(|census: &Weak<Self>| {
            let census = census.clone();
            let on_trouble = Arc::new(move || {
                if let Some(census) = census.upgrade() {
                    census.suspect();
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

    /// What is known without asking; at first, nothing.
    pub(in crate::topology) fn known(&self) -> Arc<SlotMap> {
        self.state().map.clone()
    }

    /// What is known of the slots, asked for first if that is nothing.
    pub(in crate::topology) async fn map(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<Arc<SlotMap>> {
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

    /// The server of `slot`, when the one at `asked` serves it no more and does not say which does.
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

    /// How what the server at `address` tells is read.
    pub(in crate::topology) fn asked<'a>(&'a self, address: &'a Address) -> Asked<'a> {
        Asked {
            address,
            addresses: &self.style.approach.addresses,
        }
    }

    /// Notes that `slot` is served at `address`, on the word of the server that served it before.
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

    /// The server at `address`, which is asked now and may serve no slot yet.
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

    /// What is known may be wrong: has somebody ask.
    pub(in crate::topology) fn suspect(self: &Arc<Self>) {
        self.trouble.notify_one();
        self.refresh
            .ensure(|| refresh(Arc::downgrade(self), self.trouble.clone()));
    }

    /// Nobody uses this any more.
    pub(in crate::topology) fn close(&self) {
        self.refresh.end();
        let inquiry = self.state().inquiry.take();
        drop(inquiry);
    }

    /// Where the primaries are, or the seeds as long as no primary is known.
    pub(in crate::topology) fn addresses(&self) -> Vec<String> {
        let known = self.known();
        if known.primaries.is_empty() {
            return self.seeds.iter().map(|it| it.address.to_string()).collect();
        }
        known.addresses().map(Address::to_string).collect()
    }

    /// Has the servers asked for the slots, and waits for what comes of it.
    async fn renew(self: &Arc<Self>, deadline: Instant) -> Result<Arc<SlotMap>> {
        let mut inquiry = self.inquiry();
        loop {
            if let Some(outcome) = inquiry.outcome(deadline).await {
                return outcome;
            }
            if Instant::now() >= deadline {
                return Err(self.nobody_knows());
            }
            if let Some(task) = inquiry.failed() {
                self.style.spawner.distrust(task.pulse().runtime());
                inquiry = self.inquiry();
            }
        }
    }

    /// The inquiry under way, begun if there is none. It takes as long as servers may need, however
    /// soon its first caller must leave: else callers in a hurry would keep all others from an
    /// answer.
    fn inquiry(self: &Arc<Self>) -> Arc<RefreshTask> {
        let mut state = self.state();
        let known = state.inquiry.as_ref();
        if let Some(known) = known.filter(|it| !it.is_over() && it.failed().is_none()) {
            return known.clone();
        }
        let inquiry = RefreshTask::new();
        let until = Instant::now() + HEAD_START + SLOTS_TIMEOUT + HEAD_START;
        let (census, told) = (self.clone(), Arc::downgrade(&inquiry));
        // Before anybody can wait for it: outside of a runtime this panics. Ends by itself, soon;
        // if it panics, or its runtime does not go on, callers begin another.
        inquiry.spawned(self.style.spawner.spawn(async move {
            let outcome = census.inquire(until).await;
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
        let mut hearing = SlotQuery::new(until);
        let outcome = self.ask(&mut hearing, &present).await;
        match &outcome {
            Ok(()) => self.breaker.succeeded(),
            Err(error) if is_out(error) => self.breaker.failed(error),
            Err(_) => {}
        }
        let outcome = outcome.map(|()| self.learn(&hearing));
        // The connections to witnesses end with the question.
        let witnesses: Vec<_> = self.state().witnesses.values().cloned().collect();
        for witness in witnesses {
            witness.link.rest();
        }
        outcome
    }

    /// Asks a few of the primaries that are known, and where none answers soon, others. What seeds
    /// and replicas say is compared with what the primaries say that they name: they may have left
    /// the cluster, or be cut off from it.
    async fn ask<'c>(&'c self, hearing: &mut SlotQuery<'c>, known: &SlotMap) -> Result<()> {
        let now = Instant::now();
        let addresses = &self.style.approach.addresses;
        hearing.ask(addresses, Self::primaries(known));
        hearing.listen(now + HEAD_START).await;
        if hearing.heard.is_empty() {
            hearing.ask(addresses, self.others(known));
            hearing.listen(hearing.deadline).await;
            let named = self.named(hearing, known);
            hearing.named.primaries.clone_from(&named);
            hearing.ask(addresses, named);
            hearing.listen(Instant::now() + HEAD_START).await;
        }
        match hearing.heard.is_empty() {
            true => Err(hearing.worst.take().unwrap_or_else(|| self.nobody_knows())),
            false => Ok(()),
        }
    }

    /// Nobody has told the slots in time: what a server that was asked has met so far, if anything.
    /// An attempt to connect that is refused goes on until its deadline, which may be the caller's.
    /// A refusal counts as one only if none of the others may yet answer.
    fn nobody_knows(&self) -> Error {
        let state = self.state();
        let primaries = state.map.primaries.iter().map(|it| &it.node);
        let asked = state.witnesses.values().chain(primaries);
        let met = asked.map(|node| Some(node.link.located(node.link.last_error()?)));
        let met: Vec<Option<Error>> = met.collect();
        let is_refusal = |error: &Error| error.fate() == Fate::Refused;
        let all_refuse = met.iter().all(|it| it.as_ref().is_some_and(is_refusal));
        let worst = met.into_iter().flatten().min_by_key(is_refusal);
        match worst {
            Some(error) if all_refuse => error,
            Some(error) => error.with_fate(Fate::NotExecuted),
            None => Error::new(
                ErrorKind::Unreachable,
                "no server of the cluster reported its slots; check that the seeds are up",
            ),
        }
    }

    /// A few of the primaries that were named and have not been asked, if too few of those that
    /// were asked are primaries themselves.
    fn named(&self, hearing: &SlotQuery<'_>, known: &SlotMap) -> Vec<Primary> {
        let mut map = SlotMap::default();
        for range in verdict(&hearing.heard) {
            if let Some(address) = &range.primary {
                map.place(address, [known], |it| self.node(it));
            }
        }
        let enough = map.primaries.len().min(PEERS);
        let all = map.primaries.len();
        let mut named = map.primaries;
        named.retain(|it| !hearing.asked.contains(&it.address));
        let asked = all - named.len();
        named.shuffle(&mut rand::rng());
        named.truncate(enough.saturating_sub(asked));
        named
    }

    /// A few of the primaries that are known.
    fn primaries(map: &SlotMap) -> Vec<Primary> {
        let mut primaries = map.primaries.clone();
        primaries.shuffle(&mut rand::rng());
        primaries.truncate(PEERS);
        primaries
    }

    /// A few of the seeds, and of the replicas, which may be primaries by now.
    fn others(&self, known: &SlotMap) -> Vec<Primary> {
        let style = NodeConfig {
            on_trouble: None,
            ..self.style.clone()
        };
        let replica = |address: &Address| self.seeds[0].at(address.clone());
        let replicas = known.replicas.iter().map(replica).collect();
        let mut witnesses = Vec::with_capacity(2 * PEERS);
        for mut kind in [self.seeds.clone(), replicas] {
            kind.shuffle(&mut rand::rng());
            kind.truncate(PEERS);
            witnesses.append(&mut kind);
        }
        let mut state = self.state();
        let seeds: Vec<_> = self.seeds.iter().map(|it| &it.address).collect();
        state
            .witnesses
            .retain(|it, _| seeds.contains(&it) || known.replicas.contains(it));
        let witness = |endpoint: Endpoint| {
            let address = endpoint.address.clone();
            let new = || {
                let source = Target::Server(endpoint);
                Arc::new(Node::mute(address.to_string(), source, &style))
            };
            let node = state.witnesses.entry(address.clone()).or_insert_with(new);
            Primary {
                node: node.clone(),
                address: Arc::new(address),
            }
        };
        witnesses.into_iter().map(witness).collect()
    }

    /// Takes over what was said of the slots.
    fn learn(&self, hearing: &SlotQuery<'_>) -> Arc<SlotMap> {
        let mut state = self.state();
        let before = state.map.clone();
        let mut map = SlotMap::default();
        for range in &verdict(&hearing.heard) {
            let place = match &range.primary {
                Some(primary) => map.place(primary, [&*before, &hearing.named], |it| self.node(it)),
                None => NAMELESS,
            };
            map.owners[usize::from(range.first)..=usize::from(range.last)].fill(place);
            map.replicas.extend_from_slice(&range.replicas);
        }
        state.importing.retain(|(_, at)| at.elapsed() < REFRESH_FOR);
        for (address, _) in &state.importing {
            if before.find(address).is_some() {
                map.place(address, [&*before], |it| self.node(it));
            }
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
        for pubsub in losers.into_iter().filter_map(|it| it.node.pubsub.as_ref()) {
            pubsub.alert();
        }
        map
    }

    /// A new node for the server at `address`.
    fn node(&self, address: &Address) -> Arc<Node> {
        let endpoint = self.seeds[0].at(address.clone());
        Arc::new(Node::new(&endpoint, &self.style))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews what is known while a server is in trouble: spawned with the first trouble, it ends with
/// the census (or with its runtime, after which the next trouble starts another).
async fn refresh(census: Weak<Refresher>, trouble: Arc<Notify>) {
    loop {
        trouble.notified().await;
        let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE, 0.5..1.0);
        let until = Instant::now() + REFRESH_FOR;
        loop {
            let Some(census) = census.upgrade() else {
                return;
            };
            if let Err(error) = census.renew(Instant::now() + SLOTS_TIMEOUT).await {
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

/// How many servers of a kind are asked for the slots at once.
const PEERS: usize = 3;

/// The pauses between two questions while a server is in trouble, and how long that goes on.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
const REFRESH_FOR: Duration = Duration::from_secs(10);
