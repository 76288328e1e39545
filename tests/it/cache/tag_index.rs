//! The index of a tag: which keys are listed by it, and what a purge removes.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::time::Duration;

use hedgerow::cache::Loading;
use hedgerow::{Cache, ErrorKind, FOREVER};

use crate::support::aging::{aged, old_tags};
use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{bounded, patient, until};

const MINUTE: Duration = Duration::from_secs(60);

async fn set(cache: &Cache, key: &str, tags: &[&str]) {
    let set = cache.set(key, &1u8, MINUTE).tags(tags);
    set.await.expect("stored");
}

async fn is_there(cache: &Cache, key: &str) -> bool {
    cache.get::<u8>(key).await.expect("an answer").is_some()
}

/// What is listed, in order. Nothing is listed twice.
async fn listed(cache: &Cache, tag: &str) -> Vec<String> {
    let mut keys = cache.keys_by_tag(tag);
    let mut listed = BTreeSet::new();
    while let Some(key) = keys.next().await {
        let key = key.expect("an answer");
        assert!(listed.insert(key.clone()), "{key} is listed twice");
    }
    listed.into_iter().collect()
}

#[tokio::test]
async fn whatever_stores_a_value_its_key_is_listed_by_its_tags() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    set(&cache, "set", &["t"]).await;
    set(&cache, "none", &[]).await;
    set(&cache, "other", &["u"]).await;
    let large = vec![7_u8; 200_000];
    let stored = cache.set("large", &large, MINUTE).tags(["t"]).await;
    stored.expect("stored");
    let many = ["many 1", "many 2"].map(|key| (key, &1u8));
    let many = cache.set_many(many, MINUTE).tags(["t"]).await;
    for outcome in many.expect("outcomes") {
        outcome.expect("stored");
    }
    let added = cache.set("add", &1u8, MINUTE).if_absent().tags(["t"]).await;
    assert!(added.expect("an answer"));
    let load = || async { Ok::<_, Infallible>(1u8) };
    let loaded = cache.memoize("memoize", MINUTE, load).tags(["t"]).await;
    loaded.expect("loaded");
    let load = |loading: Loading<u8>| async move {
        loading.tag("late");
        Ok::<_, Infallible>(1u8)
    };
    // A tag that is made by this load is too young for it, and what is not stored is not listed.
    set(&cache, "older", &["late"]).await;
    until("a late tag is old enough", async || {
        let loaded = cache.memoize_with("late", MINUTE, load).await;
        loaded.expect("loaded");
        is_there(&cache, "late").await
    })
    .await;
    let load = |keys: Vec<String>| async {
        let loaded = keys.into_iter().map(|key| (key, 1u8));
        Ok::<_, Infallible>(loaded.collect::<HashMap<_, _>>())
    };
    let batch = cache.memoize_many(["batch 1", "batch 2"], MINUTE, load);
    for outcome in batch.tags(["t"]).await.expect("outcomes") {
        outcome.expect("loaded");
    }
    let updated = cache.update_with("set", |it: &u8| it + 1).await;
    assert!(updated.expect("an answer").is_some());
    let expected = [
        "add", "batch 1", "batch 2", "large", "many 1", "many 2", "memoize", "set",
    ];
    assert_eq!(listed(&cache, "t").await, expected);
    assert_eq!(listed(&cache, "late").await, ["late", "older"]);
    assert_eq!(listed(&cache, "u").await, ["other"]);
    assert!(listed(&cache, "nobody's").await.is_empty());
}

#[tokio::test]
async fn only_valid_values_that_carry_the_tag_now_are_listed() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").index_tags();
    for key in ["stays", "removed", "relabelled", "invalidated", "ends"] {
        set(&cache, key, &["t", key]).await;
    }
    set(&client.cache("another").index_tags(), "there", &["t"]).await;
    set(&cache.clone().version(2), "version", &["t"]).await;
    cache.remove("removed").await.expect("removed");
    set(&cache, "relabelled", &["u"]).await;
    let gone = cache.invalidate_tags(["invalidated"]).await;
    gone.expect("invalidated");
    let soon = Duration::from_millis(1);
    assert!(cache.expire("ends", soon).await.expect("an answer"));
    until("it has ended", async || !is_there(&cache, "ends").await).await;
    assert_eq!(listed(&cache, "t").await, ["stays"]);
    assert_eq!(
        listed(&cache.clone().version(2), "t").await,
        ["version"],
        "each version has an index"
    );
    cache.clear().await.expect("cleared");
    assert!(listed(&cache, "t").await.is_empty());
}

