//! `/health` and `/metrics`, for machines. Let only your own network see them.
//!
//! `/health` answers 200 while the shop serves, also without Redis: pages go on then, and a load
//! balancer that took the instances out would end those, too. What is degraded is in its text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use hedgerow::{Client, ErrorKind};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::state::Shop;

pub(crate) fn routes(metrics: PrometheusHandle) -> Router<Shop> {
    let render = move || async move {
        metrics.run_upkeep();
        metrics.render()
    };
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(render))
}

async fn health(State(shop): State<Shop>) -> impl IntoResponse {
    let (redis, breaker) = match ask(&shop.client).await {
        Ok(_) => ("up", "closed"),
        Err(error) if error.kind() == ErrorKind::CircuitOpen => ("out", "open"),
        Err(_) => ("out", "closed"),
    };
    let status = match redis {
        "up" => "well",
        _ => "degraded",
    };
    let name = &shop.name;
    let text = format!(
        "{{\"status\":\"{status}\",\"instance\":\"{name}\",\"redis\":\"{redis}\",\"breaker\":\"{breaker}\"}}\n"
    );
    ([(CONTENT_TYPE, "application/json")], text)
}

/// Whether Redis is out, found out by asking it now and then.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedisWatch(Arc<AtomicBool>);

impl RedisWatch {
    /// Watches for as long as the process lives.
    pub(crate) fn start(client: &Client) -> Self {
        let (watch, client) = (Self::default(), client.clone());
        let seen = watch.clone();
        tokio::spawn(async move {
            loop {
                let is_out = ask(&client).await.is_err();
                seen.0.store(is_out, Ordering::Relaxed);
                tokio::time::sleep(BETWEEN).await;
            }
        });
        watch
    }

    pub(crate) fn is_out(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A question that costs little. While the breaker is open, it fails at once. Now and then one of
/// them goes through, and finds out whether the server is back.
async fn ask(client: &Client) -> hedgerow::Result<i64> {
    let counter = client.counter("health");
    counter.get().fail_fast().deadline(BRIEF).await
}

const BETWEEN: Duration = Duration::from_millis(300);
const BRIEF: Duration = Duration::from_secs(1);
