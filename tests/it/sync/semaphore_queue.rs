//! The queue of a semaphore: who is granted permits next, and by which script.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hedgerow::{Client, ErrorKind, Permits, Semaphore};
use tokio::sync::Barrier;

use crate::support::monitor::Monitor;
use crate::support::permits::{AGES, Kept, all_back, expire, granted, key, queued, wait, warm};
use crate::support::proxy::{Act, Proxy, Request, Rule};
use crate::support::server::Server;
use crate::support::wait::{bounded, calls, patient, until};

#[tokio::test]
async fn processes_get_permits_in_the_order_of_their_arrival() {
    let server = Server::start().await;
    let holder = held(&server.client().await, 2, 2).await;
    let mut waiters = Vec::new();
    let names = ["0", "1", "2", "3", "4"];
    for (place, name) in names.into_iter().enumerate() {
        let client = server.client().await;
        waiters.push(wait(client.semaphore("a", 2).weight(2).metadata(name)));
        queued(&server, "a", &names[..=place]).await;
    }
    holder.release().await.expect("held until now");
    for (place, waiter) in waiters.into_iter().enumerate() {
        let permits = granted(waiter).await;
        let kept = Kept::of(&server, "a").await;
        assert_eq!(kept.held_by(), [names[place]]);
        assert_eq!(kept.awaited_by(), names[place + 1..]);
        permits.release().await.expect("held until now");
    }
    all_back(&server, "a").await;
}

/// The waiters cannot ask: their requests are held. What they are granted is granted by the script
/// of the release.
#[tokio::test]
async fn one_release_grants_several_waiters_of_several_processes() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let one = warm(server.client().await).await;
    let holder = held(&one, 4, 4).await;
    let waiters = behind(
        &server,
        &proxy,
        4,
        &[("b", 1), ("c", 2), ("d", 1), ("e", 1)],
    )
    .await;
    let stopped = silenced(&server, &proxy).await;
    let monitor = Monitor::start(&server).await;
    let scripts = calls(&server, &["evalsha"]).await;
    holder.release().await.expect("held until now");
    let kept = Kept::of(&server, "a").await;
    assert_eq!(
        (kept.held_by(), kept.awaited_by()),
        (vec!["b", "c", "d"], vec!["e"])
    );
    assert_eq!(calls(&server, &["evalsha"]).await - scripts, 1);
    let told = monitor.of_scripts(&server).await;
    let grants = told.iter().filter(|line| line.contains("\"grant "));
    assert_eq!(grants.count(), 3, "{told:?}");
    stopped.deliver();
    proxy.clear();
    for waiter in waiters {
        let permits = granted(waiter).await;
        permits.release().await.expect("held until now");
    }
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_wide_call_at_the_head_is_overtaken_by_nobody() {
    let server = Server::start().await;
    let (one, two, three, four) = (
        server.client().await,
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let holder = held(&one, 4, 3).await;
    let wide = wait(two.semaphore("a", 4).weight(4).metadata("wide"));
    queued(&server, "a", &["wide"]).await;
    let small = wait(three.semaphore("a", 4).metadata("small"));
    queued(&server, "a", &["wide", "small"]).await;
    // One permit is free all the while.
    let late = [&one, &two, &three, &four].map(async |client| {
        assert!(tried(client, 4, 1).await.is_none());
        let late = client.semaphore("a", 4).wait(Duration::from_secs(2));
        late.acquire().await.expect_err("others came first")
    });
    for late in join_all(late).await {
        assert_eq!(late.kind(), ErrorKind::Contended, "{late}");
    }
    // The process that holds may have more, in its turn.
    let more = wait(one.semaphore("a", 4).weight(2).metadata("more"));
    queued(&server, "a", &["wide", "small", "more"]).await;
    assert_eq!(Kept::of(&server, "a").await.weights(), [3]);
    holder.release().await.expect("held until now");
    let wide = granted(wide).await;
    let kept = Kept::of(&server, "a").await;
    assert_eq!(
        (kept.held_by(), kept.awaited_by()),
        (vec!["wide"], vec!["small", "more"])
    );
    assert!(tried(&four, 4, 1).await.is_none());
    wide.release().await.expect("held until now");
    let (small, more) = (granted(small).await, granted(more).await);
    assert_eq!(Kept::of(&server, "a").await.weights(), [1, 2]);
    let last = tried(&four, 4, 1)
        .await
        .expect("one is left, and nobody waits");
    for permits in [small, more, last] {
        permits.release().await.expect("held until now");
    }
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_wide_call_gets_its_permits_though_small_ones_come_all_the_time() {
    let server = Server::start().await;
    let wide = server.client().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let client = server.client().await;
        streams.extend((0..3).map(|_| tokio::spawn(stream(client.clone()))));
    }
    until("small ones hold all", async || {
        Kept::of(&server, "a").await.weights() == [1; 4]
    })
    .await;
    for _ in 0..20 {
        let all = wide.semaphore("a", 4).weight(4).lease(AGES).wait(AGES);
        let all = bounded("the wide call is granted", all.acquire()).await;
        let all = all.expect("granted");
        assert_eq!(Kept::of(&server, "a").await.weights(), [4]);
        all.release().await.expect("held until now");
    }
    for stream in streams {
        stream.abort();
    }
}

/// Takes one permit after the other for ever.
async fn stream(client: Client) {
    loop {
        let small = client.semaphore("a", 4).lease(AGES).wait(AGES);
        let small = small.acquire().await.expect("granted");
        tokio::task::yield_now().await;
        small.release().await.expect("held until now");
    }
}

/// Those behind the head cannot ask: their requests are held. What they are granted is granted by
/// the script with which the head leaves.
#[tokio::test]
async fn a_head_that_leaves_lets_those_behind_it_go_that_fit() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (one, two) = (
        warm(server.client().await).await,
        warm(server.client().await).await,
    );
    let _holder = held(&one, 4, 2).await;
    let head = wait(two.semaphore("a", 4).weight(3).metadata("head"));
    queued(&server, "a", &["head"]).await;
    let waiters = behind(&server, &proxy, 4, &[("b", 1), ("c", 1), ("d", 1)]);
    let waiters = waiters.await;
    let stopped = silenced(&server, &proxy).await;
    head.abort();
    until("the head has left", async || {
        !Kept::of(&server, "a").await.awaited_by().contains(&"head")
    })
    .await;
    let kept = Kept::of(&server, "a").await;
    assert_eq!(
        (kept.held_by(), kept.awaited_by()),
        (vec!["", "b", "c"], vec!["d"])
    );
    stopped.deliver();
    proxy.clear();
    for (waiter, name) in waiters.into_iter().zip(["b", "c", "d"]) {
        let permits = granted(waiter).await;
        assert!(Kept::of(&server, "a").await.held_by().contains(&name));
        permits.release().await.expect("held until now");
    }
}

