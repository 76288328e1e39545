//! What limiters decide while Redis is out, under each policy: against a server that is dead, hung,
//! full, or forbids.

use std::time::Duration;

use hedgerow::limit::{DecidedBy, Decision, LimitOutage, Quota};
use hedgerow::{Client, ErrorKind, RateLimiter, RateLimits, Result};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::{Server, signal};
use crate::support::wait::{bounded, until};

const MINUTE: Duration = Duration::from_secs(60);

/// What becomes of the server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Condition {
    Dead,
    Hung,
    Full,
    Forbids,
    WrongType,
}

const LOCAL: LimitOutage = LimitOutage::Local { share: 0.5 };

/// A limiter of 10 in a day under `policy`.
fn limiter(client: &Client, policy: LimitOutage) -> RateLimiter {
    client
        .rate_limiter("api", Quota::per_day(10))
        .outage(policy)
}

async fn check(limiter: &RateLimiter, key: &str) -> Result<Decision> {
    bounded("a decision", async { limiter.check(key).await }).await
}

/// A server in a condition, and a client that has known it before.
async fn struck(condition: Condition) -> (Server, Client) {
    let server = Server::start_single().await;
    let patience = match condition {
        Condition::Dead | Condition::Hung => Duration::from_secs(1),
        _ => MINUTE,
    };
    let client = server.builder().cache_deadline(patience).open();
    let client = client.expect("a good URL");
    let warm = limiter(&client, LimitOutage::Fail);
    assert!(check(&warm, "warm").await.expect("answered").allowed);
    let _ = warm.peek("warm").await.expect("answered");
    let pid = server.pid().await;
    match condition {
        Condition::Dead => signal(pid, "KILL"),
        Condition::Hung => signal(pid, "STOP"),
        Condition::Full => server.run(&["CONFIG", "SET", "maxmemory", "1"]).await,
        Condition::Forbids => {
            let user = ["ACL", "SETUSER", "default", "resetkeys", "~other:*"];
            server.run(&user).await
        }
        Condition::WrongType => {
            for key in ["fail", "open", "closed", "local"] {
                let key = format!("hr:r:{{api:{key}}}");
                server.run::<()>(&["SADD", &key, "x"]).await;
            }
        }
    }
    (server, client)
}

async fn each_policy_decides_an_outage(condition: Condition) {
    let (server, client) = struck(condition).await;
    let error = check(&limiter(&client, LimitOutage::Fail), "fail").await;
    let error = error.expect_err("no policy");
    assert!(error.kind().is_outage(), "{condition:?}: {error}");

    let open = limiter(&client, LimitOutage::Open);
    for _ in 0..20 {
        let decision = check(&open, "open").await.expect("decided");
        assert!(decision.allowed);
        assert_eq!(decision.decided_by, DecidedBy::Outage);
    }
    open.until_ready("open").await.expect("let through");
    assert_eq!(open.stats().outage_allowed, 21);

    let closed = limiter(&client, LimitOutage::Closed);
    let decision = check(&closed, "closed").await.expect("decided");
    assert!(!decision.allowed);
    assert_eq!(decision.decided_by, DecidedBy::Outage);
    assert_eq!(decision.retry_after, Duration::from_secs(1));
    let error = closed.until_ready("closed").await.expect_err("refused");
    assert!(error.kind().is_outage(), "{error}");

    let local = limiter(&client, LOCAL);
    for number in 1..=8 {
        let decision = check(&local, "local").await.expect("decided");
        assert_eq!(decision.allowed, number <= 5, "{number} of half of ten");
        assert_eq!(decision.decided_by, DecidedBy::Outage);
        assert_eq!(decision.limit, 5);
    }
    let error = local.until_ready("local").await.expect_err("hours away");
    assert_eq!(error.kind(), ErrorKind::Contended, "{error}");
    local.until_ready("another").await.expect("let through");
    // Six never fit in half of ten.
    let decision = bounded("a decision", async { local.check("wide").cost(6).await });
    let decision = decision.await.expect("decided");
    assert!(!decision.allowed);
    assert_eq!(decision.retry_after, Duration::from_secs(1), "as if closed");
    let error = local.until_ready("wide").cost(6).await.expect_err("never");
    assert!(error.kind().is_outage(), "{error}");
    // A peek is never made up.
    let error = open.peek("open").await;
    if condition != Condition::Full {
        assert!(error.expect_err("nobody knows").kind().is_outage());
    }
    drop(server);
}

#[tokio::test]
async fn each_policy_decides_while_the_server_is_dead() {
    each_policy_decides_an_outage(Condition::Dead).await;
}

#[tokio::test]
async fn each_policy_decides_while_the_server_is_full() {
    each_policy_decides_an_outage(Condition::Full).await;
}

#[tokio::test]
async fn each_policy_decides_while_the_server_is_hung() {
    each_policy_decides_an_outage(Condition::Hung).await;
}

