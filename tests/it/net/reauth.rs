//! Credentials that expire: connections that stay open are shown fresh ones in time.
//!
//! A token of a managed service is played by an ACL user of its own. That it has expired is played
//! by its removal, with which the server closes all that it had opened.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedgerow::{Client, ClientBuilder, ErrorKind, Fence, Guard, client::Credentials};
use tokio::task::JoinHandle;

use crate::support::listener::Listener;
use crate::support::server::Server;
use crate::support::wait::{bounded, listened, patient, queued, until};

const HOUR: Duration = Duration::from_secs(3_600);

/// Long enough that a machine under load comes to show the next token before the end.
const SHORT: Duration = Duration::from_secs(4);

/// The password of every token; nothing may tell it.
const SECRET: &str = "canary-81fe";

/// What the provider answers next: the number of a token and its time, or nothing.
type Next = Arc<Mutex<Option<(usize, Duration)>>>;

async fn issue(server: &Server, token: usize) {
    let (name, password) = (format!("token-{token}"), format!(">{SECRET}"));
    let words = [
        "ACL", "SETUSER", &name, "on", &password, "~*", "&*", "+@all",
    ];
    let _: String = server.run(&words).await;
}

/// Closes what the token had opened.
async fn expire(server: &Server, token: usize) {
    let name = format!("token-{token}");
    let removed: usize = server.run(&["ACL", "DELUSER", &name]).await;
    assert_eq!(removed, 1);
}

fn answer(next: &Next, with: Option<(usize, Duration)>) {
    *next.lock().expect("no panic") = with;
}

fn asking(server: &Server, next: &Next, asked: &Arc<AtomicUsize>) -> ClientBuilder {
    let (next, asked) = (next.clone(), asked.clone());
    let provider = move || {
        asked.fetch_add(1, Ordering::SeqCst);
        let next = *next.lock().expect("no panic");
        async move {
            let (token, time) = next.ok_or("nobody issues tokens")?;
            Ok(Credentials::user(format!("token-{token}"), SECRET).expires_in(time))
        }
    };
    patient(Client::builder().url(server.url())).credentials_from(provider)
}

/// The connections that a token has opened, by id, and whose they are now.
async fn connections(server: &Server) -> BTreeMap<String, String> {
    let list: String = server.run(&["CLIENT", "LIST"]).await;
    let field = |line: &str, name: &str| {
        let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
        let found = fields.find(|(field, _)| *field == name);
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let of = |line: &str| (field(line, "id"), field(line, "user"));
    let all: BTreeMap<_, _> = list.lines().map(of).collect();
    all.into_iter()
        .filter(|(_, user)| user.starts_with("token-"))
        .collect()
}

/// Whether the same connections are there as before, and all are this token's.
async fn have_become(server: &Server, before: &BTreeMap<String, String>, token: usize) -> bool {
    let name = format!("token-{token}");
    let now = connections(server).await;
    assert!(
        before.keys().all(|id| now.contains_key(id)),
        "no connection is closed: {before:?}, {now:?}"
    );
    now.values().all(|user| *user == name)
}

/// Waits for the lock `invoice`, which somebody else has, so that a push connection is open, too.
async fn wait_for_lock(server: &Server, client: &Client) -> (Guard, JoinHandle<Fence>) {
    let holder = server.client().await;
    let guard = holder.lock("invoice").lease(HOUR).acquire().await;
    let guard = guard.expect("free");
    let lock = client.lock("invoice").wait(HOUR);
    let waiting = tokio::spawn(async move {
        loop {
            match lock.acquire().await {
                Ok(guard) => return guard.fence(),
                // A waiter that asks while nobody issues tokens gives up. It comes back.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    queued(&holder.lock("invoice"), 1).await;
    listened(server, 1).await;
    (guard, waiting)
}

/// The waiter is told of the release by push: nobody asks again before the lease has ended.
async fn is_granted(guard: Guard, waiting: JoinHandle<Fence>) {
    let fence = guard.fence();
    guard.release().await.expect("held");
    let granted = bounded("the waiter is granted the lock", waiting).await;
    assert!(granted.expect("no panic") > fence);
}

#[tokio::test]
async fn open_connections_are_shown_fresh_credentials_before_the_old_expire() {
    let server = Server::start_single().await;
    issue(&server, 1).await;
    issue(&server, 2).await;
    let (next, asked) = (Next::default(), Arc::default());
    answer(&next, Some((1, SHORT)));
    let client = asking(&server, &next, &asked)
        .open()
        .expect("good settings");
    let (guard, waiting) = wait_for_lock(&server, &client).await;
    let before = connections(&server).await;
    assert_eq!(before.len(), 2, "commands and pushes");
    answer(&next, Some((2, HOUR)));
    until("the server was shown the fresh token", async || {
        have_become(&server, &before, 2).await
    })
    .await;
    expire(&server, 1).await;
    client.ping().await.expect("the connection is open");
    is_granted(guard, waiting).await;
    assert_eq!(connections(&server).await.len(), 2);
    assert_eq!(asked.load(Ordering::SeqCst), 4, "twice for each connection");
}

#[tokio::test]
async fn a_refused_token_is_asked_for_again_while_the_old_lasts_and_told_nowhere() {
    let listener = Listener::start();
    let server = Server::start_single().await;
    issue(&server, 1).await;
    let (next, asked) = (Next::default(), Arc::default());
    answer(&next, Some((1, SHORT)));
    let client = asking(&server, &next, &asked)
        .open()
        .expect("good settings");
    client.ping().await.expect("an answer");
    let before = connections(&server).await;
    // The server does not know it yet.
    answer(&next, Some((2, HOUR)));
    until("the server has refused", async || {
        asked.load(Ordering::SeqCst) > 2
    })
    .await;
    assert!(have_become(&server, &before, 1).await, "it is still open");
    issue(&server, 2).await;
    until("the server was shown the fresh token", async || {
        have_become(&server, &before, 2).await
    })
    .await;
    let told = listener.told();
    assert!(told.contains("WRONGPASS"), "{told}");
    for secret in [SECRET, "token-"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_connection_whose_credentials_expire_is_given_up_and_made_anew() {
    let server = Server::start_single().await;
    issue(&server, 1).await;
    let (next, asked) = (Next::default(), Arc::default());
    answer(&next, Some((1, SHORT)));
    let client = asking(&server, &next, &asked)
        .open()
        .expect("good settings");
    let (guard, waiting) = wait_for_lock(&server, &client).await;
    answer(&next, None);
    until("the connections are given up", async || {
        connections(&server).await.is_empty()
    })
    .await;
    assert!(asked.load(Ordering::SeqCst) > 4, "it was tried before");
    expire(&server, 1).await;
    let error = client.ping().await.expect_err("nobody issues tokens");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");

    issue(&server, 2).await;
    answer(&next, Some((2, HOUR)));
    // The last error is answered until the next attempt is due.
    until("a new connection", async || client.ping().await.is_ok()).await;
    until("commands and pushes are connected again", async || {
        connections(&server).await.len() == 2
    })
    .await;
    is_granted(guard, waiting).await;
}

#[test]
fn credentials_that_expire_come_from_a_provider() {
    let expiring = Credentials::password(SECRET).expires_in(HOUR);
    let builder = Client::builder().url("redis://127.0.0.1:1");
    let error = builder.credentials(expiring).open().expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("credentials_from"), "{error}");
}
