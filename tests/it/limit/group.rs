//! Groups: several limits of which one call takes all or nothing.

use hedgerow::limit::{DecidedBy, LimitOutage, Quota};
use hedgerow::{Client, ErrorKind, RateLimits};

use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::{calls, until};

/// Five of each address in a day, and three of each account, which is a window.
fn logins(client: &Client) -> RateLimits {
    let account = Quota::per_day(3).sliding_window();
    client
        .rate_limits("login")
        .limit("address", Quota::per_day(5))
        .limit("account", account)
}

#[tokio::test]
async fn a_refused_request_takes_nothing_of_any_limit_and_says_which_has_refused() {
    let server = Server::start().await;
    let limits = logins(&server.client().await);
    let check = async |address: &str, account: &str| {
        let keys = [("address", address), ("account", account)];
        limits.check(keys).await.expect("answered")
    };
    for _ in 0..3 {
        let decisions = check("::1", "ada").await;
        assert!(decisions.allowed());
        assert_eq!(decisions.refused_by(), None);
        assert!(decisions.retry_after().is_zero());
    }
    // Another process, so that nothing is known of refusals.
    for _ in 0..5 {
        let limits = logins(&server.client().await);
        let keys = [("address", "::1"), ("account", "ada")];
        let decisions = limits.check(keys).await.expect("answered");
        assert!(!decisions.allowed());
        assert_eq!(decisions.refused_by(), Some("account"));
        assert!(!decisions.retry_after().is_zero());
        let left: Vec<u32> = decisions.iter().map(|(_, it)| it.remaining).collect();
        assert_eq!(left, [2, 0], "nothing was taken");
    }
    // What the refused requests have not taken of the address is there for another account.
    assert!(check("::1", "bob").await.allowed());
    assert!(check("::1", "bob").await.allowed());
    let refused = check("::1", "bob").await;
    assert_eq!(refused.refused_by(), Some("address"));
}

#[tokio::test]
async fn a_refusal_is_known_for_the_limit_that_refused() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let limits = logins(&client);
    let check = async |address: &str, account: &str| {
        let keys = [("address", address), ("account", account)];
        limits.check(keys).await.expect("answered")
    };
    for _ in 0..3 {
        assert!(check("::1", "ada").await.allowed());
    }
    assert!(!check("::1", "ada").await.allowed());
    let before = calls(&server, &["evalsha", "eval"]).await;
    let again = check("::2", "ada").await;
    assert_eq!(again.refused_by(), Some("account"));
    let (_, decision) = again.iter().nth(1).expect("two limits");
    assert_eq!(decision.decided_by, DecidedBy::KnownRefusal);
    assert_eq!(calls(&server, &["evalsha", "eval"]).await, before);
    assert_eq!(limits.stats().known_refusals, 1);
}

#[tokio::test]
async fn a_group_and_a_limiter_of_one_name_count_apart() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let limiter = client.rate_limiter("login", Quota::per_day(1));
    assert!(limiter.check("ada").await.expect("answered").allowed);
    let limits = logins(&client);
    for _ in 0..2 {
        assert!(limits.check_all("ada").await.expect("answered").allowed());
    }
    assert_eq!(limits.name(), limiter.name());
    let counts = (limiter.stats().allowed, limits.stats().allowed);
    assert_eq!(counts, (1, 2));
}

#[tokio::test]
async fn of_several_known_refusals_the_longest_is_told_and_each_says_so() {
    let server = Server::start_single().await;
    let limits = logins(&server.client().await);
    for (limit, key) in [("address", "::1"), ("account", "ada")] {
        while limits
            .check([(limit, key)])
            .await
            .expect("answered")
            .allowed()
        {}
    }
    let before = calls(&server, &["evalsha", "eval"]).await;
    let keys = [("address", "::1"), ("account", "ada")];
    let refused = limits.check(keys).await.expect("known");
    assert_eq!(calls(&server, &["evalsha", "eval"]).await, before);
    // The address has room after a fifth of a day, the account after a whole one.
    assert_eq!(refused.refused_by(), Some("account"));
    let of = |limit: &str| {
        let mut each = refused.iter();
        let (_, decision) = each.find(|(name, _)| *name == limit).expect("asked");
        *decision
    };
    for limit in ["address", "account"] {
        assert!(!of(limit).allowed, "{limit}");
        assert_eq!(of(limit).decided_by, DecidedBy::KnownRefusal);
    }
    assert!(of("address").retry_after < of("account").retry_after);
    assert_eq!(refused.retry_after(), of("account").retry_after);
}

#[tokio::test]
async fn parts_of_a_group_have_limits_of_their_own_and_the_keys_of_each_share_a_slot() {
    let server = Server::start().await;
    let limits = logins(&server.client().await);
    for part in ["one", "two"] {
        let part = limits.part(part);
        for number in 1..=4 {
            let decisions = part.check_all("ada").await.expect("answered");
            assert_eq!(decisions.allowed(), number <= 3);
        }
    }
    // The group itself is not one of its parts.
    assert!(limits.check_all("ada").await.expect("answered").allowed());
}

#[tokio::test]
async fn a_check_that_cannot_be_is_refused_before_anything_is_sent() {
    let server = Server::start_single().await;
    let limits = logins(&server.client().await);
    let none: [(&str, &str); 0] = [];
    for (what, check) in [
        ("nothing", limits.check(none)),
        ("an unknown limit", limits.check([("page", "a")])),
        ("twice", limits.check([("account", "a"), ("account", "a")])),
        ("too much", limits.check_all("a").cost(4)),
        ("nothing of each", limits.check_all("a").cost(0)),
        ("an empty key", limits.check([("account", "")])),
    ] {
        let error = check.await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{what}: {error}");
    }
    assert_eq!(server.keys("*").await, [""; 0]);
}