async fn a_mistake_is_an_error_under_every_policy(condition: Condition, kind: ErrorKind) {
    let (_server, client) = struck(condition).await;
    for (policy, key) in [
        (LimitOutage::Fail, "fail"),
        (LimitOutage::Open, "open"),
        (LimitOutage::Closed, "closed"),
        (LOCAL, "local"),
    ] {
        let limiter = limiter(&client, policy);
        let error = check(&limiter, key).await.expect_err("a mistake");
        assert_eq!(error.kind(), kind, "{policy:?}: {error}");
        let error = limiter.until_ready(key).await.expect_err("a mistake");
        assert_eq!(error.kind(), kind, "{policy:?}: {error}");
        let group = client
            .rate_limits("api")
            .limit("day", Quota::per_day(0))
            .outage(policy);
        let error = group.check_all(key).await.expect_err("a mistake");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{policy:?}: {error}");
    }
}

#[tokio::test]
async fn a_missing_right_is_an_error_under_every_policy() {
    a_mistake_is_an_error_under_every_policy(Condition::Forbids, ErrorKind::Forbidden).await;
}

#[tokio::test]
async fn another_type_is_an_error_under_every_policy() {
    a_mistake_is_an_error_under_every_policy(Condition::WrongType, ErrorKind::WrongType).await;
}

#[tokio::test]
async fn a_share_that_is_none_is_an_error() {
    let server = Server::start_single().await;
    let client = server.client().await;
    for share in [0.0, -0.1, 1.1, f64::NAN, f64::INFINITY, 1e-300] {
        let limiter = limiter(&client, LimitOutage::Local { share });
        let error = check(&limiter, "a").await.expect_err("no share");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{share}: {error}");
        assert!(limiter.verify().is_err(), "{share}");
    }
}

#[tokio::test]
async fn a_local_limiter_knows_what_redis_let_through_before_the_outage() {
    let (server, client) = {
        let server = Server::start_single().await;
        let client = server.builder().cache_deadline(Duration::from_secs(1));
        (server, client.open().expect("a good URL"))
    };
    let local = LimitOutage::Local { share: 1.0 };
    for _ in 0..6 {
        // A handle for each request.
        let decision = check(&limiter(&client, local), "a")
            .await
            .expect("answered");
        assert_eq!(decision.decided_by, DecidedBy::Server);
    }
    signal(server.pid().await, "KILL");
    let mut allowed = 0;
    for _ in 0..10 {
        let decision = check(&limiter(&client, local), "a").await.expect("decided");
        assert_eq!(decision.decided_by, DecidedBy::Outage);
        allowed += u32::from(decision.allowed);
    }
    assert_eq!(allowed, 4, "six of ten are used");
}

#[tokio::test]
async fn a_group_decides_by_its_policy() {
    let (_server, client) = struck(Condition::Dead).await;
    let group = client
        .rate_limits("login")
        .limit("address", Quota::per_day(10))
        .limit("account", Quota::per_day(4).sliding_window());
    let error = group.check_all("a").await.expect_err("no policy");
    assert!(error.kind().is_outage(), "{error}");
    let decisions = group.clone().outage(LimitOutage::Open).check_all("a").await;
    assert!(decisions.expect("decided").allowed());
    let decisions = group
        .clone()
        .outage(LimitOutage::Closed)
        .check_all("a")
        .await;
    let decisions = decisions.expect("decided");
    assert_eq!(decisions.refused_by(), Some("address"));
    for policy in [LimitOutage::Open, LimitOutage::Closed, LOCAL] {
        let peeked = group.clone().outage(policy).peek([("address", "a")]).await;
        let error = peeked.expect_err("a peek is never made up");
        assert!(error.kind().is_outage(), "{policy:?}: {error}");
    }
    let local = group.outage(LOCAL);
    for number in 1..=3 {
        let decisions = local.check_all("a").await.expect("decided");
        assert_eq!(decisions.allowed(), number <= 2);
        let account = (number > 2).then_some("account");
        assert_eq!(decisions.refused_by(), account);
    }
}

/// Five of each address and two of each account, on its own.
fn local_logins(client: &Client) -> RateLimits {
    client
        .rate_limits("login")
        .limit("address", Quota::per_day(10))
        .limit("account", Quota::per_day(4).sliding_window())
        .outage(LOCAL)
}

