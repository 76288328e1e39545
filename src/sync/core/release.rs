//! Releasing a grant: to a waiter of this process, or to the server's queue.
//!
//! Invariant: however a release ends, the lease of the former holder and that of the successor are
//! either settled or left to the keeper. A successor to which nothing was granted is back in the
//! local queue. Neither depends on the runtime in which the release was called.
//!
//! `Guard::release` and `Permits::release` call it. What is dropped instead is left to the keeper.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;

use super::agenda::{Answered, Reclaim};
use super::held::Held;
use super::hold::{End, Hold};
use super::keeper::KeeperHandle;
use super::keys::Keys;
use super::owner::{Owner, Secret};
use super::queue_task::QueueTask;
use super::registry::{LocalWaiter, Registry};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::pulse::TICK;
use crate::script::{Call, LazyScript};
use crate::sync::fence::Fence;
use crate::sync::loss::LossReason;
use crate::time::Ttl;

/// Releases `held`: to a waiter of this process if there is one and it is its turn, otherwise to
/// the server's queue.
pub(in crate::sync) async fn release(
    locks: &Arc<Registry>,
    held: Held,
    now: Instant,
) -> Result<()> {
    if let Some(reason) = held.loss_at(now) {
        return Err(held.error(reason));
    }
    let Some(lease) = held.last() else {
        return Ok(()); // Others share it, and the last of them releases it.
    };
    let (client, hold) = (&lease.client, &lease.hold);
    match successor(locks, hold) {
        None => give_back(locks, client, hold, now).await,
        // In a box, because it is large: a release to the server need not have room for it.
        Some(next) => Box::pin(pass_on(locks, client, hold, next, now)).await,
    }
}

