//! Passing: a request that no page is looked up for, and what it may have changed.
//!
//! Invariant: a request that may have changed its page purges it, unless its answer says that
//! nothing was changed. Whatever becomes of such a request, its purge is sent, or is owed by the
//! client of Redis, which keeps up to 10,000. Serving calls this.

use std::future::IntoFuture as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use http::{Method, Request, Response, StatusCode};
use tokio::runtime::Handle;

use super::body::PageBody;
use super::headers::may_replace_the_method;
use super::key::url_tag;
use super::origin::Origin;
use super::page_cache::PageCache;
use super::render::Work;
use super::request::place;
use super::status::Status;
use super::tags::CacheTags;
use crate::error::ErrorKind;

/// Lets a request pass. One that may change the page purges it, unless it is refused.
pub(super) async fn passed<S, B, R>(
    pages: &PageCache,
    work: Work<S, B>,
    status: Status,
) -> Result<Response<PageBody<R>>, S::Error>
where
    S: Origin<B, R>,
{
    pages.counts.passed.one_more();
    let changed = match is_safe(&work.request) {
        true => None,
        false => place(&work.request, &pages.settings),
    };
    let Some(place) = changed else {
        return called(work, pages, status, None).await;
    };
    // Made before the service is called: if this future is dropped meanwhile, or the service fails
    // or panics, what it has changed may be there all the same.
    let change = Change {
        pages,
        tag: Some(url_tag(&place)),
    };
    let response = called(work, pages, status, None).await?;
    match may_have_changed(response.status()) {
        true => Box::pin(change.purged()).await,
        false => change.refused(),
    }
    Ok(response)
}

/// Calls the service for one request alone.
pub(super) async fn called<S, B, R>(
    work: Work<S, B>,
    pages: &PageCache,
    status: Status,
    key: Option<&str>,
) -> Result<Response<PageBody<R>>, S::Error>
where
    S: Origin<B, R>,
{
    let Work {
        mut service,
        request,
    } = work;
    let mut response = service.call(request).await?.map(PageBody::own);
    CacheTags::taken(&mut response);
    let settings = &pages.settings;
    status.tell(response.headers_mut(), settings, key, SystemTime::now());
    Ok(response)
}

/// A page that its request may have changed. If it is dropped before it was purged, the purge is
/// left to the client of Redis.
struct Change<'p> {
    pages: &'p PageCache,
    /// `None` once the purge was begun, or is not needed.
    tag: Option<String>,
}

impl Change<'_> {
    fn refused(mut self) {
        self.tag = None;
    }

    /// Purges the page. Waits for that only while the server of its tag is there, and not for long:
    /// the client goes on with it in the background.
    async fn purged(mut self) {
        let Some(tag) = self.tag.take() else { return };
        let purge = self.pages.cache.invalidate_tags([tag]);
        let purge = purge.deadline(LONGEST_PURGE).fail_fast();
        match purge.await {
            Ok(()) => {}
            Err(error) if !error.goes_on() => {
                self.pages.counts.lost_purges.one_more();
                self.pages.known.lost_purge(&error);
            }
            Err(error) if error.kind() == ErrorKind::CircuitOpen => {
                tracing::debug!(target: "hedgerow::pages", %error, "a purge is owed");
            }
            Err(error) => {
                tracing::warn!(target: "hedgerow::pages", %error, "not purged");
            }
        }
    }
}

impl Drop for Change<'_> {
    /// Begins the purge. What was begun and is not answered is delivered by the task that the
    /// client of Redis has for this, so nothing is waited for here.
    fn drop(&mut self) {
        let Some(tag) = self.tag.take() else { return };
        // It needs the clock of a runtime, and the one that ends has none.
        let has_begun = Handle::try_current().is_ok() && {
            let purge = self.pages.cache.invalidate_tags([tag]).into_future();
            catch_unwind(AssertUnwindSafe(|| drop(purge.now_or_never()))).is_ok()
        };
        if !has_begun {
            tracing::warn!(target: "hedgerow::pages", "a change without a runtime is not purged");
        }
    }
}

/// Whether a request changes nothing. One that names another method by a header may do what that
/// one does.
fn is_safe<B>(request: &Request<B>) -> bool {
    let is_safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    );
    is_safe && !may_replace_the_method(request.headers())
}

/// Whether a request that was answered so may have changed something. A service that has failed may
/// have done so after its change.
fn may_have_changed(status: StatusCode) -> bool {
    status.is_success() || status.is_redirection() || status.is_server_error()
}

/// How long a request that has changed a page waits for its purge.
const LONGEST_PURGE: Duration = Duration::from_millis(100);
