//! A limit for each user, over two processes; a login that asks two limits in one step; and a
//! client that waits for its turn.
//!
//! ```text
//! cargo run --example rate_limit --features embedded,limit
//! ```

use std::time::Duration;

use hedgerow::Client;
use hedgerow::limit::{DecidedBy, LimitOutage, Quota};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = match std::env::var_os("REDIS_URL") {
        Some(_) => Client::from_env().await?,
        None => Client::embedded().await?,
    };
    // A key of its own for each run, where the server is not a fresh one.
    let user = format!("ann:{}", std::process::id());

    // Five searches at once, then one each minute. If Redis is out, everybody may search.
    let quota = Quota::per_hour(60).burst(5);
    let searches = client
        .rate_limiter("search", quota)
        .outage(LimitOutage::Open);
    for left in (0..5).rev() {
        let decision = searches.check(&user).await?;
        assert!(decision.allowed && decision.remaining == left);
    }
    let refused = searches.check(&user).await?;
    println!("the sixth search comes back in {:?}", refused.retry_after);
    assert!(!refused.allowed && refused.retry_after <= Duration::from_secs(60));

    // The process knows the refusal now, and asks Redis no more until it is over.
    let again = searches.check(&user).await?;
    assert_eq!(again.decided_by, DecidedBy::KnownRefusal);
    // A search that failed is given back.
    searches.refund(&user, 1).await?;
    assert!(searches.check(&user).await?.allowed);

    // One call, two limits: what one refuses takes nothing of the other.
    let logins = client
        .rate_limits("login")
        .limit("address", Quota::per_hour(100))
        .limit("account", Quota::per_hour(3).sliding_window());
    for number in 1..=5 {
        let keys = [("address", "2001:db8::/64"), ("account", user.as_str())];
        let decided = logins.check(keys).await?;
        match decided.refused_by() {
            None => println!("login {number} may go on"),
            Some(limit) => println!("login {number} is refused by the limit of the {limit}"),
        }
        assert_eq!(decided.allowed(), number <= 3);
    }

    // A client of a slow API: one turn after the other, each reserved with one command.
    let api = client.rate_limiter("partner", Quota::per_second(20).burst(1));
    for number in 1..=3 {
        api.until_ready(&user).await?;
        println!("call {number}");
    }
    println!("{:?}", searches.stats());
    Ok(())
}