/// Passes the grant of `hold` to a waiter of this process.
async fn pass_on(
    locks: &Arc<Registry>,
    client: &Client,
    hold: &Arc<Hold>,
    (waiting, pass): (LocalWaiter, &'static LazyScript),
    now: Instant,
) -> Result<()> {
    hold.end(End::Released);
    // The keeper releases each owner by its id, so the successor needs one of its own.
    let owner = hold.owner.successor();
    let call = passing_to(&waiting, owner, hold, hold.keys.call(pass));
    let successor = Arc::new(Successor {
        owner,
        lease: waiting.request.lease,
        waiting: Mutex::new(Some(waiting)),
        locks: Arc::downgrade(locks),
    });
    let passing = LocalHandOver {
        successor: successor.clone(),
        hold: hold.clone(),
        client: client.clone(),
        open: true,
        _keeper: locks.keeper().handle(client),
        locks: locks.clone(),
    };
    let asked = (successor.owner, successor.lease);
    let keeper = locks.keeper();
    // Noted before the task is spawned: if its runtime never polls it, the keeper does the work.
    keeper.release_unless_passed(client, hold, asked, successor, now);
    // In a task, because the successor depends on it, and this caller may not be polled.
    let (tell, mut told) = oneshot::channel();
    let passing = async move {
        let _ = tell.send(passing.run(call).await);
    };
    let task = client.spawner().spawn(passing.in_current_span());
    loop {
        match timeout(TICK, &mut told).await {
            Ok(told) => return told.unwrap_or_else(|_| Err(torn_down(hold))),
            Err(_) if task.pulse().stands_still_when_asked() => {
                client.spawner().distrust(task.pulse().runtime());
                return Err(torn_down(hold));
            }
            Err(_) => {}
        }
    }
}

/// Releases to the server's queue. If this is not polled, the keeper does it by itself.
async fn give_back(
    locks: &Arc<Registry>,
    client: &Client,
    hold: &Arc<Hold>,
    now: Instant,
) -> Result<()> {
    let mut giving = ServerRelease {
        locks,
        client,
        hold,
        open: true,
    };
    hold.end(End::Released);
    locks.keeper().release_unless_done(client, hold, now);
    // `release_alone` costs the server much less, but a second call follows if a waiter is in the
    // queue.
    let alone = match hold.may_be_queued_for(now) {
        true => None,
        false => hold.keys.release_alone(hold.owner),
    };
    let mut call = alone.unwrap_or_else(|| hold.keys.release(hold.owner, Secret::Said));
    let deadline = client.patience().deadline_from(now);
    let deadline = deadline.keep_trying().reserved();
    let reply = loop {
        let reply = client.run(call, deadline).await;
        let reply = reply.map_err(|error| error.with_key(&hold.keys.name))?;
        if reply.status()? != "OTHERWISE" {
            break reply;
        }
        // A waiter is in the queue, or nothing is held any more. The full script finds out which.
        call = hold.keys.release(hold.owner, Secret::Said);
    };
    let held = match reply.status()? {
        "RELEASED" => true,
        "NOT_HELD" => false,
        _ => return Err(reply.unexpected().with_key(&hold.keys.name)),
    };
    giving.done();
    // The keeper may have released it first, and then the server knows nothing of it.
    match held || hold.may_be_released() {
        true => Ok(()),
        false => Err(hold.error(LossReason::Taken)),
    }
}

/// Wakes the queue task after a local hand-over. A task without waiters then gives up its position.
/// This does not happen sooner, because a successor to which nothing is granted goes on waiting at
/// that position.
fn passed(locks: &Registry, keys: &Keys) {
    if let Some(queue) = locks.queues().get_mut(keys.holders())
        && queue.waiters.is_empty()
    {
        queue.nudge().notify_one();
    }
}

/// Takes the waiter to which the grant is passed inside the process. `None` when the server's queue
/// must decide.
fn successor(locks: &Registry, hold: &Hold) -> Option<(LocalWaiter, &'static LazyScript)> {
    // A kind without a script for it passes nothing on.
    let pass = hold.keys.kind.scripts.pass?;
    if hold.local_handovers >= MOST_LOCAL_HANDOVERS {
        return None;
    }
    let mut queues = locks.queues();
    let queue = queues.get_mut(hold.keys.holders())?;
    let leavers = queue.without_leavers();
    let next = queue.waiters.pop_front();
    drop(queues);
    drop(leavers);
    Some((next?, pass))
}

/// A waiter of this process to which the grant is passed, under an owner of its own.
#[derive(Debug)]
struct Successor {
    owner: Owner,
    lease: Ttl,
    /// `None` once the waiter has its grant, or is back in the local queue.
    waiting: Mutex<Option<LocalWaiter>>,
    /// Weak: the keeper, which the registry owns, keeps this on its agenda.
    locks: Weak<Registry>,
}

impl Reclaim for Successor {
    /// Puts the waiter back. The task of the hand-over may stand still with its runtime. The keeper
    /// releases what both owners have.
    fn reclaim(self: Arc<Self>, client: &Client) {
        if let (Some(waiting), Some(locks)) = (self.take(), self.locks.upgrade()) {
            let keys = waiting.request.keys.clone();
            locks.back_in_line(waiting);
            QueueTask::ensure(&locks, &keys, client.clone(), None);
        }
    }
}

impl Successor {
    fn take(&self) -> Option<LocalWaiter> {
        self.waiting().take()
    }

    fn waiting(&self) -> MutexGuard<'_, Option<LocalWaiter>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A release to the server's queue that is in flight. If it is dropped open, the keeper releases.
struct ServerRelease<'r> {
    locks: &'r Arc<Registry>,
    client: &'r Client,
    hold: &'r Arc<Hold>,
    open: bool,
}

impl ServerRelease<'_> {
    /// Ends the release, because the server has answered.
    fn done(&mut self) {
        self.open = false;
        self.locks.keeper().settled(self.hold.owner);
    }
}

impl Drop for ServerRelease<'_> {
    fn drop(&mut self) {
        if self.open {
            self.locks.keeper().discard(self.client, self.hold);
        }
    }
}

/// A hand-over inside the process that is in flight, in a task of its own. If it is dropped open,
/// or reports no outcome in time, the keeper releases what both owners have.
struct LocalHandOver {
    hold: Arc<Hold>,
    successor: Arc<Successor>,
    client: Client,
    open: bool,
    locks: Arc<Registry>,
    _keeper: KeeperHandle,
}

