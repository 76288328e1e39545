//! Many callers on one connection: to each its own answer, and nothing is sent for who has left.

use std::pin::pin;
use std::time::Duration;

use futures::poll;
use hedgerow::{Client, ErrorKind};
use redis::Value;

use crate::support::server::{Server, signal};
use crate::support::wait::{figure, until};

#[tokio::test]
async fn each_of_500_tasks_gets_its_own_answer() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let _: Value = server.run(&["HSET", "hr:c:{task 7}", "foreign", "1"]).await;
    let tasks: Vec<_> = (0..500_i64)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let name = format!("task {number}");
                let (counter, cache) = (client.counter(&name), client.cache("tasks"));
                let added = counter.add(number).await.map(|added| added.value);
                let minute = Duration::from_secs(60);
                cache.set(&name, &number, minute).await.expect("set");
                let found = cache.get::<i64>(&name).await.expect("read");
                assert_eq!(found.as_deref(), Some(&number), "{name}");
                let scripted = counter.add(1).within(0..=1000).await;
                (
                    added,
                    counter.get().await,
                    scripted.map(|added| added.value),
                )
            })
        })
        .collect();
    for (number, task) in (0..).zip(tasks) {
        let (added, read, scripted) = task.await.expect("no panic");
        if number == 7 {
            for error in [added.err(), read.err(), scripted.err()] {
                let error = error.expect("something else is there");
                assert_eq!(error.kind(), ErrorKind::WrongType);
            }
            continue;
        }
        assert_eq!(added.expect("added"), number);
        assert_eq!(scripted.expect("added"), number + 1);
        assert_eq!(read.expect("read"), number + 1);
    }
    let reads = figure(&server, "commandstats", "cmdstat_mget:calls=").await;
    assert!((1..500).contains(&reads), "reads are gathered: {reads}");
}

#[tokio::test]
async fn a_forbidden_key_fails_only_those_who_ask_for_it() {
    let server = Server::start_single().await;
    let minute = Duration::from_secs(60);
    let owner = server.client().await;
    for cache in ["open", "closed"] {
        let set = owner.cache(cache).set("k", &7, minute).await;
        set.expect("stored");
    }
    let rules = ["on", ">secret", "+@all", "~hr:v:{open:*", "~hr:t:*", "&*"];
    let _: Value = server
        .run(&[&["ACL", "SETUSER", "reader"], &rules[..]].concat())
        .await;
    let url = format!("{}?user=reader&pass=secret", server.url());
    let client = Client::open(&url).expect("a good URL");
    let tasks: Vec<_> = (0..200)
        .map(|number| {
            let name = if number % 20 == 0 { "closed" } else { "open" };
            let cache = client.cache(name);
            tokio::spawn(async move { (name, cache.get::<i64>("k").await) })
        })
        .collect();
    for task in tasks {
        match task.await.expect("no panic") {
            ("open", read) => assert_eq!(read.expect("allowed").as_deref(), Some(&7)),
            (_, read) => {
                let error = read.expect_err("forbidden");
                assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_in_the_queue_is_not_sent() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let connected = client.counter("first").add(0).await;
    connected.expect("a connection");
    let _: Value = server.run(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    // One is under way by itself, two are carried; those that come later have to queue.
    let mut under_way = Vec::new();
    for name in ["first", "second", "third"] {
        let before = received(&server).await;
        let add = client.counter(name).add(1).into_future();
        under_way.push(tokio::spawn(add));
        until("the server has received it", async || {
            received(&server).await > before
        })
        .await;
    }
    let before = received(&server).await;
    let (dropped, kept) = (client.counter("dropped"), client.counter("kept"));
    let mut queued = Box::pin(dropped.add(1).into_future());
    let mut other = pin!(kept.add(1).into_future());
    assert!(poll!(&mut queued).is_pending());
    assert!(poll!(&mut other).is_pending());
    drop(queued);
    assert_eq!(received(&server).await, before, "they wait");
    let _: Value = server.run(&["CLIENT", "UNPAUSE"]).await;
    for add in under_way {
        assert_eq!(add.await.expect("no panic").expect("added").value, 1);
    }
    assert_eq!(other.await.expect("added").value, 1);
    assert_eq!(dropped.get().await.expect("read"), 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_while_it_waits_for_a_connection_is_not_sent() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let pid = server.pid().await;
    signal(pid, "STOP");
    let counter = client.counter("views");
    {
        let mut alone = pin!(counter.add(1).into_future());
        let mut queued = pin!(counter.add(1).into_future());
        for _ in 0..10 {
            assert!(poll!(&mut alone).is_pending());
            assert!(poll!(&mut queued).is_pending());
            tokio::task::yield_now().await;
        }
    }
    signal(pid, "CONT");
    assert_eq!(counter.add(10).await.expect("added").value, 10);
}

/// How many bytes the server has read from the client's connection, executed or not.
async fn received(server: &Server) -> usize {
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    let line = list.lines().find(|line| line.contains(" name=hedgerow "));
    let line = line.expect("the client is connected");
    let number = |field: &str| -> usize {
        let part = line.split(' ').find_map(|part| part.strip_prefix(field));
        part.and_then(|number| number.parse().ok())
            .expect("a number")
    };
    number("qbuf=") + number("argv-mem=")
}
