//! All orders in which a load, a call that joins it and an invalidation can meet.
//!
//! Each part of a flight's state changes under one lock, so a run of threads is an order of these
//! steps. The server and the source of truth are numbers here: what their scripts do is one step
//! each, too. The steps of a load are those of [`lead`](super::super::lead).

use std::time::Duration;

use super::*;
use crate::key::Namespace;
use crate::time::OnOutage;

/// What the process that loads does, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoadStep {
    Lease,
    /// Reads the generation that the value will be stamped with.
    Stamp,
    Begin,
    /// The loader reads the truth.
    Load,
    Close,
    Commit,
    /// Reads the generation again, if that matters to a call that joined.
    Verify,
    Settle,
}

use LoadStep::{Begin, Close, Commit, Lease, Load, Settle, Stamp, Verify};

/// The generation may be read with the miss, before the lease is asked for. The commit and the
/// second look at the tags are sent together, and come in any order.
const LOADS: [[LoadStep; 8]; 2] = [
    [Lease, Stamp, Begin, Load, Close, Commit, Verify, Settle],
    [Stamp, Lease, Begin, Load, Close, Verify, Commit, Settle],
];

/// What a writer does, part by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteStep {
    /// Changes the truth.
    Raise,
    /// A client closes its own flights before it removes a key.
    Detach,
    /// The value and the lease are gone.
    Remove,
    /// The tag has another generation.
    Replace,
    /// The call returns. A read that begins now may not be given anything older.
    Return,
}

use WriteStep::{Detach, Raise, Remove, Replace, Return};

/// Removal by another client, by this one, and invalidation of a tag.
const WRITES: [&[WriteStep]; 3] = [
    &[Raise, Remove, Return],
    &[Raise, Detach, Remove, Return],
    &[Raise, Replace, Return],
];

/// Who does the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Actor {
    Loader,
    Writer,
    /// Begins, and joins the flight if it is open.
    Caller,
}

/// A server, the truth behind it, and all that happens to them.
struct World {
    flights: Arc<Flights>,
    key: Key,
    leader: Leader,
    truth: u64,
    /// The version of the last write that has returned.
    floor: u64,
    generation: u64,
    /// The flight has the lease.
    lease: bool,
    /// A version, and the generation that it is stamped with.
    entry: Option<(u64, u64)>,
    stamp: u64,
    loaded: u64,
    stored: bool,
    verified: bool,
    /// When the caller began, and what it must not be older than.
    began: Option<(Instant, u64)>,
    follower: Option<Follower>,
}

/// What the call that joined was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    /// It has found no flight, or has to ask again.
    Nothing,
    Early,
    Late,
}

fn patience() -> Patience {
    Patience::new(HOUR, OnOutage::KeepTrying)
}

impl World {
    fn new() -> Self {
        let namespace = Namespace::new("hr").expect("a good namespace");
        let keys = namespace.cache("c", 0).expect("a good name");
        let key = keys.value("k").expect("a good name");
        let flights = Arc::<Flights>::default();
        let Role::Opened(leader) = flights.board(&key, patience(), Instant::now(), HOUR) else {
            panic!("there was none");
        };
        Self {
            flights,
            key,
            leader,
            truth: 0,
            floor: 0,
            generation: 0,
            lease: false,
            entry: None,
            stamp: 0,
            loaded: 0,
            stored: false,
            verified: true,
            began: None,
            follower: None,
        }
    }

    fn load(&mut self, step: LoadStep) {
        let closed = Closed(&self.leader);
        match step {
            Lease => self.lease = true,
            Stamp => self.stamp = self.generation,
            Begin => self.leader.begin_load(),
            Load => self.loaded = self.truth,
            Close => drop(self.leader.close()),
            Commit => {
                self.stored = std::mem::take(&mut self.lease);
                if self.stored {
                    self.entry = Some((self.loaded, self.stamp));
                }
            }
            Verify => self.verified = !closed.has_late() || self.generation == self.stamp,
            Settle => closed.settle(Outcome::Value {
                value: Arc::new(self.loaded),
                proved: self.stored && self.verified,
            }),
        }
    }

