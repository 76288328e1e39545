//! All orders in which reads, writes, pushes and losses can meet at one table.

use std::time::Duration;

use super::*;
use crate::key::{Namespace, TagId};

/// The epoch of the one server of these tests.
type Epoch = u64;

fn namespace() -> Namespace {
    Namespace::new("hr").expect("a good namespace")
}

fn value_key() -> Key {
    let cache = namespace().cache("c", 0).expect("a good name");
    cache.value("k").expect("a good name")
}

fn tag_key() -> Key {
    namespace().tag(TagId(7))
}

fn stored(value: u64, tags: Vec<Arc<KnownTag<Epoch>>>, origin: Epoch) -> Stored<Epoch> {
    Stored {
        key: value_key(),
        value: Some(Arc::new(value)),
        tags: tags.into(),
        origin,
        revision: Some(value),
        since: Instant::now(),
        until: Instant::now() + Duration::from_secs(60),
        refresh: None,
        bytes: 8,
    }
}

fn generation(number: u64) -> Generation {
    Generation::from_stamp(number)
}

/// What the table would serve.
fn served(table: &Table<Epoch>, epoch: Epoch) -> Option<u64> {
    let stored = table.value(value_key().as_str())?;
    let is_live = stored.origin == epoch
        && stored.is_current()
        && stored.tags.iter().all(|tag| tag.origin == epoch);
    let value = is_live.then(|| stored.value.clone()).flatten()?;
    value.downcast().ok().map(|value| *value)
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The reader with this number does its next part: takes tickets, reads, keeps.
    Reader(usize),
    /// Another client stores a new value, whose stamp is the present generation.
    Write,
    /// Another client invalidates the tag.
    Invalidate,
    /// The oldest push that is under way arrives.
    Push,
    /// The connection for pushes is lost, with all that is on it, and tracks anew.
    Loss,
    /// The value is evicted from the table.
    Evict,
}

/// A reader, and how far it is.
#[derive(Default)]
struct Reader {
    tickets: Option<(Ticket<Epoch>, Ticket<Epoch>)>,
    /// The value, its stamp, and the generation of the tag.
    read: Option<(u64, u64, u64)>,
    is_done: bool,
}

/// A server, a table and readers. Values and generations are numbered as they are written.
struct World {
    table: Arc<Table<Epoch>>,
    epoch: Epoch,
    value: u64,
    stamp: u64,
    generation: u64,
    /// The keys that the pushes under way tell of, in the order of the changes.
    pushes: Vec<Key>,
    readers: Vec<Reader>,
}

impl World {
    fn new(readers: usize) -> Self {
        Self {
            table: Table::new(1 << 20),
            epoch: 1,
            value: 1,
            stamp: 1,
            generation: 1,
            pushes: Vec::new(),
            readers: (0..readers).map(|_| Reader::default()).collect(),
        }
    }

    fn make(&mut self, step: Step) {
        match step {
            Step::Reader(at) => self.read(at),
            Step::Write => {
                self.value += 1;
                self.stamp = self.generation;
                self.pushes.push(value_key());
            }
            Step::Invalidate => {
                self.generation += 1;
                self.pushes.push(tag_key());
            }
            Step::Push => {
                if !self.pushes.is_empty() {
                    self.table.changed(self.pushes.remove(0).as_str());
                }
            }
            Step::Loss => {
                self.pushes.clear();
                self.epoch += 1;
            }
            Step::Evict => self.table.forget(value_key().as_str()),
        }
        // Nothing is served that a push which has arrived would have removed.
        if let Some(served) = served(&self.table, self.epoch) {
            let pushed = |key: Key| self.pushes.contains(&key);
            let is_known = served == self.value || pushed(value_key());
            assert!(is_known, "{served} is served, {} is there", self.value);
            let is_valid =
                self.stamp == self.generation || pushed(tag_key()) || pushed(value_key());
            assert!(is_valid, "{served} is served, its tag was invalidated");
        }
    }

    fn read(&mut self, at: usize) {
        let (table, epoch) = (self.table.clone(), self.epoch);
        let reader = &mut self.readers[at];
        let Some((value, tag)) = &reader.tickets else {
            let ticket = |key: &Key| table.ticket(key, epoch);
            reader.tickets = Some((ticket(&value_key()), ticket(&tag_key())));
            return;
        };
        let Some((number, stamp, present)) = reader.read else {
            reader.read = Some((self.value, self.stamp, self.generation));
            return;
        };
        if reader.is_done {
            return;
        }
        reader.is_done = true;
        if stamp == present
            && let Some(known) = table.keep_tag(tag, generation(present))
        {
            table.keep(value, stored(number, vec![known], value.origin));
        }
        reader.tickets = None;
        reader.is_done = true;
    }
}

/// Calls `each` with every order of `steps`, of which equal ones keep theirs.
fn orders(steps: &[(Step, usize)], each: &mut impl FnMut(&[Step])) {
    fn go(left: &mut Vec<(Step, usize)>, so_far: &mut Vec<Step>, each: &mut impl FnMut(&[Step])) {
        if left.iter().all(|(_, count)| *count == 0) {
            return each(so_far);
        }
        for at in 0..left.len() {
            if left[at].1 > 0 {
                left[at].1 -= 1;
                so_far.push(left[at].0);
                go(left, so_far, each);
                so_far.pop();
                left[at].1 += 1;
            }
        }
    }
    go(&mut steps.to_vec(), &mut Vec::new(), each);
}

