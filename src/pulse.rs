//! `Pulse`: whether a task that was woken is polled.
//!
//! A task stands still if its runtime is not driven, or if a thread is blocked in it. A knock wakes
//! the task; if no poll follows for [`STANDSTILL`], the task stands still.
//!
//! Invariant: the check works without the runtime of the task. So a caller on another runtime can
//! tell a task that only waits from one that stands still.
//!
//! Callers that depend on a task have a timer of their own, and ask the pulse at each tick.

use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::task::Context;
use std::time::{Duration, Instant};

use futures::future::poll_fn;
use futures::task::AtomicWaker;
use tokio::runtime;

/// Counts the polls of one task.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Rises when a poll begins and when it ends, so it is odd while the task is polled.
    beats: AtomicU64,
    /// When the first knock that no poll has answered came, in ms; 0 if there is none.
    unanswered: AtomicU64,
    /// The first look that found a knock unanswered for long: the time of the knock in the upper 32
    /// bits, and for how long it was unanswered in the lower 32, both in ms; 0 if there is none.
    // Both in one atomic, so that a look at one knock never counts for a later one.
    suspected: AtomicU64,
    /// When the last knock was, in ms.
    knocked: AtomicU64,
    /// The waker of the task, from its last poll.
    task: AtomicWaker,
    /// The runtime of the task, if it is known.
    runtime: Option<runtime::Id>,
}

/// How far a task had come at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat(u64);

impl Pulse {
    /// The pulse of a task on `runtime`.
    pub(crate) fn on(runtime: runtime::Id) -> Self {
        Self {
            runtime: Some(runtime),
            ..Self::default()
        }
    }

    /// The runtime of the task, if it is known.
    pub(crate) fn runtime(&self) -> Option<runtime::Id> {
        self.runtime
    }

    /// Whether the task has been polled at all.
    pub(crate) fn has_begun(&self) -> bool {
        self.now() != Beat(0)
    }

    /// Runs `task`, and counts its polls.
    pub(crate) async fn of<F: Future>(&self, task: F) -> F::Output {
        let mut task = pin!(task);
        poll_fn(|context| {
            let _poll = self.begin(context);
            task.as_mut().poll(context)
        })
        .await
    }

    /// How far the task has come now.
    pub(crate) fn now(&self) -> Beat {
        Beat(self.beats.load(Ordering::SeqCst))
    }

    /// Whether the task has not been polled at all since `then`. A poll that comes after this call
    /// sees everything that the caller dropped before it.
    pub(crate) fn has_stood_since(&self, then: Beat) -> bool {
        // Pairs with the fence in `begin`: either this sees the beat of a poll, or that poll sees
        // what the caller dropped.
        fence(Ordering::SeqCst);
        // A poll that was under way at `then` may have done anything since.
        let was_idle = then.0.is_multiple_of(2);
        was_idle && self.now() == then
    }

    /// Wakes the task, so that a later look can tell whether it is polled.
    pub(crate) fn knock(&self) {
        let now = millis();
        self.knocked.store(now, Ordering::Relaxed);
        let first = self
            .unanswered
            .compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
        match first {
            Ok(_) => self.task.wake(),
            // A knock is open already; this look may be the first that finds it suspicious.
            Err(since) => {
                self.is_suspected(since, now);
            }
        }
    }

    /// Whether a knock has been unanswered for [`STANDSTILL`]. Reads no clock while no knock is
    /// open.
    ///
    /// Two looks must agree. If the whole process was stopped, the first look finds the clock far
    /// ahead, and the task is polled before the second.
    pub(crate) fn stands_still(&self) -> bool {
        let since = self.unanswered.load(Ordering::SeqCst);
        if since == 0 {
            return false;
        }
        let now = millis();
        self.is_suspected(since, now) && now.saturating_sub(since) >= STANDSTILL.as_millis() as u64
    }

