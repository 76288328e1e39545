//! `explain`: each reason that a read may have is told.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use hedgerow::cache::{Explanation, TagVerdict, Verdict};
use hedgerow::{Cache, ErrorKind};

use crate::support::aging::{aged, old_tags};
use crate::support::gate::Gate;
use crate::support::server::Server;

const MINUTE: Duration = Duration::from_secs(60);
const LEASE: &str = "hr:l:{c:k}";
const DIGEST: &str = "return redis.sha1hex(redis.call('HGET', KEYS[1], 'token'))";
const KEY: &str = "hr:v:{c:k}";

async fn explained(cache: &Cache) -> Explanation {
    cache.explain("k").await.expect("an answer")
}

async fn stored(cache: &Cache) {
    let load = async || Ok::<_, Infallible>("a value".repeat(1000));
    let call = cache.memoize("k", MINUTE, load).tags(["country:FR"]);
    call.stale(60 * MINUTE).await.expect("loaded");
}

#[tokio::test]
async fn the_generations_of_a_tag_are_told_with_their_age() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").jitter(0.0);
    stored(&cache).await;
    let told = explained(&cache).await;
    let tag = told.tags[1].clone();
    assert_eq!(tag.present, Some(tag.stamped));
    assert!(tag.since.is_some_and(|since| since < MINUTE), "{tag:?}");
    let stamped = format!("(stamped {:016x}, since ", tag.stamped);
    assert!(told.to_string().contains(&stamped), "{told}");
    // What it says of one entry can be compared, between processes, too.
    let entry = told.entry.expect("it is there");
    let fresh_for = entry.fresh_until.expect("it ends").duration_since(told.at);
    let fresh_for = fresh_for.expect("it is fresh");
    assert!(fresh_for <= MINUTE && fresh_for > MINUTE / 2);
    let other = server.client().await.cache("c");
    let again = explained(&other).await.entry.expect("it is there");
    assert_eq!(
        (again.revision, again.fresh_until),
        (entry.revision, entry.fresh_until)
    );

    old_tags(&server).await;
    let told = explained(&cache).await;
    assert!(told.tags[1].since.is_some_and(|since| since > 60 * MINUTE));
    let invalidation = cache.invalidate_tags(["country:FR"]);
    invalidation.await.expect("invalidated");
    let told = explained(&cache).await;
    let now = &told.tags[1];
    assert_eq!(now.stamped, tag.stamped);
    let present = now.present.expect("it is there");
    assert_ne!(present, tag.stamped);
    assert!(now.since.is_some_and(|since| since < MINUTE), "{now:?}");
    let both = format!("(stamped {:016x}, now {present:016x}, since ", tag.stamped);
    assert!(told.to_string().contains(&both), "{told}");
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
    }
    let told = explained(&cache).await;
    assert_eq!((told.tags[1].present, told.tags[1].since), (None, None));
}

fn tags(told: &Explanation) -> Vec<(&str, TagVerdict)> {
    let tags = told.tags.iter();
    tags.map(|tag| (tag.name.as_str(), tag.state)).collect()
}

#[tokio::test]
async fn a_hit_a_stale_value_and_nothing_at_all() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").jitter(0.0);
    let told = explained(&cache).await;
    assert_eq!(told.verdict, Verdict::Absent);
    assert!(told.entry.is_none() && told.tags.is_empty());
    assert_eq!(told.to_string(), "k: a miss, nothing is stored");
    stored(&cache).await;
    let told = explained(&cache).await;
    assert_eq!(told.verdict, Verdict::Hit);
    let current = [
        ("(all of c)", TagVerdict::Current),
        ("country:FR", TagVerdict::Current),
    ];
    assert_eq!(tags(&told), current);
    let entry = told.entry.as_ref().expect("it is there");
    assert!(entry.fresh_for <= MINUTE && entry.fresh_for > MINUTE / 2);
    assert!(entry.left.is_some_and(|left| left > 60 * MINUTE));
    assert!(told.to_string().contains("Cbor and Lz4"), "{told}");
    aged(&server, KEY, 2 * MINUTE).await;
    let told = explained(&cache).await;
    assert!(
        matches!(told.verdict, Verdict::Stale(age) if age >= MINUTE),
        "{told}"
    );
    assert_eq!(told.entry.expect("it is there").fresh_for, Duration::ZERO);
}

#[tokio::test]
async fn the_tag_that_invalidates_is_named() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    stored(&cache).await;
    cache
        .invalidate_tags(["country:FR"])
        .soft()
        .await
        .expect("invalidated");
    let told = explained(&cache).await;
    assert!(matches!(told.verdict, Verdict::Stale(_)), "{told}");
    assert_eq!(
        tags(&told)[1],
        ("country:FR", TagVerdict::InvalidatedSoftly)
    );
    cache
        .invalidate_tags(["country:FR"])
        .await
        .expect("invalidated");
    let told = explained(&cache).await;
    assert_eq!(told.verdict, Verdict::Invalidated);
    assert_eq!(tags(&told)[0].1, TagVerdict::Current);
    assert_eq!(tags(&told)[1], ("country:FR", TagVerdict::Invalidated));
    for key in server.keys("hr:t:*").await {
        let _: () = server.run(&["DEL", &key]).await;
    }
    let told = explained(&cache).await;
    assert_eq!(told.verdict, Verdict::Invalidated);
    assert!(
        tags(&told).iter().all(|tag| tag.1 == TagVerdict::Missing),
        "{told}"
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_the_reason() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    stored(&cache).await;
    let _: i64 = server.run(&["SETRANGE", KEY, "100", "x"]).await;
    let told = explained(&cache).await;
    assert!(
        matches!(&told.verdict, Verdict::Damaged(how) if how.contains("checksum")),
        "{told}"
    );
    let _: () = server.run(&["SET", KEY, "\u{7f}of another build"]).await;
    let told = explained(&cache).await;
    assert!(
        matches!(&told.verdict, Verdict::Foreign(how) if how.contains("version")),
        "{told}"
    );
    // Nothing was changed.
    assert_eq!(server.run::<i64>(&["EXISTS", KEY]).await, 1);
    let _: i64 = server.run(&["DEL", KEY]).await;
    let _: i64 = server.run(&["RPUSH", KEY, "x"]).await;
    let error = cache.explain("k").await.expect_err("a list");
    assert_eq!(error.kind(), ErrorKind::WrongType);
}

