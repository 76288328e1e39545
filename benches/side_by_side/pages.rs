//! A page that is stored, against the bare handler that returns the same bytes: by HTTP over
//! loopback, on connections that stay open, with the server in this process on both sides; and
//! called in this process, which leaves the layer, the handler and a copy of the request.

use std::time::Instant;

use axum::Router;
use axum::http::StatusCode;

use crate::page;
use crate::site::{Site, called};
use crate::slices::{Result, Runs, patient};

const ROWS: [&str; 5] = [
    "page_near/handler@1",
    "page_near/handler@50",
    "page_redis/handler@1",
    "page_redis/handler@50",
    "page_call_near/handler_call@1",
];

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    if !ROWS.iter().any(|row| runs.wants(row)) {
        return Ok(());
    }
    let client = patient().url(url).connect().await?;
    let near = page::near(&client, "pages-near").await?;
    let in_redis = page::in_redis(&client, "pages").await?;
    let routers = [near.app.clone(), in_redis.app.clone(), page::handler()];
    let [kept_near, kept, bare] = routers.map(Site::serve);
    let (kept_near, kept, bare) = (kept_near.await?, kept.await?, bare.await?);
    for row in ROWS.iter().filter(|row| runs.wants(row)) {
        let tasks = if row.ends_with("@50") { 50 } else { 1 };
        match row.split_once('/').map(|(ours, _)| ours) {
            Some("page_near") => {
                let ours = kept_near.clone();
                near.hits(runs.compare(row, tasks, ours, bare.clone()))
                    .await;
            }
            Some("page_redis") => {
                let ours = kept.clone();
                in_redis
                    .hits(runs.compare(row, tasks, ours, bare.clone()))
                    .await;
            }
            _ => {
                let calls = |app: &Router| {
                    let app = app.clone();
                    async move |_: usize, until: Instant| {
                        called(app.clone(), page::request, StatusCode::OK, until).await
                    }
                };
                let handler = page::handler();
                let (ours, theirs) = (calls(&near.app), calls(&handler));
                near.hits(runs.compare(row, 1, ours, theirs)).await;
            }
        }
    }
    Ok(())
}
