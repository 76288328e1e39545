//! `Draws`: whether a value is loaded anew before its end, which is decided by chance (XFetch).
//!
//! Invariant: one call draws one number for each key, however often it looks at the key. So a near
//! cache and the read that follows it decide alike. The numbers of several keys, and of several
//! calls, have nothing to do with each other: values that were stored together are not loaded anew
//! together. `judge` and the near cache ask here.

use std::num::NonZeroU32;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The numbers that one call draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct Draws(
    // Small, since the future of a hit holds it in several places.
    NonZeroU32,
);

impl Draws {
    /// Those of a call that begins now.
    pub(in crate::cache) fn new() -> Self {
        Self(rand::random())
    }

    /// The number for `key`, by which the duration of its load is multiplied. Its distribution is
    /// exponential, with the mean 1.
    pub(in crate::cache) fn of(self, key: &str) -> f32 {
        let hash = xxh3_64_with_seed(key.as_bytes(), self.0.get().into());
        // In (0, 1]: as many bits as an `f32` holds, and never zero, which has no logarithm.
        let unit = ((hash >> (u64::BITS - f32::MANTISSA_DIGITS)) + 1) as f32;
        -(unit / (1_u32 << f32::MANTISSA_DIGITS) as f32).ln()
    }
}

/// Whether the early refresh of a value is due that is fresh for `left` more and whose load took
/// `cost`. `draw` is the number that was drawn.
// XFetch: Vattani, Chierichetti, Lowenstein, "Optimal probabilistic cache stampede prevention",
// PVLDB 8(8), 2015, with its beta = 1.
pub(in crate::cache) fn is_due(cost: Duration, draw: f32, left: Duration) -> bool {
    cost.as_secs_f32() * draw >= left.as_secs_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_draws_one_number_for_each_key() {
        let draws = Draws::new();
        let keys: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        let numbers = |draws: Draws| keys.iter().map(move |key| draws.of(key));
        let of_one: Vec<f32> = numbers(draws).collect();
        assert!(numbers(draws).eq(of_one.iter().copied()));
        let others = numbers(Draws::new()).zip(&of_one);
        assert!(others.filter(|(other, one)| other == *one).count() < 10);
        // Exponential: half of them are below ln 2, and one in e² above 2.
        let below = of_one.iter().filter(|it| **it < 2_f32.ln()).count();
        let above = of_one.iter().filter(|it| **it > 2.0).count();
        assert!((400..600).contains(&below), "{below}");
        assert!((85..185).contains(&above), "{above}");
        assert!(of_one.iter().all(|it| *it >= 0.0 && it.is_finite()));
    }

    #[test]
    fn a_refresh_is_due_when_the_load_may_take_longer_than_is_left() {
        let millis = Duration::from_millis;
        assert!(!is_due(millis(100), 2.0, millis(201)));
        assert!(is_due(millis(100), 2.0, millis(199)));
        assert!(!is_due(Duration::ZERO, 9.0, millis(1)));
    }
}
