//! `Pulse`: whether a task that has been woken is polled.
//!
//! Invariant: the check works without the task's runtime, so that a caller on another
//! runtime can tell a task that waits from one that stands still: its runtime is not driven, or a
//! thread is blocked in it. Whoever depends on a task has a timer of its own and asks here.

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
    /// Moves when a poll begins, and when it ends: odd while the task is being polled.
    beats: AtomicU64,
    /// When the first knock came that no poll has answered, in ms; 0 if there is none.
    unanswered: AtomicU64,
    /// The knock that somebody first saw unheeded for long, and how long, in ms: 32 bits each; 0 if
    /// nobody has. In one, so that what was seen of a knock says nothing of a later one.
    suspected: AtomicU64,
    /// When the last knock was, in ms.
    knocked: AtomicU64,
    task: AtomicWaker,
    /// Where the task lives, if that is known.
    runtime: Option<runtime::Id>,
}

/// How far a task had come at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat(u64);

impl Pulse {
    /// Of a task on `runtime`.
    pub(crate) fn on(runtime: runtime::Id) -> Self {
        Self {
            runtime: Some(runtime),
            ..Self::default()
        }
    }

    pub(crate) fn runtime(&self) -> Option<runtime::Id> {
        self.runtime
    }

    /// Whether the task has been polled at all.
    pub(crate) fn has_begun(&self) -> bool {
        self.now() != Beat(0)
    }

    /// `task`, with its polls counted here.
    pub(crate) async fn of<F: Future>(&self, task: F) -> F::Output {
        let mut task = pin!(task);
        poll_fn(|context| {
            let _poll = self.begin(context);
            task.as_mut().poll(context)
        })
        .await
    }

    pub(crate) fn now(&self) -> Beat {
        Beat(self.beats.load(Ordering::SeqCst))
    }

    /// Whether the task has not been polled at all since `then`. What was dropped before this was
    /// asked is not there any more for a poll that comes later.
    pub(crate) fn has_stood_since(&self, then: Beat) -> bool {
        fence(Ordering::SeqCst);
        let was_idle = then.0.is_multiple_of(2);
        was_idle && self.now() == then
    }

    /// Wakes the task, to see whether it is polled then.
    pub(crate) fn knock(&self) {
        let now = millis();
        self.knocked.store(now, Ordering::Relaxed);
        let first = self
            .unanswered
            .compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst);
        match first {
            Ok(_) => self.task.wake(),
            Err(since) => {
                self.is_suspected(since, now);
            }
        }
    }

    /// Whether a knock has not been answered for [`STANDSTILL`]. Asks no clock while none is open.
    /// Two looks must find it so: if this process was stopped, the first finds the clock far ahead,
    /// and the task is polled before the second.
    pub(crate) fn stands_still(&self) -> bool {
        let since = self.unanswered.load(Ordering::SeqCst);
        if since == 0 {
            return false;
        }
        let now = millis();
        self.is_suspected(since, now) && now.saturating_sub(since) >= STANDSTILL.as_millis() as u64
    }

    /// Whether a look some time ago has found a knock of `since` unanswered for almost long enough;
    /// notes that this one has.
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
        // Where another look was first, that one counts.
        let _ = self.suspected.compare_exchange(
            noted,
            (since << 32) | first,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        false
    }

    /// Whether it has stood still for so long that those leave it whose work it has taken, and who
    /// do not know what has become of that.
    pub(crate) fn is_given_up(&self) -> bool {
        let since = self.unanswered.load(Ordering::SeqCst);
        self.stands_still() && millis().saturating_sub(since) >= 3 * STANDSTILL.as_millis() as u64
    }

    /// As [`stands_still`](Self::stands_still). Also wakes the task at most every 100 ms, so that
    /// callers without a timer notice a stall by polling this.
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

    fn begin(&self, context: &Context<'_>) -> Poll<'_> {
        self.task.register(context.waker());
        self.beats.fetch_add(1, Ordering::SeqCst);
        // A caller that leaves either sees this poll, or has closed its reply before it: see
        // `has_stood_since`.
        fence(Ordering::SeqCst);
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

/// Milliseconds of a clock that goes on while runtimes stand still; never 0.
fn millis() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64 + 1
}

/// A task that was woken and is not polled for so long stands still.
pub(crate) const STANDSTILL: Duration = Duration::from_millis(500);

/// Unanswered for so long, a knock is suspicious; and how much later another look must find it so.
const SUSPICIOUS: Duration = Duration::from_millis(350);
const BETWEEN_LOOKS: Duration = Duration::from_millis(80);

/// How often those who wait for a task look whether it stands still.
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
        // A look that has found the first knock open notes that after the task has answered it.
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
