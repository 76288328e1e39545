//! The layer for rate limits, around an axum router: statuses, header fields, and who is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use axum::routing::get;
use hedgerow::http::{ClientAddress, Keyless, LayerLimits, PageCache, RateLimitLayer};
use hedgerow::limit::{LimitOutage, Quota};
use hedgerow::{Client, RateLimiter};
use tower::ServiceExt as _;

use crate::support::listener::Listener;
use crate::support::server::{Server, signal};

/// A service that counts its requests, behind a layer.
pub(super) struct Site {
    router: Router,
    served: Arc<AtomicUsize>,
}

impl Site {
    pub(super) fn behind(layer: RateLimitLayer) -> Self {
        let served = Arc::<AtomicUsize>::default();
        let count = served.clone();
        let page = get(move || async move {
            count.fetch_add(1, Ordering::SeqCst);
            "page"
        });
        Self {
            router: Router::new().route("/", page).layer(layer),
            served,
        }
    }

    async fn ask(&self, request: Request<Body>) -> Response<Body> {
        let Ok(response) = self.router.clone().oneshot(request).await;
        response
    }

    /// Asks from an address, with header fields.
    pub(super) async fn ask_from(&self, peer: &str, fields: &[(&str, &str)]) -> Response<Body> {
        let mut request = Request::get("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let peer: SocketAddr = peer.parse().expect("an address");
        let request = request.extension(peer).body(Body::empty());
        self.ask(request.expect("a good request")).await
    }

    pub(super) fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }
}

pub(super) fn address() -> ClientAddress {
    ClientAddress::peer(|extensions| extensions.get::<SocketAddr>().map(SocketAddr::ip))
}

fn daily(client: &Client, limit: u32) -> RateLimiter {
    client.rate_limiter("site", Quota::per_day(limit))
}

pub(super) fn field<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    let value = response.headers().get(name)?;
    Some(value.to_str().expect("text"))
}

/// All policies for an outage, with this share of a local limiter.
pub fn policies(share: f64) -> [LimitOutage; 4] {
    [
        LimitOutage::Fail,
        LimitOutage::Open,
        LimitOutage::Closed,
        LimitOutage::Local { share },
    ]
}

