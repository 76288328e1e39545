//! Calls that are given up before their end.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

/// When a call is given up: after a number of polls or a time, whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    polls: u32,
    time: Duration,
}

impl Patience {
    pub fn random(rng: &mut StdRng) -> Self {
        if rng.random_bool(0.7) {
            Self {
                polls: rng.random_range(1..4),
                time: Duration::from_millis(20),
            }
        } else {
            Self {
                polls: u32::MAX,
                time: Duration::from_micros(rng.random_range(0..6000)),
            }
        }
    }

    /// Runs `call`; `None` when it was dropped before its end.
    pub async fn call<F: Future>(self, call: F) -> Option<F::Output> {
        let mut call = pin!(call);
        let mut polls = 0;
        let limited = std::future::poll_fn(|context| {
            if polls == self.polls {
                return Poll::Ready(None);
            }
            polls += 1;
            match call.as_mut().poll(context) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if polls == self.polls => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let limited = tokio::time::timeout(self.time, limited).await;
        limited.ok().flatten()
    }
}
