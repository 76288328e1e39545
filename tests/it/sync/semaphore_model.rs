//! Semaphores against a model: any sequence of calls by several clients, with an administrator who
//! deletes the key and ends leases behind their backs, ends as the model says.
//!
//! The model is exact but for what two processes do at the same moment: then it has several
//! outcomes, one of which must come about. Calls are told apart by their metadata.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use hedgerow::{Client, ErrorKind, Permits, Semaphore};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::task::JoinHandle;

use crate::support::permits::{AGES, Kept, all_back, expire, granted, key, wait, warm};
use crate::support::server::Server;
use crate::support::wait::until_so;

/// One step. An index picks one of the holders or waiters that there are.
#[derive(Debug, Clone, Copy)]
enum Op {
    Try(Call),
    /// A call that goes on waiting, if its permits are not free.
    Wait(Call),
    GiveUp(usize),
    /// Of a lease that is shared, only one holder is released.
    Release(usize),
    Drop(usize),
    Share(usize),
    Expire(usize),
    Delete,
}

/// What a call asks for, and the client that makes it.
#[derive(Debug, Clone, Copy)]
struct Call {
    client: usize,
    weight: u32,
    limit: u32,
}

fn calls() -> impl Strategy<Value = Call> {
    let limits = prop_oneof![3 => Just(LIMIT), 1 => Just(WIDER)];
    (0..CLIENTS, limits).prop_flat_map(|(client, limit)| {
        (1..=limit).prop_map(move |weight| Call {
            client,
            weight,
            limit,
        })
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => calls().prop_map(Op::Try),
        8 => calls().prop_map(Op::Wait),
        3 => any::<usize>().prop_map(Op::GiveUp),
        5 => any::<usize>().prop_map(Op::Release),
        2 => any::<usize>().prop_map(Op::Drop),
        1 => any::<usize>().prop_map(Op::Share),
        1 => any::<usize>().prop_map(Op::Expire),
        1 => Just(Op::Delete),
    ];
    prop::collection::vec(op, 1..32)
}

#[test]
fn any_sequence_of_calls_ends_as_the_model_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (server, clients) = runtime.block_on(async {
        let server = Server::start().await;
        let mut clients = Vec::new();
        for _ in 0..=CLIENTS {
            clients.push(warm(server.client().await).await);
        }
        (server, clients)
    });
    let case = AtomicU64::new(0);
    let config = Config {
        source_file: Some(file!()),
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&ops(), |ops| {
        let name = format!("case-{}", case.fetch_add(1, Ordering::SeqCst));
        runtime.block_on(async {
            let mut run = Run::new(&server, &clients, &name);
            for op in ops {
                run.step(op).await;
            }
            run.finish().await;
        });
        Ok(())
    });
    let _inside = runtime.enter();
    drop((server, clients));
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

/// What is expected of a semaphore. Calls are known by their number.
#[derive(Debug, Clone, Default)]
struct Model {
    holders: BTreeSet<usize>,
    /// A process is there once, for the first call of its line.
    queue: VecDeque<usize>,
    /// The waiting calls of each client.
    lines: [VecDeque<usize>; CLIENTS],
}

impl Model {
    fn fits(&self, calls: &[Call], call: usize) -> bool {
        let used: u32 = self.holders.iter().map(|&held| calls[held].weight).sum();
        used + calls[call].weight <= calls[call].limit
    }

    /// The head of the queue goes first, and holds up those behind it until it fits.
    fn grant(&mut self, calls: &[Call]) {
        while let Some(&head) = self.queue.front() {
            if !self.fits(calls, head) {
                return;
            }
            self.queue.pop_front();
            self.granted(calls, head);
        }
    }

    fn granted(&mut self, calls: &[Call], call: usize) {
        self.lines[calls[call].client].retain(|&waiting| waiting != call);
        self.holders.insert(call);
    }

    /// What comes about once each process with a line has a position. Processes may ask in any
    /// order.
    fn outcomes(mut self, calls: &[Call]) -> Vec<Self> {
        self.grant(calls);
        let next = self.lines.iter().filter_map(|line| line.front().copied());
        let asking: Vec<usize> = next.filter(|call| !self.queue.contains(call)).collect();
        if asking.is_empty() {
            return vec![self];
        }
        let ask = |call: usize| {
            let mut model = self.clone();
            if model.queue.is_empty() && model.fits(calls, call) {
                model.granted(calls, call);
            } else {
                model.queue.push_back(call);
            }
            model.outcomes(calls)
        };
        asking.into_iter().flat_map(ask).collect()
    }

    /// A waiting call gives up. The next one of its process may take over its position, or ask for
    /// one of its own.
    fn left(mut self, calls: &[Call], call: usize) -> Vec<Self> {
        let line = &mut self.lines[calls[call].client];
        line.retain(|&waiting| waiting != call);
        let successor = line.front().copied();
        let Some(place) = self.queue.iter().position(|&waiting| waiting == call) else {
            return self.outcomes(calls);
        };
        let mut heir = self.clone();
        self.queue.remove(place);
        let mut outcomes = self.outcomes(calls);
        if let Some(successor) = successor {
            heir.queue[place] = successor;
            outcomes.extend(heir.outcomes(calls));
        }
        outcomes
    }
}

/// Permits that a client has, and what the model knows of them.
#[derive(Debug)]
struct Held {
    call: usize,
    /// All that share them.
    shares: Vec<Permits>,
    /// Taken from it behind its back: it need not know yet.
    taken: bool,
}

/// One semaphore: what the model expects, with the real permits and calls beside it.
struct Run<'a> {
    server: &'a Server,
    clients: &'a [Client],
    name: &'a str,
    calls: Vec<Call>,
    model: Model,
    held: Vec<Held>,
    waiting: HashMap<usize, JoinHandle<hedgerow::Result<Permits>>>,
}