#[tokio::test]
async fn a_request_too_many_gets_429_and_never_reaches_the_service() {
    let server = Server::start_single().await;
    let limiter = daily(&server.client().await, 2);
    let site = Site::behind(RateLimitLayer::by_address(limiter, address()));
    for left in ["1", "0"] {
        let response = site.ask_from("192.0.2.1:1", &[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(
            field(&response, "ratelimit-policy"),
            Some("\"site\";q=2;w=86400")
        );
        let told = field(&response, "ratelimit").expect("told");
        assert_eq!(told, format!("\"site\";r={left}"));
        assert_eq!(field(&response, "retry-after"), None);
    }
    let refused = site.ask_from("192.0.2.1:2", &[]).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let retry_after = field(&refused, "retry-after").expect("told");
    let retry_after: u64 = retry_after.parse().expect("seconds");
    assert!((1..=86_400).contains(&retry_after), "{retry_after}");
    let told = field(&refused, "ratelimit").expect("told").to_owned();
    let reset = told.strip_prefix("\"site\";r=0;t=").expect("the draft");
    assert_eq!(reset.parse::<u64>().expect("seconds"), retry_after);
    assert_eq!(field(&refused, "cache-control"), Some("no-store"));
    let text = to_bytes(refused.into_body(), 1000).await.expect("a body");
    let text = String::from_utf8(text.into()).expect("text");
    assert!(
        text.contains(&format!("try again in {retry_after} s")),
        "{text}"
    );
    assert_eq!(site.served(), 2);

    let other = site.ask_from("192.0.2.2:1", &[]).await;
    assert_eq!(other.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_page_that_is_kept_does_not_tell_the_quota_of_one_client_to_all() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let mut site = Site::behind(RateLimitLayer::by_address(daily(&client, 9), address()));
    let pages = PageCache::new(client.cache("pages")).default_ttl(Duration::from_secs(3600));
    site.router = site.router.layer(pages);
    for peer in ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:1"] {
        let page = site.ask_from(peer, &[]).await;
        assert_eq!(page.status(), StatusCode::OK);
        for name in ["ratelimit", "ratelimit-policy"] {
            assert_eq!(field(&page, name), None, "{peer}");
        }
    }
    assert_eq!(site.served(), 1);
}

#[tokio::test]
async fn a_client_cannot_choose_whom_it_is_counted_as() {
    let server = Server::start_single().await;
    let limiter = daily(&server.client().await, 1);
    let behind = address()
        .x_forwarded_for(["10.0.0.0/8"])
        .expect("a network");
    let site = Site::behind(RateLimitLayer::by_address(limiter, behind));
    let status = async |peer: &str, forwarded: &str| {
        let response = site.ask_from(peer, &[("x-forwarded-for", forwarded)]).await;
        response.status().as_u16()
    };
    // Through the proxy, with whatever the client has put in front.
    assert_eq!(status("10.0.0.1:1", "198.51.100.7").await, 200);
    assert_eq!(status("10.0.0.1:1", "1.1.1.1, 198.51.100.7").await, 429);
    assert_eq!(
        status("10.0.0.2:1", "2.2.2.2, 198.51.100.7, 10.0.0.1").await,
        429
    );
    assert_eq!(status("10.0.0.1:1", "198.51.100.8").await, 200);
    // Around the proxy.
    assert_eq!(status("203.0.113.1:1", "3.3.3.3").await, 200);
    assert_eq!(status("203.0.113.1:1", "4.4.4.4").await, 429);
    // An IPv6 client has a whole network, and is one client.
    assert_eq!(status("10.0.0.1:1", "2001:db8:1:2::1").await, 200);
    assert_eq!(status("10.0.0.1:1", "2001:db8:1:2:ffff::2").await, 429);
    assert_eq!(status("10.0.0.1:1", "nonsense").await, 400);
}

#[tokio::test]
async fn a_request_without_a_key_is_decided_as_the_layer_says() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let status = async |site: &Site| {
        let request = Request::get("/").body(Body::empty()).expect("good");
        site.ask(request).await.status().as_u16()
    };
    let layer = || RateLimitLayer::by_address(daily(&client, 1), address());
    // Nobody has told who the peer is: that is the server's mistake.
    assert_eq!(status(&Site::behind(layer())).await, 500);
    let site = Site::behind(layer().keyless(Keyless::Share));
    assert_eq!([status(&site).await, status(&site).await], [200, 429]);
    let site = Site::behind(layer().keyless(Keyless::Allow));
    assert_eq!([status(&site).await, status(&site).await], [200, 200]);
    let by_key = RateLimitLayer::by_key(daily(&client, 1), |_| None);
    assert_eq!(status(&Site::behind(by_key)).await, 400);
}

#[tokio::test]
async fn a_key_and_a_cost_are_made_from_the_request() {
    let server = Server::start_single().await;
    let layer = RateLimitLayer::by_key(daily(&server.client().await, 10), |request| {
        let key = request.headers.get("x-api-key")?;
        key.to_str().ok().map(str::to_owned)
    });
    let layer = layer.cost(|request| match request.headers.contains_key("x-free") {
        true => 0,
        false => 4,
    });
    let site = Site::behind(layer);
    let status = async |fields: &[(&str, &str)]| {
        let response = site.ask_from("192.0.2.1:1", fields).await;
        response.status().as_u16()
    };
    assert_eq!(status(&[("x-api-key", "a")]).await, 200);
    assert_eq!(status(&[("x-api-key", "a")]).await, 200);
    assert_eq!(status(&[("x-api-key", "a")]).await, 429);
    assert_eq!(status(&[("x-api-key", "b")]).await, 200);
    assert_eq!(status(&[("x-free", "yes")]).await, 200);
}

#[tokio::test]
async fn an_outage_is_answered_by_the_policy_of_the_limiter() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let client = server.builder().cache_deadline(Duration::from_secs(1));
    let client = client.open().expect("a good URL");
    let site = |policy| {
        let limiter = daily(&client, 10).outage(policy);
        Site::behind(RateLimitLayer::by_address(limiter, address()))
    };
    let [fail, open, closed, local] = policies(0.1).map(site);
    assert_eq!(
        fail.ask_from("192.0.2.1:1", &[]).await.status(),
        StatusCode::OK
    );
    signal(server.pid().await, "KILL");

    for _ in 0..3 {
        let response = fail.ask_from("192.0.2.1:1", &[]).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(field(&response, "retry-after"), Some("1"));
    }
    assert_eq!(fail.served(), 1);
    // An outage does not fill the log.
    let warned = listener.told().matches("answered 503").count();
    assert_eq!(warned, 1);
    let response = open.ask_from("192.0.2.1:1", &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    // What is left is not known.
    assert_eq!(field(&response, "ratelimit"), None);
    assert!(field(&response, "ratelimit-policy").is_some());
    let response = closed.ask_from("192.0.2.1:1", &[]).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(field(&response, "retry-after"), Some("1"));
    assert_eq!(closed.served(), 0);
    // The share of this process is one in a day, and Redis may be back in seconds.
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let response = local.ask_from("192.0.2.1:1", &[]).await;
        assert_eq!(response.status(), status);
        let wait = (status != StatusCode::OK).then_some("1");
        assert_eq!(field(&response, "retry-after"), wait);
    }
}

