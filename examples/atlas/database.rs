//! SQLite: the truth behind the pages.
//!
//! Invariant: a country's `version` rises by one with each rename in it, in the transaction of the
//! rename; `announced` is the newest version whose invalidation is known to have returned. A
//! rename whose fence is older than the newest one seen is refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::pages::{Body, City, Country};

/// One connection.
#[derive(Debug)]
pub(crate) struct Database {
    connection: Connection,
}

/// Every city with its country, and every country: small enough to hold.
pub(crate) struct Catalogue {
    pub(crate) cities: Vec<(i64, String)>,
    pub(crate) countries: Vec<String>,
}

/// A place that a writer is about to rename, as it was when the writer looked at it.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) country: String,
    place: i64,
    old: String,
    version: u64,
}

impl Database {
    /// Makes the database and fills it with the places of a CSV file.
    pub(crate) fn create(path: &Path, places: &str) -> Result<()> {
        let mut database = Self::open(path)?;
        database.connection.execute_batch(SCHEMA)?;
        let transaction = database.connection.transaction()?;
        for record in csv::Reader::from_reader(places.as_bytes()).deserialize() {
            let (country, region, name, lat, lng): (String, String, String, f64, f64) = record?;
            transaction
                .prepare_cached("INSERT OR IGNORE INTO country (code) VALUES (?1)")?
                .execute([&country])?;
            transaction
                .prepare_cached(
                    "INSERT INTO place (country, region, name, lat, lng) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![country, region, name, lat, lng])?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub(crate) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)
            .with_context(|| format!("cannot open the database {}", path.display()))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // The run ends with its directory: a commit has to outlive the process, not the machine.
        connection.pragma_update(None, "synchronous", "OFF")?;
        Ok(Self { connection })
    }

    pub(crate) fn catalogue(&self) -> Result<Catalogue> {
        let mut cities = self
            .connection
            .prepare("SELECT id, country FROM place ORDER BY id")?;
        let mut countries = self
            .connection
            .prepare("SELECT code FROM country ORDER BY code")?;
        Ok(Catalogue {
            cities: cities
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?,
            countries: countries
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?,
        })
    }

    /// A city, its neighbours, and the version of its country, all of one moment.
    pub(crate) fn city(&mut self, id: i64) -> Result<(u64, Body)> {
        let moment = self.connection.transaction()?;
        let mut city = moment
            .prepare_cached("SELECT name, region, country, lat, lng FROM place WHERE id = ?1")?
            .query_row([id], |row| {
                Ok(City {
                    name: row.get(0)?,
                    region: row.get(1)?,
                    country: row.get(2)?,
                    lat: row.get(3)?,
                    lng: row.get(4)?,
                    nearby: Vec::new(),
                })
            })?;
        city.nearby = moment
            .prepare_cached(
                "SELECT name FROM place WHERE country = ?1 AND id <> ?2
                 ORDER BY (lat - ?3) * (lat - ?3) + (lng - ?4) * (lng - ?4) LIMIT 5",
            )?
            .query_map(params![city.country, id, city.lat, city.lng], |row| {
                row.get(0)
            })?
            .collect::<Result<_, _>>()?;
        let version = version(&moment, &city.country)?;
        Ok((version, Body::City(city)))
    }

    /// A country's places and regions with its version, all of one moment.
    pub(crate) fn country(&mut self, code: &str) -> Result<(u64, Body)> {
        let moment = self.connection.transaction()?;
        let places = moment
            .prepare_cached("SELECT name FROM place WHERE country = ?1 ORDER BY name")?
            .query_map([code], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let regions = moment
            .prepare_cached(
                "SELECT region, count(*) FROM place WHERE country = ?1 GROUP BY region ORDER BY 2 DESC",
            )?
            .query_map([code], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let version = version(&moment, code)?;
        Ok((
            version,
            Body::Country(Country {
                code: code.to_owned(),
                places,
                regions,
            }),
        ))
    }

    /// The newest version of a country whose invalidation has returned.
    pub(crate) fn announced(&self, country: &str) -> Result<u64> {
        Ok(self
            .connection
            .prepare_cached("SELECT announced FROM country WHERE code = ?1")?
            .query_row([country], |row| row.get(0))?)
    }

    /// Looks at one place of a country, `pick` counting from any number. `None` when a newer fence
    /// has been here.
    ///
    /// The fence goes in with the first look and not only with the write: an older holder that
    /// wakes between the two would otherwise still be let in, and its rename be overwritten.
    pub(crate) fn draft(&mut self, country: &str, pick: u32, fence: u64) -> Result<Option<Draft>> {
        let transaction = self.writing()?;
        if !raise_fence(&transaction, country, fence)? {
            return Ok(None);
        }
        let draft = transaction
            .prepare_cached(
                "SELECT id, name, version FROM place JOIN country ON code = country WHERE code = ?1
                 ORDER BY id
                 LIMIT 1 OFFSET ?2 % (SELECT count(*) FROM place WHERE country = ?1)",
            )?
            .query_row(params![country, pick], |row| {
                Ok(Draft {
                    country: country.to_owned(),
                    place: row.get(0)?,
                    old: row.get(1)?,
                    version: row.get(2)?,
                })
            })?;
        transaction.commit()?;
        Ok(Some(draft))
    }

    /// Renames the drafted place. `None` when a newer fence has been here.
    ///
    /// The new version is the drafted one plus one and not `version + 1`: only the lock, or the
    /// fence when the lock fails, keeps two writers from taking the same number.
    pub(crate) fn rename(&mut self, draft: &Draft, fence: u64) -> Result<Option<u64>> {
        let version = draft.version + 1;
        let transaction = self.writing()?;
        if !raise_fence(&transaction, &draft.country, fence)? {
            return Ok(None);
        }
        let name = edited(&draft.old, version);
        transaction
            .prepare_cached("UPDATE place SET name = ?2 WHERE id = ?1")?
            .execute(params![draft.place, name])?;
        transaction
            .prepare_cached("UPDATE country SET version = ?2 WHERE code = ?1")?
            .execute(params![draft.country, version])?;
        transaction
            .prepare_cached(
                "INSERT INTO rename (country, fence, place, old, new) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![draft.country, fence, draft.place, draft.old, name])?;
        transaction.commit()?;
        Ok(Some(version))
    }

    /// Records that the invalidation for `version` has returned. Call it after it has.
    pub(crate) fn announce(&mut self, country: &str, version: u64) -> Result<()> {
        self.connection
            .prepare_cached("UPDATE country SET announced = max(announced, ?2) WHERE code = ?1")?
            .execute(params![country, version])?;
        Ok(())
    }

    /// Countries with a rename that was committed and maybe never invalidated: its writer died.
    pub(crate) fn unannounced(&self) -> Result<Vec<(String, u64)>> {
        let mut countries = self
            .connection
            .prepare("SELECT code, version FROM country WHERE announced < version")?;
        Ok(countries
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?)
    }

    /// Renames in the log that left no trace in their country's version.
    pub(crate) fn lost_updates(&self) -> Result<i64> {
        let sql = "SELECT (SELECT count(*) FROM rename) - (SELECT sum(version) FROM country)";
        Ok(self.connection.query_row(sql, [], |row| row.get(0))?)
    }

    /// The last rename, for the curious.
    pub(crate) fn last_rename(&self) -> Result<Option<(String, String, String)>> {
        let sql = "SELECT country, old, new FROM rename ORDER BY id DESC LIMIT 1";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        Ok(self.connection.query_row(sql, [], row).optional()?)
    }

    /// A transaction that has the write lock from its start: it never fails halfway as busy.
    pub(crate) fn writing(&mut self) -> Result<Transaction<'_>> {
        Ok(self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?)
    }
}

/// Connections for work that may block, off the runtime's thread.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Database>>>,
}

impl Pool {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            idle: Arc::default(),
        }
    }

    /// Runs `work` with a connection on a blocking thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pool = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let idle = pool
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let mut database = match idle {
                Some(database) => database,
                None => Database::open(&pool.path)?,
            };
            let result = work(&mut database);
            pool.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(database);
            result
        });
        task.await?
    }
}

