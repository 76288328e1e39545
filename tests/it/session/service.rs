//! What a browser sees: an axum service behind the layer of tower-sessions.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request as HttpRequest, Response, StatusCode, header};
use axum::routing::get;
use hedgerow::session::{Conflict, SessionStore, Trouble};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use tower::ServiceExt as _;
use tower_sessions::SessionStore as _;
use tower_sessions::session::Id;
use tower_sessions::{Expiry, Session, SessionManagerLayer};

use super::{data, loaded, request, store};
use crate::support::proxy::{Act, Proxy, Request};
use crate::support::server::Server;
use crate::support::wait::until;

/// The cookie that a response sets.
#[derive(Debug, Clone, PartialEq)]
struct Cookie {
    value: String,
    attributes: Vec<String>,
}

impl Cookie {
    /// Whether it takes the cookie away.
    fn removes(&self) -> bool {
        self.value.is_empty() && self.attributes.contains(&"Max-Age=0".to_owned())
    }

    fn max_age(&self) -> Option<i64> {
        let ages = self.attributes.iter();
        let mut ages = ages.filter_map(|it| it.strip_prefix("Max-Age="));
        ages.next().map(|age| age.parse().expect("a number"))
    }
}

fn cookie(response: &Response<Body>) -> Option<Cookie> {
    let set = response.headers().get(header::SET_COOKIE)?;
    let set = set.to_str().expect("text");
    let mut parts = set.split("; ").map(str::to_owned);
    let pair = parts.next().expect("a pair");
    let value = pair.strip_prefix("id=").expect("the session's").to_owned();
    let attributes = parts.collect();
    Some(Cookie { value, attributes })
}

/// A service with sessions that end after so long without a change.
fn service(store: &SessionStore, life: Option<Duration>) -> Router {
    let layer = SessionManagerLayer::new(store.clone());
    let layer = match life {
        Some(life) => layer.with_expiry(Expiry::OnInactivity(life)),
        None => layer,
    };
    let set = async |session: Session| session.insert("user", 42).await.expect("an answer");
    let shown = async |session: Session| {
        let user: Option<u32> = session.get("user").await.expect("an answer");
        format!("{user:?}")
    };
    let removed = async |session: Session| {
        session.remove_value("user").await.expect("an answer");
    };
    let cycled = async |session: Session| session.cycle_id().await.expect("an answer");
    let flushed = async |session: Session| session.flush().await.expect("an answer");
    let lasts = async |session: Session| {
        let tomorrow = OffsetDateTime::now_utc() + Duration::DAY;
        session.set_expiry(Some(Expiry::AtDateTime(tomorrow)));
    };
    let ends = async |session: Session| session.set_expiry(Some(Expiry::OnSessionEnd));
    let large = async |session: Session| {
        let much = "x".repeat(300_000);
        session.insert("much", much).await.expect("an answer");
    };
    Router::new()
        .route("/", get(async |_: Session| "hello"))
        .route("/set", get(set))
        .route("/shown", get(shown))
        .route("/removed", get(removed))
        .route("/cycled", get(cycled))
        .route("/flushed", get(flushed))
        .route("/lasts", get(lasts))
        .route("/ends", get(ends))
        .route("/large", get(large))
        .layer(layer)
}

/// Asks the service with this cookie. Returns the answer and the cookie that it sets.
async fn ask(
    service: &Router,
    path: &str,
    id: Option<&str>,
) -> (StatusCode, String, Option<Cookie>) {
    let mut request = HttpRequest::builder().uri(path);
    if let Some(id) = id {
        request = request.header(header::COOKIE, format!("id={id}"));
    }
    let request = request.body(Body::empty()).expect("a request");
    let response = service.clone().oneshot(request).await.expect("an answer");
    let (status, cookie) = (response.status(), cookie(&response));
    let body = to_bytes(response.into_body(), 1_000_000).await;
    let body = String::from_utf8(body.expect("a body").to_vec()).expect("text");
    (status, body, cookie)
}

/// The cookie that a request sets which changes the session.
async fn set(service: &Router, path: &str, id: Option<&str>) -> Cookie {
    let (status, _, cookie) = ask(service, path, id).await;
    assert_eq!(status, StatusCode::OK);
    cookie.expect("it sets a cookie")
}