#[tokio::test]
async fn a_group_without_redis_takes_nothing_for_a_request_that_one_of_its_limits_refuses() {
    let (_server, client) = struck(Condition::Dead).await;
    let logins = local_logins(&client);
    let check = async |address: &str, account: &str| {
        let keys = [("address", address), ("account", account)];
        let decisions = logins.check(keys).await.expect("decided");
        assert_eq!(decisions.allowed(), decisions.refused_by().is_none());
        decisions.refused_by().map(str::to_owned)
    };
    for _ in 0..2 {
        assert_eq!(check("::1", "ada").await, None);
    }
    for _ in 0..10 {
        assert_eq!(check("::1", "ada").await.as_deref(), Some("account"));
    }
    // The address has had two of its five.
    for account in ["bob", "bob", "eve"] {
        assert_eq!(check("::1", account).await, None, "{account}");
    }
    for _ in 0..10 {
        assert_eq!(check("::1", "joe").await.as_deref(), Some("address"));
    }
    assert_eq!(check("::2", "joe").await, None);
    assert_eq!(check("::2", "joe").await, None, "joe has had one of two");
    // One limit may count several keys.
    let both = [("account", "new"), ("account", "ada")];
    for _ in 0..3 {
        assert!(!logins.check(both).await.expect("decided").allowed());
    }
    for _ in 0..2 {
        let alone = logins.check([("account", "new")]).await;
        assert!(alone.expect("decided").allowed());
    }
}

#[tokio::test]
async fn a_group_without_redis_asks_all_of_its_limits_and_tells_the_longest_wait() {
    let (_server, client) = struck(Condition::Dead).await;
    let logins = local_logins(&client);
    for limit in ["address", "account"] {
        while logins
            .check([(limit, "a")])
            .await
            .expect("decided")
            .allowed()
        {}
    }
    let refused = logins.check_all("a").await.expect("decided");
    assert!(refused.iter().all(|(_, decision)| !decision.allowed));
    // One of the address comes back after a fifth of a day, one of the account after half of one.
    assert_eq!(refused.refused_by(), Some("account"));
    let waits = refused.iter().map(|(_, decision)| decision.retry_after);
    assert_eq!(Some(refused.retry_after()), waits.max());
}

/// Calls on several threads, of which each second one is refused by its account.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refused_calls_of_a_group_without_redis_take_nothing_from_those_beside_them() {
    let (_server, client) = struck(Condition::Dead).await;
    let logins = client
        .rate_limits("login")
        .limit("address", Quota::per_day(2_000))
        .limit("account", Quota::per_day(2))
        .outage(LOCAL);
    let used_up = logins.check([("account", "ada")]).await.expect("decided");
    assert!(used_up.allowed());
    let tasks = (0..8).map(|task| {
        let logins = logins.clone();
        tokio::spawn(async move {
            let mut allowed = 0;
            for number in 0..500 {
                let account = match number % 2 {
                    0 => format!("{task}:{number}"),
                    _ => "ada".to_owned(),
                };
                let keys = [("address", "::1"), ("account", &*account)];
                let decisions = logins.check(keys).await.expect("decided");
                allowed += u32::from(decisions.allowed());
            }
            allowed
        })
    });
    let mut allowed = 0;
    for task in tasks.collect::<Vec<_>>() {
        allowed += task.await.expect("no panic");
    }
    assert_eq!(allowed, 1_000, "all of the address's share");
}

#[tokio::test]
async fn a_group_whose_share_is_none_takes_nothing() {
    let server = Server::start_single().await;
    let none = LimitOutage::Local { share: 0.0 };
    let group = local_logins(&server.client().await).outage(none);
    let error = group.check_all("a").await.expect_err("no share");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(server.keys("*").await, [""; 0]);
}

#[tokio::test]
async fn no_command_is_sent_while_the_breaker_is_open() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy.builder().cache_deadline(Duration::from_secs(1));
    let client = client.open().expect("a good URL");
    let strict = limiter(&client, LimitOutage::Fail);
    assert!(check(&strict, "a").await.expect("answered").allowed);
    proxy.on(Request::every(), Act::Vanish);
    until("the breaker opens", async || {
        let error = check(&strict, "b").await.expect_err("no answer");
        error.kind() == ErrorKind::CircuitOpen
    })
    .await;
    let sent = proxy.on(Request::every().named("EVALSHA"), Act::Vanish);
    let mut decided = 0;
    for policy in [LimitOutage::Open, LimitOutage::Closed, LOCAL] {
        let limiter = limiter(&client, policy);
        for _ in 0..1000 {
            let decision = check(&limiter, "b").await.expect("decided");
            decided += u32::from(decision.decided_by == DecidedBy::Outage);
        }
    }
    assert_eq!(decided, 3000);
    // One call at a time looks whether the server is back, which takes its deadline.
    assert!(sent.hits() < 30, "{} of 3000 were sent", sent.hits());
}

#[tokio::test]
async fn the_server_decides_again_when_it_is_back() {
    let mut server = Server::start_single().await;
    let client = server.builder().cache_deadline(Duration::from_secs(1));
    let client = client.open().expect("a good URL");
    let open = limiter(&client, LimitOutage::Open);
    assert_eq!(
        check(&open, "a").await.expect("answered").decided_by,
        DecidedBy::Server
    );
    let killed = server.kill().await;
    assert_eq!(
        check(&open, "a").await.expect("decided").decided_by,
        DecidedBy::Outage
    );
    server.start_again(killed).await;
    until("the server decides", async || {
        check(&open, "a").await.expect("decided").decided_by == DecidedBy::Server
    })
    .await;
}
