//! How two holders of one lock would be seen.
//!
//! A guard that says it is held *now* was held at every moment since its grant, and fences rise in
//! the order of the grants. So each of these proves that two guards of one lock were held at once:
//!
//! 1. On entering I find a fence not smaller than mine, and my guard still says held: a later
//!    grant, or the same twice, happened during mine.
//! 2. On leaving I find that another has entered after me, and my guard still says held.
//! 3. On entering I find a holder that never left, before the moment until which its guard was
//!    good when it entered. A living holder leaves before it releases; a killed one keeps its lease
//!    to the end, so nobody may be here yet. This is the one that watches over the killed.
//!
//! None accuses wrongly: a holder that was paused past its lease finds rows of others, but its
//! guard no longer says held; a killed holder's row is overwritten, once its lease is over.

use anyhow::Result;
use rusqlite::{OptionalExtension, params};

use crate::database::Pool;
use crate::pages::now_us;

/// A critical section that has been entered.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) country: String,
    pub(crate) fence: u64,
    pub(crate) holder: String,
    /// Until when the guard is good if nothing renews it.
    pub(crate) held_until_us: u64,
}

/// What an entrant found. `later` counts only if its guard is still held after the entry.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) later: bool,
    pub(crate) early: bool,
    pub(crate) from_another: bool,
}

/// Enters, in one transaction: the order of entries is the order of commits.
pub(crate) async fn enter(pool: &Pool, section: Section) -> Result<Entry> {
    let work = move |database: &mut crate::database::Database| {
        let transaction = database.writing()?;
        let before = transaction
            .prepare_cached(
                "SELECT fence, holder, inside, held_until_us FROM section WHERE country = ?1",
            )?
            .query_row([&section.country], |row| {
                let (fence, holder): (u64, String) = (row.get(0)?, row.get(1)?);
                let (inside, held_until_us): (bool, u64) = (row.get(2)?, row.get(3)?);
                Ok((fence, holder, inside, held_until_us))
            })
            .optional()?;
        let mut entry = Entry::default();
        if let Some((fence, holder, inside, held_until_us)) = before {
            entry.later = fence >= section.fence;
            entry.early = inside && !entry.later && now_us() < held_until_us;
            entry.from_another = holder != section.holder;
        }
        if !entry.later {
            transaction
                .prepare_cached("REPLACE INTO section VALUES (?1, ?2, ?3, TRUE, ?4)")?
                .execute(params![
                    section.country,
                    section.fence,
                    section.holder,
                    section.held_until_us
                ])?;
        }
        transaction.commit()?;
        Ok(entry)
    };
    pool.run(work).await
}

/// Leaves; whether the section was still the holder's own. Leave before you release.
pub(crate) async fn leave(pool: &Pool, section: Section) -> Result<bool> {
    let work = move |database: &mut crate::database::Database| {
        let transaction = database.writing()?;
        let own = transaction
            .prepare_cached("UPDATE section SET inside = FALSE WHERE country = ?1 AND fence = ?2 AND holder = ?3")?
            .execute(params![section.country, section.fence, section.holder])?;
        transaction.commit()?;
        Ok(own == 1)
    };
    pool.run(work).await
}
