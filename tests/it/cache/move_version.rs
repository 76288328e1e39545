//! `move_version`: an entry goes to another version of its cache as it is.

use std::time::Duration;

use hedgerow::{Cache, ErrorKind};

use crate::support::gate::Gate;
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{patient, until, waiting};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Both versions of one cache.
async fn versions(server: &Server) -> (Cache, Cache) {
    let cache = server.client().await.cache("c").jitter(0.0);
    (cache.clone().version(1), cache.version(2))
}

async fn text(cache: &Cache, key: &str) -> Option<String> {
    let found = cache.get::<String>(key).await.expect("an answer");
    found.map(|text| text.as_ref().clone())
}

#[tokio::test]
async fn an_entry_moves_with_its_end_and_its_tags() {
    let server = Server::start().await;
    let (old, new) = versions(&server).await;
    old.set("a", "x", HOUR).tags(["t"]).await.expect("stored");
    old.set("b", "x", MINUTE).await.expect("stored");
    new.set("a", "replaced", MINUTE).await.expect("stored");
    assert!(old.move_version("a", 2).await.expect("an answer"));
    assert_eq!(text(&old, "a").await, None);
    assert_eq!(text(&new, "a").await.as_deref(), Some("x"));
    let left = new.ttl("a").await.expect("an answer").expect("an entry");
    assert!(left > HOUR - MINUTE && left <= HOUR, "{left:?}");
    assert_eq!(text(&old, "b").await.as_deref(), Some("x"));
    // And back.
    assert!(new.move_version("a", 1).await.expect("an answer"));
    assert_eq!(text(&old, "a").await.as_deref(), Some("x"));
    assert!(old.move_version("a", 2).await.expect("an answer"));
    new.invalidate_tags(["t"]).await.expect("invalidated");
    assert_eq!(text(&new, "a").await, None);
    assert!(old.move_version("b", 2).await.expect("an answer"));
    old.clear().await.expect("cleared");
    assert_eq!(text(&new, "b").await, None);
}

#[tokio::test]
async fn without_a_valid_entry_nothing_is_moved() {
    let server = Server::start().await;
    let (old, new) = versions(&server).await;
    new.set("a", "kept", MINUTE).await.expect("stored");
    assert!(!old.move_version("a", 2).await.expect("an answer"));
    old.set("a", "x", MINUTE).tags(["t"]).await.expect("stored");
    old.invalidate_tags(["t"]).await.expect("invalidated");
    assert!(!old.move_version("a", 2).await.expect("an answer"));
    assert_eq!(text(&new, "a").await.as_deref(), Some("kept"));
}

/// Between the reading and the script.
#[tokio::test]
async fn an_entry_that_is_invalidated_meanwhile_is_invalid_there_too() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let (old, new) = (client.cache("c").version(1), client.cache("c").version(2));
    // Makes the script known.
    assert!(!old.move_version("a", 2).await.expect("an answer"));
    old.set("a", "x", MINUTE).tags(["t"]).await.expect("stored");
    let script = proxy.on(Request::nth(1).with("hr:v2:{c:a}"), Act::Hold);
    let mover = old.clone();
    let moving = tokio::spawn(async move { mover.move_version("a", 2).await });
    script.hit().await;
    let other = server.client().await.cache("c");
    other.invalidate_tags(["t"]).await.expect("invalidated");
    script.deliver();
    let moved = moving.await.expect("no panic").expect("an answer");
    assert!(moved, "it was still there");
    assert_eq!(text(&new, "a").await, None);
    assert_eq!(text(&old, "a").await, None);
}

#[tokio::test]
async fn an_entry_that_was_replaced_meanwhile_is_moved_as_it_is_now() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let (old, new) = (client.cache("c").version(1), client.cache("c").version(2));
    old.set("a", "x", MINUTE).await.expect("stored");
    let script = proxy.on(Request::nth(1).with("hr:v2:{c:a}"), Act::Hold);
    let moving = tokio::spawn(async move { old.move_version("a", 2).await });
    script.hit().await;
    let other = server.client().await.cache("c").version(1);
    other.set("a", "newer", MINUTE).await.expect("stored");
    script.deliver();
    assert!(moving.await.expect("no panic").expect("an answer"));
    assert_eq!(text(&new, "a").await.as_deref(), Some("newer"));
    assert_eq!(text(&other, "a").await, None);
}

#[tokio::test]
async fn of_many_that_move_an_entry_one_does() {
    let server = Server::start().await;
    let (old, new) = versions(&server).await;
    old.set("a", "x", MINUTE).await.expect("stored");
    let moves = (0..32).map(|_| {
        let old = old.clone();
        tokio::spawn(async move { old.move_version("a", 2).await })
    });
    let moves: Vec<_> = moves.collect();
    let mut moved = 0;
    for one in moves {
        moved += usize::from(one.await.expect("no panic").expect("an answer"));
    }
    assert_eq!(moved, 1);
    assert_eq!(text(&new, "a").await.as_deref(), Some("x"));
}

