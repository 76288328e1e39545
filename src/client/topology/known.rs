//! What is known of where the primary is, and which answers change it.
//!
//! Invariant: a failover that was heard of is not forgotten on the word of a few sentinels that have
//! not. Everything is pure but for the clock.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::endpoint::Address;

/// The primary, as far as known.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) address: Address,
    pub(super) epoch: u64,
    /// When it was announced that it is the primary no more.
    pub(super) left: Option<Instant>,
}

impl Known {
    /// Whether this is the primary's address.
    pub(super) fn names(&self, address: &Address) -> bool {
        self.left.is_none() && self.address == *address
    }

    /// Whether this is superseded by an answer. One of an epoch that is not higher says less than
    /// what is known, unless most sentinels agree in it: then they have been set up anew. Shortly
    /// after an announcement most may not have heard of it.
    pub(super) fn yields_to(&self, address: &Address, epoch: u64, by_most: bool) -> bool {
        let spreading = self.left.is_some_and(|left| left.elapsed() < SPREADING);
        epoch > self.epoch || self.names(address) || by_most && !spreading
    }
}

/// How long an announcement may take to reach most sentinels.
const SPREADING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_yields_to_later_epochs_and_to_most_sentinels() {
        let at = |port| Address::Tcp("h".into(), port);
        let known = |left| Known {
            address: at(1),
            epoch: 4,
            left,
        };
        let (alone, by_most) = (false, true);
        let held = known(None);
        assert!(held.yields_to(&at(2), 5, alone), "another failover");
        assert!(held.yields_to(&at(1), 4, alone), "nothing new");
        assert!(!held.yields_to(&at(2), 3, alone), "it was cut off");
        assert!(
            !held.yields_to(&at(2), 4, alone),
            "it may have been told by hand"
        );
        assert!(held.yields_to(&at(2), 0, by_most), "they were set up anew");

        let now = Instant::now();
        let left = known(Some(now));
        assert!(!left.names(&at(1)));
        assert!(
            left.yields_to(&at(2), 5, alone),
            "who has announced it says where"
        );
        assert!(
            !left.yields_to(&at(1), 4, by_most),
            "they have not heard of it yet"
        );
        let Some(before) = now.checked_sub(SPREADING) else {
            return;
        };
        let long_left = known(Some(before));
        assert!(
            long_left.yields_to(&at(1), 4, by_most),
            "it came to nothing"
        );
        assert!(!long_left.yields_to(&at(1), 4, alone));
    }
}
