//! `Request`: a call that was not made yet, whose deadline can still be set.
//!
//! Invariant: nothing happens before the first poll, and the deadline counts from there. The verbs
//! of counters and caches that have no other settings return it.

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
    // A closure, so that neither the future nor the deadline exists before the first poll.
    Unsent(Box<dyn FnOnce(Patience) -> Begun<'a, T> + Send + 'a>),
    UnderWay(BoxFuture<'a, Result<T>>),
    Ended,
}

/// What the first poll finds.
enum Begun<'a, T> {
    #[cfg(feature = "near")]
    Known(Result<T>),
    UnderWay(BoxFuture<'a, Result<T>>),
}

impl<'a, T> Request<'a, T> {
    /// Makes a request. `make` makes the call, with the deadline and outage setting that are valid
    /// at the first poll.
    pub(crate) fn new<F>(patience: Patience, make: impl FnOnce(Patience) -> F + Send + 'a) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Self {
            patience,
            state: State::Unsent(Box::new(move |patience| {
                Begun::UnderWay(Box::pin(make(patience)))
            })),
        }
    }

    /// As [`new`](Self::new). The first poll asks `known`, and no call is made if it answers.
    #[cfg(feature = "near")]
    pub(crate) fn unless<F>(
        patience: Patience,
        known: impl FnOnce() -> Option<Result<T>> + Send + 'a,
        make: impl FnOnce(Patience) -> F + Send + 'a,
    ) -> Self
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Self {
            patience,
            state: State::Unsent(Box::new(move |patience| match known() {
                Some(outcome) => Begun::Known(outcome),
                None => Begun::UnderWay(Box::pin(make(patience))),
            })),
        }
    }

    /// Sets how long this call may take in all, retries included. More than 100 years count as 100
    /// years.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.patience = self.patience.within(deadline);
        self
    }

    /// Sets what this call does while its server is out. Calls that take something out of a cache
    /// (`remove`, `clear`, `invalidate_tags`) keep trying in any case.
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
        // `Ended` stays behind if the call panics, so that it is not polled again.
        let mut call = match std::mem::replace(&mut self.state, State::Ended) {
            State::Unsent(make) => match make(self.patience) {
                #[cfg(feature = "near")]
                Begun::Known(outcome) => return Poll::Ready(outcome),
                Begun::UnderWay(call) => call,
            },
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

#[cfg(all(test, feature = "near"))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Returns what a request answers, and whether it made its call.
    async fn asked(known: Option<Result<u64>>) -> (Result<u64>, bool) {
        let patience = Patience::new(Duration::from_secs(1), OnOutage::KeepTrying);
        let made = AtomicBool::new(false);
        let call = |_| async {
            made.store(true, Ordering::Relaxed);
            Ok(2)
        };
        let answer = Request::unless(patience, || known, call).await;
        (answer, made.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn a_call_whose_answer_is_known_is_not_made() {
        let (answer, made) = asked(Some(Ok(1))).await;
        assert_eq!(answer.expect("known"), 1);
        assert!(!made);
    }

    #[tokio::test]
    async fn a_call_whose_answer_is_not_known_is_made() {
        let (answer, made) = asked(None).await;
        assert_eq!(answer.expect("called"), 2);
        assert!(made);
    }
}
