//! Tests of [`breaker`](super).

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn out() -> Error {
    Error::new(ErrorKind::Unreachable, "out")
}

/// Fails until the breaker is open.
async fn opened() -> Breaker {
    let breaker = Breaker::default();
    breaker.failed(&out());
    for _ in 1..FAILURES {
        tokio::time::advance(LEAST).await;
        breaker.failed(&out());
    }
    breaker
}

#[tokio::test(start_paused = true)]
async fn failures_at_one_moment_open_nothing() {
    let breaker = Breaker::default();
    for _ in 0..10 * FAILURES {
        breaker.failed(&out());
    }
    assert!(breaker.admit().is_ok_and(|probe| probe.is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_success_between_failures_keeps_it_closed() {
    let breaker = Breaker::default();
    for _ in 0..10 * FAILURES {
        breaker.failed(&out());
        breaker.succeeded();
        tokio::time::advance(LEAST).await;
    }
    assert!(breaker.admit().is_ok_and(|probe| probe.is_none()));
}

#[tokio::test(start_paused = true)]
async fn while_it_is_open_one_at_a_time_gets_through_after_a_pause() {
    let breaker = opened().await;
    breaker.failed(&out());
    let error = breaker.admit().expect_err("open");
    assert_eq!(error.kind(), ErrorKind::CircuitOpen);
    assert!(error.is_retryable(), "nothing was sent");
    tokio::time::advance(2 * LONGEST).await;
    let probe = breaker.admit().expect("let through").expect("as a probe");
    assert!(breaker.admit().is_err(), "one at a time");
    // The caller was dropped: the next finds out.
    drop(probe);
    let probe = breaker.admit().expect("let through").expect("as a probe");
    breaker.failed(&out());
    drop(probe);
    assert!(breaker.admit().is_err(), "the server is still out");
    tokio::time::advance(2 * LONGEST).await;
    breaker.admit().expect("let through").expect("as a probe");
    breaker.succeeded();
    assert!(breaker.admit().is_ok_and(|probe| probe.is_none()), "closed");
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_kept_and_not_polled_lapses() {
    let breaker = opened().await;
    tokio::time::advance(2 * LONGEST).await;
    let kept = breaker.admit().expect("let through").expect("as a probe");
    assert!(breaker.admit().is_err(), "one at a time");
    tokio::time::advance(LAPSES * LONGEST).await;
    let next = breaker.admit().expect("let through").expect("as a probe");
    drop(kept);
    assert!(breaker.admit().is_err(), "one at a time");
    drop(next);
    breaker.admit().expect("let through").expect("as a probe");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_a_limit() {
    let breaker = opened().await;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        tokio::time::advance(2 * LONGEST).await;
        let probe = breaker.admit().expect("let through");
        breaker.failed(&out());
        drop(probe);
        pauses.push(breaker.state().open.as_ref().expect("open").pause);
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses.last(), Some(&LONGEST));
}

#[tokio::test(start_paused = true)]
async fn failures_of_calls_that_do_not_heed_it_keep_no_probe_away() {
    let breaker = opened().await;
    for _ in 0..100 {
        tokio::time::advance(SHORTEST).await;
        breaker.failed(&out());
    }
    breaker.admit().expect("let through").expect("as a probe");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_while_it_is_open_is_the_reason_of_the_calls_that_follow_until_it_closes() {
    let breaker = opened().await;
    let refusal = Error::new(ErrorKind::Unauthenticated, "refused");
    breaker.refused(&refusal);
    let reason = || breaker.admit().expect_err("open").reason();
    assert_eq!(reason(), ErrorKind::Unauthenticated);
    breaker.failed(&out());
    assert_eq!(reason(), ErrorKind::Unreachable, "it is gone again");
    breaker.succeeded();
    breaker.refused(&refusal);
    assert!(breaker.admit().is_ok_and(|probe| probe.is_none()));
}

#[tokio::test(start_paused = true)]
async fn probes_that_are_given_up_early_count_together_as_one_that_was_not_answered() {
    let breaker = opened().await;
    tokio::time::advance(2 * SHORTEST).await;
    let mut probes = 0;
    while let Ok(Some(probe)) = breaker.admit() {
        tokio::time::advance(PROBE / 4).await;
        drop(probe);
        probes += 1;
    }
    assert_eq!(probes, 4);
    tokio::time::advance(LONGEST).await;
    breaker.admit().expect("let through").expect("as a probe");
}

#[test]
fn what_a_server_says_of_one_slot_is_no_outage() {
    let said = |line: &str| {
        let reply = redis::parse_redis_value(line.as_bytes()).expect("a reply");
        let redis::Value::ServerError(error) = reply else {
            panic!("an error reply");
        };
        says_out(&error)
    };
    assert!(!said(
        "-TRYAGAIN Multiple keys request during rehashing of slot\r\n"
    ));
    assert!(!said("-CLUSTERDOWN Hash slot not served\r\n"));
    assert!(!said(concat!(
        "-ERR Script attempted to access a non local key in a cluster node script: f, ",
        "on @user_script:1.\r\n"
    )));
    assert!(said("-CLUSTERDOWN The cluster is down\r\n"));
    assert!(said("-LOADING Redis is loading the dataset in memory\r\n"));
    assert!(!said(
        "-OOM command not allowed when used memory > 'maxmemory'.\r\n"
    ));
}

/// What happens to a breaker.
#[derive(Debug, Clone)]
enum Step {
    Passes(u64),
    Asked,
    /// A call, which need not be a probe, gets no answer.
    Failed(f64),
    Answered,
    /// One of the probes ends, perhaps long after another has begun.
    Left(usize, f64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_000u64).prop_map(Step::Passes),
        4 => Just(Step::Asked),
        4 => SPREAD.prop_map(Step::Failed),
        1 => Just(Step::Answered),
        2 => (any::<usize>(), SPREAD).prop_map(|(which, spread)| Step::Left(which, spread)),
    ]
}

proptest! {
    #[test]
    fn whoever_asks_is_let_through_exactly_when_he_should_be(steps in vec(step(), 1..200)) {
        let (mut state, mut now) = (State::default(), Instant::now());
        // Since the last answer.
        let mut failed: Vec<Instant> = Vec::new();
        let mut opened = None;
        // The probe, and whether the server has failed since it began.
        let mut under_way: Option<(u64, bool)> = None;
        // When the last probe that failed has ended: after that, no call is let through for a
        // pause.
        let (mut longer_since, mut waited) = (None::<Instant>, Duration::ZERO);
        let (mut began, mut patient) = (now, PROBE);
        let mut all: Vec<u64> = Vec::new();
        for step in steps {
            match step {
                Step::Passes(ms) => now += Duration::from_millis(ms),
                Step::Failed(spread) => {
                    failed.push(now);
                    let enough = failed.len() >= FAILURES as usize && now - failed[0] >= LEAST;
                    let opens = enough && opened.is_none();
                    prop_assert_eq!(state.failed(&out(), now, spread), opens);
                    if opens {
                        opened = Some(now);
                    }
                    if let Some((_, has_failed)) = &mut under_way {
                        *has_failed = true;
                    }
                }
                Step::Answered => {
                    prop_assert_eq!(state.succeeded(), opened.is_some());
                    failed.clear();
                    (opened, under_way) = (None, None);
                    (longer_since, waited) = (None, Duration::ZERO);
                }
                Step::Left(which, spread) if !all.is_empty() => {
                    let number = all.swap_remove(which % all.len());
                    state.left(number, now, spread);
                    if let Some((_, has_failed)) = under_way.take_if(|it| it.0 == number) {
                        waited += now - began;
                        if has_failed || waited >= patient {
                            longer_since = Some(now);
                            waited = Duration::ZERO;
                        }
                    }
                }
                Step::Left(..) => {}
                Step::Asked => {
                    under_way.take_if(|_| now >= began + LAPSES * patient);
                    match state.admit(now) {
                    Admission::Free => prop_assert!(opened.is_none()),
                    Admission::Refused => {
                        let opened = opened.expect("it is open");
                        // Never for longer than the longest pause, unless a probe is under way,
                        // even if calls that do not heed the breaker fail meanwhile.
                        let last = longer_since.unwrap_or(opened);
                        let longest = LONGEST.mul_f64(SPREAD.end);
                        prop_assert!(under_way.is_some() || now < last + longest);
                    }
                    Admission::Probe { number, patience } => {
                        let opened = opened.expect("there is something to find out");
                        prop_assert_eq!(under_way, None, "one at a time");
                        prop_assert!(now >= opened + SHORTEST.mul_f64(SPREAD.start));
                        prop_assert!((PROBE..=LONGEST).contains(&patience));
                        under_way = Some((number, false));
                        (began, patient) = (now, patience);
                        all.push(number);
                    }
                    }
                }
            }
        }
    }
}
