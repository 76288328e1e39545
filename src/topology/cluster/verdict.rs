//! `verdict`: which server serves which slot, when several servers of a cluster have answered.
//!
//! Invariant: for each slot the claim with the highest configuration epoch counts, as it does among
//! the servers. Servers that were cut off during a failover or a migration are behind, however many
//! they are. If epochs are equal or not reported, the claim of most servers counts. Everything here
//! is pure; `Refresher` calls it.

use super::wire::Range;
use crate::key::SLOTS;

/// Merges all answers into one list of slot ranges. Each view is the answer of one server, sorted
/// by slot.
pub(in crate::topology) fn verdict(views: &[Vec<Range>]) -> Vec<Range> {
    let all = || views.iter().flatten();
    // Between two neighbouring bounds no view changes its mind, so one slot stands for all.
    let mut bounds: Vec<u16> = all()
        .flat_map(|range| [range.first, range.last + 1])
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    debug_assert!(bounds.iter().all(|bound| *bound <= SLOTS), "only slots");
    let mut ranges: Vec<Range> = Vec::new();
    for bounds in bounds.windows(2) {
        let (first, last) = (bounds[0], bounds[1] - 1);
        let claims: Vec<&Range> = views.iter().filter_map(|view| at(view, first)).collect();
        let Some(best) = best(&claims) else { continue };
        match ranges.last_mut() {
            Some(before) if before.last + 1 == first && before.is_of(best) => before.last = last,
            _ => ranges.push(Range {
                first,
                last,
                ..best.clone()
            }),
        }
    }
    ranges
}

/// What a view says about a slot.
fn at(view: &[Range], slot: u16) -> Option<&Range> {
    let place = view.partition_point(|range| range.last < slot);
    view.get(place).filter(|range| range.first <= slot)
}

/// Returns the claim that counts; of equal claims, the first.
fn best<'r>(claims: &[&'r Range]) -> Option<&'r Range> {
    let votes = |claim: &Range| {
        let agree = |other: &&&Range| other.epoch == claim.epoch && other.is_by_same(claim);
        claims.iter().filter(agree).count()
    };
    // Views may report one server under different addresses.
    let spelt = |claim: &Range| {
        let agree = |other: &&&Range| other.primary == claim.primary;
        claims.iter().filter(agree).count()
    };
    let rank = |claim: &&&Range| {
        let has_address = claim.primary.is_some();
        (claim.epoch, votes(claim), has_address, spelt(claim))
    };
    // `max_by_key` returns the last of equal claims, so `rev` makes it the first.
    claims.iter().rev().max_by_key(rank).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::address::Address;

    fn range(first: u16, last: u16, id: &str, epoch: u64) -> Range {
        Range {
            first,
            last,
            primary: Some(Address::Tcp(id.to_owned(), 1)),
            id: id.to_owned(),
            replicas: Vec::new(),
            epoch,
        }
    }

    fn owners(views: &[Vec<Range>]) -> Vec<(u16, u16, String)> {
        let verdict = verdict(views).into_iter();
        verdict.map(|it| (it.first, it.last, it.id)).collect()
    }

    #[test]
    fn the_highest_epoch_counts_for_each_slot_by_itself() {
        let stale = vec![range(0, 99, "a", 1), range(100, 199, "b", 2)];
        // A replica of `a` has taken over, and `b` has got a slot of it.
        let fresh = vec![range(0, 49, "c", 4), range(50, 199, "b", 3)];
        let expected = [(0, 49, "c".to_owned()), (50, 199, "b".to_owned())];
        for views in [
            vec![stale.clone(), fresh.clone()],
            vec![fresh.clone(), stale.clone()],
            vec![stale.clone(), stale.clone(), fresh.clone()],
        ] {
            assert_eq!(owners(&views), expected, "also against most");
        }
        // Each view is newer than the other for some slots.
        let one = vec![range(0, 99, "a", 1), range(100, 199, "d", 5)];
        let two = vec![range(0, 99, "c", 4), range(100, 199, "b", 2)];
        let expected = [(0, 99, "c".to_owned()), (100, 199, "d".to_owned())];
        assert_eq!(owners(&[one, two]), expected);
    }

    #[test]
    fn without_epochs_most_count_and_then_the_first() {
        let says = |id: &str| vec![range(0, 9, id, 0)];
        let owner = |ids: &[&str]| {
            let views: Vec<_> = ids.iter().map(|id| says(id)).collect();
            owners(&views)[0].2.clone()
        };
        assert_eq!(owner(&["a", "b", "b"]), "b");
        assert_eq!(owner(&["b", "a", "b"]), "b");
        assert_eq!(owner(&["a", "b"]), "a");
        assert_eq!(owner(&["a"]), "a");
    }

    #[test]
    fn an_address_is_taken_from_who_knows_it() {
        let nameless = Range {
            primary: None,
            ..range(0, 9, "a", 3)
        };
        for views in [
            [vec![nameless.clone()], vec![range(0, 9, "a", 3)]],
            [vec![range(0, 9, "a", 3)], vec![nameless.clone()]],
        ] {
            assert!(verdict(&views)[0].primary.is_some());
        }
        let stale = vec![range(0, 9, "b", 2)];
        let verdict = verdict(&[stale, vec![nameless]]);
        assert_eq!(verdict[0].primary, None, "the other does not serve it");
    }

    #[test]
    fn slots_that_nobody_claims_stay_open() {
        let views = [vec![range(5, 9, "a", 1)], vec![range(20, 16_383, "b", 1)]];
        let expected = [(5, 9, "a".to_owned()), (20, 16_383, "b".to_owned())];
        assert_eq!(owners(&views), expected);
        assert_eq!(owners(&[]), []);
        assert_eq!(owners(&[vec![], vec![]]), []);
    }
}
