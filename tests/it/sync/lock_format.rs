//! What locks keep in Redis: what is foreign or forged there is told apart, and what has died there
//! costs no other process much.

use std::time::Duration;

use hedgerow::{ErrorKind, Guard, Lock};
use tokio::task::JoinHandle;

use crate::support::monitor::Monitor;
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, queued, until};

/// Everything that stands in Redis and in the messages of earlier grants is known to a forger.
#[tokio::test]
async fn a_reader_of_redis_who_may_publish_forges_no_grant() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    // Two hand-overs whose messages the forger has heard.
    let monitor = Monitor::start(&server).await;
    let mut first = two.lock("a").acquire().await.expect("free");
    for next in [&one, &two, &one] {
        let waiter = wait(next.lock("a"));
        queued(&one.lock("a"), 1).await;
        first.release().await.expect("held until now");
        first = granted(waiter).await;
    }
    let heard = grants(&monitor, &server).await;
    assert_eq!(heard.len(), 3, "{heard:?}");
    let waiter = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    let listens = async || {
        let command = ["PUBSUB", "SHARDCHANNELS", "hr:*:wake:*"];
        server.run::<Vec<String>>(&command).await
    };
    until("the waiter listens", async || !listens().await.is_empty()).await;

    let held: String = server.run(&["GET", &key(&server, "lock").await]).await;
    let fields: Vec<String> = server.run(&["HGETALL", &key(&server, "queue").await]).await;
    let mut words: Vec<&str> = fields.iter().flat_map(|field| field.split(' ')).collect();
    words.extend(held.split([' ', '+']));
    words.extend(heard.iter().flat_map(|message| message.split(' ')));
    words.retain(|word| word.len() == 32);
    words.sort_unstable();
    words.dedup();
    for channel in listens().await {
        for id in &words {
            for fence in [first.fence().get() + 1, (1 << 53) - 1, u64::MAX] {
                for secret in words.iter().chain([&"", &"-"]) {
                    let forged = format!("grant {id} {fence} {secret}");
                    let _: usize = server.run(&["SPUBLISH", &channel, &forged]).await;
                }
            }
        }
    }
    // It asks when it hears of what may be a grant, and is told that the lock is held.
    let before = calls(&server, &["evalsha"]).await;
    until("the waiter has asked again", async || {
        calls(&server, &["evalsha"]).await > before + 1
    })
    .await;
    assert!(!waiter.is_finished(), "it was granted by a forged message");
    let fence = first.fence();
    first.release().await.expect("held until now");
    let second = granted(waiter).await;
    assert!(second.fence() > fence && second.fence().get() < fence.get() + (1 << 40));
}

/// Who waits behind those that have left is not told that the holder hands over to it.
#[tokio::test]
async fn leavers_in_the_queue_let_nobody_forge_a_grant() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.lock("a").acquire().await.expect("free");
    let ahead = wait(server.client().await.lock("a"));
    queued(&one.lock("a"), 1).await;
    let leaver = server.client().await;
    for _ in 0..12 {
        let leaver = wait(leaver.lock("a"));
        queued(&one.lock("a"), 2).await;
        leaver.abort();
        queued(&one.lock("a"), 1).await;
    }
    let behind = wait(two.lock("a"));
    queued(&one.lock("a"), 2).await;
    let monitor = Monitor::start(&server).await;
    first.release().await.expect("held until now");
    let ahead = granted(ahead).await;
    let heard = grants(&monitor, &server).await;
    assert_eq!(heard.len(), 1, "{heard:?}");
    let secret = heard[0].split(' ').nth(3).expect("a secret");

    let fields: Vec<String> = server.run(&["HVALS", &key(&server, "queue").await]).await;
    let place = fields.iter().find(|field| field.contains(' '));
    let words: Vec<&str> = place.expect("a place").split(' ').collect();
    let channel = key(&server, "lock").await.replace("lock:a", "wake:") + &words[4][1..];
    let forged = format!("grant {} {} {secret}", words[3], ahead.fence().get() + 1);
    let before = calls(&server, &["evalsha"]).await;
    let listeners: usize = server.run(&["SPUBLISH", &channel, &forged]).await;
    assert_eq!(listeners, 1);
    until("the waiter has asked again", async || {
        calls(&server, &["evalsha"]).await > before
    })
    .await;
    assert!(!behind.is_finished(), "it was granted by a forged message");
    ahead.release().await.expect("held until now");
    assert!(granted(behind).await.is_held());
}

