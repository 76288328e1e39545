//! `explain`: why a read of a key finds what it finds.
//!
//! Invariant: it judges as every read does, at the primary, and changes nothing. Users call this.

use std::time::{Duration, SystemTime};

use crate::cache::Cache;
use crate::cache::entry_keys::EntryKeys;
use crate::cache::explanation::{
    EntryInfo, Explanation, FailureInfo, LoadInfo, NearInfo, TagInfo, TagVerdict, Verdict,
};
use crate::cache::load::failure::Failure;
use crate::cache::read::judge::{Age, Judged, Left, Rules, Want, Why, judge};
use crate::cache::read::mark::Mark;
use crate::client::Request;
use crate::codec::{Envelope, Outcome, Stamp, Unreadable};
use crate::error::Result;
use crate::key::{Key, TagId};
use crate::net::pipeline::replies::Values;
use crate::script::script;
use crate::tags::{Generation, TagValue};
use crate::time::Deadline;

script!(EXPLAIN = "explain.lua" after "../entry.lua");

impl Cache {
    /// Reports why a read of `key` hits or misses: what is stored, which of its tags was
    /// invalidated, who loads, and what the near cache of this handle holds. It is for people:
    /// print it.
    ///
    /// It reads at the primary, in two trips, and changes nothing. The value itself is not decoded,
    /// so an entry of another type counts as a hit here.
    ///
    /// ```no_run
    /// # async fn example(cache: hedgerow::Cache) -> hedgerow::Result<()> {
    /// println!("{}", cache.explain("city:42").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `InvalidInput` if the key is invalid, `WrongType` if Redis holds another type there, and
    /// whatever Redis refuses or does not answer, also under
    /// [`Outage::Bypass`](crate::Outage::Bypass).
    ///
    /// # Cancel safety
    /// Safe.
    pub fn explain<'c>(&'c self, key: &'c str) -> Request<'c, Explanation> {
        Request::new(self.setup.patience, move |patience| async move {
            let place = self.place(self.client.name(key))?;
            let explained = self.explained(&place, self.deadline_by(patience)).await;
            explained.map_err(|error| error.about(&place.name))
        })
    }

    async fn explained(&self, place: &EntryKeys, deadline: Deadline) -> Result<Explanation> {
        let call = EXPLAIN.call(place.keys());
        let mut reply = self.client.run(call, deadline).await?;
        if reply.status()? != "OK" {
            return Err(reply.unexpected());
        }
        let entry = reply.take_bytes(1)?.unwrap_or_default();
        let left = u64::try_from(reply.int(2)?).ok().map(Duration::from_millis);
        let load = match u64::try_from(reply.int(3)?) {
            Ok(since) => Some(LoadInfo {
                owner: reply.text(8)?.to_owned(),
                fence: u64::try_from(reply.int(9)?).unwrap_or_default(),
                since: Duration::from_millis(since),
                takeover_in: Duration::from_millis(reply.count(4)?),
                waiting: reply.count(7)?,
            }),
            Err(_) => None,
        };
        let now = reply.count(10)?;
        let record = reply.take_bytes(5)?.unwrap_or_default();
        let failure = (!record.is_empty()).then(|| FailureInfo {
            text: self.failure_text(place, &record),
            left: Duration::from_millis(u64::try_from(reply.int(6).unwrap_or(0)).unwrap_or(0)),
        });
        let parsed = Envelope::parse(&entry).ok();
        let stamps: Vec<Stamp> = parsed.iter().flat_map(Envelope::stamps).collect();
        // Read after the entry, so they may judge it.
        let keys = self.tag_keys(place, &stamps)?;
        let values = match keys.is_empty() {
            true => Values::new(),
            false => self.client.read(&keys, deadline).await?,
        };
        let present = |at: usize| TagValue::of(values[at].as_ref());
        let judged = judge::<Mark>(
            (!entry.is_empty()).then_some(&entry[..]),
            Rules {
                whole: Some(self.names()?.whole.id),
                want: Want::STALE,
                draw: None,
                left: left.map_or(Left::Long, |left| Left::Millis(left.as_millis() as u64)),
            },
            |tag| {
                let at = stamps.iter().position(|stamp| stamp.tag == tag.0)?;
                Some(present(at))
            },
            &self.setup.stack.decoder(place.value.as_str()),
        );
        let verdict = verdict(judged);
        let tags = stamps.iter().enumerate();
        let tags = tags.map(|(at, stamp)| tag_info(*stamp, present(at), now));
        Ok(Explanation {
            at: moment(now),
            key: place.name.shown().as_str().to_owned(),
            entry: parsed.map(|parsed| entry_info(&parsed, entry.len(), left, &verdict)),
            tags: tags.collect(),
            verdict,
            load,
            failure,
            near: self.near_info(place),
        })
    }

