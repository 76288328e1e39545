//! Every verb of a cache against a server that is dead, hung, forbids or is full, under both
//! policies: what the table in `docs/guide/cache-verbs.md` says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use hedgerow::cache::{Entry, TagSnapshot};
use hedgerow::{Cache, ErrorKind, Outage, Result};

use crate::support::server::{Server, signal};
use crate::support::wait::bounded;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A call, and its answer as text.
type Call = fn(Cache) -> BoxFuture<'static, Result<String>>;

/// A verb: its name in the table, its call, its answer when an outage is bypassed, and what it
/// comes to on a full server. Without an answer, the call returns its error under either policy.
struct Verb(&'static str, Call, Option<&'static str>, Full);

/// What a call comes to on a full server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Full {
    /// It only reads, or takes out.
    Works,
    Refused,
}

/// A snapshot of the tags of the cache, on any server.
static SNAPSHOT: OnceLock<TagSnapshot> = OnceLock::new();

/// An entry of the cache, for `update`. It may be another one by now: then nothing is stored.
static ENTRY: OnceLock<Entry<String>> = OnceLock::new();

const VERBS: &[Verb] = &[
    Verb(
        "memoize",
        |cache| {
            Box::pin(async move {
                let load = || async { Ok::<_, Infallible>("loaded".to_owned()) };
                // Missing: otherwise a full server would do.
                Ok((*cache.memoize("m", MINUTE, load).await?).clone())
            })
        },
        Some("loaded"),
        Full::Refused,
    ),
    Verb(
        "memoize_with",
        |cache| {
            Box::pin(async move {
                let load = |_| async { Ok::<_, Infallible>("loaded".to_owned()) };
                Ok((*cache.memoize_with("m", MINUTE, load).await?).clone())
            })
        },
        Some("loaded"),
        Full::Refused,
    ),
    Verb(
        "memoize_many",
        |cache| {
            Box::pin(async move {
                let load = |keys: Vec<String>| async {
                    let loaded = keys.into_iter().map(|key| (key, "loaded".to_owned()));
                    Ok::<_, Infallible>(loaded.collect::<HashMap<_, _>>())
                };
                let found = cache.memoize_many(["m"], MINUTE, load).await?;
                let [outcome] = &found[..] else {
                    panic!("one outcome");
                };
                outcome
                    .clone()
                    .map(|value| value.expect("it has one").to_string())
            })
        },
        Some("loaded"),
        Full::Refused,
    ),
    Verb(
        "get",
        |cache| Box::pin(async move { shown(cache.get::<String>("a").await) }),
        Some("None"),
        Full::Works,
    ),
    Verb(
        "get_many",
        |cache| Box::pin(async move { shown(cache.get_many::<String>(["a", "b"]).await) }),
        Some("[None, None]"),
        Full::Works,
    ),
    Verb(
        "contains",
        |cache| Box::pin(async move { shown(cache.contains("a").await) }),
        Some("false"),
        Full::Works,
    ),
    Verb(
        "ttl",
        |cache| Box::pin(async move { shown(cache.ttl("a").await.map(|left| left.is_some())) }),
        Some("false"),
        Full::Works,
    ),
    Verb(
        "tag_snapshot",
        |cache| Box::pin(async move { shown(cache.tag_snapshot(["t"], HOUR).await.map(drop)) }),
        None,
        Full::Works,
    ),
    Verb(
        "tag_snapshot_of",
        |cache| {
            Box::pin(async move {
                let entry = ENTRY.get().expect("read");
                shown(cache.tag_snapshot_of(entry, 200 * HOUR).await.map(drop))
            })
        },
        None,
        Full::Works,
    ),
    Verb(
        "is_current",
        |cache| {
            Box::pin(async move { shown(cache.is_current(SNAPSHOT.get().expect("taken")).await) })
        },
        None,
        Full::Works,
    ),
    Verb(
        "explain",
        |cache| Box::pin(async move { shown(cache.explain("a").await.map(|it| it.verdict)) }),
        None,
        Full::Works,
    ),
    Verb(
        "entry",
        |cache| {
            Box::pin(async move { shown(cache.entry::<String>("a").await.map(|it| it.is_some())) })
        },
        None,
        Full::Works,
    ),
    Verb(
        "set",
        |cache| Box::pin(async move { shown(cache.set("a", "y", MINUTE).await) }),
        Some("()"),
        Full::Refused,
    ),
    Verb(
        "keep_ttl",
        |cache| Box::pin(async move { shown(cache.set("a", "y", MINUTE).keep_ttl().await) }),
        Some("()"),
        Full::Refused,
    ),
    Verb(
        "add",
        |cache| Box::pin(async move { shown(cache.add("b", "y", MINUTE).await) }),
        None,
        Full::Refused,
    ),
    Verb(
        "if_absent",
        |cache| Box::pin(async move { shown(cache.set("b", "y", MINUTE).if_absent().await) }),
        None,
        Full::Refused,
    ),
    Verb(
        "if_present",
        |cache| Box::pin(async move { shown(cache.set("a", "y", MINUTE).if_present().await) }),
        None,
        Full::Refused,
    ),
    Verb(
        "set_many",
        |cache| {
            Box::pin(async move {
                let [outcome] = &mut cache.set_many([("a", &"y")], MINUTE).await?[..] else {
                    panic!("one outcome");
                };
                shown(std::mem::replace(outcome, Ok(())))
            })
        },
        None,
        Full::Refused,
    ),
    Verb(
        "update_with",
        |cache| {
            Box::pin(async move { shown(cache.update_with("a", |it: &String| it.clone()).await) })
        },
        None,
        Full::Refused,
    ),
    Verb(
        "expire",
        |cache| Box::pin(async move { shown(cache.expire("a", HOUR).await) }),
        None,
        Full::Works,
    ),
    Verb(
        "touch",
        |cache| Box::pin(async move { shown(cache.touch("a", HOUR).await) }),
        None,
        Full::Works,
    ),
    Verb(
        "persist",
        |cache| Box::pin(async move { shown(cache.persist("a").await) }),
        None,
        Full::Works,
    ),
    Verb(
        "expire_at",
        |cache| {
            let at = SystemTime::now() + HOUR;
            Box::pin(async move { shown(cache.expire_at("a", at).await) })
        },
        None,
        Full::Works,
    ),
    Verb(
        "move_version",
        |cache| Box::pin(async move { shown(cache.move_version("a", 1).await) }),
        None,
        Full::Refused,
    ),
    Verb(
        "take",
        |cache| Box::pin(async move { shown(cache.take::<String>("a").await) }),
        None,
        Full::Works,
    ),
    Verb(
        "remove",
        |cache| Box::pin(async move { shown(cache.remove("a").await) }),
        None,
        Full::Works,
    ),
    Verb(
        "remove_many",
        |cache| {
            Box::pin(async move {
                let [outcome] = &mut cache.remove_many(["a"]).await?[..] else {
                    panic!("one outcome");
                };
                shown(std::mem::replace(outcome, Ok(())))
            })
        },
        None,
        Full::Works,
    ),
    Verb(
        "invalidate_tags",
        |cache| Box::pin(async move { shown(cache.invalidate_tags(["t"]).await) }),
        None,
        Full::Works,
    ),
    Verb(
        "clear",
        |cache| Box::pin(async move { shown(cache.clear().await) }),
        None,
        Full::Works,
    ),
    Verb(
        "keys",
        |cache| {
            Box::pin(async move {
                let first = cache.keys("*").next().await;
                shown(first.transpose())
            })
        },
        None,
        Full::Works,
    ),
    Verb(
        "keys_by_tag",
        |cache| {
            Box::pin(async move {
                let first = cache.index_tags().keys_by_tag("t").next().await;
                shown(first.transpose())
            })
        },
        None,
        Full::Works,
    ),
    Verb(
        "count",
        |cache| Box::pin(async move { shown(cache.count().await) }),
        None,
        Full::Works,
    ),
    Verb(
        "remove_matching",
        |cache| Box::pin(async move { shown(cache.remove_matching("a*").await) }),
        None,
        Full::Works,
    ),
    Verb(
        "bare.get",
        |cache| Box::pin(async move { shown(cache.bare().get::<String>("a").await) }),
        Some("None"),
        Full::Works,
    ),
    Verb(
        "bare.ttl",
        |cache| {
            Box::pin(async move { shown(cache.bare().ttl("b").await.map(|left| left.is_some())) })
        },
        Some("false"),
        Full::Works,
    ),
    Verb(
        "bare.set",
        |cache| Box::pin(async move { shown(cache.bare().set("a", "y", MINUTE).await) }),
        Some("()"),
        Full::Refused,
    ),
    Verb(
        "bare.memoize",
        |cache| {
            Box::pin(async move {
                let load = || async { Ok::<_, Infallible>("loaded".to_owned()) };
                Ok((*cache.bare().memoize("m", MINUTE, load).await?).clone())
            })
        },
        Some("loaded"),
        Full::Refused,
    ),
    Verb(
        "bare.remove",
        |cache| Box::pin(async move { shown(cache.bare().remove("a").await) }),
        None,
        Full::Works,
    ),
    Verb(
        "bare.purge",
        |cache| Box::pin(async move { shown(cache.bare().purge().into_future().await) }),
        None,
        Full::Works,
    ),
    Verb(
        "purge_tag",
        |cache| Box::pin(async move { shown(cache.index_tags().purge_tag("t").await) }),
        None,
        Full::Works,
    ),
    Verb(
        "purge",
        |cache| Box::pin(async move { shown(cache.purge().into_future().await) }),
        None,
        Full::Works,
    ),
    Verb(
        "update",
        |cache| {
            Box::pin(async move {
                let entry = ENTRY.get().expect("read");
                shown(cache.update(entry, &"y".to_owned()).await.map(drop))
            })
        },
        None,
        Full::Refused,
    ),
    Verb(
        "Memo",
        |cache| {
            Box::pin(async move {
                let load = |_: u32, _| async { Ok::<_, Infallible>("loaded".to_owned()) };
                let memo = cache.memo(MINUTE, |key: &u32| key.to_string(), load);
                Ok((*memo.get(&7).await?).clone())
            })
        },
        Some("loaded"),
        Full::Refused,
    ),
    Verb(
        "durable",
        |cache| {
            Box::pin(async move {
                let call = cache.invalidate_tags(["t"]).durable(1);
                match call.deadline(DURABLE).await {
                    // There is no replica, and it was executed.
                    Err(error) if error.kind() == ErrorKind::NotReplicated => shown(Ok(())),
                    outcome => shown(outcome),
                }
            })
        },
        None,
        Full::Works,
    ),
];