#[tokio::test]
async fn ten_thousand_values_are_listed_once_each_and_purged_in_batches() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    let keys: Vec<String> = (0..10_000).map(|number| format!("k{number}")).collect();
    let values = keys.iter().map(|key| (key, &1u8));
    let stored = cache.set_many(values, MINUTE).tags(["t"]).deadline(MINUTE);
    for outcome in stored.await.expect("outcomes") {
        outcome.expect("stored");
    }
    set(&cache, "untouched", &["u"]).await;
    assert_eq!(listed(&cache, "t").await.len(), keys.len());
    let purged = cache.purge_tag("t").await.expect("purged");
    assert_eq!(purged, keys.len() as u64);
    assert_eq!(server.keys("hr:v:*").await, ["hr:v:{c:untouched}"]);
    assert_eq!(server.keys("hr:x:*").await.len(), 1, "that of the other");
    assert_eq!(cache.purge_tag("t").await.expect("purged"), 0);
    assert!(is_there(&cache, "untouched").await);
}

#[tokio::test]
async fn a_purge_invalidates_what_the_index_does_not_have_and_other_caches_too() {
    let server = Server::start().await;
    let client = server.client().await;
    let cache = client.cache("c").index_tags();
    let (bare, other) = (client.cache("c"), client.cache("other").index_tags());
    set(&cache, "noted", &["t"]).await;
    set(&bare, "not noted", &["t"]).await;
    set(&other, "k", &["t"]).await;
    assert_eq!(cache.purge_tag("t").await.expect("purged"), 1);
    assert!(!is_there(&cache, "not noted").await);
    assert!(!is_there(&other, "k").await);
    assert_eq!(
        server.keys("hr:v:*").await.len(),
        2,
        "they end by their TTL"
    );
}

#[tokio::test]
async fn a_value_that_is_stored_again_during_a_purge_stays_and_is_listed() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let there = server.client().await.cache("c").index_tags();
    let here = proxy.builder().cache_deadline(MINUTE).open();
    let here = here.expect("a good URL").cache("c").index_tags();
    set(&there, "again", &["t"]).await;
    set(&there, "gone", &["t"]).await;
    // Those two keys stand together in the script that removes, and in no other.
    let request = Request::every().named("EVALSHA");
    let removal = request.with("hr:v:{c:again}").with("hr:v:{c:gone}");
    let removal = proxy.on(removal, Act::Hold);
    let purge = tokio::spawn(async move { here.purge_tag("t").await });
    removal.hit().await;
    set(&there, "again", &["t"]).await;
    removal.deliver();
    let purged = purge.await.expect("no panic").expect("purged");
    assert_eq!(purged, 1);
    assert!(is_there(&there, "again").await);
    assert_eq!(listed(&there, "t").await, ["again"]);
}

/// The script that removes may be executed as late as its deadline.
#[tokio::test]
async fn a_value_that_is_stored_after_a_later_invalidation_is_not_purged() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let there = server.client().await.cache("c").index_tags();
    let here = proxy.builder().cache_deadline(MINUTE).open();
    let here = here.expect("a good URL").cache("c").index_tags();
    for key in ["again", "gone"] {
        set(&there, key, &["t"]).await;
    }
    let request = Request::every().named("EVALSHA");
    let removal = request.with("hr:v:{c:again}").with("hr:v:{c:gone}");
    let removal = proxy.on(removal, Act::Hold);
    let purge = tokio::spawn(async move { here.purge_tag("t").await });
    removal.hit().await;
    let gone = there.invalidate_tags(["t"]).await;
    gone.expect("invalidated");
    set(&there, "again", &["t"]).await;
    removal.deliver();
    let purged = purge.await.expect("no panic").expect("purged");
    assert_eq!(purged, 1);
    assert!(is_there(&there, "again").await);
    assert_eq!(listed(&there, "t").await, ["again"]);
    assert_eq!(server.keys("hr:v:*").await, ["hr:v:{c:again}"]);
}

#[tokio::test]
async fn an_index_that_is_lost_costs_a_listing_and_nothing_else() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    set(&cache, "k", &["t"]).await;
    for key in server.keys("hr:x:*").await {
        let _: () = server.run(&["DEL", &key]).await;
    }
    assert!(listed(&cache, "t").await.is_empty());
    assert!(is_there(&cache, "k").await);
    cache.invalidate_tags(["t"]).await.expect("invalidated");
    assert!(!is_there(&cache, "k").await);
}

