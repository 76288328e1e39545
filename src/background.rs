//! `Background`: a task that works for one owner.
//!
//! Invariant: at most one runs for its owner; it is started when it is needed, started again when
//! its runtime has ended (or when it panicked), and aborted when its owner is dropped. Caches of
//! what servers are like (slot map, sentinels, replicas, subscriptions) are kept by such tasks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::JoinHandle;

/// The handle of a background task; lives in the struct that the task works for.
#[derive(Debug, Default)]
pub(crate) struct Background(Mutex<Option<JoinHandle<()>>>);

impl Background {
    /// Starts the task that `make` makes, unless one runs. The task must not keep its owner alive:
    /// it holds a `Weak` of it.
    pub(crate) fn ensure<F>(&self, make: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut task = self.task();
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(make()));
        }
    }

    /// Whether the task runs.
    pub(crate) fn runs(&self) -> bool {
        self.task().as_ref().is_some_and(|task| !task.is_finished())
    }

    /// Ends the task: nobody needs it any more.
    pub(crate) fn end(&self) {
        if let Some(task) = self.task().take() {
            task.abort();
        }
    }

    fn task(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn one_task_runs_until_its_owner_is_dropped() {
        let background = Background::default();
        let (alive, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        background.ensure(|| async move {
            let _alive = alive;
            pending().await
        });
        background.ensure(|| async { unreachable!("one runs") });
        assert!(background.runs());
        drop(background);
        assert_eq!(ended.recv().await, None, "the task was aborted");
    }

    #[test]
    fn a_task_whose_runtime_has_ended_is_started_again_on_the_next() {
        let background = Background::default();
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime");
            let _entered = runtime.enter();
            assert!(!background.runs());
            background.ensure(pending);
            assert!(background.runs());
        }
    }
}
