//! SQLite: what must never be lost. Redis is not the truth about anything here.
//!
//! Invariant: every change is one transaction that has the write lock from its start, so it never
//! fails halfway because another process writes. All SQL is in this folder.

mod customers;
mod orders;
mod products;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::{Connection, Transaction, TransactionBehavior};

pub(crate) use customers::ADMIN;
pub(crate) use orders::{Draft, Opened, Order, OrderState, Settled};
pub(crate) use products::{Listing, Product, country_name};

/// The database, as the handlers use it. Its work runs on threads that may block.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    writer: Mutex<Connection>,
    idle_readers: Mutex<Vec<Connection>>,
}

impl Store {
    /// Opens the database, and makes and fills it if it is not there. Instances may do so at the
    /// same time.
    pub(crate) fn open(path: &Path, admin_password: &str) -> Result<Self> {
        let mut writer = connect(path)?;
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(SCHEMA)?;
        products::stock_up(&transaction)?;
        customers::make_admin(&transaction, admin_password)?;
        transaction.commit()?;
        Ok(Self(Arc::new(Shared {
            path: path.to_owned(),
            writer: Mutex::new(writer),
            idle_readers: Mutex::default(),
        })))
    }

    /// Reads, with a connection that nobody else uses meanwhile.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.0.clone();
        let task = tokio::task::spawn_blocking(move || {
            let idle = lock(&shared.idle_readers).pop();
            let reader = match idle {
                Some(reader) => reader,
                None => connect(&shared.path)?,
            };
            let result = work(&reader);
            lock(&shared.idle_readers).push(reader);
            result
        });
        task.await.context("the reading thread has ended")?
    }

    /// Changes something, in one transaction. If the request is dropped meanwhile, the change is
    /// made all the same, as a whole.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.0.clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut writer = lock(&shared.writer);
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        });
        task.await.context("the writing thread has ended")?
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)
        .with_context(|| format!("cannot open the database {}", path.display()))?;
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a write waits for those of other processes.
const PATIENCE: Duration = Duration::from_secs(10);

/// `sold` counts what placed orders have taken, so the database alone never sells too much.
/// `customer.fence` is the highest fence under which the customer's orders were looked at or
/// changed.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS product (
    id INTEGER PRIMARY KEY,
    city TEXT NOT NULL,
    region TEXT NOT NULL,
    country TEXT NOT NULL,
    lat REAL NOT NULL,
    lng REAL NOT NULL,
    cents INTEGER NOT NULL CHECK (cents > 0),
    stock INTEGER NOT NULL,
    sold INTEGER NOT NULL DEFAULT 0 CHECK (sold BETWEEN 0 AND stock)
);
CREATE INDEX IF NOT EXISTS product_country ON product (country, city);
CREATE TABLE IF NOT EXISTS customer (
    name TEXT PRIMARY KEY,
    password TEXT NOT NULL,
    credit INTEGER NOT NULL CHECK (credit >= 0),
    fence INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS purchase (
    token TEXT PRIMARY KEY,
    customer TEXT NOT NULL REFERENCES customer (name),
    product INTEGER NOT NULL REFERENCES product (id),
    amount INTEGER NOT NULL CHECK (amount > 0),
    cents INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'placed', 'refused')),
    opened INTEGER NOT NULL DEFAULT (unixepoch())
);
CREATE INDEX IF NOT EXISTS purchase_customer ON purchase (customer, opened);
CREATE INDEX IF NOT EXISTS purchase_open ON purchase (opened) WHERE state = 'open';
";