#[tokio::test]
async fn an_index_forgets_what_has_ended_and_ends_with_its_last_entry() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    let keys: Vec<String> = (0..50).map(|number| format!("k{number}")).collect();
    let values = keys.iter().map(|key| (key, &1u8));
    let stored = cache.set_many(values, MINUTE).tags(["t"]).await;
    for outcome in stored.expect("outcomes") {
        outcome.expect("stored");
    }
    let index = server.keys("hr:x:*").await.concat();
    let ends: i64 = server.run(&["PEXPIRETIME", &index]).await;
    let count = async |least: i64| -> usize {
        let least = least.to_string();
        server.run(&["ZCOUNT", &index, &least, "+inf"]).await
    };
    assert!(count(ends).await > 0, "the last end is that of the index");
    assert_eq!(count(ends + 1).await, 0);
    let ended: usize = server.run(&["EVAL", ENDED, "1", &index]).await;
    assert_eq!(ended, keys.len());
    set(&cache, "last", &["t"]).await;
    assert_eq!(count(0).await, 1, "the others are forgotten");
    assert_eq!(listed(&cache, "t").await, ["last"]);
}

/// How many names the only index has.
async fn names(server: &Server) -> usize {
    let index = server.keys("hr:x:*").await.concat();
    server.run(&["ZCARD", &index]).await
}

#[tokio::test]
async fn names_whose_values_are_gone_are_forgotten_by_a_listing_and_by_a_purge() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    let keys: Vec<String> = (0..250).map(|number| format!("k{number:03}")).collect();
    for way in ["listing", "purge"] {
        let values = keys.iter().map(|key| (key, &1u8));
        let stored = cache.set_many(values, FOREVER).tags(["t"]).await;
        for outcome in stored.expect("outcomes") {
            outcome.expect("stored");
        }
        for outcome in cache.remove_many(&keys[3..]).await.expect("outcomes") {
            outcome.expect("removed");
        }
        // This one does not carry the tag any more.
        let set = cache.set("k002", &1u8, FOREVER);
        set.await.expect("stored");
        assert_eq!(names(&server).await, 250);
        if way == "listing" {
            assert_eq!(listed(&cache, "t").await, ["k000", "k001"]);
            assert_eq!(names(&server).await, 2);
        } else {
            assert_eq!(cache.purge_tag("t").await.expect("purged"), 2);
            assert!(server.keys("hr:x:*").await.is_empty());
            assert!(is_there(&cache, "k002").await);
        }
    }
}

#[tokio::test]
async fn a_value_that_is_loaded_or_stored_while_its_name_is_forgotten_stays_in_the_index() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let cache = async || {
        let client = proxy.builder().cache_deadline(MINUTE).deadline(MINUTE);
        client.open().expect("a good URL").cache("c").index_tags()
    };
    let (here, there) = (cache().await, cache().await);
    // So that all scripts are known.
    set(&here, "k", &["t"]).await;
    here.remove("k").await.expect("removed");
    assert!(listed(&there, "t").await.is_empty());
    let gate = Gate::closed();
    let (calls, waits) = (here.clone(), gate.clone());
    let load = tokio::spawn(async move {
        let call = calls.memoize("k", MINUTE, || waits.load(1u8));
        call.tags(["t"]).await
    });
    gate.begun(1).await;
    assert!(listed(&there, "t").await.is_empty());
    gate.open();
    load.await.expect("no panic").expect("loaded");
    assert_eq!(listed(&there, "t").await, ["k"]);

    here.remove("k").await.expect("removed");
    let script = Request::every().named("EVALSHA");
    let store = proxy.on(script.clone().with("hr:v:{c:k}"), Act::Hold);
    let calls = here.clone();
    let stores = tokio::spawn(async move { set(&calls, "k", &["t"]).await });
    store.hit().await;
    let index = server.keys("hr:x:*").await.concat();
    let forget = proxy.on(script.with(&index), Act::Hold);
    let calls = there.clone();
    let lists = tokio::spawn(async move { listed(&calls, "t").await });
    forget.hit().await;
    store.deliver();
    stores.await.expect("no panic");
    forget.deliver();
    proxy.clear();
    lists.await.expect("no panic");
    assert_eq!(listed(&there, "t").await, ["k"]);
}

