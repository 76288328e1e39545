//! `Fence`: the number of a grant. Guards have it, and users pass it on to what a lock protects.
//!
//! Invariant: of two grants of one name, the later has the greater fence. `docs/guarantees.md` says
//! when data loss can break this.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// A number that rises with every grant of a lock.
///
/// Send it along with every write that the lock protects. Let the resource refuse a fence that is
/// smaller than one it has seen. A holder that was stopped past its lease then does no harm
/// (Kleppmann, "How to do distributed locking", 2016). A fence fits an `i64`.
///
/// A load of a cache has such a number, too: the later of two loads of one key has the greater one.
///
/// Permits of a semaphore have such a number, too, which only events show. It protects nothing:
/// several holders have permits at the same time, in any order of their fences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub(in crate::sync) u64);

impl Fence {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The number of the right to load a value.
    pub(crate) fn of_load(number: u64) -> Self {
        Self(number)
    }

    /// Parses the fence that a script returns.
    pub(in crate::sync) fn parse(text: &str) -> Result<Self> {
        let fence = text.parse().map_err(|_| {
            Error::new(
                ErrorKind::Server,
                "the server answered a fence that is not a number",
            )
        })?;
        Ok(Self(fence))
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<Fence> for i64 {
    fn from(fence: Fence) -> Self {
        // Fences stay below 2^53 until the year 2255.
        i64::try_from(fence.0).unwrap_or(i64::MAX)
    }
}

/// No fence reaches this number. From here on, Lua numbers skip integers.
pub(in crate::sync) const TOO_LARGE: u64 = 1 << 53;
