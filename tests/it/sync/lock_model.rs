//! Locks against a model: any sequence of calls by several clients, with an administrator who
//! deletes and expires keys behind their backs, ends as the model says.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hedgerow::{Client, ErrorKind, Fence, Guard, Lock};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::task::JoinHandle;

use crate::support::server::Server;
use crate::support::wait::{bounded, until};

/// One step. Numbers pick a client, or one of the guards that there are.
#[derive(Debug, Clone, Copy)]
enum Op {
    Try(usize),
    /// A call that is dropped while it waits, if the lock is held.
    GiveUp(usize),
    /// A call that goes on waiting, if the lock is held.
    Wait(usize),
    Release(usize),
    Drop(usize),
    Break(usize),
    Delete,
    Expire,
    LoseFenceCounter,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..CLIENTS).prop_map(Op::Try),
        1 => (0..CLIENTS).prop_map(Op::GiveUp),
        4 => (0..CLIENTS).prop_map(Op::Wait),
        4 => any::<usize>().prop_map(Op::Release),
        2 => any::<usize>().prop_map(Op::Drop),
        1 => (0..CLIENTS).prop_map(Op::Break),
        1 => Just(Op::Delete),
        1 => Just(Op::Expire),
        1 => Just(Op::LoseFenceCounter),
    ];
    prop::collection::vec(op, 1..24)
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
            clients.push(server.client().await);
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
                run.check(op).await;
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

/// A guard that a client has, and what the model knows of it.
#[derive(Debug)]
struct Held {
    guard: Guard,
    client: usize,
    /// Taken from it behind its back: it need not know yet.
    taken: bool,
}

/// A call that waits.
#[derive(Debug)]
struct Waiting {
    client: usize,
    call: JoinHandle<hedgerow::Result<Guard>>,
}

/// The state of one lock: what the model expects, with the real guards and calls beside it.
struct Run<'a> {
    server: &'a Server,
    clients: &'a [Client],
    name: &'a str,
    guards: Vec<Held>,
    /// The fence of the holder.
    holder: Option<Fence>,
    /// In the order of the server's queue; a client is there once.
    queue: VecDeque<Waiting>,
    last: Option<Fence>,
}

impl<'a> Run<'a> {
    fn new(server: &'a Server, clients: &'a [Client], name: &'a str) -> Self {
        Self {
            server,
            clients,
            name,
            guards: Vec::new(),
            holder: None,
            queue: VecDeque::new(),
            last: None,
        }
    }

    async fn step(&mut self, op: Op) {
        match op {
            Op::Try(client) => {
                let got = self.lock(client).try_acquire().await.expect("an answer");
                assert_eq!(got.is_some(), self.holder.is_none());
                if let Some(guard) = got {
                    self.granted(client, guard);
                }
            }
            Op::GiveUp(client) if self.queue.iter().all(|waiting| waiting.client != client) => {
                let lock = self.lock(client).wait(Duration::from_secs(60));
                if self.holder.is_some() {
                    let call = tokio::spawn(async move { lock.acquire().await });
                    self.queued(self.queue.len() + 1).await;
                    call.abort();
                    let _ = call.await;
                }
            }
            Op::Wait(client) if self.queue.iter().all(|waiting| waiting.client != client) => {
                let lock = self.lock(client).wait(Duration::from_secs(60));
                if self.holder.is_none() {
                    let guard = lock.acquire().await.expect("free");
                    self.granted(client, guard);
                } else {
                    let call = tokio::spawn(async move { lock.acquire().await });
                    self.queue.push_back(Waiting { client, call });
                }
            }
            Op::Release(index) if !self.guards.is_empty() => {
                let held = self.guards.swap_remove(index % self.guards.len());
                let (fence, released) = (held.guard.fence(), held.guard.release().await);
                if self.holder == Some(fence) {
                    released.expect("held until now");
                    self.passed_on(held.client).await;
                } else {
                    assert_eq!(released.expect_err("lost").kind(), ErrorKind::Lost);
                }
            }
            Op::Drop(index) if !self.guards.is_empty() => {
                let held = self.guards.swap_remove(index % self.guards.len());
                if self.holder == Some(held.guard.fence()) {
                    drop(held);
                    self.passed_to(0).await;
                }
            }
            Op::Break(client) => {
                let broken = self.lock(client).break_lock().await.expect("an answer");
                assert_eq!(broken, self.holder.is_some());
                self.taken();
                if broken {
                    self.passed_to(0).await;
                }
            }
            Op::Delete => {
                let _: usize = self.server.run(&["DEL", &self.key().await]).await;
                self.found_free().await;
            }
            Op::Expire => {
                let key = self.key().await;
                until("the lease ends", || async {
                    self.server.run::<usize>(&["PEXPIRE", &key, "1"]).await == 0
                })
                .await;
                self.found_free().await;
            }
            Op::LoseFenceCounter => {
                let counter = self
                    .key()
                    .await
                    .replace(&format!("lock:{}", self.name), "fence");
                let _: usize = self.server.run(&["DEL", &counter]).await;
            }
            Op::GiveUp(_) | Op::Wait(_) | Op::Release(_) | Op::Drop(_) => {}
        }
    }

