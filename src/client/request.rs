//! `Request`: a call that has not been made yet, and may be told how long it may take.
//!
//! Invariant: nothing happens before the first poll, and the deadline counts from there. Made by
//! the verbs of counters and caches that have no refinements of their own.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::time::{OnOutage, Patience};

/// A call that is made when it is awaited.
///
/// ```no_run
/// # use std::time::Duration;
/// # async fn example(client: hedgerow::Client) -> hedgerow::Result<()> {
/// let views = client.counter("views:42").get().deadline(Duration::from_millis(50)).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
/// As the method that made it says. Before the first poll nothing has happened.
#[must_use = "nothing happens until it is awaited"]
pub struct Request<'a, T> {
    patience: Patience,
    state: State<'a, T>,
}

enum State<'a, T> {
    Unsent(Box<dyn FnOnce(Patience) -> BoxFuture<'a, Result<T>> + Send + 'a>),
    UnderWay(BoxFuture<'a, Result<T>>),
    Ended,
}

impl<'a, T> Request<'a, T> {
    /// A call that `make` makes within the patience that it is given.
    pub(crate) fn new<F>(patience: Patience, make: impl FnOnce(Patience) -> F + Send + 'a) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Self {
            patience,
            state: State::Unsent(Box::new(move |patience| Box::pin(make(patience)))),
        }
    }

    /// How long this call may take in all, retries included. More than 100 years count as 100
    /// years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.patience = self.patience.within(deadline);
        self
    }

    /// What this call does while its server is out. What takes something out of a cache (`remove`,
    /// `clear`, `invalidate_tags`) keeps trying whatever this says.
    pub fn on_outage(mut self, on_outage: OnOutage) -> Self {
        self.patience.on_outage = on_outage;
        self
    }

    /// The same as [`on_outage`](Self::on_outage) with [`OnOutage::FailFast`].
    pub fn fail_fast(self) -> Self {
        self.on_outage(OnOutage::FailFast)
    }
}

impl<T> Future for Request<'_, T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut call = match std::mem::replace(&mut self.state, State::Ended) {
            State::Unsent(make) => make(self.patience),
            State::UnderWay(call) => call,
            State::Ended => panic!("a request is polled after its end"),
        };
        let outcome = call.as_mut().poll(context);
        if outcome.is_pending() {
            self.state = State::UnderWay(call);
        }
        outcome
    }
}

impl<T> fmt::Debug for Request<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Unsent(_) => "unsent",
            State::UnderWay(_) => "under way",
            State::Ended => "ended",
        };
        f.debug_struct("Request")
            .field("patience", &self.patience)
            .field("state", &state)
            .finish()
    }
}