#[tokio::test]
async fn a_load_under_way_and_one_that_has_failed_are_told() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c").error_ttl(MINUTE);
    let gate = Gate::closed();
    let (calls, waits) = (cache.clone(), gate.clone());
    let call = tokio::spawn(async move {
        let load = || async move {
            waits.load(()).await.expect("never fails");
            Err::<u8, _>(io::Error::other("no such row"))
        };
        calls.memoize("k", MINUTE, load).await
    });
    gate.begun(1).await;
    let told = explained(&cache).await;
    let load = told.load.as_ref().expect("under way");
    assert!(
        load.takeover_in > Duration::ZERO && load.waiting == 0,
        "{load:?}"
    );
    assert!(told.to_string().contains("takeover in"), "{told}");
    // Which leader it is, but not its secret.
    let held: Vec<String> = server.run(&["HMGET", LEASE, "fence", "takeover"]).await;
    assert_eq!(held[0], load.fence.to_string());
    let digest = server.run::<String>(&["EVAL", DIGEST, "1", LEASE]).await;
    assert_eq!(load.owner, digest[..8]);
    assert_eq!(told.near, None, "the handle has no near cache");
    gate.open();
    call.await.expect("no panic").expect_err("it fails");
    let told = explained(&cache).await;
    assert!(told.load.is_none());
    let failure = told.failure.as_ref().expect("remembered");
    assert!(
        failure
            .text
            .as_ref()
            .is_some_and(|text| text.contains("no such row")),
        "{told}"
    );
    assert!(failure.left > Duration::ZERO, "{told}");
}

#[tokio::test]
async fn a_leader_that_is_silent_is_told() {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    let lease = "token 0123456789abcdef fence 1 takeover 1";
    let mut set = vec!["HSET", LEASE];
    set.extend(lease.split(' '));
    let _: i64 = server.run(&set).await;
    let told = explained(&cache).await;
    let load = told.load.as_ref().expect("somebody has the lease");
    assert_eq!(load.takeover_in, Duration::ZERO);
    assert!(
        told.to_string().contains("the next call takes over"),
        "{told}"
    );
    assert!(!format!("{told:?} {told}").contains("0123456789abcdef"));
}

#[cfg(feature = "near")]
mod near {
    use hedgerow::cache::{NearCache, NearInfo, NearWhy};

    use super::*;
    use crate::cache::near::{near, set, warm};
    use crate::support::server::signal;
    use crate::support::wait::until;

    async fn told(cache: &Cache) -> NearInfo {
        let told = explained(cache).await;
        let near = told.near.expect("the handle has a near cache");
        assert!(told.to_string().contains("near cache: "), "{told}");
        near
    }

    #[tokio::test]
    async fn what_the_near_cache_holds_is_told() {
        let server = Server::start().await;
        let cache = near(&server.client().await);
        set(&cache, "k", 1).await;
        assert_eq!(told(&cache).await, NearInfo::Absent);
        warm(&cache, "k").await;
        let NearInfo::Held { since, left } = told(&cache).await else {
            panic!("it is held");
        };
        assert!(
            since < MINUTE && left > since && left < 2 * MINUTE,
            "{left:?}"
        );
        // Also that there is nothing.
        cache.remove("k").await.expect("removed");
        warm(&cache, "k").await;
        assert!(matches!(told(&cache).await, NearInfo::Held { .. }));
        assert_eq!(explained(&cache.clone().strict()).await.near, None);
    }

    #[tokio::test]
    async fn why_what_is_held_is_not_served_is_told() {
        let server = Server::start_single().await;
        let client = server.client().await;
        let soon = NearCache::new().max_staleness(Duration::from_millis(200));
        let cache = client.cache("c").near(soon);
        let tagged = cache.set("k", &1_u64, MINUTE).tags(["t"]);
        tagged.await.expect("stored");
        warm(&cache, "k").await;
        cache.invalidate_tags(["t"]).await.expect("invalidated");
        let tag = NearWhy::Tag;
        let near = told(&cache).await;
        assert!(
            matches!(near, NearInfo::Unserved { why, .. } if why == tag),
            "{near:?}"
        );

        // A value that is held only briefly.
        let brief = client
            .cache("c")
            .near(NearCache::new().max_ttl(Duration::from_millis(500)));
        brief.set("k", &1_u64, MINUTE).await.expect("stored");
        warm(&brief, "k").await;
        until("its time is over", async || {
            let near = told(&brief).await;
            matches!(
                near,
                NearInfo::Unserved {
                    why: NearWhy::Expired,
                    ..
                }
            )
        })
        .await;

        // The server stands still, and does not show in time that its pushes arrive.
        warm(&cache, "k").await;
        let pid = server.pid().await;
        signal(pid, "STOP");
        tokio::time::sleep(Duration::from_millis(300)).await;
        signal(pid, "CONT");
        let near = told(&cache).await;
        let unverified = NearWhy::Unverified;
        assert!(
            matches!(near, NearInfo::Unserved { why, .. } if why == unverified),
            "{near:?}"
        );
    }
}