impl<'a> Run<'a> {
    fn new(server: &'a Server, clients: &'a [Client], name: &'a str) -> Self {
        Self {
            server,
            clients,
            name,
            calls: Vec::new(),
            model: Model::default(),
            held: Vec::new(),
            waiting: HashMap::new(),
        }
    }

    async fn step(&mut self, op: Op) {
        let outcomes = match op {
            Op::Try(call) => {
                let number = self.number(call);
                let (model, line) = (&self.model, &self.model.lines[call.client]);
                let others_wait = !line.is_empty() || !model.queue.is_empty();
                let free = !others_wait && model.fits(&self.calls, number);
                let tried = self.semaphore(number).try_acquire().await;
                let tried = tried.expect("an answer");
                assert_eq!(tried.is_some(), free, "{op:?} in {model:?}");
                let mut model = self.model.clone();
                if let Some(permits) = tried {
                    model.holders.insert(number);
                    self.hold(number, permits);
                }
                vec![model]
            }
            Op::Wait(call) => {
                let number = self.number(call);
                self.waiting.insert(number, wait(self.semaphore(number)));
                // Answers come in the order of the questions: after this one, the call has its own.
                let after = self.clients[call.client].semaphore("answered", 1);
                drop(after.try_acquire().await.expect("an answer"));
                let mut model = self.model.clone();
                model.lines[call.client].push_back(number);
                model.outcomes(&self.calls)
            }
            Op::GiveUp(index) if !self.waiting.is_empty() => {
                let mut waiting: Vec<usize> = self.waiting.keys().copied().collect();
                waiting.sort_unstable();
                let number = waiting[index % waiting.len()];
                let waiter = self.waiting.remove(&number).expect("it waits");
                waiter.abort();
                let ended = waiter.await.expect_err("nobody has granted it anything");
                assert!(ended.is_cancelled());
                self.model.clone().left(&self.calls, number)
            }
            Op::Release(index) if !self.held.is_empty() => {
                let index = index % self.held.len();
                let held = &mut self.held[index];
                let (call, taken) = (held.call, held.taken);
                let share = held.shares.pop().expect("somebody holds them");
                let last = held.shares.is_empty();
                let released = share.release().await.map_err(|error| error.kind());
                if !taken {
                    assert_eq!(released, Ok(()), "{op:?}");
                } else if last {
                    assert_eq!(released, Err(ErrorKind::Lost), "{op:?}");
                }
                self.ended(index, last, call)
            }
            Op::Drop(index) if !self.held.is_empty() => {
                let index = index % self.held.len();
                let held = &mut self.held[index];
                let call = held.call;
                drop(held.shares.pop());
                let last = held.shares.is_empty();
                self.ended(index, last, call)
            }
            Op::Share(index) if !self.held.is_empty() => {
                let index = index % self.held.len();
                let held = &mut self.held[index];
                held.shares.push(held.shares[0].share());
                return;
            }
            Op::Expire(index) if !self.model.holders.is_empty() => {
                let mut holders = self.model.holders.iter().copied();
                let call = holders.nth(index % holders.len()).expect("so many");
                let kept = Kept::of(self.server, self.name).await;
                let label = call.to_string();
                let holder = kept.holders.iter().find(|it| it.metadata == label);
                expire(self.server, self.name, &holder.expect("it holds").id).await;
                self.taken(&[call]).await
            }
            Op::Delete => {
                let _: usize = self.server.run(&["DEL", &key(self.name)]).await;
                let all: Vec<usize> = self.model.holders.iter().copied().collect();
                self.taken(&all).await
            }
            Op::GiveUp(_) | Op::Release(_) | Op::Drop(_) | Op::Share(_) | Op::Expire(_) => return,
        };
        self.settle(&format!("{op:?}"), outcomes).await;
    }

