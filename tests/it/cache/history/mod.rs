//! The promise of the cache over several processes, whose truth, order and clock are in none of
//! them: no read that begins after an invalidation has returned is given what was loaded before it.
//!
//! Invariant: each read is held to the rule that its call states. A read of a handle without a near
//! cache sees each invalidation that had returned; one with a near cache those of other clients
//! within its bound; and only a call that takes stale values, until its window ends, what was
//! invalidated softly. See [`check`] for the rules, [`plan`] for what the processes do, [`faults`]
//! for what happens to them, and [`truth`] for how it is written down.
//!
//! A run draws its seed and says it. `HEDGEROW_SEED` runs the same plan again.

pub mod check;
mod faults;
pub mod part;
mod plan;
mod truth;
mod world;

use std::time::{Duration, Instant};

use plan::Terms;
use world::{Effort, Ground, Story, run};

/// The four kinds of worlds of a ground.
const KINDS: [(&str, bool, bool); 4] = [
    ("plain", false, false),
    ("near", true, false),
    ("stale", false, true),
    ("both", true, true),
];

/// Runs one world of each kind, and looks whether it was a test.
async fn all_kinds(ground: &Ground, network: bool, effort: Effort) {
    let seed = std::env::var("HEDGEROW_SEED");
    let seed = seed.map_or_else(
        |_| rand::random(),
        |seed| seed.parse().expect("HEDGEROW_SEED is a number"),
    );
    all_kinds_of(ground, network, effort, seed).await;
}

async fn all_kinds_of(ground: &Ground, network: bool, effort: Effort, seed: u64) {
    for (name, near, windows) in KINDS {
        let terms = Terms {
            near,
            windows,
            network,
            seed,
        };
        // Worlds of one ground share its servers, and nothing else.
        let story = run(ground, &format!("{name} {seed}"), terms, effort).await;
        println!("HEDGEROW_SEED={seed} {terms:?}: {}", told(&story));
        let stale = &story.verdict.violations;
        let (count, first) = (stale.len(), stale.first());
        assert!(
            stale.is_empty(),
            "{count} stale, as {first:?}; HEDGEROW_SEED={seed} {terms:?}"
        );
        was_put_to_the_test(&story, terms, effort);
    }
}

/// The faults were seen to hit while the world was busy; this is about what the caches did.
fn was_put_to_the_test(story: &Story, terms: Terms, effort: Effort) {
    let (verdict, deeds) = (&story.verdict, &story.deeds);
    assert!(verdict.reads >= effort.reads, "{}", told(story));
    assert!(story.met >= 20, "{}", told(story));
    assert!(deeds.left > 0 && deeds.shared > 0, "{}", told(story));
    assert!(deeds.refused > 0, "{}", told(story));
    if terms.near {
        assert!(verdict.near > 100, "{}", told(story));
        assert!(deeds.near_hits > 20, "{}", told(story));
    }
    if terms.windows {
        assert!(deeds.stale_served > 0, "{}", told(story));
    }
    if terms.network {
        assert!(deeds.failed > 0, "{}", told(story));
    }
}

fn told(story: &Story) -> String {
    let Story {
        verdict,
        hits,
        deeds,
        loads,
        invalidations,
        met,
    } = story;
    let (reads, near, behind) = (verdict.reads, verdict.near, verdict.behind);
    format!(
        "{reads} reads, {near} of near handles, {behind} behind, {loads} loads, \
         {invalidations} invalidations, {met} raised during a load, {deeds:?}, {hits:?}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated() {
    all_kinds(&Ground::one().await, false, Effort::SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated_over_a_network_that_fails() {
    all_kinds(&Ground::one().await, true, Effort::SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated_while_slots_move() {
    all_kinds(&Ground::cluster().await, false, Effort::SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated_while_slots_move_and_the_network_fails() {
    all_kinds(&Ground::cluster().await, true, Effort::SHORT).await;
}

/// Worlds of all kinds on all grounds, until the time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for as long as SOAK_SECONDS says: make soak"]
async fn no_process_is_given_what_another_has_invalidated_for_long() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(600, |it| it.parse().expect("a number"));
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
    let mut seed: u64 = std::env::var("HEDGEROW_SEED").map_or_else(
        |_| rand::random(),
        |seed| seed.parse().expect("HEDGEROW_SEED is a number"),
    );
    while begun.elapsed() < length {
        for network in [false, true] {
            all_kinds_of(&Ground::one().await, network, Effort::SHORT, seed).await;
            all_kinds_of(&Ground::cluster().await, network, Effort::SHORT, seed).await;
        }
        seed = seed.wrapping_add(1);
    }
}
