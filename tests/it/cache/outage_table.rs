//! Every verb of a cache against a server that is dead, hung, forbids or is full, under both
//! policies: what the table in `docs/guide/cache-verbs.md` says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::IntoFuture as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use hedgerow::cache::TagSnapshot;
use hedgerow::{Cache, ErrorKind, Outage, Result};

use crate::support::server::{Server, signal};
use crate::support::wait::bounded;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A call, and its answer as text.
type Call = fn(Cache) -> BoxFuture<'static, Result<String>>;

/// A verb: its name in the table, its call, and its answer when an outage is bypassed. Without one,
/// the call returns its error under either policy.
struct Verb(&'static str, Call, Option<&'static str>);

/// A snapshot of the tags of the cache, on any server.
static SNAPSHOT: OnceLock<TagSnapshot> = OnceLock::new();

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
    ),
    Verb(
        "get",
        |cache| Box::pin(async move { shown(cache.get::<String>("a").await) }),
        Some("None"),
    ),
    Verb(
        "get_many",
        |cache| Box::pin(async move { shown(cache.get_many::<String>(["a", "b"]).await) }),
        Some("[None, None]"),
    ),
    Verb(
        "contains",
        |cache| Box::pin(async move { shown(cache.contains("a").await) }),
        Some("false"),
    ),
    Verb(
        "ttl",
        |cache| Box::pin(async move { shown(cache.ttl("a").await.map(|left| left.is_some())) }),
        Some("false"),
    ),
    Verb(
        "tag_snapshot",
        |cache| Box::pin(async move { shown(cache.tag_snapshot(["t"], HOUR).await.map(drop)) }),
        None,
    ),
    Verb(
        "is_current",
        |cache| {
            Box::pin(async move { shown(cache.is_current(SNAPSHOT.get().expect("taken")).await) })
        },
        None,
    ),
    Verb(
        "explain",
        |cache| Box::pin(async move { shown(cache.explain("a").await.map(|it| it.verdict)) }),
        None,
    ),
    Verb(
        "entry",
        |cache| {
            Box::pin(async move { shown(cache.entry::<String>("a").await.map(|it| it.is_some())) })
        },
        None,
    ),
    Verb(
        "set",
        |cache| Box::pin(async move { shown(cache.set("a", "y", MINUTE).await) }),
        Some("()"),
    ),
    Verb(
        "keep_ttl",
        |cache| Box::pin(async move { shown(cache.set("a", "y", MINUTE).keep_ttl().await) }),
        Some("()"),
    ),
    Verb(
        "add",
        |cache| Box::pin(async move { shown(cache.add("b", "y", MINUTE).await) }),
        None,
    ),
    Verb(
        "if_absent",
        |cache| Box::pin(async move { shown(cache.set("b", "y", MINUTE).if_absent().await) }),
        None,
    ),
    Verb(
        "if_present",
        |cache| Box::pin(async move { shown(cache.set("a", "y", MINUTE).if_present().await) }),
        None,
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
    ),
    Verb(
        "update_with",
        |cache| {
            Box::pin(async move { shown(cache.update_with("a", |it: &String| it.clone()).await) })
        },
        None,
    ),
    Verb(
        "expire",
        |cache| Box::pin(async move { shown(cache.expire("a", HOUR).await) }),
        None,
    ),
    Verb(
        "touch",
        |cache| Box::pin(async move { shown(cache.touch("a", HOUR).await) }),
        None,
    ),
    Verb(
        "persist",
        |cache| Box::pin(async move { shown(cache.persist("a").await) }),
        None,
    ),
    Verb(
        "expire_at",
        |cache| {
            let at = SystemTime::now() + HOUR;
            Box::pin(async move { shown(cache.expire_at("a", at).await) })
        },
        None,
    ),
    Verb(
        "move_version",
        |cache| Box::pin(async move { shown(cache.move_version("a", 1).await) }),
        None,
    ),
    Verb(
        "take",
        |cache| Box::pin(async move { shown(cache.take::<String>("a").await) }),
        None,
    ),
    Verb(
        "remove",
        |cache| Box::pin(async move { shown(cache.remove("a").await) }),
        None,
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
    ),
    Verb(
        "invalidate_tags",
        |cache| Box::pin(async move { shown(cache.invalidate_tags(["t"]).await) }),
        None,
    ),
    Verb(
        "clear",
        |cache| Box::pin(async move { shown(cache.clear().await) }),
        None,
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
    ),
    Verb(
        "count",
        |cache| Box::pin(async move { shown(cache.count().await) }),
        None,
    ),
    Verb(
        "remove_matching",
        |cache| Box::pin(async move { shown(cache.remove_matching("a*").await) }),
        None,
    ),
    Verb(
        "bare.get",
        |cache| Box::pin(async move { shown(cache.bare().get::<String>("a").await) }),
        Some("None"),
    ),
    Verb(
        "bare.ttl",
        |cache| {
            Box::pin(async move { shown(cache.bare().ttl("b").await.map(|left| left.is_some())) })
        },
        Some("false"),
    ),
    Verb(
        "bare.set",
        |cache| Box::pin(async move { shown(cache.bare().set("a", "y", MINUTE).await) }),
        Some("()"),
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
    ),
    Verb(
        "bare.remove",
        |cache| Box::pin(async move { shown(cache.bare().remove("a").await) }),
        None,
    ),
    Verb(
        "bare.purge",
        |cache| Box::pin(async move { shown(cache.bare().purge().into_future().await) }),
        None,
    ),
    Verb(
        "purge_tag",
        |cache| Box::pin(async move { shown(cache.index_tags().purge_tag("t").await) }),
        None,
    ),
    Verb(
        "purge",
        |cache| Box::pin(async move { shown(cache.purge().into_future().await) }),
        None,
    ),
];

