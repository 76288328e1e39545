//! Pages in a near cache.

use std::time::Duration;

use hedgerow::cache::NearCache;
use hedgerow::http::PageCache;
use tower::Layer as _;

use super::site::{Site, ask, pages};
use crate::support::server::Server;
use crate::support::wait::until;

#[tokio::test]
async fn a_page_that_was_read_is_served_without_a_command_until_it_is_purged() {
    let server = Server::start().await;
    for control in ["max-age=600", "max-age=600, stale-while-revalidate=60"] {
        let writer = pages(&server).await;
        let hour = Duration::from_secs(3600);
        let cache = server.client().await.cache("pages");
        let cache = cache.near(NearCache::new().max_staleness(hour));
        let lines = [("cache-control", control)];
        let service = PageCache::new(cache.clone()).layer(Site::counting(&lines));
        ask(&service, "/", &[]).await;
        until("the page is near", async || {
            let before = cache.stats().near_hits;
            assert_eq!(ask(&service, "/", &[]).await.text(), "1");
            cache.stats().near_hits > before
        })
        .await;
        writer
            .purge_url("http://a/")
            .expect("a URL")
            .await
            .expect("purged");
        until("the purge is seen", async || {
            ask(&service, "/", &[]).await.text() == "2"
        })
        .await;
        writer.purge_all().await.expect("purged");
    }
}
