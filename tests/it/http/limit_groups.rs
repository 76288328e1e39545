//! The layer around a group of limits: one step, one item for each limit, and the longest wait.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Response, StatusCode};
use hedgerow::http::RateLimitLayer;
use hedgerow::limit::Quota;
use hedgerow::{Client, RateLimits};

use super::limits::{Site, address, field, policies};
use crate::support::server::{Server, signal};
use crate::support::wait::calls;

const PEER: &str = "192.0.2.1:1";

/// Three of each client in an hour, and two in a day, which is a window.
fn limits(client: &Client) -> RateLimits {
    client
        .rate_limits("site")
        .limit("hour", Quota::per_hour(3))
        .limit("day", Quota::per_day(2).sliding_window())
}

fn fields<'r>(response: &'r Response<Body>, name: &str) -> Vec<&'r str> {
    let values = response.headers().get_all(name).iter();
    values.map(|it| it.to_str().expect("text")).collect()
}

/// What each limit has left for the client of `PEER`, asked by another process.
async fn left(server: &Server) -> Vec<u32> {
    let limits = limits(&server.client().await).part("192.0.2.1");
    let keys = [("hour", "192.0.2.1"), ("day", "192.0.2.1")];
    let peeked = limits.peek(keys).await.expect("answered");
    peeked
        .iter()
        .map(|(_, decision)| decision.remaining)
        .collect()
}

const POLICIES: [&str; 2] = ["\"site:hour\";q=3;w=3600", "\"site:day\";q=2;w=86400"];

