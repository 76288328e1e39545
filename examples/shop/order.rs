//! How an order is placed once, whatever fails in between.
//!
//! An order takes these steps. Each can be repeated without harm. So a form that was sent again
//! goes on where the first attempt has stopped:
//!
//! 1. Acquire the lock of the customer: two forms of one customer must not spend one credit twice.
//! 2. Open the order in SQL, under the token of its form.
//! 3. Take its amount from the free stock, a counter in Redis that all instances share. It goes
//!    by the same token, so a repeat takes nothing.
//! 4. Place the order in SQL: the customer pays, the product is sold. If the stock said no, refuse
//!    it.
//!
//! SQL checks the fence of the lock in steps 2 and 4: an instance that stood still for longer than
//! its lease changes nothing when it goes on.
//!
//! An attempt that stops after step 2 leaves an open order. `unfinished.rs` gives its stock back if
//! nobody goes on with it.

use std::time::Duration;

use hedgerow::{Counter, ErrorKind, FOREVER, Guard};

use crate::catalogue::stock_has_changed;
use crate::problem::Problem;
use crate::state::Shop;
use crate::store::{Draft, Opened, Order, OrderState, Settled};

/// Places the order of a form, or goes on with it, and returns what it is then.
pub(crate) async fn place(shop: &Shop, draft: Draft) -> Result<Order, Problem> {
    let guard = lock(shop, &draft.customer).await?;
    let placed = place_locked(shop, draft, &guard).await;
    release(guard).await;
    let order = placed?;
    if order.state == OrderState::Placed
        && let Err(error) = stock_has_changed(shop, order.product).await
    {
        // The order stands. Its product's page is made new in the background, or by its age.
        eprintln!(
            "shop: the page of product {} may be old: {error}",
            order.product
        );
    }
    Ok(order)
}

async fn place_locked(shop: &Shop, draft: Draft, guard: &Guard) -> Result<Order, Problem> {
    let (fence, customer) = (guard.fence().get(), draft.customer.clone());
    let mut order = match shop.store.open_order(draft, fence).await? {
        // A token is drawn at random, so this is nobody's mistake.
        Opened::Order(order) if order.customer != customer => return Err(Problem::Forbidden),
        Opened::Order(order) => order,
        Opened::NoProduct => return Err(Problem::NotFound),
        Opened::PriceChanged => {
            return Err(Problem::Changed(
                "The price of this postcard has just changed. Nothing was ordered: look at it again.",
            ));
        }
        Opened::TooLittleCredit => {
            return Err(Problem::Changed(
                "Your credit is not enough for this. Nothing was ordered.",
            ));
        }
        Opened::Late => return Err(not_placed()),
    };
    if order.state != OrderState::Open {
        return Ok(order);
    }
    let settled = match take_stock(shop, &order).await? {
        Stock::Taken => shop.store.place(&order, fence).await?,
        Stock::TooLittle => shop.store.refuse(&order, fence).await?,
    };
    let Settled::As(state) = settled else {
        return Err(not_placed());
    };
    order.state = state;
    Ok(order)
}

/// Whether an order has its amount of the free stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stock {
    Taken,
    TooLittle,
}

/// Takes the amount of an order from the free stock of its product, once. After an error it was
/// taken or not: a repeat finds that out.
pub(crate) async fn take_stock(shop: &Shop, order: &Order) -> Result<Stock, Problem> {
    let stock = free_stock(shop, order.product).await?;
    let take = stock.add(-order.amount).within(0..=i64::MAX);
    match take.once(&order.token, REMEMBERED).await {
        Ok(_) => Ok(Stock::Taken),
        Err(error) if error.kind() == ErrorKind::OutOfRange => Ok(Stock::TooLittle),
        Err(error) => Err(unless_outage(error)),
    }
}

/// Gives back what [`take_stock`] has taken, once.
pub(crate) async fn give_back_stock(shop: &Shop, order: &Order) -> Result<(), Problem> {
    let stock = free_stock(shop, order.product).await?;
    let back = stock.add(order.amount);
    let back = back.once(&format!("back:{}", order.token), REMEMBERED);
    back.await.map_err(unless_outage)?;
    Ok(())
}

/// The counter of the free stock. It begins with what the database has left, once for the life of
/// the data in Redis: if Redis has lost them, the next order begins it anew. An order that was
/// under way meanwhile may make it too high, and then the database has the last word.
async fn free_stock(shop: &Shop, product: i64) -> Result<Counter, Problem> {
    let found = shop.store.product(product).await?;
    let left = found.ok_or(Problem::NotFound)?.left;
    let stock = shop.client.counter(&format!("stock:{product}"));
    let begun = stock.add(left).once("begun", FOREVER).await;
    begun.map_err(unless_outage)?;
    Ok(stock)
}

/// The lock under which the orders of a customer change.
pub(crate) async fn lock(shop: &Shop, customer: &str) -> Result<Guard, Problem> {
    let lock = shop.client.lock(&format!("order:{customer}"));
    let lock = lock.lease(LEASE).wait(WAIT).fail_fast();
    lock.acquire().await.map_err(|error| match error.kind() {
        ErrorKind::Contended => not_placed(),
        _ => unless_outage(error),
    })
}

pub(crate) async fn release(guard: Guard) {
    // What was done is done. The keeper goes on releasing, or the lease ends.
    if let Err(error) = guard.release().await {
        eprintln!("shop: a lock was not released: {error}");
    }
}

fn unless_outage(error: hedgerow::Error) -> Problem {
    match error.kind().is_outage() {
        true => not_placed(),
        false => Problem::Fault(error.into()),
    }
}

fn not_placed() -> Problem {
    Problem::Unavailable(
        "Your order was not placed, and nothing was charged. Go back and send it again: however \
         often you do, it is placed once.",
    )
}

const LEASE: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(3);

/// How long a token is known in Redis. Orders that stay open are given up long before.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
