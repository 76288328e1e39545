//! `Spawner` and `Background`: on which runtime the tasks of a client run, and tasks that work for
//! one owner.
//!
//! Invariant: a task is spawned on the runtime that the client was given. If the client was given
//! none, or that one has ended or stands still, the task is spawned on the runtime of the call that
//! needs it. At most one task of a `Background` works for its owner. It starts the task when it is
//! needed, and again after a panic or when the runtime has ended or stands still. It aborts the
//! task when the owner is dropped.
//!
//! Such tasks keep the knowledge about servers up to date: slot map, sentinels, replicas,
//! subscriptions.

use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::runtime::{self, Handle};
use tokio::task::JoinHandle;

use crate::pulse::Pulse;

/// Spawns the tasks of one client. Without a given runtime, each task goes to the runtime of the
/// call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spawner(Option<Arc<Home>>);

/// The runtime that a client was given, and whether it can be used.
#[derive(Debug)]
struct Home {
    runtime: Handle,
    /// A task that does nothing: its pulse shows whether the runtime has ended or stands still. It
    /// ends with the client.
    canary: Task,
    /// When a task on the runtime was last seen to stand still, or to have ended with it.
    // Kept besides the canary, which needs half a second to find out.
    distrusted: Mutex<Option<Instant>>,
}

/// A task that was spawned. Dropping this does not end the task.
#[derive(Debug)]
pub(crate) struct Task {
    handle: JoinHandle<()>,
    pulse: Arc<Pulse>,
}

/// A task that starts elsewhere if the given runtime does not start it; see [`Spawner::launch`].
pub(crate) struct Launched {
    task: Task,
    spawner: Spawner,
    /// The task before its first poll, shared with the given runtime. The side that takes it first
    /// runs it.
    unbegun: Option<Unbegun>,
}

/// A task before its first poll. It is empty once one side has taken it.
type Unbegun = Arc<Mutex<Option<BoxFuture<'static, ()>>>>;

/// The handle of a background task. It is a field of the struct that the task works for.
#[derive(Debug, Default)]
pub(crate) struct Background {
    spawner: Spawner,
    task: Mutex<Option<Task>>,
}

impl Spawner {
    /// A spawner that uses `runtime` for every call.
    pub(crate) fn on(runtime: Handle) -> Self {
        Self(Some(Arc::new(Home {
            canary: spawn_on(&runtime, pending()),
            runtime,
            distrusted: Mutex::new(None),
        })))
    }

    /// Spawns `task`. The caller documents who ends it and what happens if it panics.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        match &self.0 {
            Some(home) if home.is_trusted() => spawn_on(&home.runtime, task),
            _ => spawn_on(&Handle::current(), task),
        }
    }

    /// Spawns `task` for a caller that waits for its outcome. The caller must call
    /// [`Launched::look`] now and then.
    pub(crate) fn launch(&self, task: impl Future<Output = ()> + Send + 'static) -> Launched {
        let (task, unbegun) = match &self.0 {
            // Without a given runtime, the task runs on that of the caller, which has no other.
            None => (self.spawn(task), None),
            Some(_) => {
                let unbegun: Unbegun = Arc::new(Mutex::new(Some(task.boxed())));
                let begins = unbegun.clone();
                let task = self.spawn(async move {
                    if let Some(task) = taken(&begins) {
                        task.await;
                    }
                });
                (task, Some(unbegun))
            }
        };
        Launched {
            task,
            spawner: self.clone(),
            unbegun,
        }
    }

    /// The runtime on which [`spawn`](Self::spawn) would spawn now.
    pub(crate) fn runtime(&self) -> runtime::Id {
        match &self.0 {
            Some(home) if home.is_trusted() => home.runtime.id(),
            _ => Handle::current().id(),
        }
    }

    /// Notes that a task on `runtime` has ended with it, or stands still. If that is the given
    /// runtime, tasks are spawned on the runtimes of the calls for a while (10 s), and for as long
    /// as it stands still.
    pub(crate) fn distrust(&self, runtime: Option<runtime::Id>) {
        if let Some(home) = &self.0
            && runtime == Some(home.runtime.id())
        {
            *home.distrusted() = Some(Instant::now());
            // So that the canary has answered, or not, by the time the runtime would be trusted
            // again.
            home.canary.pulse.knock();
        }
    }
}

/// Spawns `task` on `runtime`, with a pulse that counts its polls.
fn spawn_on(runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) -> Task {
    let pulse = Arc::new(Pulse::on(runtime.id()));
    let counted = {
        let pulse = pulse.clone();
        // Boxed because these tasks are large, and the runtime moves what it spawns several times.
        let task = Box::pin(task);
        async move { pulse.of(task).await }
    };
    let handle = runtime.spawn(counted);
    Task { handle, pulse }
}

/// Takes the task, unless the other side has taken it.
fn taken(unbegun: &Unbegun) -> Option<BoxFuture<'static, ()>> {
    let mut unbegun = unbegun.lock().unwrap_or_else(PoisonError::into_inner);
    unbegun.take()
}