#[tokio::test]
async fn a_head_whose_wait_ends_lets_those_behind_it_go() {
    let server = Server::start().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let holder = held(&one, 4, 2).await;
    let head = two.semaphore("a", 4).weight(3).metadata("head");
    let head = head.wait(Duration::from_secs(3));
    let head = tokio::spawn(async move { head.acquire().await });
    queued(&server, "a", &["head"]).await;
    let behind = wait(three.semaphore("a", 4).weight(2).metadata("behind"));
    queued(&server, "a", &["head", "behind"]).await;
    let late = head.await.expect("no panic").expect_err("two are free");
    assert_eq!(late.kind(), ErrorKind::Contended);
    assert!(late.to_string().contains("2 permits are held"), "{late}");
    let behind = granted(behind).await;
    assert_eq!(Kept::of(&server, "a").await.weights(), [2, 2]);
    behind.release().await.expect("held until now");
    holder.release().await.expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn calls_of_one_process_on_free_permits_do_not_wait_for_each_other() {
    const CALLS: usize = 64;
    let server = Server::start().await;
    let client = warm(server.client().await).await;
    let monitor = Monitor::start(&server).await;
    let before = calls(&server, &["evalsha"]).await;
    // Each keeps its permits until all have theirs.
    let all = Arc::new(Barrier::new(CALLS));
    let call = || {
        let semaphore = client.semaphore("a", 64).lease(AGES).wait(AGES);
        let all = all.clone();
        tokio::spawn(async move {
            let permits = semaphore.acquire().await.expect("free");
            all.wait().await;
            permits
        })
    };
    let tasks: Vec<_> = (0..CALLS).map(|_| call()).collect();
    let permits = bounded("all hold at once", join_all(tasks)).await;
    assert_eq!(Kept::of(&server, "a").await.weights(), vec![1; CALLS]);
    assert_eq!(calls(&server, &["evalsha"]).await - before, CALLS);
    let scripts = monitor.of_scripts(&server).await;
    let queued = |line: &&String| line.contains("\"HSET\"") && line.contains("semaphore-queue");
    assert_eq!(scripts.iter().find(queued), None, "none took a position");
    for permits in permits {
        let released = permits.expect("no panic").release().await;
        released.expect("held until now");
    }
    all_back(&server, "a").await;
}

/// While the first call is not answered, the others have asked.
#[tokio::test]
async fn a_call_on_free_permits_does_not_wait_for_the_answer_of_another() {
    const CALLS: usize = 16;
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = patient(proxy.builder()).open().expect("a good URL");
    let client = warm(client).await;
    let asks = Request::every().named("EVALSHA").with(&key("a"));
    let asked = proxy.on(asks, Act::Delay(Duration::ZERO));
    let answer = proxy.on_reply(Request::any().with(&key("a")), Act::Hold);
    let waiters: Vec<_> = (0..CALLS)
        .map(|_| wait(client.semaphore("a", 16)))
        .collect();
    answer.hit().await;
    until("all have asked", async || asked.hits() >= CALLS).await;
    answer.deliver();
    let permits: Vec<Permits> = join_all(waiters.into_iter().map(granted)).await;
    drop(permits);
    all_back(&server, "a").await;
}

#[tokio::test]
async fn calls_of_one_process_get_permits_in_the_order_of_their_arrival() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let holder = held(&one, 3, 1).await;
    let wide = wait(two.semaphore("a", 3).weight(3).metadata("wide"));
    queued(&server, "a", &["wide"]).await;
    let small = wait(two.semaphore("a", 3).metadata("small"));
    let last = wait(two.semaphore("a", 3).weight(2).metadata("last"));
    // Two permits are free, but others came first.
    assert!(tried(&two, 3, 1).await.is_none());
    let kept = Kept::of(&server, "a").await;
    assert_eq!(kept.awaited_by(), ["wide"], "one position for the process");
    holder.release().await.expect("held until now");
    let wide = granted(wide).await;
    queued(&server, "a", &["small"]).await;
    wide.release().await.expect("held until now");
    let (small, last) = (granted(small).await, granted(last).await);
    assert_eq!(Kept::of(&server, "a").await.weights(), [1, 2]);
    small.release().await.expect("held until now");
    last.release().await.expect("held until now");
    all_back(&server, "a").await;
}

