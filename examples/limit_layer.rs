//! Two limits of each client in front of a service: 10 requests at once, and 12 in an hour. A
//! refused request takes nothing of either.
//!
//! ```text
//! cargo run --example limit_layer --features embedded,http,limit
//! ```

use axum::body::{Body, to_bytes};
use axum::http::{Request, Response};
use axum::{Router, routing::get};
use hedgerow::Client;
use hedgerow::http::RateLimitLayer;
use hedgerow::limit::{LimitOutage, Quota};
use tower::ServiceExt as _;

/// Asks as a client, and prints what the limits say.
async fn ask(app: &Router, key: &str) -> Result<Response<Body>, Box<dyn std::error::Error>> {
    let request = Request::get("/").header("x-api-key", key);
    let answer = app.clone().oneshot(request.body(Body::empty())?).await?;
    let left: Vec<_> = answer.headers().get_all("ratelimit").iter().collect();
    println!("{}: {left:?}", answer.status());
    Ok(answer)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let limits = client
        .rate_limits("api")
        // One comes back each minute, so a fast machine and a slow one see the same.
        .limit("burst", Quota::per_hour(60).burst(10))
        .limit("hour", Quota::per_hour(12).sliding_window())
        .outage(LimitOutage::Open);
    // A service of yours authenticates first: a key that nobody has checked is no key.
    let layer = RateLimitLayer::by_key(limits.clone(), |request| {
        Some(request.headers.get("x-api-key")?.to_str().ok()?.to_owned())
    });
    let app = Router::new()
        .route("/", get(|| async { "page" }))
        .layer(layer);

    // A key of its own for each run, where the server is not a fresh one.
    let key = format!("ann:{}", std::process::id());
    for _ in 0..10 {
        assert_eq!(ask(&app, &key).await?.status(), 200);
    }
    let refused = ask(&app, &key).await?;
    assert_eq!(refused.status(), 429);
    let wait = refused.headers()["retry-after"].to_str()?.to_owned();
    let text = to_bytes(refused.into_body(), 1000).await?;
    println!("after {wait} s: {}", String::from_utf8_lossy(&text));

    // The refused request has taken nothing of the hour, and another client is not refused.
    let left = limits.part(&key).peek([("hour", &key)]).await?;
    assert!(left.iter().all(|(_, decision)| decision.remaining == 2));
    assert_eq!(ask(&app, &format!("bob:{key}")).await?.status(), 200);
    Ok(())
}