fn shown<T: std::fmt::Debug>(answer: Result<T>) -> Result<String> {
    answer.map(|answer| format!("{answer:?}"))
}

/// Enough for the answer that no replica has acknowledged it, and less than the slack.
const DURABLE: Duration = Duration::from_secs(2);

/// What becomes of the server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Condition {
    Dead,
    Hung,
    Forbids,
    Full,
}

#[tokio::test]
async fn a_dead_server_has_the_documented_outcome_for_every_verb() {
    every_verb(Condition::Dead).await;
}

#[tokio::test]
async fn a_hung_server_has_the_documented_outcome_for_every_verb() {
    every_verb(Condition::Hung).await;
}

#[tokio::test]
async fn a_server_that_forbids_has_the_documented_outcome_for_every_verb() {
    every_verb(Condition::Forbids).await;
}

#[tokio::test]
async fn a_full_server_has_the_documented_outcome_for_every_verb() {
    every_verb(Condition::Full).await;
}

#[test]
fn every_verb_of_the_table_is_tried() {
    let table = std::fs::read_to_string("docs/guide/cache-verbs.md").expect("it is there");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    for row in rows {
        let verbs = row.split('|').nth(1).unwrap_or_default();
        for verb in verbs.split('`').skip(1).step_by(2) {
            let tried = verb == "stale" || VERBS.iter().any(|it| it.0 == verb);
            assert!(tried, "{verb} of the table is not tried");
        }
    }
}