/// The first two find the semaphore unknown, so each asks for itself. The third one knows that it
/// has to wait, before the second has heard so.
#[tokio::test]
async fn a_call_whose_answer_is_late_keeps_its_place_in_its_process() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let one = server.client().await;
    let two = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let holder = held(&one, 1, 1).await;
    let call = |name: &str| wait(two.semaphore("a", 1).metadata(name));
    let late = proxy.on_reply(Request::nth(2).named("evalsha").with(&key("a")), Act::Hold);
    let (first, second) = (call("first"), call("second"));
    queued(&server, "a", &["first"]).await;
    late.hit().await;
    let third = call("third");
    late.deliver();
    holder.release().await.expect("held until now");
    let first = granted(first).await;
    queued(&server, "a", &["second"]).await;
    first.release().await.expect("held until now");
    let second = granted(second).await;
    queued(&server, "a", &["third"]).await;
    second.release().await.expect("held until now");
    granted(third)
        .await
        .release()
        .await
        .expect("held until now");
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_process_with_many_waiters_comes_after_one_that_came_before_the_second_of_them() {
    let server = Server::start().await;
    let crowd = warm(server.client().await).await;
    let other = server.client().await;
    let first = held(&other, 1, 1).await;
    let crowd: Vec<_> = (0..50)
        .map(|_| wait(crowd.semaphore("a", 1).metadata("crowd")))
        .collect();
    queued(&server, "a", &["crowd"]).await;
    let waiter = wait(other.semaphore("a", 1).metadata("other"));
    queued(&server, "a", &["crowd", "other"]).await;
    first.release().await.expect("held until now");
    let mut crowd = crowd.into_iter();
    let one = granted(crowd.next().expect("the first of 50")).await;
    queued(&server, "a", &["other", "crowd"]).await;
    one.release().await.expect("held until now");
    let other = granted(waiter).await;
    assert_eq!(Kept::of(&server, "a").await.awaited_by(), ["crowd"]);
    other.release().await.expect("held until now");
    for waiter in crowd {
        let permits = granted(waiter).await;
        permits.release().await.expect("held until now");
    }
    all_back(&server, "a").await;
}