    /// The server agrees with the model, and no guard says more than that.
    async fn check(&self, op: Op) {
        let lock = self.lock(0);
        let expected = (self.holder, self.queue.len());
        until(&format!("after {op:?}: {expected:?}"), || async {
            let info = lock.inspect().await.expect("an answer");
            (info.holder.map(|holder| holder.fence), info.queue.len()) == expected
        })
        .await;
        for held in &self.guards {
            let holds = self.holder == Some(held.guard.fence());
            assert!(holds != held.taken, "the model contradicts itself");
            assert!(
                held.guard.is_held() || !holds,
                "lost after {op:?}: {held:?}"
            );
        }
    }

    /// Whoever was robbed is told, at the latest when it releases; all others release in peace.
    async fn finish(mut self) {
        while !self.guards.is_empty() {
            self.step(Op::Release(0)).await;
            self.check(Op::Release(0)).await;
        }
        assert!(self.holder.is_none() && self.queue.is_empty());
    }

    async fn queued(&self, processes: usize) {
        crate::support::wait::queued(&self.lock(0), processes).await;
    }

    fn granted(&mut self, client: usize, guard: Guard) {
        assert!(guard.is_held());
        assert!(self.holder.is_none(), "two holders");
        assert!(
            Some(guard.fence()) > self.last,
            "{guard:?} is not above {:?}",
            self.last
        );
        self.holder = Some(guard.fence());
        self.last = self.holder;
        self.guards.push(Held {
            guard,
            client,
            taken: false,
        });
    }

    /// A client has released: a waiter of its own comes first, if it stands in line already. One
    /// that the server has queued, but not answered yet, does not: then it is the first in the
    /// server's queue.
    async fn passed_on(&mut self, client: usize) {
        let own = self.queue.iter().position(|next| next.client == client);
        let next = [own.unwrap_or(0), 0];
        if !self.queue.is_empty() {
            until("the next waiter gets the lock", || async {
                next.iter()
                    .any(|&place| self.queue[place].call.is_finished())
            })
            .await;
        }
        let got = |place: &usize| {
            self.queue
                .get(*place)
                .is_some_and(|it| it.call.is_finished())
        };
        let place = next.into_iter().find(got).unwrap_or(0);
        self.passed_to(place).await;
    }

    /// The holder is none any more: the waiter at `place` becomes it.
    async fn passed_to(&mut self, place: usize) {
        self.holder = None;
        if let Some(Waiting { client, call }) = self.queue.remove(place) {
            let guard = bounded("the next waiter gets the lock", call).await;
            self.granted(client, guard.expect("no panic").expect("granted"));
        }
    }

    /// The lock is gone without a word to anybody; the next who asks finds it so, and does not
    /// overtake.
    async fn found_free(&mut self) {
        self.taken();
        self.holder = None;
        if !self.queue.is_empty() {
            let stranger = self.lock(CLIENTS).try_acquire().await.expect("an answer");
            assert!(stranger.is_none(), "overtook the queue");
            self.passed_to(0).await;
        }
    }

    fn taken(&mut self) {
        for held in &mut self.guards {
            held.taken |= self.holder == Some(held.guard.fence());
        }
    }

    fn lock(&self, client: usize) -> Lock {
        self.clients[client]
            .lock(self.name)
            .lease(Duration::from_secs(600))
    }

    /// The key of the lock, which need not exist.
    async fn key(&self) -> String {
        let keys = self
            .server
            .keys(&format!("hr:{{*}}:lock:{}", self.name))
            .await;
        keys.into_iter().next().unwrap_or_else(|| "none".to_owned())
    }
}

/// How many clients play; one more only ever asks.
const CLIENTS: usize = 3;
