//! What a loader fails with comes back as it is, whatever its type, to all who waited for the load;
//! and the text of the error says why.

use std::error::Error as StdError;
use std::fmt;
use std::future::IntoFuture as _;
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use hedgerow::{Cache, Error, ErrorKind};

use crate::support::gate::Gate;
use crate::support::server::Server;

const MINUTE: Duration = Duration::from_secs(60);

/// The error of a service, which has a cause.
#[derive(Debug)]
struct Refused {
    code: u32,
    cause: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database refused us with {}", self.code)
    }
}

impl StdError for Refused {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.cause)
    }
}

fn refused() -> Refused {
    Refused {
        code: 42,
        cause: io::Error::other("the table is gone"),
    }
}

fn is_of_the_loader(error: &Error, text: &str) {
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(!error.is_retryable() && !error.is_indeterminate());
    assert_eq!(
        error.to_string(),
        format!("the loader failed: {text} (key \"k\")")
    );
}

async fn cache() -> (Server, Cache) {
    let server = Server::start().await;
    let cache = server.client().await.cache("c");
    // Each load is its own.
    (server, cache.error_ttl(Duration::ZERO))
}

#[tokio::test]
async fn an_error_comes_back_with_its_cause() {
    let (_server, cache) = cache().await;
    let load = || async { Err::<String, _>(refused()) };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("refused");
    is_of_the_loader(&error, "the database refused us with 42");
    let own = error.loader_error::<Refused>().expect("its own type");
    assert_eq!(own.code, 42);
    assert!(error.loader_error::<io::Error>().is_none());
    let source = error.source().expect("the loader's");
    assert!(source.is::<Refused>());
    let deeper = source.source().expect("its cause");
    assert_eq!(deeper.to_string(), "the table is gone");
}

#[tokio::test]
async fn anyhow_comes_back_as_anyhow() {
    let (_server, cache) = cache().await;
    let load = || async {
        let read: Result<String, Refused> = Err(refused());
        read.context("cannot load the city")
    };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("refused");
    is_of_the_loader(&error, "cannot load the city");
    let own: &anyhow::Error = error.loader_error().expect("its own type");
    assert_eq!(own.downcast_ref::<Refused>().expect("the cause").code, 42);
    let chain: Vec<String> = own.chain().map(ToString::to_string).collect();
    assert_eq!(chain.len(), 3, "{chain:?}");
    let source = error.source().expect("the loader's");
    assert_eq!(source.to_string(), "cannot load the city");
    assert_eq!(
        source.source().expect("its cause").to_string(),
        "the database refused us with 42"
    );
}

#[tokio::test]
async fn boxes_and_texts_come_back_too() {
    type Boxed = Box<dyn StdError + Send + Sync>;

    let (_server, cache) = cache().await;
    let load = || async { Err::<String, Boxed>(refused().into()) };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("refused");
    is_of_the_loader(&error, "the database refused us with 42");
    let own = error.loader_error::<Boxed>().expect("its own type");
    assert!(own.is::<Refused>());

    let load = || async { Err::<u8, _>("no such city") };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("refused");
    is_of_the_loader(&error, "no such city");
    assert_eq!(error.loader_error::<&str>(), Some(&"no such city"));

    let load = || async { Err::<u8, _>(format!("no city {}", 7)) };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("refused");
    is_of_the_loader(&error, "no city 7");
    assert_eq!(
        error.loader_error::<String>().map(String::as_str),
        Some("no city 7")
    );
}

#[tokio::test]
async fn all_who_waited_have_the_same_error() {
    let (_server, cache) = cache().await;
    let gate = Gate::closed();
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let gate = gate.clone();
            let load = move || async move {
                gate.load(()).await?;
                anyhow::bail!("no such city");
                #[expect(unreachable_code, reason = "it says what is loaded")]
                Ok::<String, anyhow::Error>(String::new())
            };
            tokio::spawn(cache.memoize("k", MINUTE, load).into_future())
        })
        .collect();
    gate.begun(1).await;
    // Whoever was late loads once more.
    for _ in &calls {
        gate.open();
    }
    for call in calls {
        let error = call.await.expect("no panic").expect_err("refused");
        is_of_the_loader(&error, "no such city");
        assert!(error.loader_error::<anyhow::Error>().is_some());
    }
}

#[tokio::test]
async fn a_long_text_is_cut_and_the_error_is_not() {
    let (_server, cache) = cache().await;
    let load = || async { Err::<u8, _>("é".repeat(1_000_000)) };
    let error = cache.memoize("k", MINUTE, load).await.expect_err("refused");
    let text = error.to_string();
    let shown = text.strip_prefix("the loader failed: ").expect("why");
    let shown = shown.strip_suffix(" (key \"k\")").expect("for which name");
    assert!(shown.len() <= 200 && shown.ends_with("é.."), "{shown}");
    let whole = error.loader_error::<String>().expect("its own type");
    assert_eq!(whole.len(), 2_000_000);
}
