//! The service: pages of cities and countries, cached for the whole fleet.
//!
//! Invariant: every page carries the version of its country that the loader read, and the moments
//! at which its load began and finished; that is what the referee's judgements rest on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use hedgerow::{Cache, Client};
use serde::{Deserialize, Serialize};

use crate::database::Pool;
use crate::ledger::Row;

/// What is cached: a body, and how it came about.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) version: u64,
    pub(crate) finished_us: u64,
    pub(crate) body: Body,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    City(City),
    Country(Country),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct City {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) country: String,
    pub(crate) lat: f64,
    pub(crate) lng: f64,
    pub(crate) nearby: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Country {
    pub(crate) code: String,
    pub(crate) places: Vec<String>,
    pub(crate) regions: Vec<(String, u32)>,
}

/// What a page is about.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    city: Option<i64>,
    pub(crate) country: String,
}

impl Subject {
    pub(crate) fn city(id: i64, country: &str) -> Self {
        Self {
            city: Some(id),
            country: country.to_owned(),
        }
    }

    pub(crate) fn country(code: &str) -> Self {
        Self {
            city: None,
            country: code.to_owned(),
        }
    }

    fn key(&self) -> String {
        match self.city {
            Some(id) => format!("city:{id}"),
            None => format!("country:{}", self.country),
        }
    }
}

/// The tag on every page that shows something of a country.
pub(crate) fn tag(country: &str) -> String {
    format!("country:{country}")
}

/// The pages of the service. A cheap handle.
#[derive(Clone)]
pub(crate) struct Pages {
    cache: Cache,
    pool: Pool,
    think: Duration,
    loads: Arc<Mutex<Row>>,
}

impl Pages {
    pub(crate) fn new(client: &Client, pool: Pool, think: Duration, loads: Row) -> Self {
        Self {
            cache: client.cache("atlas").max_load(MAX_LOAD).takeover(TAKEOVER),
            pool,
            think,
            loads: Arc::new(Mutex::new(loads)),
        }
    }

    /// The page, from the cache or from one load for the whole fleet.
    pub(crate) async fn page(&self, subject: &Subject) -> hedgerow::Result<Arc<Page>> {
        let (pages, wanted) = (self.clone(), subject.clone());
        self.cache
            .memoize(&subject.key(), TTL, move || async move {
                pages.load(&wanted).await
            })
            .tags([tag(&subject.country)])
            .await
    }

    /// The same page without the cache.
    pub(crate) async fn direct(&self, subject: &Subject) -> Result<Page> {
        let subject = subject.clone();
        let load = move |database: &mut crate::database::Database| match subject.city {
            Some(id) => database.city(id),
            None => database.country(&subject.country),
        };
        let (version, body) = self.pool.run(load).await?;
        tokio::time::sleep(self.think).await;
        Ok(Page {
            version,
            finished_us: now_us(),
            body,
        })
    }

    /// Every page that shows something of the country is out of date from here on.
    pub(crate) async fn invalidate(&self, country: &str) -> hedgerow::Result<()> {
        self.cache.invalidate_tags([tag(country)]).await
    }

    async fn load(&self, subject: &Subject) -> Result<Page> {
        self.count(|row| row.tally.loads_begun += 1)?;
        let page = self.direct(subject).await?;
        self.count(|row| row.tally.loads_finished += 1)?;
        Ok(page)
    }

    fn count(&self, change: impl FnOnce(&mut Row)) -> Result<()> {
        let mut row = self.loads.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut row);
        Ok(row.write()?)
    }
}

/// Microseconds of the machine's clock, which all processes share.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as u64)
}

const TTL: Duration = Duration::from_secs(5);
/// No load takes longer; a caller of one that hangs is told so.
const MAX_LOAD: Duration = Duration::from_secs(5);
/// What the death of a loading process costs those who wait for its page, at most.
const TAKEOVER: Duration = Duration::from_millis(500);
