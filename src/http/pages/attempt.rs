//! An attempt: a page is read at one key, or rendered there.
//!
//! Invariant: whatever an attempt comes to, the request hears of its own render exactly once. An
//! attempt learns from the page that it finds. Serving makes one for each key that it tries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::Either;
use http::Response;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::sleep;

use super::body::PageBody;
use super::known::{Names, PageFacts};
use super::origin::{Origin, OriginBody};
use super::page::{Content, Page, Stored, Windows};
use super::quiet;
use super::render::{How, Job, Own, Storing, Work, render};
use super::serving::{Came, Serving};
use super::tags::MOST_TAGS;
use crate::cache::Verdict;
use crate::error::{Error, ErrorKind};

/// What an attempt at one key came to.
pub(super) enum Tried<S, B, R>
where
    S: Origin<B, R>,
{
    /// The request reads a response of its own already.
    Own(Response<PageBody<R>>),
    /// The cache was not waited for, and why not.
    GivenUp(Hears<S, B, R>, &'static str),
    Ended(Found, Hears<S, B, R>),
}

/// What is at the key.
pub(super) struct Found {
    pub(super) stored: Result<Arc<Stored>, Error>,
    /// The windows that the cache has got. `None` if they were not known: then it gives out
    /// whatever is kept.
    pub(super) told: Option<Windows>,
    /// Whether the cache has said that it is stale.
    pub(super) is_stale: bool,
}

/// What a request hears of its own render.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each request, and only while it waits"
)]
pub(super) enum Hears<S, B, R>
where
    S: Origin<B, R>,
{
    Yet(oneshot::Receiver<Own<S, B, R>>),
    Now(Own<S, B, R>),
    /// Its runtime has ended.
    Nothing,
}

/// Where the right of a request to render is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right {
    /// The request has it back.
    Back,
    /// A render has it, or had it.
    Given,
    Lost,
}

impl Serving {
    /// Reads the page at `key`, or has it rendered. `facts` are what is known of it. `told` are the
    /// windows of the page, if they were seen just now.
    pub(super) async fn attempt<S, B, R>(
        &self,
        (key, facts): (&str, PageFacts),
        work: Work<S, B>,
        told: Option<Windows>,
    ) -> Tried<S, B, R>
    where
        S: Origin<B, R>,
        B: Send + 'static,
        R: OriginBody,
    {
        let pages = &self.pages;
        let told = told.or(facts.windows);
        let (job, claim, mut own) = Job::new(work);
        let how = How {
            asked: self.asked.clone(),
            settings: pages.settings.clone(),
            counts: pages.counts.clone(),
            known: pages.known.clone(),
            under_way: pages.under_way.clone(),
            key: key.into(),
        };
        let windows = told.unwrap_or(Windows {
            while_revalidate: LONGEST_WINDOW,
            if_error: LONGEST_WINDOW,
        });
        let call = pages
            .cache
            .memoize_with(key, PLANNED_TTL, move |load| render(job, load, how))
            .tags(self.tags.iter().chain(self.declared(&facts)))
            .stale(windows.while_revalidate)
            .stale_if_error(windows.if_error)
            .keep_stale(Duration::ZERO);
        // A page without windows is never stale.
        let stale_seen = (!windows.longest().is_zero()).then(Arc::<AtomicBool>::default);
        let call = match &stale_seen {
            Some(seen) => call.stale_seen(seen.clone()),
            None => call,
        };
        let mut call = call.into_future();
        // The end of the call sends back what it has not used, and must not wake this task for it:
        // the task would run once more for nothing.
        let first = tokio::select! {
            biased;
            first = quiet::first(&mut call, &mut own) => Ok(first),
            () = pages.known.unstored(key, facts.noted) => Err("not to be stored"),
            () = self.crowded(key) => Err("no place"),
        };
        let (stored, own) = match first {
            Ok(Either::Left(found)) => (found, Hears::Yet(own).so_far()),
            // Whatever becomes of the load, this is the answer.
            Ok(Either::Right(Ok(Own::Response(response)))) => return Tried::Own(response),
            Ok(Either::Right(own)) => (call.await, own.map_or(Hears::Nothing, Hears::Now)),
            Err(why) => {
                drop(call);
                // Others may wait for the load that has the job, and keep it waiting.
                let own = match claim.withdrawn() {
                    Some(work) => Hears::Now(Own::Back(work)),
                    None => Hears::Yet(own),
                };
                return Tried::GivenUp(own, why);
            }
        };
        match &stored {
            Ok(stored) => match &stored.content {
                Content::Page(page) => pages.known.note(key, &page.tags, page.lives.windows()),
                Content::Marker => pages.known.note_marker(key),
            },
            Err(error) => self.learn(key, error, &own),
        }
        let is_stale = stale_seen.is_some_and(|seen| seen.load(Ordering::Relaxed));
        let found = Found {
            stored,
            told,
            is_stale,
        };
        Tried::Ended(found, own)
    }