#[tokio::test]
async fn a_session_comes_with_the_first_change_and_goes_with_a_flush() {
    let server = Server::start().await;
    let service = service(&store(&server).await, Some(Duration::HOUR));
    let (_, body, none) = ask(&service, "/", None).await;
    assert_eq!((body.as_str(), none), ("hello", None));
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
    let first = set(&service, "/set", None).await;
    for wanted in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
        assert!(first.attributes.contains(&wanted.to_owned()), "{first:?}");
    }
    assert!((3500..=3600).contains(&first.max_age().expect("it has an end")));
    let id = Some(first.value.as_str());
    let (_, body, unchanged) = ask(&service, "/shown", id).await;
    assert_eq!((body.as_str(), unchanged), ("Some(42)", None));
    let same = set(&service, "/removed", id).await;
    assert_eq!(same.value, first.value);
    assert_eq!(ask(&service, "/shown", id).await.1, "None");
    assert!(set(&service, "/flushed", id).await.removes());
    assert_eq!(server.keys("hr:v:*").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_cookie_that_names_no_session_gets_another_id() {
    let server = Server::start().await;
    let service = service(&store(&server).await, Some(Duration::HOUR));
    let bogus = "AAAAAAAAAAAAAAAAAAAAAA";
    assert_eq!(ask(&service, "/shown", Some(bogus)).await.1, "None");
    let new = set(&service, "/set", Some(bogus)).await;
    assert_ne!(new.value, bogus);
    assert_eq!(
        ask(&service, "/shown", Some(&new.value)).await.1,
        "Some(42)"
    );
    assert_eq!(ask(&service, "/shown", Some(bogus)).await.1, "None");
    assert!(set(&service, "/", Some("malformed")).await.removes());
    // Neither a flush nor a change of id takes an id from outside.
    assert!(set(&service, "/flushed", Some(bogus)).await.removes());
    let (_, _, cookie) = ask(&service, "/cycled", Some(bogus)).await;
    assert!(cookie.is_none_or(|cookie| cookie.value != bogus));
}

#[tokio::test]
async fn another_id_keeps_the_data_and_the_old_one_is_worth_nothing() {
    let server = Server::start().await;
    let service = service(&store(&server).await, None);
    let old = set(&service, "/set", None).await;
    assert_eq!(old.max_age(), None);
    let new = set(&service, "/cycled", Some(&old.value)).await;
    assert_ne!(old.value, new.value);
    assert_eq!(
        ask(&service, "/shown", Some(&new.value)).await.1,
        "Some(42)"
    );
    assert_eq!(ask(&service, "/shown", Some(&old.value)).await.1, "None");
}

#[tokio::test]
async fn a_handler_may_change_when_the_session_ends() {
    let server = Server::start().await;
    let service = service(&store(&server).await, Some(Duration::HOUR));
    let cookie = set(&service, "/set", None).await;
    let id = Some(cookie.value.as_str());
    let key = server.keys("hr:v:*").await.pop().expect("a session");
    let left = async || server.run::<i64>(&["PTTL", &key]).await / 60_000;
    assert!((58..=60).contains(&left().await));
    let cookie = set(&service, "/lasts", id).await;
    let day = 24 * 60;
    assert!((day - 2..=day).contains(&(cookie.max_age().expect("an end") / 60 + 1)));
    assert!((day - 2..=day).contains(&left().await));
    let cookie = set(&service, "/ends", id).await;
    assert_eq!(cookie.max_age(), None);
    assert!((14 * day - 2..=14 * day).contains(&left().await));
    assert_eq!(ask(&service, "/shown", id).await.1, "Some(42)");
}

#[tokio::test]
async fn a_session_that_is_too_large_is_an_error_and_the_old_one_stays() {
    let server = Server::start().await;
    let service = service(&store(&server).await, None);
    let cookie = set(&service, "/set", None).await;
    let (status, _, none) = ask(&service, "/large", Some(&cookie.value)).await;
    assert_eq!((status, none), (StatusCode::INTERNAL_SERVER_ERROR, None));
    assert_eq!(
        ask(&service, "/shown", Some(&cookie.value)).await.1,
        "Some(42)"
    );
}

/// A service in which another request saves the session whenever a handler is about to.
fn contended(store: &SessionStore) -> Router {
    let interferes = {
        let store = store.clone();
        async move |session: &Session| {
            let other = request(&store, session.id().expect("a cookie"));
            let seen: Option<u32> = other.get("other").await.expect("an answer");
            let seen = seen.unwrap_or(0) + 1;
            other.insert("other", seen).await.expect("loaded");
            other.save().await.expect("saved");
        }
    };
    let unsaved = {
        let interferes = interferes.clone();
        async move |session: Session| {
            session.insert("own", 1).await.expect("an answer");
            interferes(&session).await;
        }
    };
    let saved = {
        let interferes = interferes.clone();
        async move |session: Session| {
            session.insert("own", 1).await.expect("an answer");
            session.save().await.expect("saved");
            interferes(&session).await;
        }
    };
    let refused = async move |session: Session| {
        for _ in 0..3 {
            session.load().await.expect("an answer");
            session.insert("own", 2).await.expect("an answer");
            interferes(&session).await;
            let refused = session.save().await.expect_err("a conflict");
            assert_eq!(Trouble::from(&refused), Trouble::Conflict);
        }
        session.load().await.expect("an answer");
        StatusCode::CONFLICT
    };
    Router::new()
        .route(
            "/set",
            get(async |session: Session| session.insert("user", 42).await.expect("new")),
        )
        .route("/unsaved", get(unsaved))
        .route("/saved", get(saved))
        .route("/refused", get(refused))
        .layer(SessionManagerLayer::new(store.clone()))
}

#[tokio::test]
async fn a_conflict_is_answered_by_the_handler_that_saves_and_else_with_500() {
    let server = Server::start().await;
    let store = store(&server).await.conflict(Conflict::Refuse);
    let service = contended(&store);
    let cookie = set(&service, "/set", None).await;
    let id: Id = cookie.value.parse().expect("an id");
    let status = async |path: &str| ask(&service, path, Some(&cookie.value)).await.0;
    assert_eq!(status("/unsaved").await, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        data(&loaded(&store, id).await),
        json!({"user": 42, "other": 1})
    );
    // The layer saves once more what the handler has saved.
    assert_eq!(status("/saved").await, StatusCode::OK);
    let both = json!({"user": 42, "other": 2, "own": 1});
    assert_eq!(data(&loaded(&store, id).await), both);
    assert_eq!(status("/refused").await, StatusCode::CONFLICT);
    let both = json!({"user": 42, "other": 5, "own": 1});
    assert_eq!(data(&loaded(&store, id).await), both);
    assert_eq!(store.stats().conflicts, 4);
}

#[tokio::test]
async fn an_outage_is_answered_by_the_handler_and_the_session_is_there_afterwards() {
    let server = Server::start_single().await;
    let proxy = Proxy::before(&server);
    let client = proxy
        .builder()
        .cache_deadline(std::time::Duration::from_secs(2));
    let cache = client.open().expect("a good URL").cache("sessions");
    let store = SessionStore::new(cache).user_key("user");
    let checked = async |session: Session| match session.get::<u32>("user").await {
        Ok(Some(user)) => Ok(user.to_string()),
        Ok(None) => Err(StatusCode::UNAUTHORIZED),
        Err(error) => match Trouble::from(&error) {
            Trouble::Unavailable => Err(StatusCode::SERVICE_UNAVAILABLE),
            _ => Err(StatusCode::INTERNAL_SERVER_ERROR),
        },
    };
    let routes = || {
        Router::new()
            .route("/", get(async |_: Session| "hello"))
            .route(
                "/set",
                get(async |session: Session| session.insert("user", 42).await.expect("new")),
            )
            .route("/checked", get(checked))
    };
    let plain = routes().layer(SessionManagerLayer::new(store.clone()));
    let saving = SessionManagerLayer::new(store.clone()).with_always_save(true);
    let saving = routes().layer(saving);
    let cookie = set(&plain, "/set", None).await.value;
    proxy.on(Request::every(), Act::Reset);
    for (service, path, expected) in [
        (&plain, "/", 200),
        (&plain, "/checked", 503),
        (&saving, "/", 500),
        (&saving, "/checked", 503),
    ] {
        let (status, _, none) = ask(service, path, Some(&cookie)).await;
        assert_eq!((status.as_u16(), none), (expected, None), "{path}");
    }
    proxy.clear();
    let id: Id = cookie.parse().expect("an id");
    until("the store works again", async || {
        store.load(&id).await.is_ok()
    })
    .await;
    for service in [&plain, &saving] {
        let (status, user, _) = ask(service, "/checked", Some(&cookie)).await;
        assert_eq!((status, user.as_str()), (StatusCode::OK, "42"));
    }
}
