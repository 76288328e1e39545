//! `Ring`: decides which of several named, weighted servers has a key.
//!
//! Invariant: two processes with the same names and weights agree about every key. The order of the
//! names, the machine and the version of this crate make no difference. Processes that disagreed
//! would not exclude each other. So everything here is integer arithmetic, pure, and frozen by a
//! test. `Shards` calls it.
//!
//! Rendezvous hashing (Thaler and Ravishankar 1996): each member draws a number for the key, and
//! the best draw wins. With weights it is the logarithmic method (Schindelhauer and Schomaker,
//! "Weighted Distributed Hash Tables", SPAA 2005; Resch, "New Hashing Algorithms for Data Storage",
//! SDC 2015): a member that drew `u` from (0, 1) scores `weight / -ln(u)`, and the highest score
//! wins. The score of a member depends only on that member. So a new member takes keys from others,
//! and moves none between them.

use std::cmp::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// The members that keys are spread over.
#[derive(Debug, Clone)]
pub(crate) struct Ring {
    members: Vec<Member>,
    /// All weights are equal. Then no score is calculated, and the greatest draw wins.
    even: bool,
}

#[derive(Debug, Clone)]
struct Member {
    name: Box<str>,
    /// The hash of the name, which makes its draws different from those of other members.
    seed: u64,
    weight: u32,
}

impl Ring {
    /// Makes a ring of members with these names and weights.
    pub(crate) fn new<'n>(members: impl IntoIterator<Item = (&'n str, u32)>) -> Result<Self> {
        let mut ring = Self {
            members: Vec::new(),
            even: true,
        };
        for (name, weight) in members {
            if name.is_empty() {
                return Err(Error::invalid(
                    "a shard has an empty name; give each a name",
                ));
            }
            if !(1..=HEAVIEST).contains(&weight) {
                return Err(Error::invalid(format!(
                    "the weight of shard {name:?} is {weight}; give one from 1 to {HEAVIEST}"
                )));
            }
            if ring.members.iter().any(|member| &*member.name == name) {
                return Err(Error::invalid(format!("two shards are called {name:?}")));
            }
            ring.members.push(Member {
                name: name.into(),
                seed: xxh3_64(name.as_bytes()),
                weight,
            });
        }
        let Some(first) = ring.members.first() else {
            return Err(Error::invalid("there are no shards; give at least one"));
        };
        ring.even = ring.members.iter().all(|it| it.weight == first.weight);
        Ok(ring)
    }

    /// Returns the index of the member that has the keys of `hash_tag`.
    pub(crate) fn owner(&self, hash_tag: &[u8]) -> usize {
        if self.members.len() == 1 {
            return 0;
        }
        let tag = xxh3_64(hash_tag);
        let best = |&one: &(usize, u64), &other: &(usize, u64)| self.compare(one, other);
        let draws = self.members.iter().map(|member| member.draw(tag));
        let winner = draws.enumerate().max_by(best);
        winner.map_or(0, |(place, _)| place)
    }

    /// Compares two members by score, then draw, then name, so that there is always one winner.
    fn compare(&self, one: (usize, u64), other: (usize, u64)) -> Ordering {
        let (a, b) = (&self.members[one.0], &self.members[other.0]);
        let scores = if self.even {
            // With equal weights the score rises with the draw. Where rounding makes two scores
            // equal, the draw decides anyway.
            Ordering::Equal
        } else {
            // a.weight / -log(draw) > b.weight / -log(draw), without dividing.
            let (a, b) = (u64::from(a.weight), u64::from(b.weight));
            (a * descent(other.1)).cmp(&(b * descent(one.1)))
        };
        scores
            .then(one.1.cmp(&other.1))
            // Of equal draws the smaller name wins, whatever the order of the members.
            .then_with(|| b.name.cmp(&a.name))
    }
}

impl Member {
    /// Returns 64 random bits, always the same for this name and hash tag. The hash tag is hashed
    /// once for all members. Two hash tags with equal hashes are on the same shard, which does no
    /// harm.
    fn draw(&self, tag: u64) -> u64 {
        let mut both = [0; 16];
        both[..8].copy_from_slice(&self.seed.to_le_bytes());
        both[8..].copy_from_slice(&tag.to_le_bytes());
        xxh3_64(&both)
    }
}

/// Returns `-log2(draw / 2^64)` with [`DIGITS`] binary digits behind the point, and at least one in
/// the last.
///
/// The mantissa is squared again and again. Each square of at least 2 is a digit 1 of the
/// logarithm. Each step is monotone, hence so is the whole: a greater draw never has a greater
/// descent. Floating point is not used because `ln` differs from one mathematical library to
/// another.
fn descent(draw: u64) -> u64 {
    // There is no logarithm of 0.
    let draw = draw.max(1);
    let zeros = draw.leading_zeros();
    // From 1 to 2, with 63 binary digits behind the point.
    let mut mantissa = draw << zeros;
    let mut log = 0;
    for _ in 0..DIGITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let two = (square >> 127) as u64;
        mantissa = (square >> (63 + two)) as u64;
        log = (log << 1) | two;
    }
    ((u64::from(zeros) + 1) << DIGITS) - log
}

