//! Serving: how one request comes to its answer.
//!
//! Invariant: a request is answered with a stored page, with what its own render came to, or by its
//! service, in this order. Whatever is wrong with the cache leads to the last one. The service of
//! the layer calls this.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{Request, Response};
use http_body::Body;

use super::attempt::{Found, Right, Tried};
use super::body::PageBody;
use super::origin::{Origin, OriginBody};
use super::page::{Content, Page, Stored, Windows};
use super::page_cache::PageCache;
use super::passing::passed;
use super::render::{Own, Work};
use super::request::{Asked, Want};
use super::serving::{Came, Serving};
use super::status::{Forward, Status};

/// Answers a request. `service` is ready.
pub(super) async fn answer<S, B, R>(
    pages: PageCache,
    service: S,
    request: Request<B>,
) -> Result<Response<PageBody<R>>, S::Error>
where
    S: Origin<B, R>,
    B: Body + Send + 'static,
    R: OriginBody,
{
    let work = Work { service, request };
    match Asked::of(&work.request, &pages.settings) {
        Ok(asked) => {
            let now = SystemTime::now();
            let serving = Serving::new(pages, asked, &work.request, now);
            // In a box, so that what passes is small.
            match serving.asked.want {
                Want::Page => Box::pin(serving.run(work)).await,
                Want::Head | Want::OnlyStored => Box::pin(serving.looked_up(work)).await,
            }
        }
        Err((why, detail)) => passed(&pages, work, Status::Beside(why, detail)).await,
    }
}

/// What a request does that cannot be given what was found, or not yet.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// It looks for the variant that is for it.
    Variant,
    /// It asks again, and says how long the page may be served stale.
    Again(Windows),
    /// It waits for its own render. Until this moment it is given the page if that fails. If that
    /// was not begun, it asks again as above.
    Own(Option<Instant>, Windows),
    /// It is rendered, and why.
    Beside(Forward, &'static str),
}

impl Serving {
    async fn run<S, B, R>(self, mut work: Work<S, B>) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Origin<B, R>,
        B: Send + 'static,
        R: OriginBody,
    {
        let mut key = self.asked.key.first().to_owned();
        let mut slots: Option<std::vec::IntoIter<usize>> = None;
        let (mut forward, mut told) = (Forward::UriMiss, None);
        // At most two attempts for the first variant and for each slot.
        loop {
            let (known, ttl) = (&self.pages.known, self.pages.settings.marker_ttl);
            let facts = known.of(&key);
            if facts.was_unstored() && known.is_unstored(&key, ttl) {
                return self.beside(work, (forward, "not to be stored"), &key).await;
            }
            let (found, own) = match self.attempt((&key, facts), work, told).await {
                Tried::Own(response) => {
                    let own = Own::<S, B, R>::Response(response);
                    return self.with_own(own, forward, &key).await;
                }
                Tried::GivenUp(own, why) => match own.heard().await {
                    Some(Own::Back(work)) => {
                        return self.beside(work, (forward, why), &key).await;
                    }
                    Some(own) => return self.with_own(own, forward, &key).await,
                    None => return Ok(self.lost()),
                },
                Tried::Ended(found, own) => (found, own),
            };
            let next = match &found.stored {
                Ok(stored) if !stored.selection.selects(&self.asked.headers) => Next::Variant,
                Ok(stored) => match &stored.content {
                    Content::Page(page) => {
                        let came = self.came(page, &found, own.rendered(page));
                        let seen = (found.told, told);
                        match self.why_not((page, came), &key, seen, own.right()).await {
                            None => return Ok(self.with_page(page, came, forward, &key).await),
                            Some(next) => next,
                        }
                    }
                    Content::Marker => Next::Beside(forward, "not to be stored"),
                },
                Err(_) => Next::Beside(forward, "not from the cache"),
            };
            forward = match next {
                Next::Variant => Forward::VaryMiss,
                Next::Again(_) | Next::Own(..) => Forward::Stale,
                Next::Beside(why, _) => why,
            };
            // What is there is of no use. Its own render may be under way, or have ended.
            let own = own.heard().await;
            if let Some(Own::Failed(_) | Own::Panicked(_)) = own
                && let Some(page) = allowed_if_error(&found, next)
            {
                return Ok(self.with_page(page, Came::Stale, forward, &key).await);
            }
            work = match own {
                Some(Own::Back(work)) => work,
                Some(own) => return self.with_own(own, forward, &key).await,
                None => return Ok(self.lost()),
            };
            told = None;
            match next {
                Next::Variant => {
                    let slot = slots
                        .get_or_insert_with(|| self.slots(&found.stored))
                        .next();
                    let Some(slot) = slot else {
                        return self
                            .beside(work, (forward, "too many variants"), &key)
                            .await;
                    };
                    key = self.asked.key.variant(slot);
                }
                Next::Again(windows) | Next::Own(_, windows) => told = Some(windows),
                Next::Beside(why, detail) => return self.beside(work, (why, detail), &key).await,
            }
        }
    }