/// Either load may have read its source before something that the move comes after.
#[tokio::test]
async fn loads_of_either_key_are_not_stored_after_a_move() {
    let server = Server::start().await;
    let (old, new) = versions(&server).await;
    let (_, other) = versions(&server).await;
    old.set("a", "moved", MINUTE).await.expect("stored");
    // A load of the old version is under way only where there is no entry yet.
    let gate = Gate::closed();
    let load = |cache: &Cache, value: &str| {
        let (gate, value) = (gate.clone(), value.to_owned());
        let load = cache.memoize("a", MINUTE, move || gate.load(value));
        tokio::spawn(load.into_future())
    };
    let of_new = load(&new, "loaded");
    until("it loads", async || gate.loads() == 1).await;
    let waits = load(&other, "unused");
    waiting(&server, "hr:l2:{c:a}", 1).await;
    assert!(old.move_version("a", 2).await.expect("an answer"));
    // By push: the takeover is ten seconds away.
    let waited = waits.await.expect("no panic").expect("a value");
    assert_eq!(waited.as_str(), "moved");
    let of_old = load(&old, "loaded");
    until("it loads", async || gate.loads() == 2).await;
    // The entry comes back while the load of its old version is under way.
    server
        .run::<()>(&["COPY", "hr:v2:{c:a}", "hr:v1:{c:a}"])
        .await;
    assert!(old.move_version("a", 2).await.expect("an answer"));
    gate.open();
    gate.open();
    for load in [of_new, of_old] {
        let own = load.await.expect("no panic").expect("loaded");
        assert_eq!(own.as_str(), "loaded");
    }
    assert_eq!(text(&new, "a").await.as_deref(), Some("moved"));
    assert_eq!(text(&old, "a").await, None);
}

#[tokio::test]
async fn something_else_at_any_of_its_keys_is_told_and_left_alone() {
    let server = Server::start().await;
    let (old, new) = versions(&server).await;
    for foreign in ["hr:l1:{c:a}", "hr:v2:{c:a}", "hr:l2:{c:a}"] {
        old.set("a", "x", MINUTE).await.expect("stored");
        let _: usize = server.run(&["RPUSH", foreign, "x"]).await;
        let error = old.move_version("a", 2).await.expect_err(foreign);
        assert_eq!(
            (error.kind(), error.key()),
            (ErrorKind::WrongType, Some("a")),
            "{foreign}"
        );
        assert_eq!(text(&new, "a").await, None);
        assert_eq!(server.run::<usize>(&["LLEN", foreign]).await, 1);
        let _: usize = server.run(&["DEL", foreign]).await;
        assert_eq!(text(&old, "a").await.as_deref(), Some("x"), "{foreign}");
    }
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused() {
    let server = Server::start().await;
    let (old, _) = versions(&server).await;
    old.set("a", "x", MINUTE).await.expect("stored");
    for (cache, key, to) in [(&old, "a", 1), (&old, "", 2)] {
        let error = cache.move_version(key, to).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    #[cfg(feature = "encrypt")]
    {
        let keyring = hedgerow::Keyring::new(1, &[7; 32]).expect("an id");
        let sealed = old.clone().encrypt(keyring);
        let error = sealed.move_version("a", 2).await.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    assert_eq!(text(&old, "a").await.as_deref(), Some("x"));
}

#[tokio::test]
async fn a_move_whose_reply_is_lost_is_in_doubt() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let old = client.cache("c").version(1);
    old.set("a", "x", MINUTE).await.expect("stored");
    assert!(old.move_version("a", 2).await.expect("an answer"));
    old.set("a", "y", MINUTE).await.expect("stored");
    let _lost = proxy.on_reply(Request::nth(1).with("hr:v2:{c:a}"), Act::Reset);
    let error = old.move_version("a", 2).await.expect_err("no answer");
    assert!(error.is_indeterminate(), "{error:?}");
    let new = server.client().await.cache("c").version(2);
    assert_eq!(text(&new, "a").await.as_deref(), Some("y"));
}

/// What this process keeps of either version is not served after the move.
#[cfg(feature = "near")]
#[tokio::test]
async fn near_caches_forget_both_versions() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let cache = cache.near(hedgerow::cache::NearCache::new());
    let (old, new) = (cache.clone().version(1), cache.version(2));
    old.set("a", "x", MINUTE).await.expect("stored");
    new.set("a", "replaced", MINUTE).await.expect("stored");
    until("both are near", async || {
        let before = old.stats().near_hits;
        text(&old, "a").await;
        text(&new, "a").await;
        old.stats().near_hits == before + 2
    })
    .await;
    assert!(old.move_version("a", 2).await.expect("an answer"));
    assert_eq!(text(&old, "a").await, None);
    assert_eq!(text(&new, "a").await.as_deref(), Some("x"));
}
