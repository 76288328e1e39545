//! A visitor: asks for a page, judges it, and counts the view.
//!
//! Invariant: a request is in the ledger before its view is added, and the view's id is the
//! request's place in the ledger. So whoever finds the ledger of a dead worker can add the last
//! view again: the id makes it count once, whether or not it had arrived.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hedgerow::Client;
use rand::RngExt;

use crate::args::Sabotage;
use crate::database::Database;
use crate::ledger::Row;
use crate::pages::{Pages, Subject, now_us};
use crate::popularity::Popularity;
use crate::worker::{Latencies, Stop};

pub(crate) struct Reader {
    pub(crate) pages: Pages,
    pub(crate) popularity: Arc<Popularity>,
    pub(crate) database: Database,
    pub(crate) views: Views,
    pub(crate) row: Row,
    /// The worker's number and the row's, which make a request's id unique.
    pub(crate) name: String,
    pub(crate) latencies: Latencies,
    pub(crate) stop: Stop,
}

impl Reader {
    pub(crate) async fn run(mut self) -> Result<()> {
        while !self.stop.is_set() {
            let subject = self.popularity.subject();
            self.read(&subject).await?;
            if rand::rng().random_bool(DIRECT_SHARE) {
                let began = Instant::now();
                self.pages.direct(&subject).await?;
                self.latencies.direct(began.elapsed());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(self.row.write()?)
    }

    async fn read(&mut self, subject: &Subject) -> Result<()> {
        self.row.tally.requests += 1;
        self.row.write()?;

        // In this order: the invalidation that we hold the page to had returned before we ask.
        let announced = self.database.announced(&subject.country)?;
        let began_us = now_us();
        let began = Instant::now();
        let answer = self.pages.page(subject).await;
        self.latencies.cached(began.elapsed());

        let tally = &mut self.row.tally;
        match answer {
            Ok(page) => {
                tally.answered += 1;
                // No page was there for us when we asked: without the herd's protection we would
                // have loaded it ourselves.
                tally.missed += u64::from(began_us < page.finished_us);
                tally.checked += u64::from(announced > 0);
                tally.stale += u64::from(page.version < announced);
            }
            Err(error) => {
                tally.failed += 1;
                eprintln!("reader {}: {error}", self.name);
            }
        }
        self.row.write()?;
        self.views
            .add(&format!("{}/{}", self.name, self.row.tally.requests))
            .await
    }
}

/// The view counter.
#[derive(Clone)]
pub(crate) struct Views {
    client: Client,
    sabotage: Option<Sabotage>,
}

impl Views {
    pub(crate) fn new(client: Client, sabotage: Option<Sabotage>) -> Self {
        Self { client, sabotage }
    }

    /// Counts the request of this id, once, however often it is called within [`WINDOW`].
    pub(crate) async fn add(&self, id: &str) -> Result<()> {
        let counter = self.client.counter("views");
        let give_up = Instant::now() + WINDOW / 2;
        loop {
            let add = counter.add(1);
            let added = match self.sabotage {
                Some(Sabotage::Counter) => add.await,
                _ => add.once(id, WINDOW).await,
            };
            match added {
                Ok(_) => return Ok(()),
                // Sent or not, applied or not: with an id it is right to send it again.
                Err(error) if error.is_indeterminate() || error.is_retryable() => {
                    if Instant::now() > give_up {
                        return Err(error).context("the view could not be counted");
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => return Err(error).context("the view could not be counted"),
            }
        }
    }

    pub(crate) async fn total(&self) -> Result<i64> {
        Ok(self.client.counter("views").get().await?)
    }
}

/// How long an id is remembered: longer than any retry of it.
const WINDOW: Duration = Duration::from_secs(30);
/// Between two requests of a reader.
const PAUSE: Duration = Duration::from_millis(4);
/// Share of the requests after which the same page is also loaded without the cache, to time it.
const DIRECT_SHARE: f64 = 0.01;
