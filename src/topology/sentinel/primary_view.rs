//! `PrimaryView`: what is known of the primary, and which answers of sentinels change it.
//!
//! Invariant: a failover that was heard of is not undone by the answers of a few sentinels that
//! have not heard of it. Everything is pure except for the clock. `Sentinels` is the only caller.

use std::time::Duration;

use tokio::time::Instant;

use crate::net::address::Address;

/// The primary of a service, as far as known.
#[derive(Debug, Clone)]
pub(in crate::topology) struct PrimaryView {
    pub(in crate::topology) address: Address,
    /// The highest configuration epoch that this address was reported with.
    pub(in crate::topology) epoch: u64,
    /// When this address replaced another; `None` for the first.
    since: Option<Instant>,
    /// When a sentinel announced that this is the primary no longer.
    pub(in crate::topology) left: Option<Instant>,
}

/// How many sentinels agree with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::topology) enum Said {
    ByMost,
    BySome,
}

impl PrimaryView {
    /// The view after an answer that replaces what was known `before`.
    pub(in crate::topology) fn next(before: Option<&Self>, address: Address, epoch: u64) -> Self {
        match before {
            Some(before) if before.address == address => Self {
                // An answer by most may have a lower epoch. It does not lower the bar for later
                // answers.
                epoch: epoch.max(before.epoch),
                since: before.since,
                left: None,
                address,
            },
            _ => Self {
                address,
                epoch,
                // The first view replaces none, so no answer is older than it.
                since: before.map(|_| Instant::now()),
                left: None,
            },
        }
    }

    /// Returns whether the primary is known to be at `address`.
    pub(in crate::topology) fn names(&self, address: &Address) -> bool {
        self.left.is_none() && self.address == *address
    }

    /// Returns whether an answer replaces this view. An answer whose epoch is not higher counts
    /// less than what is known, unless most sentinels agree with it: then the sentinels have been
    /// set up anew. Shortly after an announcement or a change, agreement does not count. Most
    /// sentinels may not have heard of it yet, or their answers may be older than it.
    pub(in crate::topology) fn yields_to(&self, address: &Address, epoch: u64, said: Said) -> bool {
        let spreading = self.left.is_some_and(|left| left.elapsed() < SPREADING)
            || self.since.is_some_and(|since| since.elapsed() < SETTLING);
        epoch > self.epoch || self.names(address) || said == Said::ByMost && !spreading
    }
}

/// How long an announcement may take to reach most sentinels.
const SPREADING: Duration = Duration::from_secs(1);

/// How long answers from before a change may still come in. Longer than any answer is waited for.
const SETTLING: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_yields_to_later_epochs_and_to_most_sentinels() {
        let at = |port| Address::Tcp("h".into(), port);
        let known = |left| PrimaryView {
            address: at(1),
            epoch: 4,
            since: None,
            left,
        };
        let (alone, by_most) = (Said::BySome, Said::ByMost);
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

    #[test]
    fn an_answer_of_the_time_before_a_change_does_not_undo_it() {
        let at = |port| Address::Tcp("h".into(), port);
        let by_most = Said::ByMost;
        let first = PrimaryView::next(None, at(1), 4);
        assert!(first.yields_to(&at(2), 3, by_most), "it is no change");

        let changed = PrimaryView::next(Some(&first), at(2), 5);
        assert!(!changed.yields_to(&at(1), 4, by_most), "most, but earlier");
        assert!(
            changed.yields_to(&at(1), 6, Said::BySome),
            "another failover"
        );

        let heard_again = PrimaryView::next(Some(&changed), at(2), 4);
        assert_eq!(heard_again.epoch, 5, "what is known is not forgotten");
        assert!(!heard_again.yields_to(&at(1), 4, by_most));

        let settled = PrimaryView {
            since: Instant::now().checked_sub(SETTLING),
            ..changed
        };
        assert!(settled.since.is_none() || settled.yields_to(&at(1), 0, by_most));
    }
}
