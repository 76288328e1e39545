//! A service with logins: sessions in Redis, and a logout that is final, here and everywhere. It
//! then uses itself over HTTP, with two browsers.
//!
//! ```text
//! cargo run --example session --features embedded,session
//! ```

use axum::extract::{Form, State};
use axum::http::StatusCode;
use axum::{Router, routing::get, routing::post};
use hedgerow::Client;
use hedgerow::session::{SessionStore, Trouble};
use tower_sessions::{Expiry, Session, SessionManagerLayer, session::Error};

/// No Redis is not "logged out".
fn status(error: Error) -> StatusCode {
    match Trouble::from(&error) {
        Trouble::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The user who is logged in.
async fn user(session: &Session) -> Result<String, StatusCode> {
    let user: Option<String> = session.get("user_id").await.map_err(status)?;
    user.ok_or(StatusCode::UNAUTHORIZED)
}

#[derive(serde::Deserialize)]
struct Login {
    user: String,
}

async fn login(session: Session, Form(form): Form<Login>) -> Result<String, StatusCode> {
    // Here, a service checks the password.
    let stored = session.insert("user_id", &form.user).await;
    stored.map_err(status)?;
    // Another id, so that the one from before the login is worth nothing.
    session.cycle_id().await.map_err(status)?;
    Ok(format!("welcome, {}", form.user))
}

async fn logout(session: Session) -> Result<(), StatusCode> {
    session.flush().await.map_err(status)
}

async fn everywhere(State(store): State<SessionStore>, session: Session) -> Result<(), StatusCode> {
    let ended = store.log_out_everywhere(&user(&session).await?).await;
    ended.map_err(|error| status(error.into()))?;
    logout(session).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    let store = SessionStore::new(client.cache("example-sessions")).user_key("user_id");
    let sessions = SessionManagerLayer::new(store.clone())
        .with_expiry(Expiry::OnInactivity(time::Duration::days(14)))
        .with_always_save(true)
        .with_secure(false); // for this example only, which has no TLS
    let service = Router::new()
        .route("/", get(async |session: Session| user(&session).await))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/logout-everywhere", post(everywhere))
        .layer(sessions)
        .with_state(store.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let home = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, service).into_future());

    let browser = || reqwest::Client::builder().cookie_store(true).build();
    let (laptop, phone) = (browser()?, browser()?);
    let send = async |browser: &reqwest::Client, path: &str| {
        let request = browser.post(format!("{home}{path}"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body("user=ada").send().await
    };
    let page = async |browser: &reqwest::Client| browser.get(&home).send().await;
    assert_eq!(page(&laptop).await?.status(), 401);
    println!("{}", send(&laptop, "/login").await?.text().await?);
    send(&phone, "/login").await?;
    assert_eq!(page(&laptop).await?.text().await?, "ada");
    println!("{:?}", store.sessions_of("ada").await?);
    send(&laptop, "/logout").await?;
    assert_eq!(page(&laptop).await?.status(), 401);
    assert_eq!(page(&phone).await?.text().await?, "ada");
    send(&phone, "/logout-everywhere").await?;
    assert_eq!(page(&phone).await?.status(), 401);
    Ok(())
}
