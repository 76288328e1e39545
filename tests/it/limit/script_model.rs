//! The scripts of limits against exact models: random steps of the clock, to the microsecond, and
//! every answer predicted. And the promise of each algorithm, by looking at every window.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::script::{Answer, Clocked, words};
use crate::support::server::Server;

/// Any time at which a Lua number is exact.
const START: u64 = 1_800_000_000_000_000;

#[derive(Debug, Clone)]
enum Op {
    /// Takes a cost, if it fits within a wait (µs).
    Take {
        cost: u64,
        wait: u64,
    },
    /// Gives back exactly what an earlier operation has taken, if it has.
    GiveBack(usize),
    Peek,
}

/// A limit: so many requests in a window (µs), so many of them at once.
#[derive(Debug, Clone, Copy)]
struct Limit {
    limit: u64,
    span: u64,
    burst: u64,
}

/// What was let through: when it may be used (ns), how much, and whether it was given back.
#[derive(Debug, Clone, Copy)]
struct Let {
    at: i128,
    cost: u64,
    mark: (u64, u64),
    returned: bool,
}

/// What a case does with the scripts.
struct Run {
    server: Server,
    take: Clocked,
    slide: Clocked,
    peek: Clocked,
    refund: Clocked,
    case: AtomicU32,
}

impl Run {
    async fn start() -> Self {
        Self {
            server: Server::start_single().await,
            take: Clocked::of("take"),
            slide: Clocked::of("slide"),
            peek: Clocked::of("peek"),
            refund: Clocked::of("refund"),
            case: AtomicU32::new(0),
        }
    }

    /// A key of its own for each case.
    fn key(&self) -> String {
        format!("{{case {}}}", self.case.fetch_add(1, Ordering::Relaxed))
    }
}

impl Limit {
    /// How long one request needs to drain, in ns.
    fn unit(&self) -> u64 {
        (self.span * 1000).div_ceil(self.limit)
    }

    fn capacity(&self) -> u64 {
        self.unit() * self.burst
    }

    /// How long requests may count longer than the window.
    fn slice(&self) -> u64 {
        match self.limit <= 64 {
            true => 1,
            false => self.span.div_ceil(64),
        }
    }
}