#[tokio::test]
async fn a_mistake_in_the_settings_is_answered_500_and_warned_of() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let client = server.client().await;
    let none = LimitOutage::Local { share: 0.0 };
    let day = Quota::per_day(1);
    let group = |name| client.rate_limits(name);
    let mistakes: [LayerLimits; 10] = [
        client.rate_limiter("", day).into(),
        client.rate_limiter("site", Quota::per_second(0)).into(),
        client
            .rate_limiter("site", day.burst(1).sliding_window())
            .into(),
        client.rate_limiter("site", day).outage(none).into(),
        group("site").into(),
        group("site").limit("none", Quota::per_second(0)).into(),
        group("site").limit("", day).into(),
        group("").limit("day", day).into(),
        group("site").limit("day", day).part("").into(),
        group("site").limit("day", day).outage(none).into(),
    ];
    for (before, mistake) in mistakes.into_iter().enumerate() {
        let about = format!("{mistake:?}");
        let site = Site::behind(RateLimitLayer::by_address(mistake, address()));
        for _ in 0..3 {
            let response = site.ask_from("192.0.2.1:1", &[]).await;
            let status = response.status();
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{about}");
        }
        assert_eq!(site.served(), 0);
        let told = listener.told();
        let warned = told.lines().filter(|line| line.contains(UNASKABLE));
        let warned: Vec<_> = warned.collect();
        assert_eq!(warned.len(), before + 1, "{about}: {told}");
        assert!(warned[before].contains(" status=500"), "{told}");
    }
    assert_eq!(server.keys("*").await, [""; 0], "nothing was asked");
}

#[tokio::test]
async fn a_key_or_a_cost_that_never_fits_is_answered_400_and_warned_of() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    let client = server.client().await;
    let group = client.rate_limits("site").limit("day", Quota::per_day(2));
    let limits: [LayerLimits; 2] = [daily(&client, 2).into(), group.into()];
    for (before, limits) in limits.into_iter().enumerate() {
        let layer = RateLimitLayer::by_key(limits, |request| {
            let key = request.headers.get("x-api-key")?;
            key.to_str().ok().map(str::to_owned)
        });
        let layer = layer.cost(|request| match request.headers.contains_key("x-costly") {
            true => 3,
            false => 1,
        });
        let site = Site::behind(layer);
        let status = async |fields: &[(&str, &str)]| {
            let response = site.ask_from("192.0.2.1:1", fields).await;
            response.status().as_u16()
        };
        assert_eq!(status(&[("x-api-key", "")]).await, 400);
        assert_eq!(status(&[("x-api-key", &"a".repeat(10_000))]).await, 400);
        assert_eq!(status(&[("x-api-key", "a"), ("x-costly", "")]).await, 400);
        assert_eq!(status(&[("x-api-key", "a")]).await, 200);
        let told = listener.told();
        let warned = told.lines().filter(|line| line.contains(UNASKABLE));
        let warned: Vec<_> = warned.collect();
        assert_eq!(warned.len(), before + 1, "{told}");
        assert!(warned[before].contains(" status=400"), "{told}");
    }
}

/// The warning of requests for which the limits cannot be asked.
const UNASKABLE: &str = "requests cannot be limited";

#[tokio::test]
async fn layers_of_one_request_all_tell_their_limits() {
    let server = Server::start_single().await;
    let client = server.client().await;
    let limiter = client.rate_limiter("short", Quota::new(5, Duration::from_millis(500)));
    let inner = RateLimitLayer::by_address(limiter, address());
    let site = Site::behind(inner);
    let outer = RateLimitLayer::by_address(daily(&client, 10), address());
    let site = Site {
        router: site.router.layer(outer),
        served: site.served,
    };
    let response = site.ask_from("192.0.2.1:1", &[]).await;
    let policies = response.headers().get_all("ratelimit-policy").iter();
    let policies: Vec<_> = policies.map(|it| it.to_str().expect("text")).collect();
    // A window that is no whole number of seconds is left out.
    assert_eq!(policies, ["\"short\";q=5", "\"site\";q=10;w=86400"]);
}
