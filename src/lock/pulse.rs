//! `Pulse`: whether a future that others depend on is still polled.
//!
//! Invariant: a future that is polled when it is woken has a pulse. One that its caller keeps and
//! does not poll (a branch of `select!` while another runs), or whose runtime stands still, has none,
//! and looks from outside like one whose answer has not come: only its waker tells them apart.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    polled: bool,
    waker: Option<Waker>,
}

impl Pulse {
    /// Drives `future`, and notes that it is polled.
    ///
    /// Cancel safety: that of `future`.
    pub(super) async fn of<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        std::future::poll_fn(|context| {
            self.beat(context.waker());
            future.as_mut().poll(context)
        })
        .await
    }

    /// Whether it was polled since this was asked last. Has it polled now, if anybody does.
    pub(super) fn felt(&self) -> bool {
        let mut state = self.state();
        let (polled, waker) = (std::mem::take(&mut state.polled), state.waker.clone());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        polled
    }

    fn beat(&self, waker: &Waker) {
        let mut state = self.state();
        state.polled = true;
        if !state
            .waker
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            state.waker = Some(waker.clone());
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