/// The limit of an index: a listing has found nothing at a name, and so has its second look.
#[tokio::test]
async fn a_value_that_is_stored_after_a_listing_has_forgotten_its_name_is_valid_and_not_listed() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let here = client.cache("c").index_tags();
    let there = server.client().await.cache("c").index_tags();
    set(&here, "k", &["t"]).await;
    here.remove("k").await.expect("removed");
    let store = Request::every().named("EVALSHA").with("hr:v:{c:k}");
    let store = proxy.on(store, Act::Hold);
    let calls = here.clone();
    let stores = tokio::spawn(async move { set(&calls, "k", &["t"]).await });
    store.hit().await;
    assert_eq!(names(&server).await, 1, "it is noted");
    assert!(listed(&there, "t").await.is_empty());
    assert!(server.keys("hr:x:*").await.is_empty(), "and forgotten");
    store.deliver();
    stores.await.expect("no panic");
    proxy.clear();
    assert!(is_there(&there, "k").await);
    assert!(listed(&there, "t").await.is_empty());
    assert_eq!(there.purge_tag("t").await.expect("purged"), 0);
    assert!(!is_there(&there, "k").await, "it is invalid all the same");
    set(&here, "k", &["t"]).await;
    assert_eq!(listed(&there, "t").await, ["k"]);
}

/// Sets the ends of all entries of an index to 1970.
const ENDED: &str = "
    local names = redis.call('ZRANGE', KEYS[1], 0, -1)
    for _, name in ipairs(names) do redis.call('ZADD', KEYS[1], 1, name) end
    return #names
";

#[tokio::test]
async fn a_loaded_value_that_is_not_modified_is_noted_anew_for_all_of_its_tags() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags().jitter(0.0);
    set(&cache, "older", &["late"]).await;
    old_tags(&server).await;
    let load = |loading: Loading<u8>| async move {
        loading.tag("late");
        Ok::<_, Infallible>(1u8)
    };
    let load = cache.memoize_with("k", MINUTE, load).tags(["declared"]);
    load.stale_if_error(60 * MINUTE).await.expect("loaded");
    assert_eq!(listed(&cache, "late").await, ["k", "older"]);
    aged(&server, "hr:v:{c:k}", 2 * MINUTE).await;
    // As if the ends that were noted had come.
    for index in server.keys("hr:x:*").await {
        let _: usize = server.run(&["DEL", &index]).await;
    }
    let unchanged = |loading: Loading<u8>| async move {
        let old = loading.stale().expect("it is there");
        Ok::<_, Infallible>(loading.not_modified(&old))
    };
    let load = cache.memoize_with("k", MINUTE, unchanged);
    let load = load.tags(["declared"]).stale_if_error(60 * MINUTE);
    load.await.expect("loaded");
    for tag in ["declared", "late"] {
        assert_eq!(listed(&cache, tag).await, ["k"], "{tag}");
    }
}

#[tokio::test]
async fn an_entry_that_moves_to_another_version_is_in_the_index_there() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    let (old, new) = (cache.clone().version(1), cache.version(2));
    set(&old, "k", &["t"]).await;
    assert!(old.move_version("k", 2).await.expect("an answer"));
    assert!(listed(&old, "t").await.is_empty());
    assert_eq!(listed(&new, "t").await, ["k"]);
    assert_eq!(new.purge_tag("t").await.expect("purged"), 1);
    assert!(server.keys("hr:v*").await.is_empty());
}

#[tokio::test]
async fn several_values_are_noted_by_one_command() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let cache = proxy.builder().cache_deadline(MINUTE).open();
    let cache = cache.expect("a good URL").cache("c").index_tags();
    // Makes the scripts known.
    set(&cache, "first", &["t"]).await;
    let index = server.keys("hr:x:*").await.concat();
    let notes = Request::every().with(&index);
    let notes = proxy.on(notes, Act::Delay(Duration::ZERO));
    let values = ["a", "b", "c"].map(|key| (key, &1u8));
    let stored = cache.set_many(values, MINUTE).tags(["t"]).await;
    for outcome in stored.expect("outcomes") {
        outcome.expect("stored");
    }
    assert_eq!(notes.hits(), 1);
    assert_eq!(listed(&cache, "t").await, ["a", "b", "c", "first"]);
}