impl Launched {
    /// Starts the task on the current runtime if the given one has ended, or stands still, and has
    /// not started it.
    pub(crate) fn look(&mut self) {
        let Some(unbegun) = &self.unbegun else { return };
        // A task that has started may have had effects, so it must not start again.
        if self.task.pulse.has_begun() {
            return;
        }
        if !self.task.is_finished() && !self.task.pulse.stands_still_when_asked() {
            return;
        }
        // Taken under a lock, so the task never runs twice, even if the given runtime resumes now.
        if let Some(task) = taken(unbegun) {
            self.spawner.distrust(self.task.pulse.runtime());
            self.task = spawn_on(&Handle::current(), task);
        }
        self.unbegun = None;
    }
}

impl Home {
    /// Whether tasks may be spawned on the runtime.
    fn is_trusted(&self) -> bool {
        let distrusted = *self.distrusted();
        distrusted.is_none_or(|at| at.elapsed() >= DISTRUST)
            && !self.canary.is_finished()
            && !self.canary.pulse.stands_still_when_asked()
    }

    fn distrusted(&self) -> MutexGuard<'_, Option<Instant>> {
        self.distrusted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.canary.abort();
    }
}

impl Task {
    pub(crate) fn abort(&self) {
        self.handle.abort();
    }

    /// Whether it has ended, also by a panic or with its runtime.
    pub(crate) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }
}

impl Background {
    /// A handle whose task is spawned by `spawner`.
    pub(crate) fn by(spawner: &Spawner) -> Self {
        Self {
            spawner: spawner.clone(),
            task: Mutex::default(),
        }
    }

    /// Starts the task that `make` makes, unless one runs. The task must not keep its owner alive,
    /// so it holds a `Weak` of it.
    pub(crate) fn ensure<F>(&self, make: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut task = self.task();
        if let Some(old) = task.as_ref().filter(|task| !task.is_finished()) {
            if !old.pulse.stands_still_when_asked() {
                return;
            }
            // If its runtime resumes, the task is dropped, at the latest after the poll that it is
            // in.
            old.abort();
            self.spawner.distrust(old.pulse.runtime());
        }
        let started = self.spawner.spawn(make());
        // A runtime that is shutting down drops a new task at once.
        if started.is_finished() {
            self.spawner.distrust(started.pulse.runtime());
        }
        *task = Some(started);
    }

    /// Starts the task that `make` makes, and aborts the previous one.
    pub(crate) fn renew<F>(&self, make: impl FnOnce() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.end();
        self.ensure(make);
    }

    /// Whether the task runs, as far as is known without waiting.
    pub(crate) fn runs(&self) -> bool {
        let task = self.task();
        task.as_ref()
            .is_some_and(|task| !task.is_finished() && !task.pulse.stands_still_when_asked())
    }

    /// Ends the task, because it is not needed any more.
    pub(crate) fn end(&self) {
        if let Some(task) = self.task().take() {
            task.abort();
        }
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long a runtime is not used after a task on it stood still.
const DISTRUST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        let runtime = Builder::new_current_thread().build();
        runtime.expect("a runtime")
    }

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
            let runtime = runtime();
            let _entered = runtime.enter();
            assert!(!background.runs());
            background.ensure(pending);
            assert!(background.runs());
        }
    }

    #[test]
    fn a_task_whose_runtime_is_not_driven_is_started_again_on_another() {
        let (idle, driven) = (runtime(), runtime());
        let background = Background::default();
        {
            let _entered = idle.enter();
            background.ensure(pending);
        }
        let _entered = driven.enter();
        while background.runs() {
            std::thread::sleep(Duration::from_millis(20));
        }
        background.ensure(pending);
        driven.block_on(tokio::task::yield_now());
        assert!(background.runs());
    }

    #[test]
    fn tasks_live_on_the_runtime_that_was_given_while_it_lives() {
        let (given, caller) = (runtime(), runtime());
        let spawner = Spawner::on(given.handle().clone());
        let _entered = caller.enter();
        let task = spawner.spawn(async {});
        caller.block_on(tokio::task::yield_now());
        assert!(!task.is_finished());
        given.block_on(tokio::task::yield_now());
        assert!(task.is_finished());

        drop(given);
        let background = Background::by(&spawner);
        background.ensure(pending);
        assert!(background.runs(), "on the runtime of the caller");
    }

    #[test]
    fn a_given_runtime_that_stands_still_is_done_without_until_it_goes_on() {
        let (given, caller) = (runtime(), runtime());
        let spawner = Spawner::on(given.handle().clone());
        let _entered = caller.enter();
        let (ours, its) = (caller.handle().id(), given.handle().id());
        let lives = |expected| {
            while spawner.runtime() != expected {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        lives(ours);
        given.block_on(tokio::task::yield_now());
        lives(its);
        // What stands still on another runtime says nothing about it.
        spawner.distrust(Some(ours));
        assert_eq!(spawner.runtime(), its);
    }

    #[test]
    fn what_the_given_runtime_does_not_begin_is_begun_by_the_caller() {
        let (given, caller) = (runtime(), runtime());
        let spawner = Spawner::on(given.handle().clone());
        let _entered = caller.enter();
        let (tell, mut told) = tokio::sync::oneshot::channel();
        let mut launched = spawner.launch(async move {
            let _ = tell.send(());
        });
        while told.try_recv().is_err() {
            launched.look();
            std::thread::sleep(Duration::from_millis(20));
            caller.block_on(tokio::task::yield_now());
        }
        given.block_on(tokio::task::yield_now());
    }
}
