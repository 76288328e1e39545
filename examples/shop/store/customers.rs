//! Customers: a name, a digest of a password, and a credit that orders are paid with.

use anyhow::Result;
use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use crate::password;

/// A customer, as the account page shows it.
#[derive(Debug, Clone)]
pub(crate) struct Customer {
    pub(crate) name: String,
    pub(crate) credit: i64,
}

impl Store {
    pub(crate) async fn customer(&self, name: String) -> Result<Option<Customer>> {
        self.read(move |database| {
            let sql = "SELECT name, credit FROM customer WHERE name = ?1";
            let customer = database.prepare_cached(sql)?.query_row([name], |row| {
                Ok(Customer {
                    name: row.get(0)?,
                    credit: row.get(1)?,
                })
            });
            Ok(customer.optional()?)
        })
        .await
    }

    /// Whether the customer is there and has this password.
    pub(crate) async fn password_fits(&self, name: String, password: String) -> Result<bool> {
        self.read(move |database| {
            let sql = "SELECT password FROM customer WHERE name = ?1";
            let stored: Option<String> = database
                .query_row(sql, [name], |row| row.get(0))
                .optional()?;
            // A name that is not there takes as long as a password that is wrong.
            let stored = stored.unwrap_or_else(|| password::digest("nobody has this one"));
            Ok(password::fits(&password, &stored))
        })
        .await
    }

    /// Returns whether the name was free.
    pub(crate) async fn sign_up(&self, name: String, password: String) -> Result<bool> {
        // Before the transaction: nobody else could write meanwhile.
        let digest = tokio::task::spawn_blocking(move || password::digest(&password)).await?;
        self.write(move |transaction| insert(transaction, &name, &digest, WELCOME_CREDIT))
            .await
    }
}

pub(super) fn make_admin(transaction: &Transaction<'_>, password: &str) -> Result<()> {
    insert(transaction, ADMIN, &password::digest(password), 0)?;
    Ok(())
}

fn insert(transaction: &Transaction<'_>, name: &str, digest: &str, credit: i64) -> Result<bool> {
    let sql = "INSERT OR IGNORE INTO customer (name, password, credit) VALUES (?1, ?2, ?3)";
    Ok(transaction.execute(sql, params![name, digest, credit])? == 1)
}

/// The name of the one customer who may change prices.
pub(crate) const ADMIN: &str = "admin";

/// What a new customer may spend, in cents.
pub(crate) const WELCOME_CREDIT: i64 = 5_000;