fn shown<T: std::fmt::Debug>(answer: Result<T>) -> Result<String> {
    answer.map(|answer| format!("{answer:?}"))
}

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
            let setting = ["update", "stale"].contains(&verb);
            let tried = setting || VERBS.iter().any(|it| it.0 == verb);
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
        Condition::Forbids => {
            let _: () = server
                .run(&["ACL", "SETUSER", "default", "resetkeys", "~other:*"])
                .await;
        }
        Condition::Full => {
            let _: () = server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
        }
    }
    for Verb(name, call, instead) in VERBS {
        let what = format!("{name} on a server: {condition:?}");
        let strict = bounded(&what, call(cache.clone())).await;
        let lenient = bounded(&what, call(cache.clone().outage(Outage::Bypass))).await;
        let kind = strict.as_ref().err().map(hedgerow::Error::kind);
        if matches!(condition, Condition::Dead | Condition::Hung) {
            assert!(kind.is_some(), "{what}: {strict:?} without a server");
        }
        match (kind, instead) {
            (None, _) => assert!(lenient.is_ok(), "{what}: {strict:?}, then {lenient:?}"),
            (Some(kind), Some(instead)) if kind.is_outage() => {
                let lenient = lenient.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(lenient, *instead, "{what}");
            }
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

/// In an outage the breaker may speak for the server.
fn is_alike(one: ErrorKind, other: ErrorKind) -> bool {
    one == other || one.is_outage() && other.is_outage()
}

/// An entry, and all scripts on the server.
async fn prepare(cache: &Cache) {
    let snapshot = cache.tag_snapshot(["t"], HOUR).await.expect("taken");
    SNAPSHOT.get_or_init(|| snapshot);
    for Verb(name, call, _) in VERBS {
        let set = cache.set("a", "x", MINUTE).tags(["t"]);
        set.await.expect("stored");
        cache.remove("b").await.expect("removed");
        let answer = call(cache.clone()).await;
        answer.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let set = cache.set("a", "x", MINUTE).tags(["t"]);
    set.await.expect("stored");
}
