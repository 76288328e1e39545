//! Tests of [`queue`](super).

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::sync::oneshot;

use super::*;
use crate::net::pipeline::request::Operation;

const LOAD: BatchLimits = BatchLimits {
    commands: 512,
    bytes: 1 << 20,
    reply: 0,
};

fn limits(commands: usize, bytes: usize) -> Limits {
    Limits {
        commands,
        bytes,
        ..Limits::default()
    }
}

/// A command whose deadline, in ms from `start`, is its name, with an argument of `bytes`.
fn command(start: Instant, name: u64, bytes: usize) -> Queued {
    let mut command = Cmd::new();
    command.arg(vec![b'x'; bytes]);
    Queued {
        ask: Operation::Command(command, oneshot::channel().0),
        deadline: start + Duration::from_millis(name),
        settled: None,
    }
}

#[test]
fn small_commands_and_large_ones_take_turns() {
    let (mut queue, start) = (Queue::new(Limits::default()), Instant::now());
    for name in 0..4 {
        let pushed = queue.push(command(start, name, LARGE), Priority::Ordinary);
        pushed.expect("there is room");
    }
    for name in 4..8 {
        let pushed = queue.push(command(start, name, 1), Priority::Ordinary);
        pushed.expect("there is room");
    }
    let counts: Vec<usize> = (0..6).map(|_| queue.take(LOAD).len()).collect();
    assert_eq!(counts, [4, 1, 1, 1, 1, 0]);
}

#[test]
fn queues_of_one_server_share_their_limits() {
    let (mut one, mut other) = Queue::pair(limits(3, 100));
    let start = Instant::now();
    let push = |queue: &mut Queue, bytes| {
        let pushed = queue.push(command(start, 1, bytes), Priority::Ordinary);
        pushed.map_err(|error| error.to_string())
    };
    push(&mut one, 40).expect("there is room");
    let second = push(&mut other, 40).expect("there is room");
    for queue in [&mut one, &mut other] {
        let refused = push(queue, 40).expect_err("too many bytes");
        assert!(refused.contains("2 calls with 80 bytes"), "{refused}");
    }
    drop(other.remove(second));
    push(&mut one, 1).expect("there is room");
    push(&mut other, 1).expect("there is room");
    for queue in [&mut one, &mut other] {
        push(queue, 1).expect_err("too many commands");
    }
    assert_eq!(one.take(LOAD).len(), 2);
    assert_eq!(other.drain().len(), 1);
    push(&mut one, 1_000).expect("one alone is never too much");
    push(&mut one, 1).expect_err("it is not alone");
    push(&mut other, 1_000).expect("it is alone in its queue");
    assert_eq!(one.expired(start + Duration::from_secs(1)).len(), 1);
    push(&mut one, 6).expect("it is alone again");
    push(&mut one, 7).expect("the other has no more than its part");
    push(&mut one, 1).expect_err("too many bytes");
}

#[test]
fn however_many_large_commands_wait_there_is_room_for_small_ones() {
    let (mut all, mut large) = Queue::pair(limits(16, 1 << 20));
    let start = Instant::now();
    let push = |queue: &mut Queue, bytes| {
        let pushed = queue.push(command(start, 1, bytes), Priority::Ordinary);
        pushed.is_ok()
    };
    assert_eq!((0..100).filter(|_| push(&mut large, 1)).count(), 14);
    assert_eq!((0..100).filter(|_| push(&mut all, 1)).count(), 2);
    drop((all.drain(), large.drain()));
    assert_eq!((0..100).filter(|_| push(&mut large, 1 << 17)).count(), 7);
    assert_eq!((0..100).filter(|_| push(&mut all, 1 << 14)).count(), 8);
    drop((all.drain(), large.drain()));
    assert_eq!((0..100).filter(|_| push(&mut all, 1)).count(), 16);
    assert!(push(&mut large, 1), "the first of its queue");
    assert!(!push(&mut large, 1));
}

#[test]
fn a_pipeline_ends_where_its_bytes_do() {
    let (mut queue, start) = (Queue::new(Limits::default()), Instant::now());
    for name in 0..100 {
        let pushed = queue.push(command(start, name, LARGE - 1), Priority::Ordinary);
        pushed.expect("there is room");
    }
    assert_eq!(queue.take(LOAD).len(), 16);
    let load = BatchLimits {
        commands: 3,
        ..LOAD
    };
    assert_eq!(queue.take(load).len(), 3);
}

