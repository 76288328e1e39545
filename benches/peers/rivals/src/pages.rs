//! A page that is stored: against `axum-response-cache`, which keeps pages in its process, and
//! against Django's `cache_page`, which keeps them in Redis as the layer does without a near cache.
//!
//! By HTTP over loopback, on connections that stay open. The Rust servers run in this process, as
//! the client does, and Django in processes of its own.

use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum_response_cache::CacheLayer;

use crate::django::Django;
use crate::page::{self, Kept};
use crate::site::{Site, called};
use crate::slices::{Result, Runs, patient};

const ROWS: [&str; 5] = [
    "page_near/axum_response_cache@1",
    "page_near/axum_response_cache@50",
    "page_call_near/axum_response_cache_call@1",
    "page_redis/django@1",
    "page_redis/django@50",
];

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    if !ROWS.iter().any(|row| runs.wants(row)) {
        return Ok(());
    }
    let client = patient().url(url).connect().await?;
    let near = page::near(&client, "pages-near").await?;
    let in_redis = page::in_redis(&client, "pages").await?;
    let rival = page::handler().layer(CacheLayer::with_lifespan(TTL));
    in_process(&near, &rival, runs).await?;
    if ROWS[3..].iter().any(|row| runs.wants(row)) {
        let ours = Site::serve(in_redis.app.clone()).await?;
        let theirs = Django::start(url).await?;
        for (row, tasks) in [(ROWS[3], 1), (ROWS[4], 50)] {
            if runs.wants(row) {
                let compared = runs.compare(row, tasks, ours.clone(), theirs.site.clone());
                theirs.hits(in_redis.hits(compared)).await?;
            }
        }
    }
    Ok(())
}

async fn in_process(near: &Kept, rival: &Router, runs: &Runs) -> Result<()> {
    let ours = Site::serve(near.app.clone()).await?;
    let theirs = Site::serve(rival.clone()).await?;
    theirs.ask().await?;
    let renders = page::renders();
    for (row, tasks) in [(ROWS[0], 1), (ROWS[1], 50)] {
        if runs.wants(row) {
            let compared = runs.compare(row, tasks, ours.clone(), theirs.clone());
            near.hits(compared).await;
        }
    }
    if runs.wants(ROWS[2]) {
        let calls = |app: &Router| {
            let app = app.clone();
            async move |_: usize, until: Instant| {
                called(app.clone(), page::request, StatusCode::OK, until).await
            }
        };
        // Its key is the whole address, which has no host here.
        calls(rival)(1, Instant::now()).await;
        let compared = runs.compare(ROWS[2], 1, calls(&near.app), calls(rival));
        near.hits(compared).await;
    }
    assert_eq!(page::renders(), renders, "each answer was a stored page");
    Ok(())
}

const TTL: Duration = Duration::from_secs(3600);
