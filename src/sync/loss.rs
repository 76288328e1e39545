//! `LossReason`: why a grant is no longer held. [`Guard::lost`](super::lock::Guard::lost) and
//! [`Permits::lost`](super::semaphore::Permits::lost) return it.
//!
//! Invariant: a loss has one reason, and the first one stays.

use crate::error::{Error, ErrorKind};
use crate::name::Name;
use crate::sync::core::kind::Words;

/// Why a guard no longer holds its lock, or why permits are no longer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease could not be renewed in time: the server could not be reached, or this process
    /// stood still. Another client may have been granted the same since.
    Expired,
    /// The server reports that the lease is gone: it expired, was deleted, or the data was lost.
    Taken,
    /// [`Lock::break_lock`](super::lock::Lock::break_lock) took the lock away. Permits cannot be
    /// broken.
    Broken,
    /// [`Lock::max_hold`](super::lock::Lock::max_hold) or
    /// [`Semaphore::max_hold`](super::semaphore::Semaphore::max_hold) was reached.
    MaxHold,
}

impl LossReason {
    /// Returns the error about `name`, of a kind with these words.
    pub(in crate::sync) fn error(self, words: &Words, name: &Name) -> Error {
        let why = match self {
            Self::Expired => "the lease could not be renewed in time",
            Self::Taken => "the server no longer knows the lease",
            Self::Broken => "break_lock took it away",
            Self::MaxHold => "max_hold was reached",
        };
        Error::new(
            ErrorKind::Lost,
            format!("{} {} lost: {why}", words.noun, words.is),
        )
        .with_key(name)
    }
}