    /// Says what the request does in place of being given the page. `None` if it is given it. The
    /// cache has got the first windows, and the second ones from this request.
    async fn why_not(
        &self,
        (page, came): (&Page, Came),
        key: &str,
        (told, told_now): (Option<Windows>, Option<Windows>),
        right: Right,
    ) -> Option<Next> {
        let now = SystemTime::now();
        let lives = match came {
            Came::Rendered(_) | Came::Collapsed => return None,
            Came::Fresh => page.lives,
            Came::Stale => page.lives.over(now),
        };
        if !self.asked.accepts(&lives, now) {
            return Some(Next::Beside(Forward::Request, "not accepted"));
        }
        let windows = lives.windows();
        // The cache has decided by the windows of the page, from when it became stale.
        if told == Some(windows) || windows.longest().is_zero() {
            return None;
        }
        // It has decided by others: the page has not been met before, or has changed.
        match right {
            Right::Back if told_now.is_none() => return Some(Next::Again(windows)),
            Right::Back | Right::Lost => {
                return Some(Next::Beside(Forward::Stale, "it changes"));
            }
            Right::Given => {}
        }
        // The request has given its render away, so it cannot ask again.
        let Some(age) = self.stale_for(key).await else {
            return Some(Next::Own(None, windows));
        };
        if age <= windows.while_revalidate {
            return None;
        }
        let left = windows.if_error.checked_sub(age);
        let until = left.and_then(|left| Instant::now().checked_add(left));
        Some(Next::Own(until, windows))
    }

    /// The slots in which the variant for this request may be. `found` is another one.
    fn slots(&self, found: &Result<Arc<Stored>, crate::Error>) -> std::vec::IntoIter<usize> {
        let slots: Vec<usize> = match found {
            Ok(stored) => {
                let selection = stored.selection.for_request(&self.asked.headers);
                selection.slots(self.pages.settings.variants).collect()
            }
            Err(_) => Vec::new(),
        };
        slots.into_iter()
    }

    /// Looks for a stored page, and has nothing rendered.
    async fn looked_up<S, B, R>(self, work: Work<S, B>) -> Result<Response<PageBody<R>>, S::Error>
    where
        S: Origin<B, R>,
    {
        let mut key = self.asked.key.first().to_owned();
        let mut slots: Option<std::vec::IntoIter<usize>> = None;
        loop {
            let found = self.pages.cache.get::<Stored>(&key).await;
            let found = found.inspect_err(|error| {
                tracing::debug!(target: "hedgerow::pages", %error, "beside the cache");
            });
            let Some(stored) = found.unwrap_or_default() else {
                break;
            };
            if !stored.selection.selects(&self.asked.headers) {
                let found = Ok(stored);
                match slots.get_or_insert_with(|| self.slots(&found)).next() {
                    Some(slot) => key = self.asked.key.variant(slot),
                    None => break,
                }
                continue;
            }
            match &stored.content {
                Content::Page(page) if self.asked.accepts(&page.lives, SystemTime::now()) => {
                    return Ok(self
                        .with_page(page, Came::Fresh, Forward::UriMiss, &key)
                        .await);
                }
                _ => break,
            }
        }
        if self.asked.want == Want::OnlyStored {
            return Ok(self.not_here(&key));
        }
        self.beside(work, (Forward::UriMiss, "head"), &key).await
    }
}

/// The page that was found, if it may be served because its render has failed.
fn allowed_if_error(found: &Found, next: Next) -> Option<&Page> {
    match (&found.stored.as_ref().ok()?.content, next) {
        (Content::Page(page), Next::Own(Some(until), _)) if Instant::now() <= until => Some(page),
        _ => None,
    }
}
