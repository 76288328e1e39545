//! A request that is refused: by the layer of hedgerow, in a process that knows the refusal, and by
//! `tower_governor`. Both limit clients by the address of their connection and tell them the limit
//! in header fields. The layers are called in this process, without a router around them.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, Response, StatusCode};
use hedgerow::http::{ClientAddress, RateLimitLayer};
use hedgerow::limit::Quota;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_governor::GovernorLayer;
use tower_governor::governor::GovernorConfigBuilder;

use crate::site::called;
use crate::slices::{Result, Runs, patient};

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    let row = "limit_refused/tower_governor@1";
    if !runs.wants(row) {
        return Ok(());
    }
    let client = patient().url(url).connect().await?;
    let limiter = client.rate_limiter("rivals", Quota::per_day(1));
    let address = ClientAddress::peer(|extensions| {
        let peer = extensions.get::<ConnectInfo<SocketAddr>>();
        peer.map(|peer| peer.0.ip())
    });
    let ours = RateLimitLayer::by_address(limiter.clone(), address);
    let ours = ours.layer(service_fn(unlimited));
    let mut daily = GovernorConfigBuilder::default();
    let mut daily = daily.period(DAY).burst_size(1).use_headers();
    let daily = daily.finish().ok_or("a quota")?;
    let theirs = GovernorLayer::new(daily).layer(service_fn(unlimited));

    // The first request of each takes all that there is; the second makes the refusal known.
    let client = IpAddr::from(CLIENT).to_string();
    assert!(limiter.check(&client).await?.allowed);
    assert!(!limiter.check(&client).await?.allowed);
    let first = theirs.clone().oneshot(request()).await?;
    assert_eq!(first.status(), StatusCode::OK);
    let ours = async |_: usize, until: Instant| {
        called(ours.clone(), request, StatusCode::TOO_MANY_REQUESTS, until).await
    };
    let theirs = async |_: usize, until: Instant| {
        called(
            theirs.clone(),
            request,
            StatusCode::TOO_MANY_REQUESTS,
            until,
        )
        .await
    };
    runs.compare(row, 1, ours, theirs).await;
    assert_eq!(limiter.stats().refused, 1, "the process knew all others");
    Ok(())
}

async fn unlimited(_: Request<Body>) -> std::result::Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::empty()))
}

fn request() -> Request<Body> {
    let mut request = Request::new(Body::empty());
    let peer = SocketAddr::from((CLIENT, 50_000));
    request.extensions_mut().insert(ConnectInfo(peer));
    request
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DAY: Duration = Duration::from_secs(86_400);
