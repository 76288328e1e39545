//! Orders: opened, and then placed or refused, each step once and under a fence.
//!
//! Invariant: an order is one row, found by the token of its form, and leaves the state `open`
//! once. A step whose fence is older than the newest one seen for its customer changes nothing: the
//! lock of that step was lost, and another holder has gone on.

use anyhow::Result;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::Store;

/// What a form asks for.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    /// Names the order. It was drawn when the form was made, so a form makes one order.
    pub(crate) token: String,
    pub(crate) customer: String,
    pub(crate) product: i64,
    pub(crate) amount: i64,
    /// The price of one, as the form showed it.
    pub(crate) cents: i64,
}

/// An order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) token: String,
    pub(crate) customer: String,
    pub(crate) product: i64,
    /// Of its product.
    pub(crate) city: String,
    pub(crate) amount: i64,
    /// What all of it costs.
    pub(crate) cents: i64,
    pub(crate) state: OrderState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderState {
    /// Its stock may be taken, or not yet.
    Open,
    Placed,
    Refused,
}

/// What became of opening an order.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It is there: new, or from an earlier attempt with the same form.
    Order(Order),
    NoProduct,
    /// The form showed another price.
    PriceChanged,
    TooLittleCredit,
    /// The fence is older than another that has been here.
    Late,
}

/// What became of settling an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is in this state, whoever has settled it.
    As(OrderState),
    Late,
}

impl Store {
    /// Opens an order, unless it is there.
    pub(crate) async fn open_order(&self, draft: Draft, fence: u64) -> Result<Opened> {
        self.write(move |transaction| {
            if !raise_fence(transaction, &draft.customer, fence)? {
                return Ok(Opened::Late);
            }
            if let Some(order) = by_token(transaction, &draft.token)? {
                return Ok(Opened::Order(order));
            }
            let sql = "SELECT cents FROM product WHERE id = ?1";
            let price = transaction.query_row(sql, [draft.product], |row| row.get(0));
            let Some(price): Option<i64> = price.optional()? else {
                return Ok(Opened::NoProduct);
            };
            if price != draft.cents {
                return Ok(Opened::PriceChanged);
            }
            let total = price * draft.amount;
            let sql = "SELECT credit FROM customer WHERE name = ?1";
            let credit: i64 = transaction.query_row(sql, [&draft.customer], |row| row.get(0))?;
            if credit < total {
                return Ok(Opened::TooLittleCredit);
            }
            let Draft {
                token,
                customer,
                product,
                amount,
                ..
            } = &draft;
            transaction.execute(
                "INSERT INTO purchase (token, customer, product, amount, cents, state)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'open')",
                params![token, customer, product, amount, total],
            )?;
            let order = by_token(transaction, token)?;
            Ok(order.map_or(Opened::NoProduct, Opened::Order))
        })
        .await
    }

    /// Places an open order: its customer pays, and its product is sold.
    pub(crate) async fn place(&self, order: &Order, fence: u64) -> Result<Settled> {
        let order = order.clone();
        self.settle(order, fence, |transaction, order| {
            let sold = transaction.execute(
                "UPDATE product SET sold = sold + ?2 WHERE id = ?1 AND sold + ?2 <= stock",
                params![order.product, order.amount],
            )?;
            // The stock in Redis has said yes. It is too high only if Redis has lost data.
            if sold == 0 {
                return Ok(OrderState::Refused);
            }
            let paid = transaction.execute(
                "UPDATE customer SET credit = credit - ?2 WHERE name = ?1",
                params![order.customer, order.cents],
            )?;
            debug_assert_eq!(paid, 1, "an order has a customer");
            Ok(OrderState::Placed)
        })
        .await
    }

    /// Refuses an open order.
    pub(crate) async fn refuse(&self, order: &Order, fence: u64) -> Result<Settled> {
        self.settle(order.clone(), fence, |_, _| Ok(OrderState::Refused))
            .await
    }

    async fn settle(
        &self,
        order: Order,
        fence: u64,
        how: impl FnOnce(&Transaction<'_>, &Order) -> Result<OrderState> + Send + 'static,
    ) -> Result<Settled> {
        self.write(move |transaction| {
            if !raise_fence(transaction, &order.customer, fence)? {
                return Ok(Settled::Late);
            }
            if let Some(order) = by_token(transaction, &order.token)?
                && order.state != OrderState::Open
            {
                return Ok(Settled::As(order.state));
            }
            let state = how(transaction, &order)?;
            let sql = "UPDATE purchase SET state = ?2 WHERE token = ?1 AND state = 'open'";
            transaction.execute(sql, params![order.token, state.word()])?;
            Ok(Settled::As(state))
        })
        .await
    }

    /// Returns an order of a customer.
    pub(crate) async fn order(&self, token: String, customer: String) -> Result<Option<Order>> {
        self.read(move |database| {
            let order = by_token(database, &token)?;
            Ok(order.filter(|order| order.customer == customer))
        })
        .await
    }

    /// The last orders of a customer that were placed, the newest first.
    pub(crate) async fn orders_of(&self, customer: String) -> Result<Vec<Order>> {
        self.orders(
            "WHERE customer = ?1 AND state = 'placed' ORDER BY opened DESC LIMIT 20",
            customer,
        )
        .await
    }

    /// Orders that have been open for longer than so many seconds.
    pub(crate) async fn unfinished_orders(&self, seconds: u64) -> Result<Vec<Order>> {
        let of = "WHERE state = 'open' AND opened <= unixepoch() - ?1 ORDER BY opened LIMIT 100";
        self.orders(of, i64::try_from(seconds)?).await
    }

    async fn orders(
        &self,
        of: &'static str,
        argument: impl rusqlite::ToSql + Send + 'static,
    ) -> Result<Vec<Order>> {
        self.read(move |database| {
            let mut query = database.prepare_cached(&select(of))?;
            Ok(query
                .query_map([argument], order)?
                .collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// Notes a fence of a customer's lock. Returns false if a newer one has been here.
///
/// It goes in with the first look, and not only with the change: otherwise an older holder that
/// wakes between the two would still be let in.
fn raise_fence(transaction: &Transaction<'_>, customer: &str, fence: u64) -> Result<bool> {
    let sql = "UPDATE customer SET fence = ?2 WHERE name = ?1 AND fence <= ?2";
    Ok(transaction.execute(sql, params![customer, fence])? == 1)
}

fn by_token(database: &Connection, token: &str) -> Result<Option<Order>> {
    let mut query = database.prepare_cached(&select("WHERE token = ?1"))?;
    Ok(query.query_row([token], order).optional()?)
}

fn select(of: &str) -> String {
    format!(
        "SELECT token, customer, product, city, amount, purchase.cents, state
         FROM purchase JOIN product ON product.id = purchase.product {of}"
    )
}

fn order(row: &Row<'_>) -> rusqlite::Result<Order> {
    let state: String = row.get(6)?;
    Ok(Order {
        token: row.get(0)?,
        customer: row.get(1)?,
        product: row.get(2)?,
        city: row.get(3)?,
        amount: row.get(4)?,
        cents: row.get(5)?,
        state: match state.as_str() {
            "open" => OrderState::Open,
            "placed" => OrderState::Placed,
            _ => OrderState::Refused,
        },
    })
}

impl Draft {
    /// The form that an order came from.
    pub(crate) fn of(order: &Order) -> Self {
        Self {
            token: order.token.clone(),
            customer: order.customer.clone(),
            product: order.product,
            amount: order.amount,
            cents: order.cents / order.amount,
        }
    }
}

impl OrderState {
    fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Placed => "placed",
            Self::Refused => "refused",
        }
    }
}
