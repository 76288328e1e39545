//! Releasing: to a waiter of this process, or to the queue of the server.
//!
//! Invariant: however a release ends, the lease of the former holder and that of the successor
//! are either settled or left to the keeper, and a successor that got nothing is back in line.

use std::sync::Arc;

use tokio::time::Instant;

use super::hold::{End, Hold, LossReason, Owner};
use super::keeper::{Keeper, Shift};
use super::line::{Locks, Waiting};
use super::{PASS, RELEASE, parsed_fence};
use crate::client::Client;
use crate::error::Result;
use crate::script::Call;

impl Locks {
    /// Releases `hold`: to a waiter of this process if there is one and it is its turn, else to
    /// the server's queue.
    pub(super) async fn release(self: &Arc<Self>, client: &Client, hold: &Arc<Hold>) -> Result<()> {
        let mut releasing = Releasing {
            successor: self.successor(hold),
            hold: hold.clone(),
            client: client.clone(),
            open: true,
            _shift: Keeper::shift(self, client),
            locks: self.clone(),
        };
        hold.end(End::Released);
        self.keeper().forget(&hold.owner);
        let sent = Instant::now();
        let reply = client
            .run(releasing.call(), client.deadline().reserved())
            .await;
        let reply = reply.map_err(|error| error.with_key(&hold.keys.name))?;
        let fence = match reply.status()? {
            "GRANTED" => Some(parsed_fence(reply.text(1)?)?),
            "RELEASED" => None,
            "NOT_HELD" => {
                releasing.nothing_to_release();
                return Err(LossReason::Taken.error(&hold.keys.name));
            }
            _ => return Err(reply.unexpected().with_key(&hold.keys.name)),
        };
        releasing.open = false;
        if let (Some((waiting, owner)), Some(fence)) = (releasing.successor.take(), fence) {
            let lease = waiting.entry.lease;
            self.hand_to(waiting, owner, fence, (sent, lease), hold.passes + 1);
            self.passed(&hold.keys.name);
        }
        Ok(())
    }

    /// The lock was passed on inside the process: a campaign for nobody gives up its place. Not
    /// sooner, for a successor that gets nothing goes on waiting at that place.
    fn passed(&self, name: &Arc<str>) {
        if let Some(line) = self.lines().get(name)
            && line.waiters.is_empty()
        {
            line.nudge.notify_one();
        }
    }

    /// The waiter to whom the lock is passed inside the process: none when it is time to let the
    /// server's queue decide.
    fn successor(&self, hold: &Hold) -> Option<(Waiting, Owner)> {
        if hold.passes >= MOST_PASSES {
            return None;
        }
        let mut lines = self.lines();
        let line = lines.get_mut(&hold.keys.name)?;
        line.drop_leavers();
        let waiting = line.waiters.pop_front()?;
        Some((waiting, Owner::random()))
    }
}

/// A release under way. Dropped open, it leaves both owners to the keeper.
struct Releasing {
    hold: Arc<Hold>,
    successor: Option<(Waiting, Owner)>,
    client: Client,
    open: bool,
    locks: Arc<Locks>,
    _shift: Shift,
}

impl Releasing {
    /// The script that does it.
    fn call(&self) -> Call {
        let owner = self.hold.owner.as_str();
        match &self.successor {
            None => self.hold.keys.call(&RELEASE).arg(owner),
            Some((waiting, successor)) => self
                .hold
                .keys
                .call(&PASS)
                .arg(owner)
                .arg(successor.as_str())
                .arg(waiting.entry.lease.millis())
                .arg(self.client.process())
                .arg(&*waiting.entry.metadata),
        }
    }

    /// The server knew nothing of the lease: only the successor must be put back.
    fn nothing_to_release(&mut self) {
        self.open = false;
        self.put_back();
    }

    fn put_back(&mut self) {
        if let Some((waiting, owner)) = self.successor.take() {
            let (keys, lease) = (waiting.entry.keys.clone(), waiting.entry.lease);
            if self.open {
                let until = Instant::now() + lease.duration();
                self.locks
                    .keeper()
                    .discard_owner(&self.client, &keys, &owner, until, true);
            }
            self.locks.back_in_line(waiting);
            self.locks.keeper().orphaned(keys);
        }
    }
}

impl Drop for Releasing {
    fn drop(&mut self) {
        if self.open {
            self.locks.keeper().discard(&self.client, &self.hold);
            self.put_back();
        }
    }
}

/// How often the lock is passed on inside one process before the server's queue has a say.
const MOST_PASSES: u32 = 16;
