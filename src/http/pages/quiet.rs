//! Waiting for a call, and for what the call itself sends while it is polled.
//!
//! Invariant: whatever is sent wakes the task, unless the task is polling the call at that moment.
//! The task then looks for it right after, so a wake-up would only make it run once more. An
//! attempt waits like this for its page and for its own render.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::{Either, poll_fn};
use futures::task::AtomicWaker;

/// Waits for `call` or `sent`, whichever comes first. If both are there, `sent` counts, unless it
/// came during the poll that has ended `call`.
pub(super) async fn first<C: Future, S: Future>(call: C, sent: S) -> Either<C::Output, S::Output> {
    let (mut call, mut sent) = (pin!(call), pin!(sent));
    let mut bell = None;
    poll_fn(|context| {
        let Some((bell, waker)) = &bell else {
            // Nothing that is sent during this poll wakes anybody. A call that ends at once, such
            // as that of a near hit, needs no bell.
            let mut deafly = Context::from_waker(Waker::noop());
            if let Poll::Ready(sent) = sent.as_mut().poll(&mut deafly) {
                return Poll::Ready(Either::Right(sent));
            }
            if let Poll::Ready(called) = call.as_mut().poll(context) {
                return Poll::Ready(Either::Left(called));
            }
            let made = Arc::new(Bell::default());
            made.task.register(context.waker());
            let (_, waker) = bell.insert((made.clone(), Waker::from(made)));
            let mut quietly = Context::from_waker(waker);
            return sent.as_mut().poll(&mut quietly).map(Either::Right);
        };
        bell.task.register(context.waker());
        let mut quietly = Context::from_waker(waker);
        if let Poll::Ready(sent) = sent.as_mut().poll(&mut quietly) {
            return Poll::Ready(Either::Right(sent));
        }
        if let Poll::Ready(called) = bell.hushed(|| call.as_mut().poll(context)) {
            return Poll::Ready(Either::Left(called));
        }
        sent.as_mut().poll(&mut quietly).map(Either::Right)
    })
    .await
}

/// Wakes the task, unless it is about to look by itself.
#[derive(Default)]
struct Bell {
    hushed: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    /// Runs `poll` without waking the task for what is sent meanwhile.
    fn hushed<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.hushed.store(true, Ordering::SeqCst);
        let polled = poll();
        self.hushed.store(false, Ordering::SeqCst);
        // Pairs with the fence in `wake`: either that sees that nobody looks any more, or the look
        // after this sees what was sent.
        fence(Ordering::SeqCst);
        polled
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        fence(Ordering::SeqCst);
        if !self.hushed.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use futures::FutureExt as _;
    use futures::task::{ArcWake, waker};
    use tokio::runtime::Builder;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl ArcWake for Woken {
        fn wake_by_ref(woken: &Arc<Self>) {
            woken.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A call that sends something when it is polled for the `end`th time, and then ends or not.
    fn sends(
        mut back: Option<oneshot::Sender<u8>>,
        end: u32,
        ends: bool,
    ) -> impl Future<Output = ()> {
        let mut polls = 0;
        poll_fn(move |_| {
            polls += 1;
            if polls < end {
                return Poll::Pending;
            }
            if let Some(back) = back.take() {
                let _ = back.send(7);
            }
            match ends {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
    }

    #[test]
    fn what_a_call_sends_while_it_is_polled_wakes_nobody_and_is_seen() {
        for ends in [true, false] {
            let (back, sent) = oneshot::channel();
            let mut first = Box::pin(first(sends(Some(back), 2, ends), sent));
            let woken = Arc::new(Woken::default());
            let waker = waker(woken.clone());
            let mut context = Context::from_waker(&waker);
            assert!(first.as_mut().poll(&mut context).is_pending());
            let Poll::Ready(came) = first.as_mut().poll(&mut context) else {
                panic!("one of them is there");
            };
            match ends {
                true => assert!(matches!(came, Either::Left(()))),
                false => assert!(matches!(came, Either::Right(Ok(7)))),
            }
            assert_eq!(woken.0.load(Ordering::SeqCst), 0);
        }
    }

    #[test]
    fn a_call_that_ends_at_once_needs_nothing_on_the_heap() {
        let mut came = None;
        let (_back, sent) = oneshot::channel::<u8>();
        let counted = allocation_counter::measure(|| {
            came = first(std::future::ready(3), sent).now_or_never();
        });
        assert!(matches!(came, Some(Either::Left(3))));
        assert_eq!(counted.count_total, 0);
    }

    #[test]
    fn what_was_sent_before_counts_before_a_call_that_ends_at_once() {
        let (back, sent) = oneshot::channel();
        back.send(7).expect("somebody waits");
        let came = first(std::future::ready(()), sent).now_or_never();
        assert!(matches!(came, Some(Either::Right(Ok(7)))));
    }

    #[test]
    fn what_others_send_wakes_the_task() {
        let (back, sent) = oneshot::channel();
        let mut first = Box::pin(first(std::future::pending::<()>(), sent));
        let woken = Arc::new(Woken::default());
        let waker = waker(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert!(first.as_mut().poll(&mut context).is_pending());
        back.send(7).expect("somebody waits");
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        let came = first.now_or_never();
        assert!(matches!(came, Some(Either::Right(Ok(7)))));
    }

    /// Another thread sends at about every moment of a look.
    #[test]
    fn nothing_that_is_sent_is_missed() {
        let runtime = Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        for round in 0..2_000 {
            let (back, sent) = oneshot::channel();
            let looks = AtomicBool::new(false);
            let call = poll_fn(|_| {
                looks.store(true, Ordering::SeqCst);
                (0..round).for_each(|_| std::hint::spin_loop());
                Poll::<()>::Pending
            });
            let came = std::thread::scope(|scope| {
                let sender = scope.spawn(|| {
                    while !looks.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    back.send(7)
                });
                let came = runtime.block_on(async { timeout(LONG, first(call, sent)).await });
                sender.join().expect("no panic").expect("somebody waits");
                came
            });
            assert!(matches!(came, Ok(Either::Right(Ok(7)))));
        }
    }

    const LONG: Duration = Duration::from_secs(10);
}