#[tokio::test]
async fn a_group_is_asked_in_one_step_and_each_limit_says_what_it_has_left() {
    let server = Server::start_single().await;
    let layer = RateLimitLayer::by_address(limits(&server.client().await), address());
    let site = Site::behind(layer);
    for expected in [[2, 1], [1, 0]] {
        let before = calls(&server, &["evalsha", "eval"]).await;
        let response = site.ask_from(PEER, &[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        if expected == [1, 0] {
            // The script is known by then.
            assert_eq!(calls(&server, &["evalsha", "eval"]).await, before + 1);
        }
        assert_eq!(fields(&response, "ratelimit-policy"), POLICIES);
        let [hour, day] = expected;
        let items = [
            format!("\"site:hour\";r={hour}"),
            format!("\"site:day\";r={day}"),
        ];
        assert_eq!(fields(&response, "ratelimit"), items);
        assert_eq!(field(&response, "retry-after"), None);
    }
    let refused = site.ask_from(PEER, &[]).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(fields(&refused, "ratelimit-policy"), POLICIES);
    let wait = field(&refused, "retry-after").expect("told").to_owned();
    let day = format!("\"site:day\";r=0;t={wait}");
    assert_eq!(fields(&refused, "ratelimit"), ["\"site:hour\";r=1", &day]);
    assert_eq!(site.served(), 2);
    assert_eq!(
        left(&server).await,
        [1, 0],
        "a refused request takes nothing"
    );

    // The process knows the refusal, and does not know what the hour has left.
    let before = calls(&server, &["evalsha", "eval"]).await;
    let refused = site.ask_from(PEER, &[]).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(calls(&server, &["evalsha", "eval"]).await, before);
    assert_eq!(fields(&refused, "ratelimit-policy"), POLICIES);
    let [known] = fields(&refused, "ratelimit")[..] else {
        panic!("one is known: {refused:?}");
    };
    assert!(known.starts_with("\"site:day\";r=0;t="), "{known}");
}

#[tokio::test]
async fn of_several_limits_that_refuse_the_longest_wait_is_told() {
    let server = Server::start().await;
    let client = server.client().await;
    for order in [["day", "hour"], ["hour", "day"]] {
        let mut limits = client.rate_limits(&order.concat());
        for limit in order {
            let quota = match limit {
                "hour" => Quota::per_hour(1),
                _ => Quota::per_day(1),
            };
            limits = limits.limit(limit, quota);
        }
        let site = Site::behind(RateLimitLayer::by_address(limits, address()));
        assert_eq!(site.ask_from(PEER, &[]).await.status(), StatusCode::OK);
        let refused = site.ask_from(PEER, &[]).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let wait = field(&refused, "retry-after").expect("told").to_owned();
        let seconds: u64 = wait.parse().expect("seconds");
        assert!((3_601..=86_400).contains(&seconds), "{seconds}");
        let told = fields(&refused, "ratelimit");
        assert!(told.iter().all(|it| it.contains(";r=0;t=")), "{told:?}");
        let longest = format!(":day\";r=0;t={wait}");
        assert!(told.iter().any(|it| it.ends_with(&longest)), "{told:?}");
        let text = to_bytes(refused.into_body(), 1000).await.expect("a body");
        let text = String::from_utf8(text.into()).expect("text");
        assert!(text.contains(&format!("try again in {wait} s")), "{text}");
    }
}

#[tokio::test]
async fn each_client_is_a_part_of_the_group_and_a_part_stays_one() {
    let server = Server::start().await;
    let limits = limits(&server.client().await);
    let site = |limits: RateLimits| Site::behind(RateLimitLayer::by_address(limits, address()));
    let (all, tenant) = (site(limits.clone()), site(limits.part("tenant")));
    for site in [&all, &tenant] {
        for number in 1..=3 {
            let allowed = site.ask_from(PEER, &[]).await.status() == StatusCode::OK;
            assert_eq!(allowed, number <= 2, "{number}");
        }
        let other = site.ask_from("192.0.2.2:1", &[]).await;
        assert_eq!(other.status(), StatusCode::OK);
    }
    for tag in ["{site:192.0.2.1}", "{site:192.0.2.2}", "{site:tenant}"] {
        assert!(
            !server.keys(&format!("hr:r:{tag}:*")).await.is_empty(),
            "{tag}"
        );
    }
    // What a layer has counted can be given back.
    let client = limits.part("192.0.2.1");
    let given = client.refund([("day", "192.0.2.1")], 1).await;
    given.expect("given back");
    assert_eq!(all.ask_from(PEER, &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_cost_is_taken_of_each_limit_and_one_that_never_fits_of_none() {
    let server = Server::start_single().await;
    let layer = RateLimitLayer::by_key(limits(&server.client().await), |request| {
        let key = request.headers.get("x-api-key")?;
        key.to_str().ok().map(str::to_owned)
    });
    let layer = layer.cost(|request| match request.headers.get("x-cost") {
        Some(cost) => cost
            .to_str()
            .ok()
            .and_then(|cost| cost.parse().ok())
            .expect("a number"),
        None => 1,
    });
    let site = Site::behind(layer);
    let status = async |cost: &str| {
        let fields = [("x-api-key", "192.0.2.1"), ("x-cost", cost)];
        site.ask_from(PEER, &fields).await.status().as_u16()
    };
    // Three fit in the hour, and never in the day.
    assert_eq!(status("3").await, 400);
    assert_eq!(left(&server).await, [3, 2]);
    assert_eq!(status("2").await, 200);
    assert_eq!(left(&server).await, [1, 0]);
    assert_eq!(status("0").await, 200);
    assert_eq!(status("1").await, 429);
    assert_eq!(site.ask_from(PEER, &[]).await.status().as_u16(), 400);
}

#[tokio::test]
async fn an_outage_is_answered_by_the_policy_of_the_group() {
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(Duration::from_secs(1));
    let client = client.open().expect("a good URL");
    let site = |policy| {
        let limits = limits(&client).outage(policy);
        Site::behind(RateLimitLayer::by_address(limits, address()))
    };
    let [fail, open, closed, local] = policies(1.0).map(site);
    assert_eq!(local.ask_from(PEER, &[]).await.status(), StatusCode::OK);
    signal(server.pid().await, "KILL");

    let response = fail.ask_from(PEER, &[]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(field(&response, "retry-after"), Some("1"));
    let response = open.ask_from(PEER, &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(fields(&response, "ratelimit-policy"), POLICIES);
    assert_eq!(field(&response, "ratelimit"), None, "nobody knows");
    let response = closed.ask_from(PEER, &[]).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(field(&response, "retry-after"), Some("1"));
    // One of the two of the day was used before the outage.
    assert_eq!(local.ask_from(PEER, &[]).await.status(), StatusCode::OK);
    let response = local.ask_from(PEER, &[]).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    // Its own share comes back in hours, and Redis may in seconds.
    assert_eq!(field(&response, "retry-after"), Some("1"));
    assert_eq!(field(&response, "ratelimit"), None);
    let text = to_bytes(response.into_body(), 1000).await.expect("a body");
    assert!(text.ends_with(b"try again in 1 s\n"), "{text:?}");
    assert_eq!([fail.served(), open.served(), closed.served()], [0, 1, 0]);
    assert_eq!(local.served(), 2);
}
