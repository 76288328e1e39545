//! Counters: exact over all of i64, refusals that change nothing, adds applied at most once.

use std::time::Duration;

use hedgerow::{Client, Counter, ErrorKind, counter::Add, counter::Added};

use crate::faults::Row;
use crate::support::server::Server;
use crate::support::topology::not_here;
use crate::support::wait::until;

/// The name that the counter `views` has on the server.
const KEY: &str = "hr:c:{views}";

#[tokio::test]
async fn every_answer_around_2_to_the_53_and_both_ends_equals_a_big_integer_model() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    let near = [
        0,
        1,
        -1,
        1 << 53,
        -(1 << 53),
        i64::MAX,
        i64::MIN,
        999_999_999,
        1_000_000_000,
        -1_000_000_000,
    ];
    let steps: Vec<i64> = near
        .iter()
        .flat_map(|&it| [it, it.saturating_add(1), it.saturating_sub(1)])
        .collect();
    for &start in &steps {
        for &delta in &steps {
            counter.set(start).await.expect("set");
            let sum = i128::from(start) + i128::from(delta);
            for scripted in [false, true] {
                let add = counter.add(delta);
                let add = if scripted {
                    add.within(i64::MIN..=i64::MAX)
                } else {
                    add
                };
                match (add.await, i64::try_from(sum)) {
                    (Ok(added), Ok(sum)) => assert_eq!(
                        (added.value, added.applied),
                        (sum, delta),
                        "{start} + {delta}"
                    ),
                    (Err(error), Err(_)) => {
                        assert_eq!(error.kind(), ErrorKind::Overflow, "{start} + {delta}")
                    }
                    (answer, _) => panic!("{start} + {delta}: {answer:?}"),
                }
                let expected = i64::try_from(sum).unwrap_or(start);
                assert_eq!(counter.get().await.expect("read"), expected);
                counter.set(start).await.expect("set");
            }
            let added = counter.add(delta).saturating().await.expect("saturates");
            let end = sum.clamp(i64::MIN.into(), i64::MAX.into());
            assert_eq!(i128::from(added.value), end, "{start} + {delta}");
            assert_eq!(
                i128::from(added.applied),
                end - i128::from(start),
                "{start} + {delta}"
            );
        }
    }
}

#[tokio::test]
async fn a_refused_add_leaves_the_digest_unchanged() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    // From here on the namespace says in which format counters are written.
    counter.take().await.expect("nothing there");
    let absent = server.digest().await;
    let error = counter
        .add(5)
        .within(0..=3)
        .await
        .expect_err("out of range");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert_eq!(error.key(), Some("views"));
    assert_eq!(
        counter
            .add(5)
            .within(0..=0)
            .saturating()
            .await
            .expect("clamped")
            .applied,
        0
    );
    assert_eq!(server.digest().await, absent, "nothing was created");

    counter.set(i64::MAX - 1).await.expect("set");
    let before = server.digest().await;
    let refused = [
        counter.add(2).await,
        counter.add(2).within(0..=i64::MAX).await,
        counter.add(1).within(0..=5).await,
        counter.add(-1).within(i64::MAX..=i64::MAX).await,
        counter.add(2).once("id", Duration::from_secs(9)).await,
        counter.add(1).expire(Duration::ZERO).await,
        counter.add(1).once("", Duration::from_secs(9)).await,
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "an empty range is what is tested"
        )]
        counter.add(1).within(5..=4).await,
    ];
    for (index, answer) in refused.into_iter().enumerate() {
        assert!(answer.is_err(), "number {index}");
        assert_eq!(server.digest().await, before, "number {index}");
    }
}

