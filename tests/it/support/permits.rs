//! What the server keeps of a semaphore, read as `docs/keys-and-scripts.md` describes it, and calls
//! that wait for permits.
//!
//! Invariant: what is read is one moment, because one script reads both keys. Each reading checks
//! that `used` is the sum of the weights.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hedgerow::{Client, Permits, Result, Semaphore};
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

use crate::support::server::Server;
use crate::support::wait::{bounded, until};

/// Longer than any test takes.
pub const AGES: Duration = Duration::from_secs(600);

/// The holders and the queue of one semaphore.
#[derive(Debug)]
pub struct Kept {
    pub holders: Vec<Entry>,
    /// In the order of arrival.
    pub queue: Vec<Entry>,
}

/// One holder, or one position in the queue.
#[derive(Debug)]
pub struct Entry {
    pub id: String,
    /// Of a holder in ms of the server's clock, of a position in ms of the queue's.
    pub deadline: i64,
    /// Of a holder.
    pub fence: u64,
    pub process: String,
    pub weight: u32,
    pub metadata: String,
}

impl Kept {
    pub async fn of(server: &Server, name: &str) -> Self {
        let (holders, queue) = (key(name), queue_key(name));
        let both: [BTreeMap<String, String>; 2] = {
            let both: Vec<Vec<String>> = server.run(&["EVAL", BOTH, "2", &holders, &queue]).await;
            let [holders, queue] = both.try_into().expect("two hashes");
            [pairs(holders), pairs(queue)]
        };
        let [holders, queue] = &both;
        let used = holders.get("used").map_or(0, |used| number(used));
        let holders: Vec<Entry> = holders
            .iter()
            .filter(|(field, _)| field.len() == ID)
            .map(|(id, text)| holder(id, text))
            .collect();
        let sum: u32 = holders.iter().map(|holder| holder.weight).sum();
        assert_eq!(used, sum, "`used` is not what these hold: {holders:?}");
        let mut positions: Vec<(u64, Entry)> = queue
            .iter()
            .filter_map(|(field, text)| Some((field.parse().ok()?, position(text))))
            .collect();
        positions.sort_by_key(|(number, _)| *number);
        let queue = positions.into_iter().map(|(_, entry)| entry);
        Self {
            holders,
            queue: queue.collect(),
        }
    }

    /// The weights of the holders, the least first.
    pub fn weights(&self) -> Vec<u32> {
        let mut weights: Vec<u32> = self.holders.iter().map(|it| it.weight).collect();
        weights.sort_unstable();
        weights
    }

    /// The metadata of the holders, sorted.
    pub fn held_by(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.holders.iter().map(|it| &*it.metadata).collect();
        names.sort_unstable();
        names
    }

    /// The metadata of the waiters, in the order of arrival.
    pub fn awaited_by(&self) -> Vec<&str> {
        self.queue.iter().map(|it| &*it.metadata).collect()
    }
}

/// The key of the holders.
pub fn key(name: &str) -> String {
    format!("hr:{{b{:02x}}}:semaphore:{name}", bucket(name))
}

pub fn queue_key(name: &str) -> String {
    format!("hr:{{b{:02x}}}:semaphore-queue:{name}", bucket(name))
}

/// A client that need not ask for formats and scripts any more.
pub async fn warm(client: Client) -> Client {
    let permits = client.semaphore("warm", 1).acquire().await;
    permits.expect("free").release().await.expect("held");
    client
}

/// A call that waits for as long as it takes, in a task of its own. It is in the line of its
/// process when this returns.
pub fn wait(semaphore: Semaphore) -> JoinHandle<Result<Permits>> {
    let semaphore = semaphore.wait(AGES).lease(AGES);
    let mut call = Box::pin(async move { semaphore.acquire().await });
    match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => tokio::spawn(std::future::ready(answer)),
        Poll::Pending => tokio::spawn(call),
    }
}

pub async fn granted(waiter: JoinHandle<Result<Permits>>) -> Permits {
    let granted = bounded("the waiter is granted its permits", waiter).await;
    granted.expect("no panic").expect("granted")
}

/// Waits until processes with this metadata stand in the queue, in this order.
pub async fn queued(server: &Server, name: &str, order: &[&str]) {
    until(&format!("{order:?} wait"), async || {
        Kept::of(server, name).await.awaited_by() == order
    })
    .await;
}

/// Waits until nobody holds permits and nobody waits, and both keys are gone.
pub async fn all_back(server: &Server, name: &str) {
    until("all permits are back", async || {
        let (key, queue) = (key(name), queue_key(name));
        server.run::<usize>(&["EXISTS", &key, &queue]).await == 0
    })
    .await;
}

/// Ends a lease behind the back of its holder. The next call that asks finds it so.
pub async fn expire(server: &Server, name: &str, id: &str) {
    let found: usize = server.run(&["EVAL", EXPIRE, "1", &key(name), id]).await;
    assert_eq!(found, 1, "it was held");
}

fn bucket(name: &str) -> u64 {
    xxh3_64(name.as_bytes()) & 0xff
}

/// `deadline fence process weight limit metadata`.
fn holder(id: &str, text: &str) -> Entry {
    let words: Vec<&str> = text.splitn(6, ' ').collect();
    assert_eq!(words.len(), 6, "a holder: {text:?}");
    Entry {
        id: id.to_owned(),
        deadline: number(words[0]),
        fence: number(words[1]),
        process: words[2].to_owned(),
        weight: number(words[3]),
        metadata: words[5].to_owned(),
    }
}

/// `deadline since lease id process weight limit metadata`.
fn position(text: &str) -> Entry {
    let words: Vec<&str> = text.splitn(8, ' ').collect();
    assert_eq!(words.len(), 8, "a position: {text:?}");
    Entry {
        id: words[3].to_owned(),
        deadline: number(words[0]),
        fence: 0,
        process: words[4].to_owned(),
        weight: number(words[5]),
        metadata: words[7].to_owned(),
    }
}

fn pairs(flat: Vec<String>) -> BTreeMap<String, String> {
    let mut flat = flat.into_iter();
    let mut pairs = BTreeMap::new();
    while let (Some(field), Some(value)) = (flat.next(), flat.next()) {
        pairs.insert(field, value);
    }
    pairs
}

fn number<N: std::str::FromStr>(text: &str) -> N {
    let number = text.parse();
    number.unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// The length of an id in a hash, where no other field has it.
const ID: usize = 32;

const BOTH: &str = "return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}";

const EXPIRE: &str = r"
local holder = redis.call('HGET', KEYS[1], ARGV[1])
if not holder then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], (holder:gsub('^%d+', '1')), 'next', '1')
return 1";
