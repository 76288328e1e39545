//! What the tasks of a world do: drawn from the seed, whatever comes of it.
//!
//! Invariant: the n-th operation of a task depends on the seed, the process and the task only.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::check::KeyNumber;

/// What kind of world it is.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub near: bool,
    /// Values have short TTLs and long stale windows.
    pub windows: bool,
    /// The network loses, delays and repeats.
    pub network: bool,
    pub seed: u64,
}

/// One read of one or more keys.
#[derive(Debug, Clone)]
pub struct ReadPlan {
    pub keys: Vec<KeyNumber>,
    pub way: Way,
    /// By the handle without a near cache.
    pub strict: bool,
    pub window: Option<Duration>,
    /// When the caller leaves.
    pub leaves: Option<Duration>,
    pub load: LoadPlan,
    pub pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Get,
    GetMany,
    Memoize,
    /// With early refreshes and a soft timeout.
    Refreshing,
    /// With a loader that names its tags itself, and says that nothing has changed.
    Informed,
    MemoizeMany,
    /// By `entry`, and then stores the same value by `update`. Whatever has happened to the entry
    /// meanwhile, the value must not come back.
    Rewriting,
}

/// How a load goes, if the read needs one.
#[derive(Debug, Clone, Copy)]
pub struct LoadPlan {
    pub before: Duration,
    pub after: Duration,
    pub fails: bool,
}

/// One invalidation.
#[derive(Debug, Clone)]
pub struct WritePlan {
    pub keys: Vec<KeyNumber>,
    pub by: By,
    /// The truth of the keys changes first.
    pub raises: bool,
    /// It lies in wait for a load of the first key.
    pub waits: bool,
    pub pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Remove,
    RemoveMany,
    Set,
    SetMany,
    /// `update_with`, or `set` if there is nothing to update.
    Update,
    /// The tag of one key.
    OwnTag,
    /// The tag of a group of keys.
    GroupTag(usize),
    Clear,
    /// As the tag of a key, but softly.
    Softly,
}

impl ReadPlan {
    /// A read of one key that takes values which have been stale for as long as `window`.
    pub fn simple(key: KeyNumber, window: Duration) -> Self {
        Self {
            keys: vec![key],
            way: Way::Memoize,
            strict: true,
            window: Some(window),
            leaves: None,
            load: LoadPlan {
                before: Duration::ZERO,
                after: Duration::ZERO,
                fails: false,
            },
            pause: Duration::ZERO,
        }
    }
}

/// How many keys a world has.
pub const KEYS: usize = 8;
/// How many processes store what they change, too. Of the first keys, each of them has two that no
/// other process changes.
const STORING: usize = 2;
/// The last keys, which nobody reads while all is quiet.
pub const COLD: usize = 2;
pub const GROUPS: usize = 3;

/// The windows of stale values: one that ends soon, one that does not.
pub const SHORT: Duration = Duration::from_millis(40);
pub const LONG: Duration = Duration::from_secs(3600);

/// The operations of one task.
pub struct Plan {
    random: StdRng,
    terms: Terms,
    process: usize,
}

impl Plan {
    pub fn of(terms: Terms, process: usize, task: usize) -> Self {
        let own = (process as u64) << 32 | task as u64;
        Self {
            random: StdRng::seed_from_u64(terms.seed ^ own.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            terms,
            process,
        }
    }

    pub fn read(&mut self) -> ReadPlan {
        let random = &mut self.random;
        let ways = [
            Way::Get,
            Way::GetMany,
            Way::Memoize,
            Way::Memoize,
            Way::Refreshing,
            Way::Informed,
            Way::MemoizeMany,
            Way::Rewriting,
        ];
        let way = *ways.choose(random).expect("some");
        let windows = match way {
            Way::Get | Way::GetMany | Way::Rewriting => &[None][..],
            _ if self.terms.windows => &[None, Some(SHORT), Some(LONG)],
            _ => &[None],
        };
        // Half of all reads are of three keys.
        let most = if random.random() { 3 } else { KEYS };
        let first = random.random_range(0..most);
        let several = matches!(way, Way::GetMany | Way::MemoizeMany);
        let count = if several {
            random.random_range(1..5)
        } else {
            1
        };
        ReadPlan {
            keys: (0..count).map(|at| (first + 3 * at) % KEYS).collect(),
            way,
            strict: random.random_range(0..3) == 0,
            window: *windows.choose(random).expect("some"),
            leaves: (random.random_range(0..6) == 0).then(|| micros(random, 2000)),
            load: LoadPlan {
                before: little(random),
                after: little(random),
                // A loader that fails has named no tags, so its error outlives an invalidation.
                fails: way != Way::Informed && random.random_range(0..8) == 0,
            },
            pause: little(random),
        }
    }

    pub fn write(&mut self) -> WritePlan {
        let random = &mut self.random;
        let key = random.random_range(0..KEYS);
        // A `set` that was lost in the network may come late, and then holds.
        let stores = self.process < STORING && !self.terms.network;
        let own = [self.process, self.process + STORING];
        let (keys, by) = match random.random_range(0..16) {
            0..3 => (vec![key], By::Remove),
            3 => (
                vec![key, (key + 1) % KEYS, (key + 4) % KEYS],
                By::RemoveMany,
            ),
            4..7 => (vec![key], By::OwnTag),
            7 => {
                let group = random.random_range(0..GROUPS);
                let keys = (0..KEYS).filter(|key| key % GROUPS == group);
                (keys.collect(), By::GroupTag(group))
            }
            8 => ((0..KEYS).collect(), By::Clear),
            9 | 10 => (vec![key], By::Softly),
            _ if !stores => (vec![key], By::Remove),
            11 | 12 => (own.to_vec(), By::SetMany),
            by => {
                let by = if by == 13 { By::Set } else { By::Update };
                (vec![*own.choose(random).expect("two")], by)
            }
        };
        WritePlan {
            keys,
            by,
            raises: matches!(by, By::Set | By::SetMany | By::Update)
                || random.random_range(0..5) > 0,
            waits: random.random(),
            pause: 4 * little(random),
        }
    }
}

/// Whether `process` may change the truth of `key`.
pub fn may_raise(process: usize, key: KeyNumber) -> bool {
    key >= 2 * STORING || key % STORING == process
}

/// Mostly little, up to a few milliseconds, seldom more.
fn little(random: &mut StdRng) -> Duration {
    match random.random_range(0..16) {
        0..6 => Duration::ZERO,
        6..15 => micros(random, 3000),
        _ => micros(random, 30_000),
    }
}

fn micros(random: &mut StdRng, most: u64) -> Duration {
    Duration::from_micros(random.random_range(0..most))
}