    /// One holder has ended; with the last one of a lease, its permits are given back.
    fn ended(&mut self, index: usize, last: bool, call: usize) -> Vec<Model> {
        let mut model = self.model.clone();
        if last {
            self.held.swap_remove(index);
            model.holders.remove(&call);
        }
        model.outcomes(&self.calls)
    }

    /// These permits are gone without a word to anybody. The next call that asks finds it so, and
    /// overtakes nobody.
    async fn taken(&mut self, calls: &[usize]) -> Vec<Model> {
        let mut model = self.model.clone();
        model.holders.retain(|holder| !calls.contains(holder));
        for held in &mut self.held {
            held.taken |= calls.contains(&held.call);
        }
        if !model.queue.is_empty() {
            // It asks for the only one, so it would be granted that if nobody held or waited.
            let stranger = self.clients[CLIENTS].semaphore(self.name, 1);
            let tried = stranger.try_acquire().await.expect("an answer");
            assert!(tried.is_none(), "overtook the queue of {model:?}");
        }
        model.outcomes(&self.calls)
    }

    /// Waits until one of these has come about, and checks what the clients know of it.
    async fn settle(&mut self, what: &str, outcomes: Vec<Model>) {
        let name = |call: &usize| call.to_string();
        let what = format!("in {}, after {what}: {outcomes:?}", self.name);
        let (reached, seen) = (Mutex::new(None), Mutex::new(String::new()));
        let expected = || format!("{what}, not {}", seen.lock().expect("no panic"));
        until_so(expected, async || {
            let kept = Kept::of(self.server, self.name).await;
            *seen.lock().expect("no panic") = format!("{kept:?}");
            let alive = kept.holders.iter().filter(|holder| holder.deadline > 1);
            let holders: BTreeSet<String> = alive.map(|it| it.metadata.clone()).collect();
            let is = |model: &&Model| {
                holders.iter().eq(&sorted(model.holders.iter().map(name)))
                    && kept.awaited_by() == model.queue.iter().map(name).collect::<Vec<_>>()
            };
            let found = outcomes.iter().find(is).cloned();
            let is_there = found.is_some();
            *reached.lock().expect("no panic") = found;
            is_there
        })
        .await;
        let reached = reached.into_inner().expect("no panic");
        self.model = reached.expect("until it was there");
        for number in self.model.holders.clone() {
            if let Some(waiter) = self.waiting.remove(&number) {
                let permits = granted(waiter).await;
                self.hold(number, permits);
            }
        }
        let waiting = self.model.lines.iter().map(VecDeque::len).sum::<usize>();
        assert_eq!(self.waiting.len(), waiting, "the model contradicts itself");
        assert!(self.waiting.values().all(|waiter| !waiter.is_finished()));
        for held in self.held.iter().filter(|held| !held.taken) {
            assert!(held.shares.iter().all(Permits::is_held), "{what}: {held:?}");
        }
    }

    /// A client that was robbed learns it, at the latest from its release. All others release.
    async fn finish(mut self) {
        while !self.held.is_empty() {
            self.step(Op::Release(0)).await;
        }
        assert!(self.waiting.is_empty(), "nobody holds, and they wait");
        // This clears away what an administrator has ended.
        let whole = self.clients[CLIENTS].semaphore(self.name, WIDER);
        let whole = whole.weight(WIDER).try_acquire().await.expect("an answer");
        let released = whole.expect("all are free").release().await;
        released.expect("held until now");
        all_back(self.server, self.name).await;
    }

    fn number(&mut self, call: Call) -> usize {
        self.calls.push(call);
        self.calls.len() - 1
    }

    fn hold(&mut self, number: usize, permits: Permits) {
        assert!(permits.is_held());
        assert_eq!(permits.weight(), self.calls[number].weight);
        self.held.push(Held {
            call: number,
            shares: vec![permits],
            taken: false,
        });
    }

    fn semaphore(&self, number: usize) -> Semaphore {
        let call = self.calls[number];
        let semaphore = self.clients[call.client].semaphore(self.name, call.limit);
        let semaphore = semaphore.weight(call.weight).lease(AGES);
        semaphore.metadata(&number.to_string())
    }
}

fn sorted(names: impl Iterator<Item = String>) -> BTreeSet<String> {
    names.collect()
}

/// How many clients play; one more only ever asks.
const CLIENTS: usize = 3;

/// How many permits most calls say that there are.
const LIMIT: u32 = 4;

/// How many the others say.
const WIDER: u32 = 6;