    /// The tags of its handler that the page is read and rendered with.
    fn declared<'f>(&self, facts: &'f PageFacts) -> impl Iterator<Item = &'f String> {
        let most = match facts.names {
            Names::All => usize::MAX,
            Names::AsThereIsRoom => MOST_DECLARED.saturating_sub(MOST_TAGS + self.tags.len()),
        };
        facts.tags.iter().take(most)
    }

    /// Waits until the page could be rendered by now, and is not: Redis is out, and other loads
    /// have taken all places that there are without it.
    async fn crowded(&self, key: &str) {
        sleep(LONGEST_WAIT_FOR_A_PLACE).await;
        // While Redis is there, another process may render, and this is no reason to go beside.
        while !self.pages.cache.waits_without_redis(key) || self.pages.under_way.has(key) {
            sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Learns from a page that was rendered and could not be stored. Tells of it.
    fn learn<S: Origin<B, R>, B, R>(&self, key: &str, error: &Error, own: &Hears<S, B, R>) {
        let known = &self.pages.known;
        let is_unwritable = matches!(
            error.kind(),
            ErrorKind::InvalidInput | ErrorKind::Encode | ErrorKind::TooLarge
        );
        if let (true, Hears::Now(Own::Page(page, _))) = (is_unwritable, own) {
            let facts = known.of(key);
            let declared = self.declared(&facts).count() + self.tags.len();
            match declared + page.tags.len() > MOST_DECLARED && facts.names == Names::All {
                // The next render has room for the tags of this one, and for others.
                true => known.note_changing_tags(key, &page.tags),
                false => known.note_unstored(key, self.pages.settings.marker_ttl),
            }
        }
        match error.kind() {
            // Its request has heard what happened.
            ErrorKind::Loader | ErrorKind::LoaderPanicked => {}
            _ if is_unwritable && known.warns() => {
                tracing::warn!(target: "hedgerow::pages", %error, "a page cannot be stored");
            }
            _ => tracing::debug!(target: "hedgerow::pages", %error, "beside the cache"),
        }
    }

    /// Returns how the page that was `found` has come to this request, whose own render may have
    /// made it.
    pub(super) fn came(&self, page: &Page, found: &Found, rendered: Option<Storing>) -> Came {
        let lives = &page.lives;
        if let Some(storing) = rendered {
            return Came::Rendered(storing);
        }
        // Another process may have rendered it with a clock that is ahead. What the cache has said
        // depends on no clock of ours.
        if self.is_newer(lives) && !found.is_stale {
            return Came::Collapsed;
        }
        if lives.window().is_zero() {
            return Came::Fresh;
        }
        // A near cache that serves it because Redis is out does not say that it is stale.
        let is_over = !lives.stale_for(SystemTime::now()).is_zero();
        match found.is_stale || is_over {
            true => Came::Stale,
            false => Came::Fresh,
        }
    }

    /// Asks Redis for how long the page at `key` has been stale. `None` if it is not there any
    /// more, or Redis does not say.
    pub(super) async fn stale_for(&self, key: &str) -> Option<Duration> {
        let explained = self.pages.cache.explain(key).fail_fast();
        match Box::pin(explained.into_future()).await.ok()?.verdict {
            Verdict::Stale(age) => Some(age),
            _ => None,
        }
    }
}

impl<S, B, R> Hears<S, B, R>
where
    S: Origin<B, R>,
{
    /// What is known of the render by now.
    fn so_far(self) -> Self {
        match self {
            Self::Yet(mut own) => match own.try_recv() {
                Ok(own) => Self::Now(own),
                Err(TryRecvError::Empty) => Self::Yet(own),
                Err(TryRecvError::Closed) => Self::Nothing,
            },
            known => known,
        }
    }

    /// How `page` is stored, if it is the one that this render has made.
    pub(super) fn rendered(&self, page: &Page) -> Option<Storing> {
        match self {
            Self::Now(Own::Page(own, storing)) if own.lives.rendered == page.lives.rendered => {
                Some(*storing)
            }
            _ => None,
        }
    }

    pub(super) fn right(&self) -> Right {
        match self {
            Self::Now(Own::Back(_)) => Right::Back,
            Self::Yet(_) | Self::Now(_) => Right::Given,
            Self::Nothing => Right::Lost,
        }
    }

    /// Waits until it is known what became of the render: it was not begun, or has ended.
    pub(super) async fn heard(self) -> Option<Own<S, B, R>> {
        match self {
            Self::Yet(own) => own.await.ok(),
            Self::Now(own) => Some(own),
            Self::Nothing => None,
        }
    }
}

/// For how long a page is stored, before its render says it. Tags are made to live so long.
const PLANNED_TTL: Duration = Duration::from_secs(600);

/// As long as a page may say that it is served stale, or longer.
const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The most tags that a page can be read and rendered with: as many as a call can declare.
const MOST_DECLARED: usize = 254;

/// How long a request waits for a place to render without Redis: as long as for Redis itself, by
/// default.
const LONGEST_WAIT_FOR_A_PLACE: Duration = Duration::from_secs(1);

const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{HeaderMap, Request, StatusCode};

    use super::*;
    use crate::http::pages::page::Lives;

    type Service = tower::util::BoxCloneService<Request<()>, Response<NoBody>, Infallible>;
    type NoBody = http_body_util::Empty<Bytes>;

    fn page(rendered: u64) -> Page {
        Page {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            lives: Lives {
                rendered,
                aged: Duration::ZERO,
                fresh_for: Duration::ZERO,
                stale_while_revalidate: Duration::from_secs(1),
                stale_if_error: Duration::ZERO,
            },
            tags: Vec::new(),
        }
    }

    #[test]
    fn as_many_tags_are_declared_as_an_entry_has_room_for_beside_that_of_its_cache() {
        assert_eq!(MOST_DECLARED, crate::codec::MOST_STAMPS - 1);
    }

    #[test]
    fn a_page_that_another_render_has_made_is_not_said_to_be_rendered_for_the_request() {
        let own = Own::Page(Box::new(page(2)), Storing::UnderWay);
        let own: Hears<Service, (), NoBody> = Hears::Now(own);
        assert_eq!(own.rendered(&page(2)), Some(Storing::UnderWay));
        assert_eq!(
            own.rendered(&page(1)),
            None,
            "it was served stale meanwhile"
        );
    }
}
