//! Orders that were opened and never finished: Redis went down, or an instance, and the customer
//! did not send the form again. Their stock comes back.

use std::time::Duration;

use crate::order::{Stock, give_back_stock, lock, release, take_stock};
use crate::problem::Problem;
use crate::state::Shop;
use crate::store::{Draft, Opened, Order, OrderState};

/// Gives up orders that are open for too long, for as long as the process lives.
pub(crate) async fn watch(shop: Shop, after: Duration) {
    loop {
        tokio::time::sleep(after.div_f64(4.0)).await;
        // An outage ends this round. What is left is there in the next one.
        if let Err(problem) = round(&shop, after).await {
            eprintln!("shop: unfinished orders stay: {problem:?}");
        }
    }
}

async fn round(shop: &Shop, after: Duration) -> Result<(), Problem> {
    for order in shop.store.unfinished_orders(after.as_secs()).await? {
        give_up(shop, order).await?;
    }
    Ok(())
}

async fn give_up(shop: &Shop, order: Order) -> Result<(), Problem> {
    let guard = lock(shop, &order.customer).await?;
    let given_up = give_up_locked(shop, order, guard.fence().get()).await;
    release(guard).await;
    given_up
}

async fn give_up_locked(shop: &Shop, order: Order, fence: u64) -> Result<(), Problem> {
    // Looked at again under the lock: it may have been finished meanwhile.
    let found = shop.store.open_order(Draft::of(&order), fence).await?;
    if let Opened::Order(order) = found
        && order.state == OrderState::Open
    {
        // Nobody knows whether the stock was taken. To take it again does nothing if it was, and
        // afterwards it was for certain, or never will be.
        if take_stock(shop, &order).await? == Stock::Taken {
            give_back_stock(shop, &order).await?;
        }
        shop.store.refuse(&order, fence).await?;
    }
    Ok(())
}
