//! The counter against a model: random operations, every answer predicted.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hedgerow::{Counter, ErrorKind};
use proptest::prelude::*;

use crate::support::server::Server;

#[derive(Debug, Clone)]
enum Op {
    Add {
        delta: i64,
        range: Option<(i64, i64)>,
        saturating: bool,
        expire: bool,
        once: Option<u8>,
    },
    Set(i64),
    Get,
    Take,
}

/// Numbers where exactness goes wrong, if it does.
fn number() -> impl Strategy<Value = i64> {
    let near = |it: i64| (-2..=2_i64).prop_map(move |by| it.saturating_add(by));
    prop_oneof![
        4 => near(0),
        2 => near(1 << 53),
        2 => near(-(1 << 53)),
        2 => near(i64::MAX),
        2 => near(i64::MIN),
        1 => near(1_000_000_000),
        2 => any::<i64>(),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let add = (
        number(),
        proptest::option::of((number(), number())),
        any::<bool>(),
        proptest::bool::weighted(0.3),
        proptest::option::weighted(0.3, 0..3_u8),
    );
    prop_oneof![
        6 => add.prop_map(|(delta, range, saturating, expire, once)| Op::Add {
            delta,
            range: range.map(|(a, b)| (a.min(b), a.max(b))),
            saturating,
            expire,
            once,
        }),
        1 => number().prop_map(Op::Set),
        1 => Just(Op::Get),
        1 => Just(Op::Take),
    ]
}

#[derive(Default)]
struct Model {
    value: i64,
    /// Whether it expires; `None` while there is no such key.
    expires: Option<bool>,
    applied: HashMap<u8, (i64, i64)>,
}

impl Model {
    fn add(
        &mut self,
        delta: i64,
        range: &RangeInclusive<i64>,
        saturating: bool,
    ) -> Result<(i64, i64), ErrorKind> {
        let (value, delta) = (i128::from(self.value), i128::from(delta));
        let (low, high) = (i128::from(*range.start()), i128::from(*range.end()));
        let mut sum = value + delta;
        if saturating {
            sum = if delta < 0 {
                sum.max(low.min(value))
            } else {
                sum.min(high.max(value))
            };
        } else if i64::try_from(sum).is_err() {
            return Err(ErrorKind::Overflow);
        } else if sum < low || sum > high {
            return Err(ErrorKind::OutOfRange);
        }
        self.value = i64::try_from(sum).expect("within i64");
        Ok((
            self.value,
            i64::try_from(sum - value).expect("no more than the delta"),
        ))
    }
}

async fn check(counter: &Counter, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    for op in ops {
        match op.clone() {
            Op::Add {
                delta,
                range,
                saturating,
                expire,
                once,
            } => {
                let plain = range.is_none() && !saturating && !expire && once.is_none();
                let mut add = counter.add(delta);
                if let Some((low, high)) = range {
                    add = add.within(low..=high);
                }
                if saturating {
                    add = add.saturating();
                }
                if expire {
                    add = add.expire(Duration::from_secs(600));
                }
                if let Some(id) = once {
                    add = add.once(&format!("id {id}"), Duration::from_secs(600));
                }
                let range = range.map_or(i64::MIN..=i64::MAX, |(low, high)| low..=high);
                let expected = match once.and_then(|id| model.applied.get(&id)) {
                    Some(applied) => Ok(*applied),
                    None => {
                        let sum = model.add(delta, &range, saturating);
                        if sum.is_ok_and(|(_, applied)| plain || applied != 0) {
                            model.expires = model.expires.or(Some(expire));
                        }
                        // One without a TTL gets it, refused or not.
                        if expire && model.expires.is_some() {
                            model.expires = Some(true);
                        }
                        sum
                    }
                };
                let repeated = once.is_some_and(|id| model.applied.contains_key(&id));
                if let (Some(id), Ok(applied)) = (once, expected) {
                    model.applied.insert(id, applied);
                }
                let answer = add.await.map_err(|error| error.kind());
                if let Ok(added) = answer {
                    prop_assert_eq!(added.repeated, repeated, "{:?}", op);
                    // A plain add does not ask.
                    let expires = !plain && model.expires.unwrap_or(false);
                    prop_assert_eq!(added.expires_in.is_some(), expires, "{:?}", op);
                }
                let answer = answer.map(|added| (added.value, added.applied));
                prop_assert_eq!(answer, expected, "{:?}", op);
            }
            Op::Set(value) => {
                counter.set(value).await.expect("set");
                model.value = value;
                model.expires = model.expires.or(Some(false));
            }
            Op::Get => prop_assert_eq!(counter.get().await.expect("read"), model.value),
            Op::Take => {
                prop_assert_eq!(counter.take().await.expect("taken"), model.value);
                model.value = 0;
                model.expires = None;
            }
        }
    }
    prop_assert_eq!(counter.get().await.expect("read"), model.value);
    Ok(())
}

#[test]
fn random_operations_answer_as_the_model_does() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let client = runtime.block_on(async {
        let server = Server::start().await;
        (server.client().await, server)
    });
    let case = AtomicU32::new(0);
    let config = ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    proptest!(config, |(ops in proptest::collection::vec(op(), 1..40))| {
        let counter = client.0.counter(&format!("case {}", case.fetch_add(1, Ordering::Relaxed)));
        runtime.block_on(check(&counter, &ops))?;
    });
}