    /// What the near cache holds of the entry, if the handle has one.
    #[cfg(feature = "near")]
    fn near_info(&self, place: &EntryKeys) -> Option<NearInfo> {
        let near = self.setup.near.as_ref()?;
        Some(near.info(&self.client, &place.value))
    }

    #[cfg(not(feature = "near"))]
    #[expect(clippy::unused_self)]
    fn near_info(&self, _: &EntryKeys) -> Option<NearInfo> {
        None
    }

    /// What the record of a failed load says.
    fn failure_text(&self, place: &EntryKeys, record: &[u8]) -> Option<String> {
        let envelope = Envelope::parse(record).ok()?;
        let stack = self.setup.stack.of_records();
        let failure: Failure = stack.decoder(place.lease.as_str()).decode(&envelope).ok()?;
        Some(failure.error().to_string())
    }

    fn tag_keys(&self, place: &EntryKeys, stamps: &[Stamp]) -> Result<Vec<Key>> {
        let (client, whole) = (&self.client, &self.names()?.whole);
        let keys = stamps.iter().map(|stamp| match TagId(stamp.tag) {
            tag if tag == whole.id => whole.colocated_key(client, &place.value),
            tag => client.namespace().tag(tag),
        });
        Ok(keys.collect())
    }
}

fn verdict(judged: Judged<Mark>) -> Verdict {
    match judged {
        Judged::Hit(_) => Verdict::Hit,
        Judged::Old(old) => match old.age {
            Age::Due => Verdict::Hit,
            Age::Stale(age) => Verdict::Stale(age),
        },
        Judged::Miss(Why::Absent) => Verdict::Absent,
        Judged::Miss(Why::Unreadable(Unreadable::Damaged(error))) => {
            Verdict::Damaged(error.to_string())
        }
        Judged::Miss(Why::Unreadable(Unreadable::Foreign(error))) => {
            Verdict::Foreign(error.to_string())
        }
        Judged::Miss(Why::Invalidated | Why::Expired) | Judged::Needs(_) | Judged::NeedsTime => {
            Verdict::Invalidated
        }
    }
}

fn entry_info(
    parsed: &Envelope<'_>,
    bytes: usize,
    left: Option<Duration>,
    verdict: &Verdict,
) -> EntryInfo {
    let window = parsed.stale_until.saturating_sub(parsed.fresh_until);
    let fresh = left.map_or(Duration::MAX, |left| {
        left.saturating_sub(Duration::from_millis(window))
    });
    EntryInfo {
        // Without an end, its deadlines are far away.
        fresh_until: left.map(|_| moment(parsed.fresh_until)),
        revision: parsed.revision,
        bytes,
        codec: parsed.codec,
        compression: parsed.compression,
        is_none: parsed.outcome == Outcome::None,
        fresh_for: match verdict {
            Verdict::Hit => fresh,
            _ => Duration::ZERO,
        },
        left,
        load_took: parsed.cost,
    }
}

fn moment(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

fn tag_info(stamp: Stamp, present: Option<TagValue<'_>>, now: u64) -> TagInfo {
    let stamped = Generation::from_stamp(stamp.generation);
    let state = match present {
        None => TagVerdict::Missing,
        Some(present) if present.generation() == stamped => TagVerdict::Current,
        Some(present) if present.replaced_softly(stamped).is_some() => {
            TagVerdict::InvalidatedSoftly
        }
        Some(_) => TagVerdict::Invalidated,
    };
    let name = present.map(|present| String::from_utf8_lossy(present.name()).into_owned());
    let since = present.map(|present| present.state().since);
    TagInfo {
        stamped: stamp.generation,
        present: present.map(|present| present.generation().stamp()),
        // Zero if it is not known. While loads are held back, it is to come.
        since: since
            .filter(|since| *since > 0)
            .map(|since| Duration::from_millis(now.saturating_sub(since))),
        name: name.unwrap_or_else(|| format!("{:032x}", stamp.tag)),
        state,
    }
}