/// It would prove a grant to whoever stood behind it in the queue.
#[tokio::test]
async fn who_leaves_the_queue_does_not_say_its_secret() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.lock("a").acquire().await.expect("free");
    let leaver = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    let monitor = Monitor::start(&server).await;
    leaver.abort();
    queued(&one.lock("a"), 0).await;
    let seen = monitor.commands(&server, "\"EVALSHA\" ").await;
    let last = seen.last().expect("it has said that it leaves");
    assert!(last.ends_with(" \"\""), "{last}");
    first.release().await.expect("held until now");
}

#[tokio::test]
async fn a_release_reaches_who_waits_behind_many_that_have_left() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.lock("a").acquire().await.expect("free");
    let queue = key(&server, "lock").await.replace(":lock:", ":queue:");
    let (seconds, _): (u64, u64) = server.run(&["TIME"]).await;
    let at = (seconds * 1000).to_string();
    let empty = ["head", "1", "tail", "200", "clock", "9000", "at", &at];
    let _: usize = server.run(&[&["HSET", &queue], &empty[..]].concat()).await;
    let waiter = wait(two.lock("a"));
    until("the waiter queues", async || {
        server.run::<usize>(&["HGET", &queue, "tail"]).await == 201
    })
    .await;
    first.release().await.expect("held until now");
    let holder = one.lock("a").inspect().await.expect("an answer").holder;
    assert!(holder.is_some(), "nobody was granted the lock");
    drop(granted(waiter).await);
}

/// The keeper does not ask for ever for what no script of ours can release.
#[tokio::test]
async fn a_guard_whose_lock_has_another_format_keeps_no_client_alive() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let ages = Duration::from_secs(600);
    let guard = client.lock("a").lease(ages).acquire().await.expect("free");
    let foreign = format!("1795000000000000 3 {}", "0".repeat(32));
    let lock_key = key(&server, "lock").await;
    let _: String = server.run(&["SET", &lock_key, &foreign]).await;
    drop((guard, client));
    until("its connections are closed", async || {
        let list: String = server.run(&["CLIENT", "LIST"]).await;
        !list.contains("name=hedgerow")
    })
    .await;
}

#[tokio::test]
async fn a_fence_counter_that_is_no_number_is_left_alone() {
    let server = Server::start_single().await;
    let lock = server.client().await.lock("a");
    let guard = lock.acquire().await.expect("free");
    let fence = key(&server, "fence").await;
    guard.release().await.expect("held until now");
    // As long as a fence, and between the first and the next.
    let spoilt = "1.79500000000000";
    let _: String = server.run(&["SET", &fence, spoilt]).await;
    let error = lock.acquire().await.expect_err("no fence can be given");
    assert_eq!(error.kind(), ErrorKind::WrongType);
    let counter: String = server.run(&["GET", &fence]).await;
    assert_eq!(counter, spoilt);
}

/// A hand-over knows the fence of the holder, though the counter is gone and the clock is behind
/// it.
#[tokio::test]
async fn a_fence_rises_above_that_of_the_holder_when_the_counter_is_lost() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    drop(one.lock("a").acquire().await.expect("free").release().await);
    let fence = key(&server, "fence").await;
    let ahead = 8_000_000_000_000_000_u64;
    let _: String = server.run(&["SET", &fence, &ahead.to_string()]).await;
    let first = one.lock("a").acquire().await.expect("free");
    assert_eq!(first.fence().get(), ahead + 1);
    let waiter = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    let _: usize = server.run(&["DEL", &fence]).await;
    let before = first.fence();
    first.release().await.expect("held until now");
    assert!(granted(waiter).await.fence() > before);
}

/// A grant that brings the secret of whoever was to hand over is believed as it is.
#[tokio::test]
async fn a_hand_over_by_push_costs_no_question_more() {
    let server = Server::start_single().await;
    let clients = [server.client().await, server.client().await];
    let mut guard = clients[0].lock("a").acquire().await.expect("free");
    let mut questions = Vec::new();
    for turn in 1..=20 {
        let (next, inspector) = (&clients[turn % 2], &clients[(turn + 1) % 2]);
        let waiter = wait(next.lock("a"));
        queued(&inspector.lock("a"), 1).await;
        let before = slow_paths(&server).await;
        guard.release().await.expect("held until now");
        guard = granted(waiter).await;
        questions.push(slow_paths(&server).await - before);
    }
    // The release, and now and then a heartbeat of the waiter.
    questions.sort_unstable();
    assert_eq!(questions[10], 1, "{questions:?}");
}