impl LocalHandOver {
    /// Passes the grant on. Spawned by the holder's release, which waits for it. If its runtime
    /// ends, or it panics, it is dropped. If it stands still, the keeper does its work.
    async fn run(mut self, call: Call) -> Result<()> {
        let (hold, locks) = (self.hold.clone(), self.locks.clone());
        let reply = self
            .client
            .run(call, self.client.deadline().keep_trying().reserved())
            .await;
        let reply = reply.map_err(|error| error.with_key(&hold.keys.name))?;
        let fence = match reply.status()? {
            "GRANTED" => Fence::parse(reply.text(1)?)?,
            "NOT_HELD" => {
                self.nothing_to_release();
                // The keeper may have released it first.
                return match hold.may_be_released() {
                    true => Ok(()),
                    false => Err(hold.error(LossReason::Taken)),
                };
            }
            _ => return Err(reply.unexpected().with_key(&hold.keys.name)),
        };
        self.open = false;
        self.hand_over(fence, reply.sent());
        locks.keeper().settled(hold.owner);
        passed(&locks, &hold.keys);
        Ok(())
    }

    /// Hands the grant of the server to the successor, unless the keeper has come to release it.
    fn hand_over(&self, fence: Fence, sent: Instant) {
        let (owner, granted) = (self.successor.owner, (sent, self.successor.lease));
        let (locks, local_handovers) = (&self.locks, self.hold.local_handovers + 1);
        let left = match self.successor.take() {
            Some(waiting) => locks.pass_to(waiting, owner, fence, granted, local_handovers),
            None => return self.discard_successor(Answered::Yes),
        };
        if let Some(waiting) = left {
            self.discard_successor(Answered::Yes);
            self.back_in_line(waiting);
        }
    }

    /// Leaves what the successor has, or may come to have, to the keeper. A release by the keeper
    /// may have reached the server before the grant was made.
    fn discard_successor(&self, answered: Answered) {
        let keeper = self.locks.keeper();
        let asked = (self.successor.owner, self.successor.lease);
        keeper.discard_successor(
            &self.client,
            &self.hold,
            asked,
            self.successor.clone(),
            answered,
        );
    }

    /// Ends a hand-over of a lease that the server did not know. Only the successor must be put
    /// back.
    fn nothing_to_release(&mut self) {
        self.open = false;
        let keeper = self.locks.keeper();
        keeper.settled(self.hold.owner);
        if let Some(waiting) = self.successor.take() {
            keeper.settled(self.successor.owner);
            self.back_in_line(waiting);
        }
    }

    fn back_in_line(&self, waiting: LocalWaiter) {
        self.locks.back_in_line(waiting);
        self.locks.keeper().unattended(self.hold.keys.clone());
    }
}

impl Drop for LocalHandOver {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let keeper = self.locks.keeper();
        keeper.discard(&self.client, &self.hold);
        if let Some(waiting) = self.successor.take() {
            self.discard_successor(Answered::No);
            self.back_in_line(waiting);
        }
    }
}

/// Completes the call that passes what `hold` has to `waiting`.
fn passing_to(waiting: &LocalWaiter, owner: Owner, hold: &Hold, call: Call) -> Call {
    let process = waiting.request.client.process();
    call.arg(hold.owner.id().as_bytes())
        .arg(owner.id().as_bytes())
        .arg(waiting.request.lease.millis())
        .arg(format!("2{process}"))
        .arg(&*waiting.request.detail)
}

fn torn_down(hold: &Hold) -> Error {
    let noun = hold.keys.kind.words.noun;
    let message = format!(
        "the runtime that released {noun} has shut down, or stands still; it is released in the \
         background"
    );
    Error::new(ErrorKind::Disconnected, message).with_key(&hold.keys.name)
}

/// How often a grant is passed on inside one process before the server's queue decides, so that
/// other processes get their turn.
const MOST_LOCAL_HANDOVERS: u32 = 16;
