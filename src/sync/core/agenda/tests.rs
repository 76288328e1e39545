//! Tests of [`agenda`](super).

use super::release::FIRST_PAUSE;
use super::*;
use crate::client::Client;
use crate::sync::core::owner::Secret;
use crate::sync::fence::Fence;
use crate::sync::lock::LOCK;
use crate::time::Ttl;

const LEASE: Duration = Duration::from_secs(6);

/// A hold of a lock of its own, granted at `now`.
fn hold(now: Instant) -> Arc<Hold> {
    hold_of_at_most(now, None)
}

fn hold_of_at_most(now: Instant, max_hold: Option<Duration>) -> Arc<Hold> {
    let client = Client::open("redis://127.0.0.1:1").expect("a good URL");
    let keys = Keys::of(&client, &LOCK, &client.name("a")).expect("a good name");
    let lease = Ttl::new("the lease", LEASE).expect("in range");
    let owner = Owner::random();
    Hold::new(
        keys.into(),
        owner,
        Fence(1),
        lease,
        max_hold,
        (now, lease),
        0,
    )
}

fn sizes(due: &Due) -> Vec<usize> {
    due.batches.iter().map(Vec::len).collect()
}

#[tokio::test]
async fn a_release_is_due_again_and_again_until_it_is_taken_off() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let hold = hold(now);
    agenda.release(Release::of(&hold, now), now);
    assert!(agenda.is_untouched(hold.owner));
    assert_eq!(agenda.take(now, now).releases.len(), 1);
    assert!(!agenda.is_untouched(hold.owner));
    assert!(agenda.take(now, now).releases.is_empty(), "it is under way");
    agenda.release_again(hold.owner, now, Duration::MAX);
    let later = now + FIRST_PAUSE;
    assert_eq!(agenda.first(), Some(later));
    assert_eq!(agenda.take(later, later).releases.len(), 1);
    // No outcome of that one is reported.
    let later = later + STANDS_STILL;
    assert_eq!(agenda.first(), Some(later));
    assert_eq!(agenda.take(later, later).releases.len(), 1);
    // Past the end of the lease it is tried once more, at once.
    agenda.release_again(hold.owner, later, Duration::MAX);
    assert_eq!(agenda.first(), Some(later));
    assert!(agenda.remove(hold.owner) && agenda.is_empty());
    assert_eq!(agenda.first(), None);
}

#[tokio::test]
async fn max_hold_is_due_although_nothing_else_is() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let hold = hold_of_at_most(now, Some(LEASE / 100));
    agenda.renew(hold.clone(), 0, now + LEASE, None);
    assert_eq!(agenda.first(), hold.limit);
    let later = hold.limit.expect("it has one");
    assert_eq!(sizes(&agenda.take(later, later)), [1]);
}

#[tokio::test]
async fn a_renewal_is_asked_for_again_until_it_is_answered() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let hold = hold(now);
    agenda.renew(hold.clone(), 0, now, None);
    assert_eq!(sizes(&agenda.take(now, now)), [1]);
    assert_eq!(agenda.first(), Some(now + again(LEASE)));
    let later = now + again(LEASE);
    assert_eq!(sizes(&agenda.take(later, later)), [1]);
    agenda.renewed(hold.owner, now);
    // Counted from the question that was answered, and after the time of the one in flight.
    assert_eq!(agenda.first(), Some(now + LEASE / ROUND));
    agenda.release(Release::of(&hold, now), later);
    let due = agenda.take(later, later);
    assert_eq!((sizes(&due), due.releases.len()), (vec![], 1));
}

#[tokio::test]
async fn what_is_taken_off_before_a_look_leaves_nothing_behind() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let kept = hold(now);
    agenda.renew(kept.clone(), 0, now + LEASE, None);
    for _ in 0..300 {
        let hold = hold(now);
        agenda.renew(hold.clone(), 0, now, None);
        agenda.release(Release::of(&hold, now), now);
        assert!(agenda.remove(hold.owner));
    }
    assert!(agenda.unsorted.len() <= MOST_UNSORTED);
    assert_eq!(agenda.first(), Some(now + LEASE));
    assert!(agenda.remove(kept.owner) && agenda.is_empty());
    assert_eq!(agenda.first(), None);
}

