//! `PageBody`: the body of an answer. Gathering: a body is read to be stored, and still reaches the
//! client that it was rendered for.
//!
//! Invariant: whatever becomes of the gathering (too large, trailers, an error, a panic, a load
//! that is given up), the client gets every frame of the body, once and in order, and no end that
//! the body has not had. At most `limit` bytes and one frame are held. Renders gather.

use std::any::Any;
use std::collections::VecDeque;
use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// The body of an answer of a [`PageCache`](super::PageCache): that of a stored page, or that of
/// the service.
pub struct PageBody<R>(Kind<R>);

/// Any error of a body.
pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

enum Kind<R> {
    Whole(Bytes),
    /// As the service has made it.
    Own(Pin<Box<R>>),
    /// Of a page that is gathered meanwhile, or was until it was found not to be stored.
    Streamed {
        ready: VecDeque<Part<R>>,
        more: More<R>,
        /// The bytes that are still to come, if that is known.
        left: Option<u64>,
    },
}

/// Where the rest of a body comes from.
enum More<R> {
    Gathered(UnboundedReceiver<Part<R>>),
    Own(Pin<Box<R>>),
    Nothing,
}

/// A part of a body on its way to its client.
enum Part<R> {
    Frame(Frame<Bytes>),
    Failed(BoxError),
    Panicked(Panic),
    /// The gathering has ended, and the client reads the rest itself.
    Rest(Pin<Box<R>>),
    End,
}

/// What a panic carries.
pub(super) type Panic = Box<dyn Any + Send>;

/// What gathering a body came to.
#[derive(Debug)]
pub(super) enum Gathered {
    Whole(Bytes),
    /// It may not be stored, and why.
    NotWhole(&'static str),
    Failed,
}

impl<R> PageBody<R> {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes))
    }

    pub(super) fn own(body: R) -> Self {
        Self(Kind::Own(Box::pin(body)))
    }
}

/// Gathers `body`. If its client must not wait for the end, or it cannot be stored,
/// `hand_over` is given what the client reads.
///
/// A body that is there at once is gathered without that: its client gets the page as it was
/// stored.
pub(super) async fn gather<R>(
    body: R,
    limit: usize,
    hand_over: impl FnOnce(PageBody<R>),
) -> Gathered
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let hint = body.size_hint();
    let mut gathering = Gathering {
        body: Some(Box::pin(body)),
        left: hint.exact(),
        chunks: Vec::new(),
        client: Client::Waits(Some(hand_over)),
    };
    if hint.lower() > limit as u64 {
        return Gathered::NotWhole("large");
    }
    let mut size = 0;
    loop {
        let frame = match poll_fn(|cx| gathering.poll_frame(cx)).await {
            Ok(frame) => frame,
            Err(panic) => {
                gathering.tell(Part::Panicked(panic));
                return Gathered::Failed;
            }
        };
        let frame = match frame {
            None => {
                gathering.body = None;
                if let Client::Reads(parts) = &gathering.client {
                    // It may have left.
                    let _ = parts.send(Part::End);
                }
                return Gathered::Whole(joined(std::mem::take(&mut gathering.chunks)));
            }
            Some(Err(error)) => {
                gathering.body = None;
                gathering.tell(Part::Failed(error.into()));
                return Gathered::Failed;
            }
            Some(Ok(frame)) => frame,
        };
        let Some(chunk) = frame.data_ref().cloned() else {
            gathering.tell(Part::Frame(frame));
            return Gathered::NotWhole("trailers");
        };
        size += chunk.len();
        if size > limit {
            gathering.tell(Part::Frame(frame));
            return Gathered::NotWhole("large");
        }
        match &gathering.client {
            Client::Reads(parts) => {
                let _ = parts.send(Part::Frame(frame));
            }
            Client::Waits(_) => {}
        }
        gathering.chunks.push(chunk);
    }
}

/// A body that is being gathered.
struct Gathering<R, F: FnOnce(PageBody<R>)> {
    /// `None` once it has ended.
    body: Option<Pin<Box<R>>>,
    left: Option<u64>,
    chunks: Vec<Bytes>,
    client: Client<R, F>,
}

/// The client that the body was rendered for.
enum Client<R, F> {
    /// It has nothing yet.
    Waits(Option<F>),
    Reads(UnboundedSender<Part<R>>),
}

