//! An editor: locks a country, renames a place in it, invalidates what shows it.
//!
//! Invariant: invalidate after the commit, announce after the invalidation has returned, leave the
//! section before the release.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hedgerow::{Client, ErrorKind, Guard};
use rand::RngExt;

use crate::args::Sabotage;
use crate::database::{Draft, Pool};
use crate::ledger::Row;
use crate::pages::{Pages, now_us};
use crate::popularity::Popularity;
use crate::referee::{self, Section};
use crate::worker::Stop;

pub(crate) struct Writer {
    pub(crate) client: Client,
    pub(crate) pages: Pages,
    pub(crate) popularity: Arc<Popularity>,
    pub(crate) pool: Pool,
    pub(crate) row: Row,
    /// Unique in the run.
    pub(crate) name: String,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) stop: Stop,
}

impl Writer {
    pub(crate) async fn run(mut self) -> Result<()> {
        while !self.stop.is_set() {
            let country = self.popularity.country().to_owned();
            self.edit(country).await?;
            let pause = rand::rng().random_range(PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Ok(())
    }

    async fn edit(&mut self, country: String) -> Result<()> {
        let name = match self.sabotage {
            Some(Sabotage::Lock) => format!("country:{country}:{}", self.name),
            _ => format!("country:{country}"),
        };
        let guard = match self
            .client
            .lock(&name)
            .lease(LEASE)
            .wait(WAIT)
            .acquire()
            .await
        {
            Ok(guard) => guard,
            Err(error) if error.kind() == ErrorKind::Contended => {
                self.row.tally.gave_up += 1;
                return Ok(self.row.write()?);
            }
            Err(error) => return Err(error).context("the lock could not be acquired"),
        };
        self.row.tally.entered += 1;
        self.row.write()?;

        self.hold(&guard, country).await?;

        self.row.tally.left += 1;
        self.row.write()?;
        match guard.release().await {
            Err(error) if error.kind() == ErrorKind::Lost => self.row.tally.lost += 1,
            released => released.context("the lock could not be released")?,
        }
        Ok(self.row.write()?)
    }

    /// The critical section, between the referee's two questions.
    async fn hold(&mut self, guard: &Guard, country: String) -> Result<()> {
        let section = Section {
            country,
            fence: guard.fence().get(),
            holder: self.name.clone(),
            held_until_us: now_us() + guard.remaining().as_micros() as u64,
        };
        let entry = referee::enter(&self.pool, section.clone()).await?;
        self.row.tally.handoffs += u64::from(entry.from_another);
        self.row.tally.overlaps += u64::from(entry.early);
        if entry.later {
            self.row.tally.overlaps += u64::from(guard.is_held());
            return Ok(());
        }

        self.rename(&section.country, section.fence).await?;

        let own = referee::leave(&self.pool, section).await?;
        self.row.tally.overlaps += u64::from(!own && guard.is_held());
        Ok(())
    }

    async fn rename(&mut self, country: &str, fence: u64) -> Result<()> {
        let (of, pick) = (country.to_owned(), rand::random::<u32>());
        let draft = self
            .pool
            .run(move |database| database.draft(&of, pick, fence))
            .await?;
        let Some(draft) = draft else {
            self.row.tally.refused += 1;
            return Ok(());
        };
        tokio::time::sleep(TYPING).await;
        let Some(version) = self.commit(draft, fence).await? else {
            self.row.tally.refused += 1;
            return Ok(());
        };
        self.row.tally.renames += 1;
        self.publish(country, version).await
    }

    async fn commit(&self, draft: Draft, fence: u64) -> Result<Option<u64>> {
        self.pool
            .run(move |database| database.rename(&draft, fence))
            .await
    }

    /// Invalidates a country's pages, then announces that they are.
    pub(crate) async fn publish(&mut self, country: &str, version: u64) -> Result<()> {
        if self.sabotage != Some(Sabotage::Invalidation) {
            self.invalidate(country).await?;
        }
        self.row.tally.invalidations += 1;
        let country = country.to_owned();
        self.pool
            .run(move |database| database.announce(&country, version))
            .await
    }

    /// A writer that died between its commit and its invalidation left old pages behind, good
    /// until their TTL. The next writer makes up for it.
    pub(crate) async fn make_up(&mut self) -> Result<()> {
        for (country, version) in self.pool.run(|database| database.unannounced()).await? {
            self.publish(&country, version).await?;
        }
        Ok(())
    }

    async fn invalidate(&self, country: &str) -> Result<()> {
        for _ in 0..TRIES {
            match self.pages.invalidate(country).await {
                // Twice does no harm, so what may or may not have arrived is sent again.
                Err(error) if error.is_indeterminate() || error.is_retryable() => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done.context("the tag could not be invalidated"),
            }
        }
        anyhow::bail!("the tag of {country} could not be invalidated in {TRIES} tries")
    }
}

/// What the death of a holder costs those who wait for its lock, at most.
const LEASE: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(5);
/// How long an editor types, inside the lock.
const TYPING: Duration = Duration::from_millis(10);
/// Between two edits of a writer.
const PAUSE_MS: std::ops::Range<u64> = 50..450;
const TRIES: u32 = 50;