#[tokio::test]
async fn holders_of_missed_channels_are_looked_for_once_for_all_channels() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let holds: Vec<_> = (0..20).map(|_| hold(now)).collect();
    for hold in &holds[1..] {
        agenda.renew(hold.clone(), 0, now + LEASE, None);
    }
    assert_eq!(agenda.first(), Some(now + LEASE));
    let at = now + LEASE / ALONG;
    for hold in &holds[..15] {
        agenda.listen_again(&hold.keys.channel, at);
    }
    // Noting a channel goes through no jobs.
    let moved = agenda.jobs.values().filter(|job| job.at < now + LEASE);
    assert_eq!(moved.count(), 0);
    assert_eq!(agenda.first(), Some(at));
    // Also a hold that comes after the notice.
    agenda.renew(holds[0].clone(), 0, now + LEASE, None);
    let due = agenda.take(at, at);
    assert_eq!((due.lasting.len(), sizes(&due)), (15, vec![]));
    assert_eq!(agenda.first(), Some(now + LEASE));
}

#[tokio::test]
async fn a_holder_that_could_not_be_subscribed_is_tried_again_at_ever_longer_pauses() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let (hold, ages) = (hold(now), now + Duration::from_secs(3600));
    agenda.renew(hold.clone(), 0, ages, Some(now));
    let mut at = now;
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(agenda.take(at, at).lasting.len(), 1);
        agenda.listen_later(hold.owner, at);
        at += Duration::from_secs(seconds);
        assert_eq!(agenda.first(), Some(at));
    }
    // That its channel was missed may mean that it can be subscribed now.
    for _ in 0..2 {
        assert_eq!(agenda.take(at, at).lasting.len(), 1);
        agenda.listen_later(hold.owner, at);
        agenda.listen_again(&hold.keys.channel, at);
        assert!(agenda.take(at, at).lasting.is_empty());
        at += FIRST_PAUSE_OF_LISTENING;
        assert_eq!(agenda.first(), Some(at));
    }
    // A subscription has no outcome, and then one succeeds.
    for _ in 0..2 {
        assert_eq!(agenda.take(at, at).lasting.len(), 1);
        at += STANDS_STILL;
        assert_eq!(agenda.first(), Some(at));
    }
    assert_eq!(agenda.take(at, at).lasting.len(), 1);
    agenda.listens(hold.owner);
    assert_eq!(agenda.first(), Some(ages));
    agenda.listen_again(&hold.keys.channel, at);
    assert_eq!(agenda.take(at, at).lasting.len(), 1);
    agenda.listen_later(hold.owner, at);
    assert_eq!(agenda.first(), Some(at + FIRST_PAUSE_OF_LISTENING));
}

#[tokio::test]
async fn a_push_that_is_missed_while_its_holder_subscribes_is_not_forgotten() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    let hold = hold(now);
    agenda.renew(hold.clone(), 0, now + LEASE, Some(now));
    assert_eq!(agenda.take(now, now).lasting.len(), 1);
    agenda.listen_again(&hold.keys.channel, now);
    agenda.find_missed(now);
    agenda.listens(hold.owner);
    assert_eq!(agenda.first(), Some(now));
    assert_eq!(agenda.take(now, now).lasting.len(), 1);
}

#[tokio::test]
async fn renewals_go_together_a_hundred_at_most() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    for number in 0..150 {
        let at = now + Duration::from_millis(number);
        agenda.renew(hold(now), 0, at, None);
    }
    // One is due, and those that are due soon go along.
    assert_eq!(sizes(&agenda.take(now, now)), [100]);
    let mut agenda = Agenda::default();
    for number in 0..150 {
        let at = now + Duration::from_millis(number);
        agenda.renew(hold(now), 0, at, None);
    }
    let later = now + Duration::from_millis(120);
    assert_eq!(sizes(&agenda.take(later, later)), [100, 50]);
}

#[tokio::test]
async fn renewals_of_several_groups_are_scripts_of_their_own() {
    let (mut agenda, now) = (Agenda::default(), Instant::now());
    for group in [0, 1, 1] {
        agenda.renew(hold(now), group, now, None);
    }
    assert_eq!(sizes(&agenda.take(now, now)), [1, 2]);
    agenda.regroup(|_| 7);
    let later = now + again(LEASE);
    assert_eq!(sizes(&agenda.take(later, later)), [3]);
}

#[tokio::test]
async fn what_a_question_may_still_be_granted_is_waited_for() {
    let (now, hold) = (Instant::now(), hold(Instant::now()));
    let asked = (now + LEASE, hold.lease);
    let open = Release::of_question(hold.owner, &hold.keys, asked, Answered::No);
    assert!(open.ends_with_a_release() && !open.ends_without_a_release());
    assert_eq!((open.until, open.secret), (now + 2 * LEASE, Secret::Kept));
    let closed = Release::of_question(hold.owner, &hold.keys, asked, Answered::Yes);
    assert!(closed.ends_without_a_release());
    let queued = Release::of_question(hold.owner, &hold.keys, asked, Answered::AllButLast);
    assert!(!queued.ends_with_a_release() && !queued.ends_without_a_release());
}