#[tokio::test]
async fn the_next_call_of_a_process_waits_for_its_own_weight_when_the_first_leaves() {
    let server = Server::start().await;
    let (one, two, three) = (
        server.client().await,
        server.client().await,
        server.client().await,
    );
    let holder = held(&one, 4, 3).await;
    let rest = held(&three, 4, 1).await;
    let first = wait(two.semaphore("a", 4).weight(4).metadata("first"));
    queued(&server, "a", &["first"]).await;
    let second = wait(two.semaphore("a", 4).weight(2).metadata("second"));
    first.abort();
    queued(&server, "a", &["second"]).await;
    assert_eq!(Kept::of(&server, "a").await.queue[0].weight, 2);
    // The first would not fit.
    holder.release().await.expect("held until now");
    let second = granted(second).await;
    assert_eq!(second.weight(), 2);
    assert_eq!(Kept::of(&server, "a").await.weights(), [1, 2]);
    let last = tried(&one, 4, 1).await.expect("one is left");
    for permits in [second, rest, last] {
        permits.release().await.expect("held until now");
    }
    all_back(&server, "a").await;
}

#[tokio::test]
async fn a_narrow_call_is_granted_when_a_wide_one_before_it_leaves_its_process() {
    let server = Server::start().await;
    let (one, two) = (server.client().await, server.client().await);
    let holder = held(&one, 4, 3).await;
    let wide = wait(two.semaphore("a", 4).weight(2).metadata("wide"));
    queued(&server, "a", &["wide"]).await;
    let narrow = wait(two.semaphore("a", 4).metadata("narrow"));
    wide.abort();
    // Nobody gives anything back.
    let narrow = granted(narrow).await;
    let kept = Kept::of(&server, "a").await;
    assert_eq!((kept.weights(), kept.queue.len()), (vec![1, 3], 0));
    narrow.release().await.expect("held until now");
    holder.release().await.expect("held until now");
    all_back(&server, "a").await;
}

/// The grant of the wide call is on its way when that call leaves.
#[tokio::test]
async fn a_grant_that_comes_too_late_for_a_wide_call_leaves_the_next_one_its_own_weight() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (one, three) = (server.client().await, server.client().await);
    let two = patient(proxy.builder()).open().expect("a good URL");
    let two = warm(two).await;
    for (wide, narrow) in [(3, 1), (1, 3)] {
        let holder = held(&one, 4, 4).await;
        let first = wait(two.semaphore("a", 4).weight(wide).metadata("first"));
        let second = wait(two.semaphore("a", 4).weight(narrow).metadata("second"));
        listening(&server, 1).await;
        let pushes = proxy.on_push(Request::every().named("smessage"), Act::Hold);
        holder.release().await.expect("held until now");
        assert_eq!(Kept::of(&server, "a").await.held_by(), ["first"]);
        pushes.hit().await;
        first.abort();
        pushes.deliver();
        proxy.clear();
        let second = granted(second).await;
        assert_eq!(second.weight(), narrow);
        until("the second holds, and nobody else", async || {
            let kept = Kept::of(&server, "a").await;
            kept.weights() == [narrow] && kept.held_by() == ["second"]
        })
        .await;
        let rest = tried(&three, 4, 4 - narrow)
            .await
            .expect("the rest is free");
        rest.release().await.expect("held until now");
        assert!(second.is_held());
        second.release().await.expect("held until now");
        all_back(&server, "a").await;
    }
}