#[tokio::test]
async fn thousands_of_dead_places_hold_up_neither_the_server_nor_those_who_live() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.lock("a").acquire().await.expect("free");
    let dead = 10_000;
    let queue = key(&server, "lock").await.replace(":lock:", ":queue:");
    bury(&server, &queue, dead).await;
    let waiter = wait(two.lock("a"));
    until("the waiter queues", async || {
        server.run::<usize>(&["HGET", &queue, "tail"]).await == dead + 1
    })
    .await;
    let _: String = server.run(&["CONFIG", "RESETSTAT"]).await;

    let fence = first.fence();
    first.release().await.expect("held until now");
    let second = granted(waiter).await;
    assert!(second.fence() > fence);
    let scripts = calls(&server, &["evalsha"]).await;
    let removals = calls(&server, &["hdel"]).await;
    assert!(
        removals + 20 >= dead,
        "{removals} of {dead} places were removed"
    );
    assert!(
        removals <= 70 * scripts,
        "{removals} places in {scripts} scripts"
    );
    second.release().await.expect("held until now");
    assert!(server.keys("hr:{*}:*:a").await.is_empty());
}

#[tokio::test]
async fn every_question_of_a_waiter_removes_dead_places() {
    let server = Server::start_single().await;
    let one = server.client().await;
    let _first = one.lock("a").acquire().await.expect("free");
    let queue = key(&server, "lock").await.replace(":lock:", ":queue:");
    bury(&server, &queue, 4).await;
    let _waiters = (
        wait(server.client().await.lock("a")),
        wait(server.client().await.lock("a")),
    );
    queued(&one.lock("a"), 2).await;
    until("only the living are left", async || {
        server.run::<usize>(&["HLEN", &queue]).await == 4 + 2 * 2
    })
    .await;
}

/// Leases end early then, but who waits keeps its turn.
#[tokio::test]
async fn a_server_clock_that_is_set_forward_leaves_the_waiters_in_order() {
    let server = Server::start_single().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let first = one.lock("a").acquire().await.expect("free");
    let second = wait(two.lock("a").metadata("second"));
    queued(&one.lock("a"), 1).await;
    let third = wait(three.lock("a").metadata("third"));
    queued(&one.lock("a"), 2).await;
    let queue = key(&server, "queue").await;
    // As if everything so far had been an hour ago.
    let step = 3_600_000;
    let at: i64 = server.run(&["HGET", &queue, "at"]).await;
    let _: usize = server
        .run(&["HSET", &queue, "at", &(at - step).to_string()])
        .await;
    first.release().await.expect("held until now");
    let holder = one.lock("a").inspect().await.expect("an answer").holder;
    let holder = holder.expect("the lock was handed over").metadata;
    assert_eq!(holder, "second");
    let second = granted(second).await;
    second.release().await.expect("held until now");
    drop(granted(third).await);
}

#[tokio::test]
async fn a_lock_of_another_format_is_told_by_name_and_left_alone() {
    let server = Server::start_single().await;
    let lock = server.client().await.lock("a");
    drop(lock.acquire().await.expect("free").release().await);
    let fence = server.keys("hr:{*}:fence").await.remove(0);
    let lock_key = fence.replace(":fence", ":lock:a");
    let id = "0123456789abcdef".repeat(2);
    for (value, format) in [
        (format!("{id} 1795000000000000 {id} worker"), "format 1"),
        (format!("1795000000000000 3 {id}"), "format 3"),
    ] {
        let _: String = server.run(&["SET", &lock_key, &value]).await;
        let before = server.digest().await;
        let refused = [
            lock.acquire().await.map(drop),
            lock.try_acquire().await.map(drop),
            lock.inspect().await.map(drop),
            lock.break_lock().await.map(drop),
        ];
        for error in refused.map(|call| call.expect_err("another format")) {
            assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
            assert!(error.to_string().contains(format), "{error}");
        }
        assert_eq!(server.digest().await, before);
    }
}