/// The check that makes a fence a fence: a smaller one than the newest seen changes nothing.
fn raise_fence(transaction: &Transaction<'_>, country: &str, fence: u64) -> Result<bool> {
    let accepted = transaction
        .prepare_cached("UPDATE country SET fence = ?2 WHERE code = ?1 AND fence <= ?2")?
        .execute(params![country, fence])?;
    Ok(accepted == 1)
}

fn version(moment: &Transaction<'_>, country: &str) -> Result<u64> {
    Ok(moment
        .prepare_cached("SELECT version FROM country WHERE code = ?1")?
        .query_row([country], |row| row.get(0))?)
}

/// "Lyon" becomes "Lyon (7)", and that becomes "Lyon (9)".
fn edited(name: &str, version: u64) -> String {
    let plain = name.rsplit_once(" (").map_or(name, |(plain, _)| plain);
    format!("{plain} ({version})")
}

const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const SCHEMA: &str = "
CREATE TABLE country (
    code TEXT PRIMARY KEY,
    version INTEGER NOT NULL DEFAULT 0,
    announced INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE place (
    id INTEGER PRIMARY KEY,
    country TEXT NOT NULL REFERENCES country,
    region TEXT NOT NULL,
    name TEXT NOT NULL,
    lat REAL NOT NULL,
    lng REAL NOT NULL
);
CREATE INDEX place_country ON place (country);
CREATE TABLE rename (
    id INTEGER PRIMARY KEY,
    country TEXT NOT NULL,
    fence INTEGER NOT NULL,
    place INTEGER NOT NULL,
    old TEXT NOT NULL,
    new TEXT NOT NULL
);
CREATE TABLE section (
    country TEXT PRIMARY KEY,
    fence INTEGER NOT NULL,
    holder TEXT NOT NULL,
    inside INTEGER NOT NULL,
    held_until_us INTEGER NOT NULL
) WITHOUT ROWID;
";