async fn every_verb(condition: Condition) {
    let server = Server::start_single().await;
    // Enough for an answer, where there is one.
    let patience = match condition {
        Condition::Dead | Condition::Hung => Duration::from_millis(300),
        Condition::Forbids | Condition::Full => MINUTE,
    };
    let client = server.builder().cache_deadline(patience).open();
    let cache = client.expect("a good URL").cache("c");
    prepare(&cache).await;
    let pid = server.pid().await;
    match condition {
        Condition::Dead => signal(pid, "KILL"),
        Condition::Hung => signal(pid, "STOP"),
        Condition::Forbids | Condition::Full => {}
    }
    for Verb(name, call, instead, full) in VERBS {
        let what = format!("{name} on a server: {condition:?}");
        let strict = {
            begin(&server, &cache, condition).await;
            timed(&what, patience, call(cache.clone())).await
        };
        let lenient = {
            begin(&server, &cache, condition).await;
            timed(&what, patience, call(cache.clone().outage(Outage::Bypass))).await
        };
        let kind = strict.as_ref().err().map(hedgerow::Error::kind);
        match condition {
            Condition::Dead | Condition::Hung => {
                assert!(kind.is_some(), "{what}: {strict:?} without a server");
            }
            Condition::Full => {
                let expected = (*full == Full::Refused).then_some(ErrorKind::OutOfMemory);
                assert_eq!(kind, expected, "{what}: {strict:?}");
            }
            // Only a walk over all keys touches none that is forbidden.
            Condition::Forbids => {
                let walks = ["keys", "count", "remove_matching", "purge", "bare.purge"];
                let expected = (!walks.contains(name)).then_some(ErrorKind::Forbidden);
                assert!(
                    kind == expected || walks.contains(name),
                    "{what}: {strict:?}"
                );
            }
        }
        match (kind, instead) {
            (None, _) => assert!(lenient.is_ok(), "{what}: {strict:?}, then {lenient:?}"),
            (Some(kind), Some(instead)) if kind != ErrorKind::Forbidden => {
                let lenient = lenient.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(lenient, *instead, "{what}");
            }
            // Missing rights do not pass by themselves: no policy passes them over.
            (Some(kind), _) => {
                let error = lenient.expect_err(&what);
                assert!(
                    is_alike(error.kind(), kind),
                    "{what}: {kind:?}, then {error}"
                );
            }
        }
    }
    if condition == Condition::Hung {
        signal(pid, "CONT");
    }
}