#[tokio::test]
async fn permits_whose_lease_ends_while_a_grant_is_confirmed_come_back() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let (one, three) = (server.client().await, server.client().await);
    let two = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    let ended = held(&one, 4, 2).await;
    let id = Kept::of(&server, "a").await.holders[0].id.clone();
    let rest = held(&one, 4, 2).await;
    let confirms = wait(two.semaphore("a", 4).weight(2).metadata("confirms"));
    listening(&server, 1).await;
    let head = wait(three.semaphore("a", 4).weight(4).metadata("head"));
    queued(&server, "a", &["confirms", "head"]).await;
    let pushes = proxy.on_push(Request::every().named("smessage"), Act::Hold);
    rest.release().await.expect("held until now");
    expire(&server, "a", &id).await;
    pushes.deliver();
    proxy.clear();
    let confirms = granted(confirms).await;
    until("what has ended is swept", async || {
        Kept::of(&server, "a").await.held_by() == ["confirms"]
    })
    .await;
    confirms.release().await.expect("held until now");
    granted(head).await.release().await.expect("held until now");
    ended.release().await.expect_err("its lease has ended");
    all_back(&server, "a").await;
}

/// The grant of the first call is on its way when that call leaves.
#[tokio::test]
async fn a_grant_is_not_left_to_a_call_with_a_smaller_limit_or_a_larger_weight() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let one = server.client().await;
    let two = warm(patient(proxy.builder()).open().expect("a good URL")).await;
    for (limit, weight) in [(4, 2), (10, 8)] {
        let (stays, goes) = (held(&one, 10, 4).await, held(&one, 10, 6).await);
        let first = wait(two.semaphore("a", 10).weight(2).metadata("first"));
        let second = two.semaphore("a", limit).weight(weight);
        let second = wait(second.metadata("second"));
        listening(&server, 1).await;
        let pushes = proxy.on_push(Request::every().named("smessage"), Act::Hold);
        goes.release().await.expect("held until now");
        pushes.hit().await;
        first.abort();
        pushes.deliver();
        proxy.clear();
        queued(&server, "a", &["second"]).await;
        assert_eq!(Kept::of(&server, "a").await.weights(), [4]);
        stays.release().await.expect("held until now");
        granted(second)
            .await
            .release()
            .await
            .expect("held until now");
        all_back(&server, "a").await;
    }
}

/// Holds `weight` of `limit` permits for longer than any test runs.
async fn held(client: &Client, limit: u32, weight: u32) -> Permits {
    let semaphore = client.semaphore("a", limit).weight(weight).lease(AGES);
    semaphore.acquire().await.expect("free")
}

async fn tried(client: &Client, limit: u32, weight: u32) -> Option<Permits> {
    let semaphore = client.semaphore("a", limit).weight(weight).lease(AGES);
    semaphore.try_acquire().await.expect("an answer")
}

type Waiter = tokio::task::JoinHandle<hedgerow::Result<Permits>>;

/// Waiters behind the proxy, each in a process of its own, in this order at the end of the queue.
async fn behind(server: &Server, proxy: &Proxy, limit: u32, calls: &[(&str, u32)]) -> Vec<Waiter> {
    let mut waiters = Vec::new();
    for (name, weight) in calls {
        let client = patient(proxy.builder()).open().expect("a good URL");
        let semaphore: Semaphore = client.semaphore("a", limit).weight(*weight);
        waiters.push(wait(semaphore.metadata(name)));
        until("it waits", async || {
            Kept::of(server, "a").await.awaited_by().last() == Some(name)
        })
        .await;
    }
    waiters
}

/// From here on those behind the proxy ask nothing, and hear what is pushed to them.
async fn silenced(server: &Server, proxy: &Proxy) -> Rule {
    let waiters = Kept::of(server, "a").await.queue.len();
    listening(server, waiters).await;
    proxy.on(Request::every(), Act::Hold)
}

/// Waits until so many processes wait, all of which receive their grants by push.
async fn listening(server: &Server, waiters: usize) {
    until("the waiters listen", async || {
        let kept = Kept::of(server, "a").await;
        let listens = kept.queue.iter().filter(|it| it.process.starts_with('2'));
        listens.count() == waiters && kept.queue.len() == waiters
    })
    .await;
}