    /// Whether an earlier look, some time ago, found the knock of `since` unanswered for almost
    /// long enough. If there was no such look, this one is recorded.
    fn is_suspected(&self, since: u64, now: u64) -> bool {
        let elapsed = now.saturating_sub(since);
        if elapsed < SUSPICIOUS.as_millis() as u64 {
            return false;
        }
        let noted = self.suspected.load(Ordering::SeqCst);
        if noted != 0 && (noted >> 32) as u32 == since as u32 {
            let first = noted & u64::from(u32::MAX);
            return elapsed.saturating_sub(first) >= BETWEEN_LOOKS.as_millis() as u64;
        }
        let first = elapsed.min(u64::from(u32::MAX));
        // If this fails, another look was recorded first, and that one counts.
        let _ = self.suspected.compare_exchange(
            noted,
            (since << 32) | first,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        false
    }

    /// Whether the task has stood still for three times [`STANDSTILL`]. After that, callers whose
    /// work it has taken leave, although the fate of the work is unknown.
    pub(crate) fn is_given_up(&self) -> bool {
        let since = self.unanswered.load(Ordering::SeqCst);
        self.stands_still() && millis().saturating_sub(since) >= 3 * STANDSTILL.as_millis() as u64
    }

    /// Whether a knock is unanswered.
    pub(crate) fn is_knocked(&self) -> bool {
        self.unanswered.load(Ordering::SeqCst) != 0
    }

    /// Whether a knock has been unanswered for [`TICK`]. The task may still be about to answer it.
    pub(crate) fn is_late(&self) -> bool {
        let since = self.unanswered.load(Ordering::SeqCst);
        since != 0 && millis().saturating_sub(since) >= TICK.as_millis() as u64
    }

    /// Like [`stands_still`](Self::stands_still), but also wakes the task, at most every 100 ms. So
    /// callers that send the task no work notice a stall by calling this repeatedly.
    pub(crate) fn stands_still_when_asked(&self) -> bool {
        if self.stands_still() {
            return true;
        }
        let last = self.knocked.load(Ordering::Relaxed);
        if millis().saturating_sub(last) >= TICK.as_millis() as u64 {
            self.knock();
        }
        false
    }

    /// Notes that a poll begins, which answers an open knock.
    fn begin(&self, context: &Context<'_>) -> Poll<'_> {
        self.task.register(context.waker());
        self.beats.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `has_stood_since`: a caller that leaves either sees this poll, or
        // has closed its reply channel before it.
        fence(Ordering::SeqCst);
        // Read first: it is nearly always 0, and a store at each poll would cost more.
        if self.unanswered.load(Ordering::Relaxed) != 0 {
            self.unanswered.store(0, Ordering::SeqCst);
        }
        Poll(self)
    }
}

/// A poll under way.
struct Poll<'p>(&'p Pulse);

impl Drop for Poll<'_> {
    fn drop(&mut self) {
        self.0.beats.fetch_add(1, Ordering::SeqCst);
    }
}

/// Milliseconds of a clock that runs on while runtimes stand still. Never 0, which means none.
fn millis() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64 + 1
}

/// A task that was woken and is not polled for this long stands still.
pub(crate) const STANDSTILL: Duration = Duration::from_millis(500);

/// How long a knock must be unanswered for the first look to count, and how much later the second
/// look must come.
const SUSPICIOUS: Duration = Duration::from_millis(350);
const BETWEEN_LOOKS: Duration = Duration::from_millis(80);

/// How often callers that wait for a task check whether it stands still.
pub(crate) const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_task_that_is_polled_answers_knocks() {
        let pulse = Arc::new(Pulse::default());
        let before = pulse.now();
        assert!(pulse.has_stood_since(before));
        let mut task = Box::pin(pulse.of(std::future::pending::<()>()));
        pulse.knock();
        assert!(pulse.has_stood_since(before), "nobody has polled it");
        assert_ne!(pulse.unanswered.load(Ordering::SeqCst), 0);
        assert!(task.as_mut().now_or_never().is_none());
        assert!(!pulse.has_stood_since(before));
        assert_eq!(pulse.unanswered.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn while_a_task_is_being_polled_nobody_can_say_that_it_stood() {
        let pulse = Pulse::default();
        let during = pulse.of(async { pulse.now() });
        let during = during.now_or_never().expect("it does not wait");
        assert!(!pulse.has_stood_since(during));
    }

    #[test]
    fn after_the_process_was_stopped_the_first_look_finds_nothing() {
        let pulse = Pulse::default();
        pulse.knock();
        std::thread::sleep(STANDSTILL);
        assert!(!pulse.stands_still());
        std::thread::sleep(BETWEEN_LOOKS);
        assert!(pulse.stands_still());
    }

    #[test]
    fn what_was_seen_of_a_knock_says_nothing_of_a_later_one() {
        let pulse = Pulse::default();
        // A look that found the first knock open records that after the task has answered it.
        assert!(!pulse.is_suspected(1, 500));
        assert!(!pulse.is_suspected(10_000, 10_500), "it is the first look");
        assert!(pulse.is_suspected(10_000, 10_600));
    }

    #[tokio::test]
    async fn a_task_that_does_not_heed_a_knock_stands_still() {
        let pulse = Pulse::default();
        assert!(!pulse.stands_still_when_asked());
        while !pulse.stands_still() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let polled = pulse.of(async {}).now_or_never();
        polled.expect("it does not wait");
        assert!(!pulse.stands_still());
    }
}