/// Stores the entry anew, whatever the verb before has done, and lets the condition begin.
async fn begin(server: &Server, cache: &Cache, condition: Condition) {
    let (ends, begins): (&[&str], &[&str]) = match condition {
        Condition::Dead | Condition::Hung => return,
        Condition::Forbids => (
            &["ACL", "SETUSER", "default", "allkeys"],
            &["ACL", "SETUSER", "default", "resetkeys", "~other:*"],
        ),
        Condition::Full => (
            &["CONFIG", "SET", "maxmemory", "0"],
            &["CONFIG", "SET", "maxmemory", "1"],
        ),
    };
    let _: () = server.run(ends).await;
    for key in ["b", "m", "7"] {
        cache.remove(key).await.expect("removed");
    }
    let set = cache.set("a", "x", MINUTE).tags(["t"]);
    set.await.expect("stored");
    cache.tag_snapshot(["t"], HOUR).await.expect("taken");
    let _: () = server.run(begins).await;
}

/// What the call comes to. It takes no longer than its deadline says, and what the machine needs.
async fn timed(
    what: &str,
    patience: Duration,
    call: BoxFuture<'static, Result<String>>,
) -> Result<String> {
    let began = Instant::now();
    let outcome = bounded(what, call).await;
    let took = began.elapsed();
    assert!(
        took <= patience + SLACK,
        "{what} took {took:?}: {outcome:?}"
    );
    outcome
}

/// Beside the deadline of a call.
const SLACK: Duration = Duration::from_secs(3);

#[tokio::test]
async fn while_the_breaker_is_open_calls_send_nothing_but_a_probe_now_and_then() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(Duration::from_millis(300));
    let cache = client.open().expect("a good URL").cache("c");
    prepare(&cache).await;
    let pid = server.pid().await;
    let _: () = server.run(&["CONFIG", "RESETSTAT"]).await;
    signal(pid, "STOP");
    let (mut sent, mut refused) = (0, 0);
    let mut count = |error: hedgerow::Error| match error.kind() {
        ErrorKind::CircuitOpen => {
            assert!(error.is_retryable(), "{error}");
            refused += 1;
        }
        _ => sent += 1,
    };
    let mut is_open = false;
    while !is_open {
        let error = cache.get::<String>("a").await.expect_err("it hangs");
        is_open = error.kind() == ErrorKind::CircuitOpen;
        count(error);
    }
    // What takes something out does not heed the breaker.
    let heedless = ["remove", "purge", "clear", "invalidate", "durable"];
    for Verb(name, call, ..) in VERBS {
        if !heedless.iter().any(|it| name.contains(it)) {
            count(call(cache.clone()).await.expect_err(name));
        }
    }
    signal(pid, "CONT");
    // It executes what was sent meanwhile before this is answered.
    let stats: String = server.run(&["INFO", "commandstats"]).await;
    let commands = ["get", "mget", "evalsha", "eval", "pttl", "scan"];
    let calls = commands.map(|name| {
        let name = format!("cmdstat_{name}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&*name));
        let calls = line.and_then(|line| line.split(',').next());
        calls.map_or(0, |calls| calls.parse::<usize>().expect("a number"))
    });
    let executed: usize = calls.iter().sum();
    assert!(refused > 20 && sent < 10, "{refused} refused, {sent} sent");
    assert!(executed <= 2 * sent, "{executed} executed of {sent} calls");
}

/// In an outage the breaker may speak for the server.
fn is_alike(one: ErrorKind, other: ErrorKind) -> bool {
    one == other || one.is_outage() && other.is_outage()
}

/// An entry, and all scripts on the server.
async fn prepare(cache: &Cache) {
    // Here the machine may be slow.
    let cache = &cache.clone().deadline(MINUTE);
    let snapshot = cache.tag_snapshot(["t"], HOUR).await.expect("taken");
    SNAPSHOT.get_or_init(|| snapshot);
    for Verb(name, call, ..) in VERBS {
        let set = cache.set("a", "x", MINUTE).tags(["t"]);
        set.await.expect("stored");
        cache.remove("b").await.expect("removed");
        if ENTRY.get().is_none() {
            let entry = cache.entry("a").await.expect("an answer");
            ENTRY.get_or_init(|| entry.expect("it is there"));
        }
        let answer = call(cache.clone()).await;
        answer.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let set = cache.set("a", "x", MINUTE).tags(["t"]);
    set.await.expect("stored");
}
