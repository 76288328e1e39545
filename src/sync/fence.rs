//! `Fence`: the number of a grant.
//!
//! Invariant: of two grants of one name the later has the greater fence.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// A number that rises with every grant of a lock.
///
/// Send it along with every write that the lock protects, and let the resource refuse a fence
/// smaller than one it has seen: that is what makes a holder harmless that was stopped past its
/// lease (Kleppmann, "How to do distributed locking", 2016). It fits an `i64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub(in crate::sync) u64);

impl Fence {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The fence that a script spells so.
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

/// What no fence reaches: from here on, Lua numbers skip integers.
pub(in crate::sync) const TOO_LARGE: u64 = 1 << 53;