#[tokio::test]
async fn something_else_in_the_counters_place_is_refused_and_kept() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    // From here on the namespace says in which format counters are written.
    counter.take().await.expect("nothing there");
    let foreign: [&[&str]; 9] = [
        &["RPUSH", KEY, "a"],
        &["SET", KEY, "007"],
        &["SET", KEY, "+1"],
        &["SET", KEY, "-0"],
        &["SET", KEY, ""],
        &["SET", KEY, "twelve"],
        &["SET", KEY, "9223372036854775808"],
        &["SET", KEY, " 1"],
        &["SET", KEY, "1.5"],
    ];
    for words in foreign {
        let _: redis::Value = server.run(&["DEL", KEY]).await;
        let _: redis::Value = server.run(words).await;
        let before = server.digest().await;
        let wrong = |what: &str, error: Option<hedgerow::Error>| {
            let error = error.unwrap_or_else(|| panic!("{what} on {words:?} succeeded"));
            assert_eq!(
                error.kind(),
                ErrorKind::WrongType,
                "{what} on {words:?}: {error}"
            );
        };
        wrong("add", counter.add(1).await.err());
        wrong("scripted add", counter.add(1).saturating().await.err());
        wrong(
            "add once",
            counter
                .add(1)
                .once("id", Duration::from_secs(9))
                .await
                .err(),
        );
        wrong("get", counter.get().await.err());
        wrong("set", counter.set(1).await.err());
        wrong("take", counter.take().await.err());
        assert_eq!(server.digest().await, before, "{words:?}");
    }
    let hit = foreign.len() * 6;
    Row::shown(
        30,
        "something else in our place",
        "counter",
        "refused and kept",
        1,
        hit,
    );
}

#[tokio::test]
async fn an_add_with_an_id_is_applied_once_and_a_repeat_answers_the_same() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    let window = Duration::from_secs(60);
    let first = counter
        .add(3)
        .once("request 1", window)
        .await
        .expect("added");
    counter.add(10).await.expect("added");
    let again = counter
        .add(3)
        .once("request 1", window)
        .await
        .expect("answered");
    assert!(again.repeated && !first.repeated);
    assert_eq!(answer(&again), answer(&first));
    assert_eq!(counter.get().await.expect("read"), 13);
    counter
        .add(3)
        .once("request 2", window)
        .await
        .expect("added");
    assert_eq!(counter.get().await.expect("read"), 16);
    let ttl: i64 = server.run(&["PTTL", "hr:o:{views}:request 1"]).await;
    assert!(ttl > 0, "the record of an id expires");
}

#[tokio::test]
async fn a_ttl_is_set_on_creation_and_later_adds_keep_it() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    let hour = Duration::from_secs(3600);
    let created = counter.add(1).expire(hour).await.expect("added");
    assert!(created.expires_in.is_some_and(|left| left <= hour));
    let _: redis::Value = server.run(&["PEXPIRE", KEY, "1000000"]).await;
    assert_eq!(
        counter.add(1).await.expect("added").expires_in,
        None,
        "a plain add does not ask"
    );
    for add in [counter.add(1).expire(hour * 2), counter.add(1).saturating()] {
        let left = add
            .await
            .expect("added")
            .expires_in
            .expect("it still expires");
        assert!(left <= Duration::from_secs(1000), "{left:?}");
    }
    counter.set(7).await.expect("set");
    let left: i64 = server.run(&["PTTL", KEY]).await;
    assert!(left > 0, "set keeps the TTL");
    assert_eq!(counter.take().await.expect("taken"), 7);
    let new = counter.add(1).saturating().await.expect("added");
    assert_eq!(new.expires_in, None, "a new counter has none");
}

#[tokio::test]
async fn take_loses_no_add_of_anybody() {
    let server = Server::start().await;
    let client = server.client().await;
    let adders: Vec<_> = (0..8)
        .map(|_| {
            let counter = client.counter("views");
            tokio::spawn(async move {
                for _ in 0..200 {
                    counter.add(1).await.expect("added");
                }
            })
        })
        .collect();
    let counter = server.client().await.counter("views");
    let mut taken = 0;
    while !adders.iter().all(tokio::task::JoinHandle::is_finished) {
        taken += counter.take().await.expect("taken");
    }
    for adder in adders {
        adder.await.expect("no panic");
    }
    taken += counter.take().await.expect("taken");
    assert_eq!(taken, 1600);
    assert!(server.keys("hr:c:*").await.is_empty());
}