    fn write(&mut self, step: WriteStep) {
        match step {
            Raise => self.truth += 1,
            Detach => self.flights.detach(&self.key),
            Remove => (self.entry, self.lease) = (None, false),
            Replace => self.generation += 1,
            Return => self.floor = self.truth,
        }
    }

    fn call(&mut self) {
        match self.began {
            None => self.began = Some((Instant::now(), self.floor)),
            Some((began, _)) => {
                self.follower = self.flights.join(&self.key, patience(), began, HOUR);
            }
        }
    }

    /// Judges what has come of it.
    async fn end(mut self, order: &[Actor]) -> Given {
        if let Some((version, stamp)) = self.entry
            && stamp == self.generation
        {
            assert!(version >= self.floor, "{order:?}: an old value is valid");
        }
        let Some(mut follower) = self.follower.take() else {
            return Given::Nothing;
        };
        let over = Instant::now() + HOUR;
        let outcome = follower.outcome(HOUR, over).await.expect("it is settled");
        let Outcome::Value { value, .. } = outcome else {
            assert!(follower.late, "{order:?}: an early call asks again");
            return Given::Nothing;
        };
        let version = *value.downcast::<u64>().expect("a version");
        let (_, floor) = self.began.expect("it has joined");
        assert!(version >= floor, "{order:?}: {version} is given");
        match follower.late {
            true => Given::Late,
            false => Given::Early,
        }
    }
}

/// Calls `each` with every order of so many steps of each actor.
async fn orders(steps: [(Actor, usize); 3], mut each: impl AsyncFnMut(&[Actor])) {
    let length = steps.iter().map(|(_, count)| count).sum();
    // What is left of each actor at each length of the order so far, as in counting.
    let mut order: Vec<Actor> = Vec::with_capacity(length);
    let left = |order: &[Actor], at: usize| {
        let (actor, count) = steps[at];
        count - order.iter().filter(|it| **it == actor).count()
    };
    let mut next = 0;
    loop {
        if order.len() == length {
            each(&order).await;
            next = steps.len();
        }
        match (next..steps.len()).find(|at| left(&order, *at) > 0) {
            Some(at) => {
                order.push(steps[at].0);
                next = 0;
            }
            None => {
                let Some(last) = order.pop() else { return };
                let at = steps.iter().position(|(actor, _)| *actor == last);
                next = at.expect("one of them") + 1;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_order_of_a_load_a_late_call_and_an_invalidation_gives_an_old_value() {
    let mut given = HashMap::from([(0, [0; 3]), (1, [0; 3]), (2, [0; 3])]);
    for load in LOADS {
        for (kind, write) in WRITES.iter().enumerate() {
            let steps = [
                (Actor::Loader, load.len()),
                (Actor::Writer, write.len()),
                (Actor::Caller, 2),
            ];
            orders(steps, async |order| {
                let mut world = World::new();
                let (mut loads, mut writes) = (load.iter(), write.iter());
                for actor in order {
                    match actor {
                        Actor::Loader => {
                            let step = *loads.next().expect("counted");
                            if step == Begin {
                                // Whatever came before it was earlier, by the clock, too.
                                tokio::time::advance(Duration::from_millis(1)).await;
                            }
                            world.load(step);
                        }
                        Actor::Writer => world.write(*writes.next().expect("counted")),
                        Actor::Caller => world.call(),
                    }
                }
                let given_now = world.end(order).await;
                given.get_mut(&kind).expect("a kind")[given_now as usize] += 1;
            })
            .await;
        }
    }
    for (kind, given) in given {
        assert!(given.iter().all(|count| *count > 0), "{kind}: {given:?}");
    }
}

const HOUR: Duration = Duration::from_secs(3600);
