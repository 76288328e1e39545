//! What happens to a world while it is busy, and how often it did.
//!
//! Invariant: a fault counts only if something has met it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};

use super::world::Ground;
use crate::support::proxy::{Act, Proxy, Request, Rule};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed while one of its loads runs.
    LeaderKilled,
    /// Keys of tags are deleted, as by eviction.
    TagsEvicted,
    /// The server closes all connections for pushes.
    PushesCut,
    /// A slot goes to another primary, with its keys.
    SlotMoved,
    Delayed,
    RequestLost,
    ReplyLost,
    /// Nothing arrives any more, and nothing is closed.
    HalfOpen,
    /// What the client has given up, and sent again, is delivered all the same.
    DeliveredLate,
    /// A push vanishes, with all behind it.
    PushesVanish,
    /// Pushes are late. Otherwise they come before the reply of what has caused them, as a rule.
    PushesDelayed,
}

/// How often each fault has hit.
pub type Hits = BTreeMap<Fault, usize>;

/// The faults of a ground, each with how often it is to hit at least.
pub fn least(ground: &Ground, network: bool, near: bool) -> Hits {
    let mut least = Hits::from([(Fault::LeaderKilled, 1), (Fault::TagsEvicted, 5)]);
    least.insert(Fault::PushesCut, 1);
    if ground.is_cluster() {
        least.insert(Fault::SlotMoved, 2);
    }
    if near {
        least.insert(Fault::PushesDelayed, 1);
    }
    if network {
        let all = [
            Fault::Delayed,
            Fault::RequestLost,
            Fault::ReplyLost,
            Fault::HalfOpen,
            Fault::DeliveredLate,
        ];
        least.extend(all.map(|fault| (fault, 1)));
        if near {
            least.insert(Fault::PushesVanish, 1);
        }
    }
    least
}

/// The order in which the faults of `least` come next: each as often as it is to hit.
pub fn round(least: &Hits, random: &mut StdRng) -> Vec<Fault> {
    let all = least.iter();
    let mut round: Vec<Fault> = all
        .flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count))
        .collect();
    round.shuffle(random);
    round
}

/// Brings about any fault but the death of a process. Returns whether it has hit something.
pub async fn bring(ground: &Ground, fault: Fault, random: &mut StdRng) -> bool {
    let proxies = ground.proxies();
    let proxy = |random: &mut StdRng| proxies.choose(random).expect("there is one");
    let frame = Request::nth(random.random_range(1..20));
    match fault {
        Fault::LeaderKilled => unreachable!("the world does that itself"),
        Fault::TagsEvicted => return evict(ground, random).await,
        Fault::PushesCut => return ground.cut_pushes().await > 0,
        Fault::SlotMoved => return ground.move_slot(random).await,
        Fault::Delayed => {
            let act = Act::Delay(Duration::from_millis(random.random_range(1..200)));
            let proxy = proxy(random);
            let rule = match random.random() {
                true => proxy.on(frame, act),
                false => proxy.on_reply(frame, act),
            };
            hits(proxy, &rule).await
        }
        Fault::RequestLost => {
            let proxy = proxy(random);
            hits(proxy, &proxy.on(frame, Act::Reset)).await
        }
        Fault::ReplyLost => {
            let proxy = proxy(random);
            hits(proxy, &proxy.on_reply(frame, Act::Reset)).await
        }
        Fault::HalfOpen => {
            let proxy = proxy(random);
            hits(proxy, &proxy.on(frame, Act::Vanish)).await
        }
        Fault::DeliveredLate => {
            let proxy = proxy(random);
            // Scripts change something.
            let frame = frame.named("EVALSHA");
            let rule = proxy.on(frame, Act::Hold);
            let hit = hits(proxy, &rule).await;
            // The client gives up after a second, and comes again.
            tokio::time::sleep(Duration::from_millis(random.random_range(900..1500))).await;
            rule.deliver();
            hit
        }
        Fault::PushesVanish => {
            let proxy = proxy(random);
            let push = Request::nth(random.random_range(1..5)).named("invalidate");
            hits(proxy, &proxy.on_push(push, Act::Vanish)).await
        }
        Fault::PushesDelayed => {
            let proxy = proxy(random);
            let delay = Duration::from_millis(random.random_range(10..50));
            let pushes = Request::every().named("invalidate");
            let rule = proxy.on_push(pushes, Act::Delay(delay));
            let hit = tokio::time::timeout(Duration::from_secs(2), rule.hit()).await;
            // Of each process some are late, and the sum of that is well below the bound.
            tokio::time::sleep(2 * delay).await;
            proxy.clear();
            hit.is_ok()
        }
    }
}

/// Whether `rule` hits within a while.
async fn hits(proxy: &Proxy, rule: &Rule) -> bool {
    let hit = tokio::time::timeout(Duration::from_secs(2), rule.hit()).await;
    proxy.clear();
    hit.is_ok()
}

/// Deletes some keys of tags, and now and then all of them.
async fn evict(ground: &Ground, random: &mut StdRng) -> bool {
    let mut keys = ground.keys("hr:t:*").await;
    keys.shuffle(random);
    if random.random_range(0..4) > 0 {
        keys.truncate(2);
    }
    let mut gone = 0;
    for key in &keys {
        gone += ground.run::<usize>(&["DEL", key]).await;
    }
    gone > 0
}