#[test]
fn reads_count_by_the_replies_that_are_expected() {
    let mut queue = Queue::new(Limits::default());
    let space = crate::key::Namespace::new("hr").expect("a good one");
    for name in 0..100 {
        let key = space.counter(&format!("{name}")).expect("a good one");
        let waiting = Queued {
            ask: Operation::Read(vec![key], oneshot::channel().0),
            deadline: Instant::now(),
            settled: None,
        };
        let pushed = queue.push(waiting, Priority::Ordinary);
        pushed.expect("there is room");
    }
    let reply = 256 << 10;
    assert_eq!(queue.take(BatchLimits { reply, ..LOAD }).len(), 3);
    let reply = 1 << 30;
    assert_eq!(queue.take(BatchLimits { reply, ..LOAD }).len(), 1);
}

#[test]
fn a_command_with_an_argument_above_the_limit_is_refused() {
    let limits = Limits {
        argument: 10,
        ..Limits::default()
    };
    let mut command = redis::cmd("SET");
    command.arg("key").arg(vec![b'x'; 10]);
    limits.admit(&command).expect("it fits");
    command.arg(vec![b'x'; 11]);
    let error = limits.admit(&command).expect_err("it does not fit");
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(!error.is_indeterminate());
}

#[test]
fn one_command_is_never_too_much() {
    let (mut queue, start) = (Queue::new(limits(1, 10)), Instant::now());
    let pushed = queue.push(command(start, 0, 1000), Priority::Ordinary);
    pushed.expect("it is alone");
    let error = queue.push(command(start, 1, 1), Priority::Ordinary);
    let error = error.expect_err("it is full");
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert!(error.is_retryable() && !error.is_indeterminate());
}

#[derive(Debug, Clone)]
enum Step {
    Push(usize, bool),
    Remove(usize),
    Take(usize),
    Expire(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = prop_oneof![4 => 0..100_usize, 1 => LARGE..LARGE + 2];
    prop_oneof![
        6 => (bytes, any::<bool>()).prop_map(|(bytes, reserved)| Step::Push(bytes, reserved)),
        3 => any::<usize>().prop_map(Step::Remove),
        1 => (1..5_usize).prop_map(Step::Take),
        1 => (0..300_u64).prop_map(Step::Expire),
    ]
}

proptest! {
    /// Compares the queue with a plain list of what waits.
    #[test]
    fn what_waits_is_bounded_and_leaves_once(steps in vec(step(), 1..300)) {
        let limits = limits(40, 3 * LARGE);
        let (mut queue, start) = (Queue::new(limits), Instant::now());
        let mut model: Vec<(u64, usize, Position)> = Vec::new();
        let mut numbers: Vec<Position> = Vec::new();
        for (name, step) in (0..).zip(steps) {
            let gone = match step {
                Step::Push(bytes, reserved) => {
                    let priority = match reserved {
                        true => Priority::Reserved,
                        false => Priority::Ordinary,
                    };
                    let factor = |limit: usize| if reserved { limit + limit / RESERVE } else { limit };
                    let held: usize = model.iter().map(|it| it.1).sum();
                    let fits = model.len() < factor(limits.commands)
                        && held + bytes <= factor(limits.bytes);
                    let pushed = queue.push(command(start, name, bytes), priority);
                    prop_assert_eq!(pushed.is_ok(), fits || model.is_empty());
                    if let Ok(number) = pushed {
                        model.push((name, bytes, number));
                        numbers.push(number);
                    }
                    continue;
                }
                Step::Remove(which) if !numbers.is_empty() => {
                    let number = numbers[which % numbers.len()];
                    let waits = model.iter().any(|it| it.2 == number);
                    let removed = queue.remove(number);
                    prop_assert_eq!(removed.is_some(), waits);
                    removed.into_iter().collect()
                }
                Step::Remove(_) => continue,
                Step::Take(commands) => {
                    let taken = queue.take(BatchLimits { commands, ..LOAD });
                    prop_assert_eq!(taken.is_empty(), model.is_empty());
                    taken
                }
                Step::Expire(ms) => queue.expired(start + Duration::from_millis(ms)),
            };
            for waiting in gone {
                let name = (waiting.deadline - start).as_millis() as u64;
                let place = model.iter().position(|it| it.0 == name);
                model.remove(place.expect("it waited"));
            }
            let held: usize = model.iter().map(|it| it.1).sum();
            prop_assert_eq!(queue.held(), Share { commands: model.len(), bytes: held });
            prop_assert_eq!(queue.is_empty(), model.is_empty());
            let latest = model.iter().map(|it| start + Duration::from_millis(it.0)).max();
            prop_assert_eq!(queue.latest(), latest);
            for line in [&queue.small, &queue.large] {
                prop_assert!(line.places.len() <= 2 * line.taken + SPARE);
            }
        }
        prop_assert_eq!(queue.drain().len(), model.len());
        prop_assert!(queue.is_empty());
        prop_assert_eq!(queue.held(), Share { commands: 0, bytes: 0 });
    }
}
