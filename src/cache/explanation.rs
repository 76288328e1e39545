//! `Explanation`: why a read of a key finds what it finds.
//!
//! Invariant: it tells of one moment, and holds no value of the user. `explain` makes it.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::codec::{Codec, Compression};

/// Why a read of a key hits, misses, or would be served stale: what [`Cache::explain`] reports.
///
/// Its `Display` is meant for people.
///
/// [`Cache::explain`]: super::Cache::explain
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Explanation {
    /// When this was so, by the clock of the server.
    pub at: SystemTime,
    /// The key, as it may be shown.
    pub key: String,
    /// What a read comes to.
    pub verdict: Verdict,
    /// What is stored. `None` if nothing is, or if it cannot be read.
    pub entry: Option<EntryInfo>,
    /// The tags of the entry. That of the whole cache comes first.
    pub tags: Vec<TagInfo>,
    /// The load that is under way, in the whole fleet.
    pub load: Option<LoadInfo>,
    /// What is remembered of a load that has failed.
    pub failure: Option<FailureInfo>,
    /// What the near cache of the handle holds. `None` if the handle has none.
    pub near: Option<NearInfo>,
}

/// What a read of a key comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// There is a valid and fresh entry.
    Hit,
    /// The entry is stale since this time. Calls that allow it may be served its value.
    Stale(Duration),
    /// There is no entry.
    Absent,
    /// A tag of the entry was invalidated after its load, or does not exist any more.
    Invalidated,
    /// The entry is damaged: bytes were changed, lost or added.
    Damaged(String),
    /// The entry is whole, but this build cannot read it.
    Foreign(String),
}

/// An entry, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntryInfo {
    /// A random number that this entry has and no other, not even an equal one: two processes that
    /// see the same number see the same entry.
    pub revision: u64,
    /// Until when the entry is fresh if no tag is invalidated, by the clock of the server. `None`
    /// if its key has no end. When it was stored is not kept: that was its TTL before this moment,
    /// give or take the jitter.
    pub fresh_until: Option<SystemTime>,
    /// The size in Redis, in bytes.
    pub bytes: usize,
    /// How the value was encoded.
    pub codec: Codec,
    /// How it was compressed.
    pub compression: Compression,
    /// Whether the load found nothing: the value is `None`.
    pub is_none: bool,
    /// How long the entry is still fresh. Zero if it is stale.
    pub fresh_for: Duration,
    /// How long its key still lives. `None` if it has no end.
    pub left: Option<Duration>,
    /// How long the load took. Zero for a value that was set.
    pub load_took: Duration,
}

/// A tag of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TagInfo {
    /// The name as the server has it: at most 200 bytes, or the digits of a hidden name. The id of
    /// the tag if the server does not have the tag.
    pub name: String,
    /// What the tag says of the entry.
    pub state: TagVerdict,
    /// The generation of the tag that is stamped on the entry: a random number.
    pub stamped: u64,
    /// The generation that the tag has now. The entry is valid by this tag if it is the stamped
    /// one. `None` if the server does not have the tag.
    pub present: Option<u64>,
    /// How long the tag has had its present generation: since it was last invalidated, or made.
    /// Zero while it [holds loads back](super::Invalidate::hold). `None` if that is not known. Two
    /// servers are involved if the tag is on another one than the entry, and their clocks may
    /// differ.
    pub since: Option<Duration>,
}

/// What a tag says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TagVerdict {
    /// The tag was not invalidated since the load.
    Current,
    /// The tag was invalidated softly since the load.
    InvalidatedSoftly,
    /// The tag was invalidated since the load.
    Invalidated,
    /// The server does not have the tag: it has expired, or was evicted.
    Missing,
}

/// A load that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadInfo {
    /// Which leader it is: eight hexadecimal digits of the digest of its token. The token itself is
    /// a secret.
    pub owner: String,
    /// The fence of its lease, as the event `lead` of the process that loads has it.
    pub fence: u64,
    /// How long ago the right to load was granted.
    pub since: Duration,
    /// When another process may take over if the leader stays silent. Zero if it has been silent
    /// for so long: then the next call that misses takes over.
    pub takeover_in: Duration,
    /// How many other processes wait for it.
    pub waiting: u64,
}

/// What is remembered of a failed load.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureInfo {
    /// The text that callers get, cut at 200 bytes. `None` if it cannot be read.
    pub text: Option<String>,
    /// How long it is still remembered.
    pub left: Duration,
}

