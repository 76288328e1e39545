//! Products: a postcard of a city each, with a price and a stock.

use anyhow::Result;
use rusqlite::{OptionalExtension, Row, Transaction, params, params_from_iter};
use serde::{Deserialize, Serialize};

use super::Store;

/// A postcard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) id: i64,
    pub(crate) city: String,
    pub(crate) region: String,
    /// Its code, such as `FR`.
    pub(crate) country: String,
    pub(crate) lat: f64,
    pub(crate) lng: f64,
    pub(crate) cents: i64,
    /// How many placed orders have left over.
    pub(crate) left: i64,
}

/// A country and how many postcards it has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Country {
    pub(crate) code: String,
    pub(crate) products: i64,
}

/// The products of a page that lists some.
pub(crate) type Listing = Vec<Product>;

impl Store {
    pub(crate) async fn product(&self, id: i64) -> Result<Option<Product>> {
        self.read(move |database| {
            let mut query = database.prepare_cached(&select("WHERE id = ?1"))?;
            Ok(query.query_row([id], product).optional()?)
        })
        .await
    }

    pub(crate) async fn countries(&self) -> Result<Vec<Country>> {
        self.read(|database| {
            let sql = "SELECT country, count(*) FROM product GROUP BY country ORDER BY country";
            let mut query = database.prepare_cached(sql)?;
            let country = |row: &Row<'_>| {
                Ok(Country {
                    code: row.get(0)?,
                    products: row.get(1)?,
                })
            };
            Ok(query.query_map([], country)?.collect::<Result<_, _>>()?)
        })
        .await
    }

    pub(crate) async fn products_of(&self, country: String) -> Result<Listing> {
        self.listing("WHERE country = ?1 ORDER BY city", Some(country))
            .await
    }

    /// Products whose city begins with `text`, or has it somewhere, those that begin so first.
    pub(crate) async fn products_like(&self, text: &str) -> Result<Listing> {
        let escaped = text
            .replace('\\', r"\\")
            .replace('%', r"\%")
            .replace('_', r"\_");
        self.listing(
            r"WHERE city LIKE '%' || ?1 || '%' ESCAPE '\'
              ORDER BY city LIKE ?1 || '%' ESCAPE '\' DESC, city LIMIT 24",
            Some(escaped),
        )
        .await
    }

    /// Some products for the front page.
    pub(crate) async fn some_products(&self) -> Result<Listing> {
        self.listing("WHERE id % 43 = 11 ORDER BY city", None).await
    }

    /// Returns the product with its new price. `None` if there is no such product.
    pub(crate) async fn set_price(&self, id: i64, cents: i64) -> Result<Option<Product>> {
        self.write(move |transaction| {
            let sql = "UPDATE product SET cents = ?2 WHERE id = ?1";
            transaction.execute(sql, params![id, cents])?;
            let found = transaction.query_row(&select("WHERE id = ?1"), [id], product);
            Ok(found.optional()?)
        })
        .await
    }

    async fn listing(&self, of: &'static str, argument: Option<String>) -> Result<Listing> {
        self.read(move |database| {
            let mut query = database.prepare_cached(&select(of))?;
            Ok(query
                .query_map(params_from_iter(argument), product)?
                .collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// Fills an empty table from the list of cities.
pub(super) fn stock_up(transaction: &Transaction<'_>) -> Result<()> {
    let is_empty = "SELECT NOT EXISTS (SELECT 1 FROM product)";
    if !transaction.query_row(is_empty, [], |row| row.get(0))? {
        return Ok(());
    }
    let mut insert = transaction.prepare(
        "INSERT INTO product (city, region, country, lat, lng, cents, stock)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut of_country = (String::new(), 0);
    for record in csv::Reader::from_reader(CITIES.as_bytes()).deserialize() {
        let (country, region, city, lat, lng): (String, String, String, f64, f64) = record?;
        if of_country.0 != country {
            of_country = (country.clone(), 0);
        }
        of_country.1 += 1;
        if country_name(&country).is_none() || of_country.1 % ONE_IN != 0 {
            continue;
        }
        let mix = |mix: i64, byte: u8| (mix * 31 + i64::from(byte)) % 1_000_003;
        let mixed = city.bytes().fold(7, mix);
        let (cents, stock) = (120 + mixed % 18 * 10, 5 + mixed % 36);
        insert.execute(params![city, region, country, lat, lng, cents, stock])?;
    }
    Ok(())
}

/// The name of a country by its code.
pub(crate) fn country_name(code: &str) -> Option<&'static str> {
    let found = COUNTRIES.iter().find(|(it, _)| *it == code);
    found.map(|(_, name)| *name)
}

fn select(of: &str) -> String {
    format!("SELECT id, city, region, country, lat, lng, cents, stock - sold FROM product {of}")
}

fn product(row: &Row<'_>) -> rusqlite::Result<Product> {
    Ok(Product {
        id: row.get(0)?,
        city: row.get(1)?,
        region: row.get(2)?,
        country: row.get(3)?,
        lat: row.get(4)?,
        lng: row.get(5)?,
        cents: row.get(6)?,
        left: row.get(7)?,
    })
}

const CITIES: &str = include_str!("../../data/cities.csv");
/// Of each country there are up to 60, in the order of their names.
const ONE_IN: usize = 4;

const COUNTRIES: [(&str, &str); 24] = [
    ("AR", "Argentina"),
    ("AU", "Australia"),
    ("BR", "Brazil"),
    ("CA", "Canada"),
    ("CH", "Switzerland"),
    ("DE", "Germany"),
    ("EG", "Egypt"),
    ("ES", "Spain"),
    ("FR", "France"),
    ("GB", "United Kingdom"),
    ("GR", "Greece"),
    ("IN", "India"),
    ("IS", "Iceland"),
    ("IT", "Italy"),
    ("JP", "Japan"),
    ("KE", "Kenya"),
    ("MA", "Morocco"),
    ("MX", "Mexico"),
    ("NO", "Norway"),
    ("NZ", "New Zealand"),
    ("PT", "Portugal"),
    ("US", "United States"),
    ("VN", "Vietnam"),
    ("ZA", "South Africa"),
];