#[tokio::test]
async fn an_entry_that_lives_longer_than_it_was_to_stays_in_the_index() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    set(&cache, "k", &["t"]).await;
    assert!(cache.persist("k").await.expect("an answer"));
    let lives = server.lives("hr:x:*").await;
    assert_eq!(lives.len(), 1);
    let year = 365 * 24 * 3_600_000;
    assert!(lives[0].1 > 99 * year, "{lives:?}");
    assert_eq!(listed(&cache, "t").await, ["k"]);
}

#[tokio::test]
async fn without_an_index_nothing_is_noted_and_nothing_can_be_listed() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    set(&cache, "k", &["t"]).await;
    assert!(server.keys("hr:x*").await.is_empty());
    let listed = cache.keys_by_tag("t").next().await.expect("an answer");
    let purged = cache.purge_tag("t").await;
    for error in [listed.expect_err("refused"), purged.expect_err("refused")] {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert!(is_there(&cache, "k").await);
}

#[tokio::test]
async fn a_key_of_another_type_is_reported_and_nothing_is_stored() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").index_tags();
    set(&cache, "k", &["t"]).await;
    for key in server.keys("hr:x:*").await {
        let _: () = server.run(&["DEL", &key]).await;
        let _: () = server.run(&["SET", &key, "x"]).await;
    }
    let set = cache.set("k2", &1u8, MINUTE).tags(["t"]).await;
    let listed = cache.keys_by_tag("t").next().await.expect("an answer");
    for error in [set.expect_err("refused"), listed.expect_err("refused")] {
        assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
    }
    assert!(!is_there(&cache, "k2").await);
}

#[tokio::test]
async fn what_is_taken_leaves_the_index_unless_it_is_stored_again() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let there = server.client().await.cache("c").index_tags();
    let here = patient(proxy.builder()).open();
    let here = here.expect("a good URL").cache("c").index_tags();
    // Twice, so that all scripts are known.
    for _ in 0..2 {
        set(&here, "a", &["t", "u"]).await;
        assert!(here.take::<u8>("a").await.expect("an answer").is_some());
        no_index(&server).await;
    }
    set(&here, "a", &["t"]).await;
    let index = server.keys("hr:x:*").await.concat();
    // Something else in the place of the index: that decides nothing.
    server.run::<()>(&["RENAME", &index, "kept"]).await;
    server.run::<()>(&["SET", &index, "other"]).await;
    assert!(here.take::<u8>("a").await.expect("an answer").is_some());
    server.run::<()>(&["RENAME", "kept", &index]).await;
    set(&here, "a", &["t"]).await;
    let forgets = Request::any().named("evalsha").with(&index);
    let held = proxy.on(forgets, Act::Hold);
    let taken = tokio::spawn(async move { here.take::<u8>("a").await });
    held.hit().await;
    set(&there, "a", &["t"]).await;
    let taken = bounded("it ends", taken).await.expect("no panic");
    assert!(taken.expect("an answer").is_some());
    // It looks at the value once the name is forgotten.
    let value = server.keys("hr:v:*").await.concat();
    let looks = Request::any().named("evalsha_ro").with(&value);
    let looks = proxy.on(looks, Act::Hold);
    held.deliver();
    looks.hit().await;
    looks.deliver();
    assert_eq!(listed(&there, "t").await, ["a"]);
}

async fn no_index(server: &Server) {
    until("the index is tidied", async || {
        server.keys("hr:x:*").await.is_empty()
    })
    .await;
}

/// A caller that waits would lose the value if it gives up.
#[tokio::test]
async fn nobody_who_takes_a_value_waits_for_the_index() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let forever = Duration::from_secs(3600);
    let client = proxy.builder().deadline(forever).cache_deadline(forever);
    let cache = client.open().expect("a good URL").cache("c").index_tags();
    set(&cache, "a", &["t"]).await;
    assert!(cache.take::<u8>("a").await.expect("an answer").is_some());
    no_index(&server).await;
    set(&cache, "a", &["t"]).await;
    let index = server.keys("hr:x:*").await.concat();
    let forgets = Request::any().named("evalsha").with(&index);
    let held = proxy.on(forgets, Act::Hold);
    let taken = bounded("it ends", cache.take::<u8>("a")).await;
    assert!(taken.expect("an answer").is_some());
    held.hit().await;
    assert!(!server.keys("hr:x:*").await.is_empty());
    held.deliver();
    no_index(&server).await;
}