/// Steps of the clock that meet the edges of a window, or of a request.
fn step(limit: Limit) -> impl Strategy<Value = u64> {
    let unit = limit.unit().div_ceil(1000);
    prop_oneof![
        3 => Just(0),
        3 => 0..=2_u64,
        4 => (-2..=2_i64).prop_map(move |by| unit.saturating_add_signed(by)),
        4 => 0..=3 * unit,
        2 => 0..=limit.span,
        2 => (-2..=2_i64).prop_map(move |by| limit.span.saturating_add_signed(by)),
        1 => 0..=3 * limit.span,
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    let few = (1..=70_u64, 1_000..=100_000_000_u64);
    let many = (1..=5_000_u64, 1_000_000..=1_000_000_000_u64);
    let sizes = prop_oneof![few, many];
    (sizes, 1..=100_u64).prop_map(|((limit, span), burst)| Limit { limit, span, burst })
}

/// A limit, and operations after steps of the clock. Costs are at most `most` of the limit.
fn case(most: fn(&Limit) -> u64, waits: bool) -> impl Strategy<Value = (Limit, Vec<(u64, Op)>)> {
    limit().prop_flat_map(move |limit| {
        let most = most(&limit);
        let cost = prop_oneof![3 => Just(1), 2 => 1..=most, 1 => Just(most)];
        let wait = prop_oneof![2 => Just(0), 1 => 0..=limit.span];
        let take = (cost, wait).prop_map(move |(cost, wait)| Op::Take {
            cost,
            wait: if waits { wait } else { 0 },
        });
        let op = prop_oneof![
            8 => take,
            2 => any::<prop::sample::Index>().prop_map(|at| Op::GiveBack(at.index(80))),
            1 => Just(Op::Peek),
        ];
        let ops = prop::collection::vec((step(limit), op), 1..80);
        (Just(limit), ops)
    })
}

/// GCRA: every answer is that of one number, the theoretical arrival time, in ns without bounds.
async fn gcra(run: &Run, limit: Limit, ops: &[(u64, Op)]) -> TestCaseResult {
    let (key, mut now, mut arrival) = (run.key(), START, 0_i128);
    let mut lets: Vec<Let> = Vec::new();
    let (unit, capacity) = (limit.unit(), limit.capacity());
    for (step, op) in ops {
        now += step;
        let ns = i128::from(now) * 1000;
        let level = (arrival - ns).max(0);
        match *op {
            Op::Take { cost, wait } => {
                let amount = unit * cost;
                let arguments = words([&amount, &capacity, &(wait * 1000)]);
                let answer = run.take.run(&run.server, &[&key], &arguments, now).await;
                let after = level + i128::from(amount);
                let over = after - i128::from(capacity);
                let (status, told) = match over <= i128::from(wait) * 1000 {
                    true => ("ALLOWED", after),
                    false => ("REFUSED", level),
                };
                let told = i64::try_from(told).expect("below 2^53");
                let expected = Answer(status.into(), vec![told, now as i64]);
                prop_assert_eq!(answer, expected, "{:?} at {}", op, now);
                if status == "ALLOWED" {
                    arrival = ns + after;
                    lets.push(Let {
                        at: ns + over.max(0),
                        cost,
                        mark: (now, after as u64),
                        returned: false,
                    });
                }
            }
            Op::GiveBack(at) => {
                let Some(it) = lets.get_mut(at).filter(|it| !it.returned) else {
                    continue;
                };
                it.returned = true;
                let amount = unit * it.cost;
                let arguments = words([&"gcra", &amount, &0, &it.mark.0, &it.mark.1, &capacity]);
                let answer = run.refund.run(&run.server, &[&key], &arguments, now).await;
                prop_assert_eq!(answer, Answer("OK".into(), vec![]));
                let end = i128::from(it.mark.0) * 1000 + i128::from(it.mark.1);
                let undrained = (end - ns).max(0).min(i128::from(amount));
                // Others have reserved turns behind it.
                let is_last = arrival == end;
                if is_last || level <= i128::from(capacity) {
                    arrival = (arrival - undrained).max(ns);
                }
            }
            Op::Peek => {
                let arguments = words([&"gcra", &unit, &capacity, &0]);
                let answer = run.peek.run(&run.server, &[&key], &arguments, now).await;
                let told = i64::try_from(level).expect("below 2^53");
                prop_assert_eq!(answer, Answer("OK".into(), vec![told, 0, 0]));
            }
        }
    }
    // The promise: in any time `t`, no more than the burst and what drains in `t`.
    let mut used: Vec<Let> = lets.into_iter().filter(|it| !it.returned).collect();
    used.sort_by_key(|it| it.at);
    for first in 0..used.len() {
        let mut sum = 0_i128;
        for last in &used[first..] {
            sum += i128::from(unit * last.cost);
            let time = last.at - used[first].at;
            prop_assert!(sum <= i128::from(capacity) + time, "{:?}", &used[first..]);
        }
    }
    Ok(())
}

/// The sliding window: no window has more than the limit, and nothing is refused that would fit in
/// a window that is one slice longer.
async fn window(run: &Run, limit: Limit, ops: &[(u64, Op)]) -> TestCaseResult {
    let (key, mut now) = (run.key(), START);
    let mut lets: Vec<Let> = Vec::new();
    let (most, span, slice) = (limit.limit, limit.span, limit.slice());
    let waits = ops
        .iter()
        .any(|(_, op)| matches!(op, Op::Take { wait: 1.., .. } | Op::GiveBack(_)));
    // What was let through within `span` before now, or is still to come.
    let taken = |lets: &[Let], now: u64, span: u64| -> u64 {
        let since = (i128::from(now) - i128::from(span)) * 1000;
        let counting = lets.iter().filter(|it| !it.returned && it.at > since);
        counting.map(|it| it.cost).sum()
    };
    for (step, op) in ops {
        now += step;
        match *op {
            Op::Take { cost, wait } => {
                let arguments = words([&cost, &most, &span, &slice, &wait]);
                let Answer(status, told) =
                    run.slide.run(&run.server, &[&key], &arguments, now).await;
                let ready = u64::try_from(told[1]).expect("not before now");
                if status == "ALLOWED" {
                    prop_assert!(ready <= wait);
                    lets.push(Let {
                        at: i128::from(now + ready) * 1000,
                        cost,
                        mark: (told[3] as u64, 0),
                        returned: false,
                    });
                } else {
                    prop_assert!(ready > wait);
                    let longer = taken(&lets, now, span + slice);
                    // With reservations, a request may count for longer.
                    prop_assert!(
                        waits || longer + cost > most,
                        "{:?} at {}: {}",
                        op,
                        now,
                        longer
                    );
                }
                if slice == 1 && !waits {
                    prop_assert_eq!(
                        told[0] as u64,
                        taken(&lets, now, span),
                        "{:?} at {}",
                        op,
                        now
                    );
                }
            }
            Op::GiveBack(at) => {
                let Some(it) = lets.get_mut(at).filter(|it| !it.returned) else {
                    continue;
                };
                it.returned = true;
                let arguments = words([&"window", &it.cost, &span, &it.mark.0, &0, &0]);
                let answer = run.refund.run(&run.server, &[&key], &arguments, now).await;
                prop_assert_eq!(answer, Answer("OK".into(), vec![]));
            }
            Op::Peek => {
                let arguments = words([&"window", &1, &most, &span]);
                let Answer(_, told) = run.peek.run(&run.server, &[&key], &arguments, now).await;
                let counted = told[0] as u64;
                prop_assert!(counted <= 2 * most);
                prop_assert!(waits || counted >= taken(&lets, now, span));
                prop_assert!(waits || counted <= taken(&lets, now, span + slice));
            }
        }
    }
    // The promise: each window that ends with a request has no more than the limit.
    let used: Vec<Let> = lets.into_iter().filter(|it| !it.returned).collect();
    for last in &used {
        let since = last.at - i128::from(span) * 1000;
        let within = used.iter().filter(|it| it.at > since && it.at <= last.at);
        let sum: u64 = within.map(|it| it.cost).sum();
        prop_assert!(sum <= most, "{} of {}: {:?}", sum, most, used);
    }
    Ok(())
}

fn config() -> ProptestConfig {
    ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::default()
    }
}