/// Runs all orders, and then lets all pushes arrive. Returns in how many of them a value was served
/// at the end.
fn run(readers: usize, rest: &[(Step, usize)]) -> usize {
    let mut steps: Vec<_> = (0..readers).map(|at| (Step::Reader(at), 3)).collect();
    steps.extend_from_slice(rest);
    let mut served_at_the_end = 0;
    orders(&steps, &mut |order| {
        let mut world = World::new(readers);
        for step in order {
            world.make(*step);
        }
        while !world.pushes.is_empty() {
            world.make(Step::Push);
        }
        if let Some(served) = served(&world.table, world.epoch) {
            assert_eq!(served, world.value, "{order:?}");
            assert_eq!(world.stamp, world.generation, "{order:?}");
            served_at_the_end += 1;
        }
    });
    served_at_the_end
}

#[test]
fn no_order_of_a_read_and_writes_leaves_an_old_value() {
    let kept = run(1, &[(Step::Write, 2), (Step::Push, 2)]);
    assert!(kept > 0, "some orders keep a value");
}

#[test]
fn no_order_of_a_read_and_invalidations_leaves_an_invalid_value() {
    let kept = run(
        1,
        &[(Step::Invalidate, 1), (Step::Write, 1), (Step::Push, 2)],
    );
    assert!(kept > 0, "some orders keep a value");
}

#[test]
fn no_order_of_two_reads_and_a_write_leaves_an_old_value() {
    let kept = run(2, &[(Step::Write, 1), (Step::Push, 1)]);
    assert!(kept > 0, "some orders keep a value");
}

#[test]
fn no_order_of_two_reads_and_an_invalidation_leaves_an_invalid_value() {
    // The stored value stays invalid, so nothing may be served in the end.
    assert_eq!(run(2, &[(Step::Invalidate, 1), (Step::Push, 1)]), 0);
}

#[test]
fn no_order_with_a_lost_connection_or_an_eviction_leaves_an_old_value() {
    for step in [Step::Loss, Step::Evict] {
        let kept = run(1, &[(Step::Write, 1), (Step::Push, 1), (step, 1)]);
        assert!(kept > 0, "some orders keep a value");
    }
}

#[test]
fn reads_of_one_key_share_what_none_of_them_has_missed() {
    let table = Table::<Epoch>::new(1 << 20);
    let (one, other) = (table.ticket(&value_key(), 1), table.ticket(&value_key(), 1));
    assert_eq!(table.keep(&one, stored(1, vec![], 1)), Kept::Stored);
    drop(one);
    assert_eq!(table.keep(&other, stored(1, vec![], 1)), Kept::Stored);
    table.changed(value_key().as_str());
    assert_eq!(table.keep(&other, stored(1, vec![], 1)), Kept::Refused);
}

#[test]
fn a_ticket_of_an_earlier_epoch_keeps_nothing_once_another_read_has_begun() {
    let table = Table::<Epoch>::new(1 << 20);
    let old = table.ticket(&value_key(), 1);
    let new = table.ticket(&value_key(), 2);
    assert_eq!(table.keep(&old, stored(1, vec![], 1)), Kept::Refused);
    assert_eq!(table.keep(&new, stored(1, vec![], 2)), Kept::Stored);
}

#[test]
fn a_dropped_read_leaves_nothing_behind() {
    let table = Table::<Epoch>::new(1 << 20);
    drop(table.ticket(&value_key(), 1));
    let is_empty = |stripe: &Mutex<Stripe<Epoch>>| stripe.lock().expect("no panic").is_empty();
    assert!(table.stripes.iter().all(is_empty));
}

#[test]
fn a_tag_that_is_forgotten_for_room_takes_its_values_along() {
    // Room for one tag in each stripe.
    let table = Table::<Epoch>::new(8 * (TAG * STRIPES) as u64);
    let mut held = Vec::new();
    for id in 0..4 * STRIPES as u128 {
        let ticket = table.ticket(&namespace().tag(TagId(id)), 1);
        let tag = table.keep_tag(&ticket, generation(9)).expect("no push");
        held.push(stored(1, vec![tag], 1));
    }
    let known: usize = table
        .stripes
        .iter()
        .map(|stripe| stripe.lock().expect("no panic").len())
        .sum();
    assert!(known <= STRIPES, "{known} tags");
    for stored in held {
        let is_known = table.tag(&stored.tags[0].key).is_some();
        assert_eq!(stored.is_current(), is_known);
    }
}

#[test]
fn a_key_is_pending_while_there_is_a_ticket_for_it() {
    let table: Arc<Table<Epoch>> = Table::new(1 << 20);
    let (one, other) = (table.ticket(&value_key(), 1), table.ticket(&value_key(), 1));
    assert!(table.is_pending(&value_key()) && !table.is_pending(&tag_key()));
    drop(one);
    assert!(table.is_pending(&value_key()));
    table.changed(value_key().as_str());
    assert!(!table.is_pending(&value_key()), "the ticket is void");
    drop(other);
    let (size, ticket) = (table.size(), table.ticket(&value_key(), 1));
    assert_eq!(size, (0, 0));
    assert_eq!(table.keep(&ticket, stored(1, Vec::new(), 1)), Kept::Stored);
    let (bytes, entries) = table.size();
    assert!(bytes >= 8 && entries == 1);
}