#[tokio::test]
async fn one_limit_may_count_several_keys_in_one_call() {
    let server = Server::start().await;
    let limits = logins(&server.client().await).outage(LimitOutage::Closed);
    let both = [("account", "ada"), ("account", "bob")];
    for _ in 0..3 {
        assert!(limits.check(both).await.expect("answered").allowed());
    }
    assert!(!limits.check(both).await.expect("answered").allowed());
}

#[tokio::test]
async fn another_type_at_the_second_key_leaves_the_first_alone() {
    let server = Server::start_single().await;
    let limits = logins(&server.client().await);
    server
        .run::<()>(&["SADD", "hr:w86400000000:{login}:account:ada", "x"])
        .await;
    let error = limits.check_all("ada").await.expect_err("no limit");
    assert_eq!(error.kind(), ErrorKind::WrongType, "{error}");
    assert_eq!(server.keys("hr:r:*").await, [""; 0]);
}

#[tokio::test]
async fn a_peek_takes_nothing_of_any_limit_and_a_refund_gives_back_to_each() {
    let server = Server::start().await;
    let limits = logins(&server.client().await);
    let keys = [("address", "::1"), ("account", "ada")];
    let left = async || {
        let peeked = limits.peek(keys).await.expect("answered");
        let left = peeked.iter().map(|(_, decision)| decision.remaining);
        (peeked.allowed(), left.collect::<Vec<u32>>())
    };
    let (allowed, before) = left().await;
    assert!(allowed);
    assert_eq!(left().await, (true, before.clone()));
    while limits.check(keys).await.expect("answered").allowed() {}
    let (allowed, used_up) = left().await;
    assert!(!allowed && used_up != before, "{used_up:?}");
    let refused = limits.peek(keys).await.expect("answered");
    assert!(refused.refused_by().is_some());
    limits.refund(keys, 1).await.expect("given back");
    let given: Vec<u32> = used_up.iter().map(|left| left + 1).collect();
    assert_eq!(left().await, (true, given));
    // This process has forgotten the refusal.
    assert!(limits.check(keys).await.expect("answered").allowed());
    for wrong in [
        limits.refund(keys, 0).await,
        limits.refund([("no", "a")], 1).await,
    ] {
        assert_eq!(wrong.expect_err("refused").kind(), ErrorKind::InvalidInput);
    }
}

/// What two limits of a group have left, asked by another process.
async fn left(server: &Server) -> [u32; 2] {
    let limits = logins(&server.client().await);
    let of = async |limit, key| {
        let peeked = limits.peek([(limit, key)]).await.expect("answered");
        let (_, decision) = peeked.iter().next().expect("one limit");
        decision.remaining
    };
    [of("address", "::1").await, of("account", "ada").await]
}

#[tokio::test]
async fn a_refund_that_fails_at_a_later_limit_is_indeterminate_and_ends_there() {
    let server = Server::start_single().await;
    let limits = logins(&server.client().await);
    let (address, account) = (("address", "::1"), ("account", "ada"));
    for _ in 0..3 {
        let check = limits.check([address]).await.expect("answered");
        assert!(check.allowed());
    }
    let other = "hr:w86400000000:{login}:account:ada";
    server.run::<()>(&["SADD", other, "x"]).await;
    let first = limits.refund([account, address], 1).await;
    let first = first.expect_err("no limit");
    assert_eq!(first.kind(), ErrorKind::WrongType, "{first}");
    assert!(!first.is_indeterminate(), "nothing was given back: {first}");
    let second = limits.refund([address, account], 1).await;
    let second = second.expect_err("no limit");
    assert_eq!(second.kind(), ErrorKind::WrongType, "{second}");
    assert!(second.is_indeterminate(), "the address has it: {second}");
    server.run::<()>(&["DEL", other]).await;
    assert_eq!(left(&server).await, [3, 3], "one was given back");
}

#[tokio::test]
async fn a_refund_whose_reply_is_lost_is_not_sent_again_and_ends_there() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let limits = logins(&proxy.builder().open().expect("a good URL"));
    let keys = [("address", "::1"), ("account", "ada")];
    for _ in 0..3 {
        assert!(limits.check(keys).await.expect("answered").allowed());
    }
    // The script is known from here on.
    limits.refund(keys, 1).await.expect("given back");
    assert_eq!(left(&server).await, [3, 1]);
    proxy.lose_next_reply();
    let error = limits.refund(keys, 1).await.expect_err("the reply is lost");
    assert!(error.is_indeterminate(), "{error}");
    assert_eq!(left(&server).await, [4, 1], "one of them, and once");
    assert_eq!(proxy.lost(), 1);
}

#[tokio::test]
async fn a_refund_that_is_dropped_has_given_back_to_some_and_their_refusals_are_forgotten() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let limits = logins(&proxy.builder().open().expect("a good URL"));
    let (address, account) = (("address", "::1"), ("account", "ada"));
    assert!(limits.check([address]).await.expect("answered").allowed());
    while limits
        .check([address, account])
        .await
        .expect("answered")
        .allowed()
    {}
    limits.refund([address], 1).await.expect("given back");
    assert_eq!(left(&server).await, [2, 0]);
    let second = proxy.on(Request::nth(2).named("EVALSHA"), Act::Hold);
    tokio::select! {
        _ = limits.refund([account, address], 1) => panic!("it is held"),
        () = second.hit() => {}
    }
    assert_eq!(left(&server).await, [2, 1], "the address is on its way");
    second.deliver();
    until("what was sent arrives", async || {
        left(&server).await == [3, 1]
    })
    .await;
    let decisions = limits.check([account]).await.expect("answered");
    assert!(decisions.allowed(), "{decisions:?}");
}