#[tokio::test]
async fn adds_of_many_tasks_and_clients_sum_up_while_scripts_are_flushed() {
    let server = Server::start().await;
    let mut adders = Vec::new();
    for _ in 0..4 {
        let client = server.client().await;
        for task in 0..25_i64 {
            let counter = client.counter("views");
            adders.push(tokio::spawn(async move {
                for round in 0..20 {
                    let add = counter.add(task);
                    let add = if round % 2 == 0 {
                        add
                    } else {
                        add.within(0..=i64::MAX)
                    };
                    add.await.expect("added");
                }
            }));
        }
    }
    let mut flushes = 0;
    while !adders.iter().all(tokio::task::JoinHandle::is_finished) {
        let _: redis::Value = server.run(&["SCRIPT", "FLUSH"]).await;
        flushes += 1;
    }
    for adder in adders {
        adder.await.expect("no panic");
    }
    assert!(flushes > 1, "scripts were flushed under load");
    let counter = server.client().await.counter("views");
    assert_eq!(
        counter.get().await.expect("read"),
        4 * 20 * (0..25).sum::<i64>()
    );
}

/// Later servers than Redis 7.0 keep 500 of the scripts that came with `EVAL`.
#[tokio::test]
async fn a_script_that_the_server_has_evicted_is_sent_again() {
    let server = Server::start_single().await;
    let counter = server.client().await.counter("views");
    let add = || counter.add(1).within(0..=9);
    add().await.expect("added");
    for other in 0..600 {
        let script = format!("return {other}");
        let _: i64 = server.run(&["EVAL", &script, "0"]).await;
    }
    let figures: String = server.run(&["INFO", "stats"]).await;
    assert_eq!(add().await.expect("sent again").value, 2);
    let evicted = figures
        .lines()
        .find(|line| line.starts_with("evicted_scripts:"));
    if evicted.is_none_or(|evicted| evicted.ends_with(":0")) {
        not_here("scripts are kept until they are flushed");
    }
}

#[tokio::test]
async fn an_id_is_forgotten_when_its_window_is_over() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    let window = Duration::from_millis(20);
    counter.add(1).once("id", window).await.expect("added");
    until("the id counts again", || async {
        let added = counter.add(1).once("id", window).await.expect("answered");
        added.value > 1
    })
    .await;
    assert_eq!(counter.get().await.expect("read"), 2);
}

#[tokio::test]
async fn a_repeat_answers_the_same_though_the_counter_is_gone() {
    let server = Server::start().await;
    let counter = server.client().await.counter("views");
    let add = || counter.add(3).once("id", Duration::from_secs(60));
    let first = add().await.expect("added");
    assert_eq!(counter.take().await.expect("taken"), 3);
    let again = add().await.expect("answered");
    assert!(again.repeated && !first.repeated);
    assert_eq!(answer(&again), answer(&first));
    assert!(server.keys("hr:c:*").await.is_empty(), "nothing was added");
}

#[tokio::test]
async fn a_bad_name_is_told_by_the_first_call_and_nothing_is_sent() {
    let nobody = Client::open("unix:///nowhere/s").expect("no I/O");
    for name in ["", &"x".repeat(2000)] {
        let counter = nobody.counter(name);
        let errors = [
            counter.add(1).await.err(),
            counter.add(1).saturating().await.err(),
            counter.get().await.err(),
            counter.set(1).await.err(),
            counter.take().await.err(),
        ];
        for error in errors {
            let kind = error.map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::InvalidInput), "{} bytes", name.len());
        }
    }
}

/// What an addition answers, but for whether it is a repeat.
fn answer(added: &Added) -> (i64, i64, Option<Duration>) {
    (added.value, added.applied, added.expires_in)
}

#[test]
fn counters_and_adds_go_wherever_tasks_go() {
    fn anywhere<T: Clone + std::fmt::Debug + Send + Sync + 'static>() {}
    anywhere::<Counter>();
    anywhere::<Add>();
    anywhere::<Added>();
}