impl<R, F> Gathering<R, F>
where
    R: Body<Data = Bytes>,
    F: FnOnce(PageBody<R>),
{
    /// Polls the next frame. If there is none yet, the client begins to read. Fails if the body
    /// panics.
    #[expect(clippy::type_complexity, reason = "what a body returns, or its panic")]
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Result<Frame<Bytes>, R::Error>>, Panic>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(Ok(None));
        };
        let polled = catch_unwind(AssertUnwindSafe(|| body.as_mut().poll_frame(cx)));
        match polled {
            Ok(Poll::Ready(frame)) => Poll::Ready(Ok(frame)),
            Ok(Poll::Pending) => {
                if let Client::Waits(_) = self.client {
                    let (parts, gathered) = mpsc::unbounded_channel();
                    self.hand_over(VecDeque::new(), More::Gathered(gathered));
                    self.client = Client::Reads(parts);
                }
                Poll::Pending
            }
            Err(panic) => {
                self.body = None;
                Poll::Ready(Err(panic))
            }
        }
    }
}

impl<R, F: FnOnce(PageBody<R>)> Gathering<R, F> {
    /// Hands the client all that was gathered, then `parts`, then `more`.
    fn hand_over(&mut self, parts: VecDeque<Part<R>>, more: More<R>) {
        let Client::Waits(hand_over) = &mut self.client else {
            return;
        };
        let Some(hand_over) = hand_over.take() else {
            return;
        };
        let gathered = self.chunks.iter().cloned().map(Frame::data);
        let mut ready: VecDeque<Part<R>> = gathered.map(Part::Frame).collect();
        ready.extend(parts);
        let left = self.left;
        hand_over(PageBody(Kind::Streamed { ready, more, left }));
    }

    /// Ends the gathering: the client gets `part`, and reads the rest of the body itself, if there
    /// is one.
    fn tell(&mut self, part: Part<R>) {
        let body = self.body.take();
        match &self.client {
            Client::Reads(parts) => {
                // If the client has left, nobody needs the rest.
                let _ = parts.send(part);
                let _ = parts.send(body.map_or(Part::End, Part::Rest));
            }
            Client::Waits(_) => {
                let more = body.map_or(More::Nothing, More::Own);
                self.hand_over([part].into(), more);
            }
        }
    }
}

impl<R, F: FnOnce(PageBody<R>)> Drop for Gathering<R, F> {
    /// Gives the body back to its client if the gathering was given up.
    fn drop(&mut self) {
        let Some(body) = self.body.take() else {
            return;
        };
        match &self.client {
            Client::Reads(parts) => {
                let _ = parts.send(Part::Rest(body));
            }
            Client::Waits(_) => self.hand_over(VecDeque::new(), More::Own(body)),
        }
    }
}

/// Joins the chunks of a body. One alone is not copied.
fn joined(mut chunks: Vec<Bytes>) -> Bytes {
    match chunks.len() {
        0 | 1 => chunks.pop().unwrap_or_default(),
        _ => chunks.concat().into(),
    }
}

impl<R> Body for PageBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        // What must stay where it is, is in boxes.
        match &mut self.get_mut().0 {
            Kind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Own(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
            Kind::Streamed { ready, more, left } => loop {
                let part = match (ready.pop_front(), &mut *more) {
                    (Some(part), _) => part,
                    (None, More::Gathered(parts)) => match ready!(parts.poll_recv(cx)) {
                        Some(part) => part,
                        None => Part::Failed("the body was not read to its end".into()),
                    },
                    (None, More::Own(body)) => {
                        return body.as_mut().poll_frame(cx).map_err(Into::into);
                    }
                    (None, More::Nothing) => return Poll::Ready(None),
                };
                match part {
                    Part::Frame(frame) => {
                        let data = frame.data_ref().map_or(0, Bytes::len);
                        *left = left.map(|left| left.saturating_sub(data as u64));
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    Part::Rest(body) => *more = More::Own(body),
                    Part::End => *more = More::Nothing,
                    Part::Failed(error) => {
                        *more = More::Nothing;
                        return Poll::Ready(Some(Err(error)));
                    }
                    Part::Panicked(panic) => {
                        *more = More::Nothing;
                        resume_unwind(panic);
                    }
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Own(body) => body.is_end_stream(),
            Kind::Streamed { ready, more, .. } => match more {
                More::Nothing => ready.is_empty(),
                More::Own(body) => ready.is_empty() && body.is_end_stream(),
                More::Gathered(_) => false,
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Own(body) => body.size_hint(),
            Kind::Streamed { ready, more, left } => match (more, left) {
                (More::Own(body), _) if ready.is_empty() => body.size_hint(),
                (_, Some(left)) => SizeHint::with_exact(*left),
                (_, None) => SizeHint::default(),
            },
        }
    }
}

impl<R> fmt::Debug for PageBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Whole(_) => "PageBody(whole)",
            Kind::Own(_) => "PageBody(own)",
            Kind::Streamed { .. } => "PageBody(streamed)",
        })
    }
}