/// What a near cache holds of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NearInfo {
    /// Nothing. The next read asks Redis.
    Absent,
    /// A read is under way, and what it finds is to be kept.
    Pending,
    /// What was read so long ago: a value, or that there is none. The next read is served from
    /// there, for this time at the longest.
    Held {
        /// How long ago it was read.
        since: Duration,
        /// How long it is held at the longest.
        left: Duration,
    },
    /// It was read so long ago, and is not served any more.
    Unserved {
        /// How long ago it was read.
        since: Duration,
        /// Why it is not served.
        why: NearWhy,
    },
}

/// Why what a near cache holds is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NearWhy {
    /// Its time is over.
    Expired,
    /// A tag of it has changed since.
    Tag,
    /// It is not sure that the server tells of changes: a connection to it was lost since, or it
    /// has not shown in time that its pushes arrive.
    Unverified,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.verdict)?;
        if let Some(entry) = &self.entry {
            write!(f, "\n  entry: {entry}")?;
        }
        for tag in &self.tags {
            write!(f, "\n  tag {tag}")?;
        }
        if let Some(load) = &self.load {
            write!(f, "\n  {load}")?;
        }
        if let Some(failure) = &self.failure {
            let text = failure.text.as_deref().unwrap_or("unreadable");
            write!(
                f,
                "\n  the last load failed, for {:.1?} more: {text}",
                failure.left
            )?;
        }
        match &self.near {
            Some(near) => write!(f, "\n  near cache: {near}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit => f.write_str("a hit"),
            Self::Stale(age) => write!(f, "stale since {age:.1?}"),
            Self::Absent => f.write_str("a miss, nothing is stored"),
            Self::Invalidated => f.write_str("a miss, the entry was invalidated"),
            Self::Damaged(how) => write!(f, "a miss, {how}"),
            Self::Foreign(how) => write!(f, "a miss, {how}"),
        }
    }
}

impl fmt::Display for LoadInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            owner,
            fence,
            since,
            takeover_in,
            waiting,
        } = self;
        write!(
            f,
            "a load began {since:.1?} ago (owner {owner}, fence {fence}), {waiting} other processes wait, "
        )?;
        match takeover_in.is_zero() {
            true => f.write_str("its leader is silent: the next call takes over"),
            false => write!(f, "takeover in {takeover_in:.1?} if it stays silent"),
        }
    }
}

impl fmt::Display for NearInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("holds nothing, the next read asks Redis"),
            Self::Pending => f.write_str("a read is under way, and is to be kept"),
            Self::Held { since, left } => write!(
                f,
                "serves what was read {since:.1?} ago, for {left:.1?} more at the longest"
            ),
            Self::Unserved { since, why } => {
                write!(f, "does not serve what was read {since:.1?} ago: ")?;
                f.write_str(match why {
                    NearWhy::Expired => "its time is over",
                    NearWhy::Tag => "a tag of it has changed",
                    NearWhy::Unverified => "the server has not shown that its pushes arrive",
                })
            }
        }
    }
}

impl fmt::Display for EntryInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {:?}", self.bytes, self.codec)?;
        if self.compression != Compression::None {
            write!(f, " and {:?}", self.compression)?;
        }
        if self.is_none {
            f.write_str(", no value")?;
        }
        write!(f, ", fresh for {:.1?}", self.fresh_for)?;
        match self.left {
            Some(left) => write!(f, ", kept for {left:.1?}")?,
            None => f.write_str(", kept for ever")?,
        }
        match self.load_took.is_zero() {
            true => Ok(()),
            false => write!(f, ", loaded in {:.1?}", self.load_took),
        }
    }
}

/// Name, verdict, and then the generations, so that two processes can be compared.
impl fmt::Display for TagInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.state)?;
        write!(f, " (stamped {:016x}", self.stamped)?;
        match self.present {
            Some(present) if present != self.stamped => write!(f, ", now {present:016x}")?,
            _ => {}
        }
        match self.since {
            Some(since) => write!(f, ", since {since:.1?})"),
            None => f.write_str(")"),
        }
    }
}

impl fmt::Display for TagVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Current => "not invalidated since the load",
            Self::InvalidatedSoftly => "invalidated softly since the load",
            Self::Invalidated => "invalidated since the load",
            Self::Missing => "the server does not have it; it has expired or was evicted",
        })
    }
}
