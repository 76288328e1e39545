//! One instance: its routes, the layers around them, and its end.
//!
//! Invariant: private pages are kept by nobody, and only they know of sessions. A request that has
//! begun is finished before the instance ends, if that takes no longer than [`LONGEST_REQUEST`].

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    ORIGIN,
};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::args::Args;
use crate::problem::Problem;
use crate::state::Shop;
use crate::{account, admin, catalogue, checkout, health, unfinished};

pub(crate) async fn run(args: &Args, redis: &str) -> Result<()> {
    // Before the first call of a client.
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let shop = Shop::open(args, redis)?;
    tokio::spawn(unfinished::watch(
        shop.clone(),
        Duration::from_secs(args.give_up_after),
    ));

    let routes = Router::new()
        .merge(catalogue::routes(&shop))
        .merge(private(&shop))
        .merge(health::routes(metrics))
        .route("/style.css", get(style))
        .fallback(async || Problem::NotFound)
        .layer(from_fn(only_own_forms))
        .layer(from_fn_with_state(shop.clone(), signed))
        .with_state(shop);
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let end = End::listen(args)?;
    // The supervisor and the tests wait for this line.
    println!("http://{}", listener.local_addr()?);
    serve(listener, routes, end).await
}

async fn serve(listener: TcpListener, routes: Router, end: End) -> Result<()> {
    let service = routes.into_make_service_with_connect_info::<SocketAddr>();
    let ended = Arc::new(Notify::new());
    let signal = end.came(ended.clone());
    let too_long = async {
        ended.notified().await;
        tokio::time::sleep(LONGEST_REQUEST).await;
    };
    tokio::select! {
        served = axum::serve(listener, service).with_graceful_shutdown(signal).into_future() => {
            served?;
        }
        () = too_long => eprintln!("shop: a request did not end in time"),
    }
    Ok(())
}

/// Pages of one customer.
fn private(shop: &Shop) -> Router<Shop> {
    Router::new()
        .merge(account::routes())
        .merge(checkout::routes())
        .merge(admin::routes())
        .layer(account::session_layer(shop.sessions.clone()))
        .layer(map_response(kept_by_nobody))
        .layer(map_response(unsaved_session))
}

/// Neither shared caches nor the browser keep the page: the button "back" does not show it after a
/// logout.
async fn kept_by_nobody(mut response: Response) -> Response {
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(CACHE_CONTROL, no_store);
    response
}

/// When the session cannot be saved after the handler, its layer answers 500 with nothing in it.
async fn unsaved_session(response: Response) -> Response {
    let is_bare = response.status() == StatusCode::INTERNAL_SERVER_ERROR
        && !response.headers().contains_key(CONTENT_TYPE)
        && response.body().size_hint().exact() == Some(0);
    match is_bare {
        true => Problem::no_sessions().into_response(),
        false => response,
    }
}

/// Refuses forms of other sites.
async fn only_own_forms(request: Request, next: Next) -> Response {
    if request.method() == Method::POST && !is_own(request.headers()) {
        return Problem::Forbidden.into_response();
    }
    next.run(request).await
}

/// Browsers say where a form is from.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name| {
        headers
            .get(name)
            .and_then(|it: &HeaderValue| it.to_str().ok())
    };
    let origin = text(ORIGIN).map(|it| it.split_once("://").map(|(_, origin)| origin));
    match origin {
        Some(origin) => origin.is_some() && origin == text(HOST),
        // No browser has sent it.
        None => true,
    }
}

/// Says which instance has answered, also if it has not rendered the page.
async fn signed(State(shop): State<Shop>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(name) = HeaderValue::from_str(&shop.name) {
        headers.insert(ANSWERED_BY, name);
    }
    let policy = HeaderValue::from_static(POLICY);
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    response
}

async fn style() -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "text/css; charset=utf-8"),
        (CACHE_CONTROL, "public, max-age=300"),
    ];
    (headers, include_str!("style.css"))
}

/// What ends an instance: SIGTERM, ctrl-c, and the end of its parent, if there is one.
struct End {
    terminated: Signal,
    interrupted: Signal,
    args: Args,
}

impl End {
    /// From here on, a signal does not end the process at once.
    fn listen(args: &Args) -> Result<Self> {
        Ok(Self {
            terminated: signal(SignalKind::terminate())?,
            interrupted: signal(SignalKind::interrupt())?,
            args: args.clone(),
        })
    }

    async fn came(mut self, ended: Arc<Notify>) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
            () = parent_is_gone(), if self.args.with_parent => {}
        }
        ended.notify_one();
    }
}

/// The parent holds the other end of the standard input.
async fn parent_is_gone() {
    let gone = Arc::new(Notify::new());
    let notify = gone.clone();
    // A thread of its own: the runtime would wait for a blocking read when it ends.
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read(&mut [0]);
        notify.notify_one();
    });
    gone.notified().await;
}

const LONGEST_REQUEST: Duration = Duration::from_secs(10);
const ANSWERED_BY: HeaderName = HeaderName::from_static("x-answered-by");

/// No script at all, and nothing from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; \
                      frame-ancestors 'none'; base-uri 'none'";
