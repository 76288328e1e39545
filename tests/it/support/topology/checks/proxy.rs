//! The proxy acts on exactly the frames that are meant.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, cmd};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::connection;
use crate::support::topology::{Node, Port, Recipe};
use crate::support::wait::{bounded, until};

/// A node, a proxy before it, and a connection through that.
async fn stage() -> (Node, Proxy, MultiplexedConnection) {
    let node = Recipe::new().on(Port::free()).start().await;
    let proxy = Proxy::before_node(&node).await;
    let connection = connection(proxy.url()).await;
    (node, proxy, connection)
}

/// `INCR` of the keys `a`, `b`, `c`, .. in one write; a lost one shows in all behind it.
fn increments(keys: &str) -> redis::Pipeline {
    let mut pipeline = redis::pipe();
    for key in keys.chars() {
        pipeline.cmd("INCR").arg(key.to_string());
    }
    pipeline
}

async fn present(node: &Node) -> String {
    let mut keys: Vec<String> = node.run(&["KEYS", "*"]).await;
    keys.sort();
    keys.concat()
}

#[tokio::test]
async fn the_third_of_five_requests_in_one_segment_is_lost_before_it_runs() {
    let (node, proxy, mut connection) = stage().await;
    let rule = proxy.on(Request::nth(3).named("incr"), Act::Reset);
    let lost: RedisResult<Vec<i64>> = increments("abcde").query_async(&mut connection).await;
    assert!(lost.is_err());
    rule.hit().await;
    until("what was before it has run", async || {
        present(&node).await == "ab"
    })
    .await;
    assert_eq!(rule.hits(), 1);
    let mut again = crate::support::server::connection(proxy.url()).await;
    let passed: Vec<i64> = bounded("a spent rule", increments("abcde").query_async(&mut again))
        .await
        .expect("nothing is lost any more");
    assert_eq!(passed, [2, 2, 1, 1, 1]);
}

#[tokio::test]
async fn the_reply_to_one_request_is_lost_after_that_ran() {
    let (node, proxy, mut connection) = stage().await;
    let rule = proxy.on_reply(Request::any().named("INCR").with("c"), Act::Reset);
    let lost: RedisResult<Vec<i64>> = increments("abcde").query_async(&mut connection).await;
    let lost = lost.expect_err("the reply is lost");
    assert!(lost.is_io_error(), "{lost}");
    assert_eq!(rule.hits(), 1);
    until("the server has read all", async || {
        present(&node).await == "abcde"
    })
    .await;
}

#[tokio::test]
async fn a_reply_is_torn_inside() {
    let (node, proxy, mut connection) = stage().await;
    let long = "x".repeat(300_000);
    let _: String = node.run(&["SET", "a", &long]).await;
    let rule = proxy.on_reply(Request::nth(2).named("GET"), Act::Truncate(200_000));
    let whole: String = cmd("GET")
        .arg("a")
        .query_async(&mut connection)
        .await
        .expect("whole");
    assert_eq!(whole.len(), long.len());
    let torn: RedisResult<String> = cmd("GET").arg("a").query_async(&mut connection).await;
    assert!(torn.is_err());
    assert_eq!(rule.hits(), 1);
}

#[tokio::test]
async fn slices_and_delays_change_nothing_but_the_time() {
    let (_node, proxy, mut connection) = stage().await;
    let pause = Duration::from_micros(500);
    let rules = [
        proxy.on(Request::every().named("INCR"), Act::Slice(7, pause)),
        proxy.on_reply(Request::every().named("INCR"), Act::Slice(8, pause)),
        proxy.on_reply(Request::any().named("PING"), Act::Delay(2 * pause)),
    ];
    let values: Vec<i64> = increments("abaab")
        .query_async(&mut connection)
        .await
        .expect("late");
    assert_eq!(values, [1, 1, 2, 3, 2]);
    let pong: String = cmd("PING")
        .query_async(&mut connection)
        .await
        .expect("late");
    assert_eq!(pong, "PONG");
    assert_eq!(rules.map(|rule| rule.hits()), [5, 5, 1]);
}

#[tokio::test]
async fn after_a_frame_vanished_nothing_passes_and_nothing_closes() {
    let (node, proxy, mut connection) = stage().await;
    let rule = proxy.on(Request::any().named("INCR"), Act::Vanish);
    let pipeline = increments("ab");
    let silence = pipeline.query_async::<Vec<i64>>(&mut connection);
    tokio::select! {
        answered = silence => panic!("{answered:?}"),
        () = async {
            rule.hit().await;
            let mut other = crate::support::server::connection(proxy.url()).await;
            let _: i64 = cmd("INCR").arg("c").query_async(&mut other).await.expect("unhurt");
        } => {}
    }
    assert_eq!(present(&node).await, "c");
}

#[tokio::test]
async fn a_held_request_is_delivered_after_its_client_has_gone() {
    let (node, proxy, mut connection) = stage().await;
    let rule = proxy.on(Request::any().named("INCR"), Act::Hold);
    let asked = tokio::spawn(async move {
        let _: RedisResult<i64> = cmd("INCR").arg("a").query_async(&mut connection).await;
    });
    rule.hit().await;
    asked.abort();
    assert!(asked.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(present(&node).await, "");
    rule.deliver();
    until("it runs in the end", async || present(&node).await == "a").await;
}

#[tokio::test]
async fn a_held_reply_keeps_those_behind_it_waiting() {
    let (node, proxy, connection) = stage().await;
    let rule = proxy.on_reply(Request::any().named("INCR"), Act::Hold);
    let ask = |key: &'static str| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            let value: RedisResult<i64> = cmd("INCR").arg(key).query_async(&mut connection).await;
            value.expect("answered")
        })
    };
    let held = ask("a");
    rule.hit().await;
    let behind = ask("b");
    until("both run", async || present(&node).await == "ab").await;
    assert!(!held.is_finished() && !behind.is_finished());
    rule.deliver();
    assert_eq!(held.await.expect("no panic"), 1);
    assert_eq!(behind.await.expect("no panic"), 1);
}

#[tokio::test]
async fn a_push_is_lost_and_the_replies_around_it_are_not() {
    let (node, proxy, _) = stage().await;
    let rule = proxy.on_push(Request::nth(2).named("message"), Act::Delay(Duration::ZERO));
    let (sender, mut pushed) = tokio::sync::mpsc::unbounded_channel();
    let config = redis::AsyncConnectionConfig::new().set_push_sender(sender);
    let mut subscribed = redis::Client::open(format!("{}?protocol=resp3", proxy.url()))
        .expect("a good URL")
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .expect("the server accepts");
    subscribed.subscribe("c").await.expect("subscribed");
    let pong: String = cmd("PING")
        .query_async(&mut subscribed)
        .await
        .expect("paired");
    assert_eq!(pong, "PONG");
    for word in ["one", "two"] {
        let heard: usize = node.run(&["PUBLISH", "c", word]).await;
        assert_eq!(heard, 1);
    }
    rule.hit().await;
    let paired = proxy.on_reply(Request::any().named("ECHO"), Act::Delay(Duration::ZERO));
    let echo: String = cmd("ECHO")
        .arg("e")
        .query_async(&mut subscribed)
        .await
        .expect("paired");
    assert_eq!(echo, "e");
    assert_eq!(paired.hits(), 1);
    let mut messages = 0;
    while let Some(push) = bounded("both messages come", pushed.recv()).await {
        messages += usize::from(push.kind == redis::PushKind::Message);
        if messages == 2 {
            break;
        }
    }
    assert_eq!(rule.hits(), 1);
}
