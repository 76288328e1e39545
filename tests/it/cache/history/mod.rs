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

/// A kind of world.
#[derive(Debug, Clone, Copy)]
struct Kind {
    name: &'static str,
    near: bool,
    windows: bool,
}

const PLAIN: Kind = Kind {
    name: "plain",
    near: false,
    windows: false,
};
const NEAR: Kind = Kind {
    name: "near",
    near: true,
    windows: false,
};
const STALE: Kind = Kind {
    name: "stale",
    near: false,
    windows: true,
};
const BOTH: Kind = Kind {
    name: "both",
    near: true,
    windows: true,
};
const ALL: [Kind; 4] = [PLAIN, NEAR, STALE, BOTH];

/// How the network of a world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Works,
    Fails,
}

/// Runs one world of each kind, by the seed of this run.
async fn hold(ground: &Ground, kinds: &[Kind], network: Network) {
    hold_by(seed(), ground, kinds, network).await;
}

/// Runs one world of each kind, and looks whether it was a test.
async fn hold_by(seed: u64, ground: &Ground, kinds: &[Kind], network: Network) {
    let effort = Effort::SHORT;
    for kind in kinds {
        let terms = Terms {
            near: kind.near,
            windows: kind.windows,
            network: network == Network::Fails,
            seed,
        };
        // Worlds of one ground share its servers, and nothing else.
        let name = format!("{} {seed}", kind.name);
        let story = run(ground, &name, terms, effort).await;
        println!("HEDGEROW_SEED={seed}, {terms:?}: {}", told(&story));
        let stale = &story.verdict.violations;
        let (count, first) = (stale.len(), stale.first());
        assert!(
            stale.is_empty(),
            "{count} stale reads, as {first:?}; HEDGEROW_SEED={seed}, {terms:?}"
        );
        was_put_to_the_test(&story, terms, effort);
    }
}

/// What `HEDGEROW_SEED` says, or a new one.
fn seed() -> u64 {
    let seed = std::env::var("HEDGEROW_SEED");
    seed.map_or_else(
        |_| rand::random(),
        |seed| seed.parse().expect("HEDGEROW_SEED is a number"),
    )
}

/// The faults were seen to hit while the world was busy; this is about what the caches did.
fn was_put_to_the_test(story: &Story, terms: Terms, effort: Effort) {
    let (verdict, deeds) = (&story.verdict, &story.deeds);
    assert!(verdict.reads >= effort.reads, "{}", told(story));
    assert!(story.met >= 20, "{}", told(story));
    assert!(deeds.left > 0 && deeds.shared > 0, "{}", told(story));
    assert!(deeds.refused > 0, "{}", told(story));
    assert!(terms.network || deeds.updated > 0, "{}", told(story));
    if terms.near {
        assert!(verdict.near > 100, "{}", told(story));
        assert!(deeds.near_hits > 0, "{}", told(story));
    }
    if terms.windows {
        assert!(deeds.stale_served > 0, "{}", told(story));
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
        busy,
    } = story;
    let (reads, near, behind) = (verdict.reads, verdict.near, verdict.behind);
    format!(
        "{reads} reads, {near} of near handles, {behind} behind, {loads} loads, \
         {invalidations} invalidations, {met} raised during a load, busy for \
         {busy:?}, {deeds:?}, {hits:?}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated() {
    hold(&Ground::one().await, &ALL, Network::Works).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated_over_a_network_that_fails() {
    hold(&Ground::one().await, &ALL, Network::Fails).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated_while_slots_move() {
    hold(&Ground::cluster().await, &[PLAIN, BOTH], Network::Works).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_is_given_what_another_has_invalidated_while_slots_move_and_the_network_fails() {
    hold(&Ground::cluster().await, &[NEAR, STALE], Network::Fails).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for ten minutes: make history"]
async fn no_process_is_given_what_another_has_invalidated_for_long() {
    let seconds = std::env::var("HISTORY_SECONDS").map_or(600, |it| it.parse().expect("a number"));
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
    let mut seed = seed();
    while begun.elapsed() < length {
        for network in [Network::Works, Network::Fails] {
            hold_by(seed, &Ground::one().await, &ALL, network).await;
            hold_by(seed, &Ground::cluster().await, &ALL, network).await;
        }
        seed = seed.wrapping_add(1);
    }
}