#[tokio::test]
async fn a_spoilt_fence_counter_costs_no_waiter_its_place() {
    let server = Server::start_single().await;
    let (one, two) = (server.client().await, server.client().await);
    let first = one.lock("a").acquire().await.expect("free");
    let waiter = wait(two.lock("a"));
    queued(&one.lock("a"), 1).await;
    let (fence, queue) = (key(&server, "fence").await, key(&server, "queue").await);
    let _: String = server.run(&["SET", &fence, "1e3"]).await;
    let error = first.release().await.expect_err("no fence can be given");
    assert_eq!(error.kind(), ErrorKind::WrongType);
    assert_eq!(server.run::<usize>(&["HLEN", &queue]).await, 6);
    let counter: String = server.run(&["GET", &fence]).await;
    assert_eq!(counter, "1e3", "it is left alone");
    let error = bounded("the waiter is told", waiter)
        .await
        .expect("no panic");
    assert_eq!(error.expect_err("told").kind(), ErrorKind::WrongType);
}

/// A place whose text is foreign is passed over, and costs nobody else anything.
#[tokio::test]
async fn a_spoilt_place_in_the_queue_costs_no_other_its_turn() {
    let server = Server::start_single().await;
    let one = server.client().await;
    let first = one.lock("a").acquire().await.expect("free");
    let _second = wait(server.client().await.lock("a"));
    queued(&one.lock("a"), 1).await;
    let third = wait(server.client().await.lock("a"));
    queued(&one.lock("a"), 2).await;
    let queue = key(&server, "queue").await;
    let _: usize = server
        .run(&["HSET", &queue, "1", "\u{93}\u{c1}\u{c1} foreign"])
        .await;
    first.release().await.expect("held until now");
    drop(granted(third).await);
}

/// The messages that tell of grants, as far as the monitor has seen.
async fn grants(monitor: &Monitor, server: &Server) -> Vec<String> {
    let lines = monitor.of_scripts(server).await;
    let messages = lines.iter().filter_map(|line| line.split('"').rev().nth(1));
    let grants = messages.filter(|message| message.starts_with("grant "));
    grants.map(str::to_owned).collect()
}

/// The key of the lock "a" that is called so.
async fn key(server: &Server, part: &str) -> String {
    let pattern = match part {
        "fence" => "hr:{*}:fence".to_owned(),
        part => format!("hr:{{*}}:{part}:a"),
    };
    let keys = server.keys(&pattern).await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

/// Makes a queue of `dead` places that have lapsed, one behind the other.
async fn bury(server: &Server, queue: &str, dead: usize) {
    let (seconds, _): (u64, u64) = server.run(&["TIME"]).await;
    let at = (seconds * 1000).to_string();
    let tail = dead.to_string();
    let mut command = [
        "HSET", queue, "head", "1", "tail", &tail, "clock", "9000", "at", &at,
    ]
    .map(str::to_owned)
    .to_vec();
    for number in 1..=dead {
        let id = format!("{number:032x}");
        command.extend([
            number.to_string(),
            format!("5000 1000 3000 {id} 2{} dead", "f".repeat(32)),
            id,
            number.to_string(),
        ]);
    }
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let _: usize = server.run(&command).await;
}

/// How many scripts of locks went on behind their fast path, where all keys are read.
async fn slow_paths(server: &Server) -> usize {
    calls(server, &["hmget"]).await
}

fn wait(lock: Lock) -> JoinHandle<hedgerow::Result<Guard>> {
    tokio::spawn(async move { lock.wait(Duration::from_secs(60)).acquire().await })
}

async fn granted(waiter: JoinHandle<hedgerow::Result<Guard>>) -> Guard {
    let granted = bounded("the waiter is granted the lock", waiter).await;
    granted.expect("no panic").expect("granted")
}

/// Scripts write behind the id by its place, which would be another one here.
#[tokio::test]
async fn a_lock_whose_fence_has_other_than_16_digits_is_refused_and_left_as_it_is() {
    let server = Server::start_single().await;
    let lock = server.client().await.lock("a");
    let guard = lock.acquire().await.expect("free");
    let key = key(&server, "lock").await;
    guard.release().await.expect("held until now");
    let hex = "0123456789abcdef".repeat(2);
    let foreign = format!("979700000000000 2 {hex} {hex} 1{hex} somebody");
    let _: String = server.run(&["SET", &key, &foreign]).await;
    let refused = lock.acquire().await.expect_err("it cannot be read");
    assert_eq!(refused.kind(), ErrorKind::WrongType, "{refused}");
    let left: String = server.run(&["GET", &key]).await;
    assert_eq!(left, foreign);
}
