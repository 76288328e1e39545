//! `LossReason`: why a guard no longer holds its lock. [`Guard::loss`](super::lock::Guard::loss)
//! and [`Guard::lost`](super::lock::Guard::lost) return it.
//!
//! Invariant: a loss has one reason, and the first one stays.

use crate::error::{Error, ErrorKind};
use crate::name::Name;

/// Why a guard no longer holds its lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease could not be renewed in time: the server could not be reached, or this process
    /// stood still. Another client may hold the lock.
    Expired,
    /// The server reports that the lease is gone: it expired, was deleted, or the data was lost.
    Taken,
    /// [`Lock::break_lock`](super::lock::Lock::break_lock) took it away.
    Broken,
    /// [`Lock::max_hold`](super::lock::Lock::max_hold) was reached.
    MaxHold,
}

impl LossReason {
    pub(in crate::sync) fn error(self, name: &Name) -> Error {
        let message = match self {
            Self::Expired => "the lock is lost: its lease could not be renewed in time",
            Self::Taken => "the lock is lost: the server no longer knows its lease",
            Self::Broken => "the lock is lost: break_lock took it away",
            Self::MaxHold => "the lock is lost: it was held for max_hold",
        };
        Error::new(ErrorKind::Lost, message).with_key(name)
    }
}
