//! The layer in axum, asked by a real client over TCP.

use axum::extract::OriginalUri;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures::stream;
use hedgerow::http::CacheTags;
use http::StatusCode;
use http_body_util::BodyExt as _;
use reqwest::{Method, Response};
use tower::ServiceExt as _;

use super::site::pages;
use crate::support::server::Server;
use crate::support::wait::until;

const FRESH: [(&str, &str); 1] = [("cache-control", "public, max-age=60")];

async fn product() -> impl IntoResponse {
    (
        FRESH,
        Extension(CacheTags::new(["product:42"])),
        "a product",
    )
}

async fn large() -> impl IntoResponse {
    let chunks = stream::iter(0..64).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![7; 65_536])));
    (FRESH, axum::body::Body::from_stream(chunks))
}

use futures::StreamExt as _;

#[tokio::test]
async fn a_service_of_axum_serves_its_pages_from_the_cache() {
    let server = Server::start().await;
    let pages = pages(&server)
        .await
        .tags_by(|_| vec!["product:42".to_owned()]);
    let token = "a token that is long enough";
    let app = Router::new()
        .route("/product", get(product))
        .route("/large", get(large))
        .layer(pages.clone())
        .route_service("/purge", pages.purge_endpoint(token).expect("a good token"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let url = |path: &str| format!("http://{address}{path}");
    let status = |it: &Response| {
        let told = it
            .headers()
            .get("cache-status")
            .map(|it| it.to_str().expect("text"));
        told.unwrap_or_default().to_owned()
    };
    let ask = |path: &'static str| async move { client_get(&url_of(address, path)).await };

    let first = ask("/product").await;
    assert!(status(&first).contains("stored"), "{}", status(&first));
    let second = ask("/product").await;
    assert!(status(&second).contains("hit"), "{}", status(&second));
    assert_eq!(second.headers()["content-length"], "9");
    let tag = second.headers()["etag"].clone();
    assert_eq!(second.text().await.expect("a body"), "a product");

    let asked = client.get(url("/product")).header("if-none-match", tag);
    let unchanged = asked.send().await.expect("an answer");
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
    let head = client
        .head(url("/product"))
        .send()
        .await
        .expect("an answer");
    assert!(status(&head).contains("hit"));
    assert_eq!(head.headers()["content-length"], "9");

    for _ in 0..2 {
        let large = ask("/large").await;
        assert_eq!(large.bytes().await.expect("a body").len(), 64 * 65_536);
    }

    let purge = client.request(Method::POST, url("/purge?tag=product:42"));
    let purged = purge.bearer_auth(token).send().await.expect("an answer");
    assert_eq!(purged.status(), StatusCode::NO_CONTENT);
    assert!(!status(&ask("/product").await).contains("hit"));
    until("it is stored again", async || {
        status(&ask("/product").await).contains("hit")
    })
    .await;
    serving.abort();
}

#[tokio::test]
async fn a_page_that_is_made_of_its_original_url_is_the_same_whoever_asks_first() {
    let server = Server::start().await;
    let pages = pages(&server).await.only_query(["page"]);
    let plain = pages.clone();
    let hooked = pages.on_render(|head| {
        let page = OriginalUri(head.uri.clone());
        head.extensions.insert(page);
    });
    for (pages, path, shown) in [
        // Axum puts it in front of the layer, which does not know of it.
        (plain, "/plain", "/plain?page=1&evil=1"),
        (hooked, "/hooked", "/hooked?page=1"),
    ] {
        let links = get(|OriginalUri(uri): OriginalUri| async move { (FRESH, uri.to_string()) });
        let app = Router::new().route(path, links).layer(pages);
        for query in ["page=1&evil=1", "page=1"] {
            let uri = format!("{path}?{query}");
            let request = http::Request::builder().uri(uri).header("host", "a");
            let request = request.body(axum::body::Body::empty()).expect("a request");
            let Ok(page) = app.clone().oneshot(request).await;
            let body = page.into_body().collect().await.expect("whole").to_bytes();
            assert_eq!(body, shown);
        }
    }
}

fn url_of(address: std::net::SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

async fn client_get(url: &str) -> Response {
    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    client.get(url).send().await.expect("an answer")
}