#[test]
fn gcra_answers_as_its_model_does_and_no_time_has_more_than_it_promises() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let run = runtime.block_on(Run::start());
    proptest!(config(), |((limit, ops) in case(|it| it.burst, true))| {
        runtime.block_on(gcra(&run, limit, &ops))?;
    });
}

#[test]
fn a_sliding_window_answers_as_its_model_does_and_no_window_has_more_than_the_limit() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let run = runtime.block_on(Run::start());
    proptest!(config(), |((limit, ops) in case(|it| it.limit, false))| {
        let takes = ops.into_iter().filter(|(_, op)| !matches!(op, Op::GiveBack(_)));
        let ops: Vec<(u64, Op)> = takes.collect();
        runtime.block_on(window(&run, limit, &ops))?;
    });
}

#[test]
fn no_window_has_more_than_the_limit_with_reservations_and_what_is_given_back() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let run = runtime.block_on(Run::start());
    proptest!(config(), |((limit, ops) in case(|it| it.limit, true))| {
        runtime.block_on(window(&run, limit, &ops))?;
    });
}

#[tokio::test]
async fn a_constant_load_uses_98_percent_of_a_sliding_window_of_many() {
    let run = Run::start().await;
    let (key, mut now, mut used) = (run.key(), START, 0_u64);
    let limit = Limit {
        limit: 1000,
        span: 10_000_000,
        burst: 1,
    };
    let windows = 100;
    // A request of 100 each 500 ms, which is twice as many as the limit lets through.
    let arguments = words([&100, &limit.limit, &limit.span, &limit.slice(), &0]);
    while now < START + windows * limit.span {
        let Answer(status, _) = run.slide.run(&run.server, &[&key], &arguments, now).await;
        used += if status == "ALLOWED" { 100 } else { 0 };
        now += 500_000;
    }
    assert!(used <= windows * limit.limit, "{used}");
    assert!(used * 100 >= windows * limit.limit * 98, "{used}");
}

#[tokio::test]
async fn a_clock_that_is_set_back_keeps_nobody_out_for_long() {
    let run = Run::start().await;
    let hour = 3_600_000_000;
    let second = 1_000_000;
    // One each second, and one at once.
    let take = words([&1_000_000_000_u64, &1_000_000_000_u64, &0]);
    let key = run.key();
    let status = async |now| run.take.run(&run.server, &[&key], &take, now).await.0;
    assert_eq!(status(START).await, "ALLOWED");
    assert_eq!(status(START - hour).await, "REFUSED", "nothing has drained");
    assert_eq!(status(START - hour + second).await, "ALLOWED");

    let slide = words([&1, &1, &second, &1, &0]);
    let key = run.key();
    let status = async |now| run.slide.run(&run.server, &[&key], &slide, now).await.0;
    assert_eq!(status(START).await, "ALLOWED");
    assert_eq!(status(START - hour).await, "REFUSED");
    assert_eq!(status(START - hour + second).await, "ALLOWED");
}