/// The greatest weight. The product of weight and descent stays below 2^64.
const HEAVIEST: u32 = 1000;

/// The number of binary digits of a descent behind the point.
const DIGITS: u32 = 40;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(members: &[(&str, u32)]) -> Ring {
        Ring::new(members.iter().copied()).expect("a good ring")
    }

    fn owner<'r>(ring: &'r Ring, tag: &str) -> &'r str {
        &ring.members[ring.owner(tag.as_bytes())].name
    }

    fn tags(count: usize) -> impl Iterator<Item = String> {
        (0..count).map(|number| format!("catalogue:city:{number}"))
    }

    /// The rings of the golden vectors.
    fn golden_rings() -> [Ring; 4] {
        [
            ring(&[("a", 1), ("b", 1)]),
            ring(&[("a", 1), ("b", 1), ("c", 1)]),
            ring(&[("a", 1), ("b", 2), ("c", 3)]),
            ring(&[
                ("cache-1.eu", 100),
                ("cache-2.eu", 150),
                ("cache-3.eu", 50),
                ("cache-4.eu", 100),
                ("Z\u{fc}rich", 7),
            ]),
        ]
    }

    fn golden_tags() -> impl Iterator<Item = String> {
        let odd = ["", "a", "b42", "00ff00ff00ff00ff", "na\u{ef}ve"].map(str::to_owned);
        let long = (0..200).map(|length| "x".repeat(length));
        odd.into_iter().chain(long).chain(tags(2000))
    }

    /// Frozen: a change of any owner splits running fleets in two. The values were calculated by
    /// another program, with logarithms of 40 decimal digits.
    #[test]
    fn owners_are_frozen() {
        let rings = golden_rings();
        let row = |tag: &str| -> String {
            let owners: Vec<&str> = rings.iter().map(|ring| owner(ring, tag)).collect();
            owners.join(" ")
        };
        let rows: Vec<String> = tags(20).map(|tag| row(&tag)).collect();
        assert_eq!(rows, GOLDEN_ROWS);
        let all: String = golden_tags().map(|tag| row(&tag) + "\n").collect();
        assert_eq!(
            xxh3_64(all.as_bytes()),
            GOLDEN_HASH,
            "{} rows",
            all.lines().count()
        );
    }

    #[test]
    fn owners_are_those_of_the_formula_in_floating_point() {
        let ring = ring(&[("a", 1), ("b", 2), ("c", 3), ("d", 1000), ("e", 997)]);
        let mut close = 0;
        for tag in tags(100_000) {
            let score = |member: &Member| {
                let draw = member.draw(xxh3_64(tag.as_bytes()));
                let u = (draw as f64 + 0.5) / 2f64.powi(64);
                f64::from(member.weight) / -u.ln()
            };
            let scores: Vec<f64> = ring.members.iter().map(score).collect();
            let chosen = scores[ring.owner(tag.as_bytes())];
            let best = scores.iter().copied().fold(0.0, f64::max);
            close += usize::from(chosen != best);
            assert!(chosen >= best * (1.0 - 1e-9), "{tag}: {chosen} and {best}");
        }
        assert!(close <= 1, "{close} of 100,000 differ");
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in [
            vec![1, 1, 1],
            vec![1, 2, 3, 4],
            vec![1000, 1],
            vec![5, 10, 985],
        ] {
            let names: Vec<String> = (0..weights.len()).map(|it| format!("s{it}")).collect();
            let members = names
                .iter()
                .map(String::as_str)
                .zip(weights.iter().copied());
            let ring = Ring::new(members).expect("a good ring");
            let mut counts = vec![0f64; weights.len()];
            for tag in tags(100_000) {
                counts[ring.owner(tag.as_bytes())] += 1.0;
            }
            let whole: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let share = f64::from(*weight) / f64::from(whole);
                let expected = share * 100_000.0;
                // Five standard deviations.
                let spread = 5.0 * (expected * (1.0 - share)).sqrt();
                assert!((count - expected).abs() < spread, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn one_more_takes_about_its_share_and_moves_nothing_between_the_others() {
        for count in 1..9usize {
            let names: Vec<String> = (0..=count).map(|it| format!("s{it}")).collect();
            let members = names.iter().map(|name| (name.as_str(), 1));
            let after = Ring::new(members.clone()).expect("a good ring");
            let before = Ring::new(members.take(count)).expect("a good ring");
            let mut moved = 0;
            for tag in tags(100_000) {
                let (old, new) = (owner(&before, &tag), owner(&after, &tag));
                if old != new {
                    assert_eq!(new, names[count], "{tag} moved to an old one");
                    moved += 1;
                }
            }
            let share = f64::from(moved) / 100_000.0;
            let fair = 1.0 / (count + 1) as f64;
            assert!(
                (fair - 0.02..=fair + 0.02).contains(&share),
                "{count}: {share}"
            );
        }
    }

    #[test]
    fn what_makes_no_ring_is_refused() {
        let refused = |members: &[(&str, u32)]| {
            let error = Ring::new(members.iter().copied()).expect_err("refused");
            assert_eq!(error.kind(), crate::error::ErrorKind::InvalidInput);
            error.to_string()
        };
        assert_eq!(refused(&[]), "there are no shards; give at least one");
        assert!(refused(&[("a", 1), ("", 1)]).contains("empty"));
        assert!(refused(&[("a", 1), ("b", 0)]).contains("\"b\" is 0"));
        assert!(refused(&[("a", 1001)]).contains("from 1 to 1000"));
        assert!(refused(&[("a", 1), ("b", 1), ("a", 2)]).contains("called \"a\""));
    }

    /// A small ring, its members in some order.
    fn members() -> impl Strategy<Value = Vec<(String, u32)>> {
        let weight = prop_oneof![Just(1), Just(1000), 1u32..=1000];
        proptest::collection::btree_map("[a-e]{1,3}", weight, 2..7)
            .prop_map(|members| members.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
    }

    fn built(members: &[(String, u32)]) -> Ring {
        let members = members
            .iter()
            .map(|(name, weight)| (name.as_str(), *weight));
        Ring::new(members).expect("a good ring")
    }

    proptest! {
        #[test]
        fn the_order_of_the_members_says_nothing(members in members(), tag in ".{0,20}") {
            let mut sorted = members.clone();
            sorted.sort_unstable();
            let (one, other) = (built(&members), built(&sorted));
            prop_assert_eq!(owner(&one, &tag), owner(&other, &tag));
        }

        #[test]
        fn who_leaves_moves_only_what_it_had(members in members(), tag in ".{0,20}") {
            let (all, rest) = (built(&members), built(&members[1..]));
            let before = owner(&all, &tag);
            if before != members[0].0 {
                prop_assert_eq!(owner(&rest, &tag), before);
            }
        }

        #[test]
        fn a_weight_moves_keys_only_to_who_gains(
            members in members(), weight in 1u32..=1000, tag in ".{0,20}"
        ) {
            let mut changed = members.clone();
            changed[0].1 = weight;
            let (one, other) = (built(&members), built(&changed));
            let (before, after) = (owner(&one, &tag), owner(&other, &tag));
            if before != after {
                let gained = if weight > members[0].1 { after } else { before };
                prop_assert_eq!(gained, &members[0].0);
            }
        }

        #[test]
        fn a_greater_draw_never_descends_more(one in any::<u64>(), step in 0u64..1 << 20) {
            prop_assert!(descent(one) >= descent(one.saturating_add(step)));
            let exact = 64.0 - (one.max(1) as f64).log2();
            let found = descent(one) as f64 / f64::from(DIGITS).exp2();
            prop_assert!((found - exact).abs() < 1e-9, "{found} is not {exact}");
        }
    }

    #[test]
    fn the_ends_of_a_descent() {
        assert_eq!(descent(0), 64 << DIGITS);
        assert_eq!(descent(1), 64 << DIGITS);
        assert_eq!(descent(1 << 63), 1 << DIGITS);
        assert_eq!(descent(u64::MAX), 1);
        assert!(u128::from(descent(0)) * u128::from(HEAVIEST) < 1 << 64);
    }

    const GOLDEN_ROWS: [&str; 20] = [
        "a c c cache-4.eu",
        "a a a cache-4.eu",
        "a c c cache-1.eu",
        "a a c cache-3.eu",
        "b b b cache-1.eu",
        "b b b cache-2.eu",
        "b b b cache-1.eu",
        "a a b cache-1.eu",
        "b b c cache-4.eu",
        "a c c cache-1.eu",
        "a c c cache-2.eu",
        "b c c cache-1.eu",
        "b b b cache-2.eu",
        "b b b cache-2.eu",
        "b b b cache-1.eu",
        "b b b cache-2.eu",
        "b b b cache-1.eu",
        "b b b cache-4.eu",
        "b c c cache-4.eu",
        "a a a cache-3.eu",
    ];
    const GOLDEN_HASH: u64 = 16_575_672_492_602_999_647;
}
