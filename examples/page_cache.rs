//! A page is rendered once, served from Redis, and purged by its tag.
//!
//! Needs `redis-server` or `valkey-server` on `PATH`, or `REDIS_URL`.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::IntoResponse;
use axum::{Router, routing::get};
use hedgerow::Client;
use hedgerow::http::PageCache;

static RENDERS: AtomicUsize = AtomicUsize::new(0);

async fn product() -> impl IntoResponse {
    let render = RENDERS.fetch_add(1, Ordering::SeqCst) + 1;
    let headers = [("cache-control", "public, s-maxage=60, stale-if-error=600")];
    (headers, format!("product 42, render {render}"))
}

/// Asks for the product, and returns its page and where it came from.
async fn ask(url: &str) -> Result<(String, String), Box<dyn std::error::Error>> {
    let answer = reqwest::get(url).await?;
    let status = answer.headers()["cache-status"].to_str()?.to_owned();
    let page = answer.text().await?;
    println!("{page}: {status}");
    Ok((page, status))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    let pages = PageCache::new(client.cache("pages"))
        .hosts([&host])
        .tags_by(|head| vec![head.uri.path().replace("/product/", "product:")]);
    pages.purge_all().await?;
    let app = Router::new()
        .route("/product/42", get(product))
        .layer(pages.clone());
    let url = format!("http://{host}/product/42");
    tokio::spawn(async move { axum::serve(listener, app).await });

    let herd = futures::future::join_all((0..50).map(|_| ask(&url))).await;
    for answer in herd {
        assert_eq!(answer?.0, "product 42, render 1");
    }
    let (_, status) = ask(&url).await?;
    assert!(status.contains("hit"), "{status}");

    // The product has changed.
    pages.purge_tags(["product:42"]).await?;
    let (page, _) = ask(&url).await?;
    assert_eq!(page, "product 42, render 2");
    println!("{:?}", pages.stats());
    Ok(())
}
