//! A decision of a limiter: against one bare `EVALSHA` that does the same in a few lines, for a key
//! that the process knows to be refused against `governor` in process, and while the circuit
//! breaker is open.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use hedgerow::embedded::Server;
use hedgerow::limit::{DecidedBy, LimitOutage, Quota};
use hedgerow::{Client, ErrorKind};

use crate::lock::load;
use crate::outage::{pid, signal};
use crate::slices::{Length, Result, Runs, TASKS, driver, p99, quartiles, spread};

/// So much that nothing is ever refused.
const PLENTY: Quota = Quota::per_second(10_000_000);

pub(crate) async fn run(url: &str, runs: &Runs) -> Result<()> {
    against_evalsha(url, runs).await?;
    against_governor(url, runs).await?;
    open_breaker(runs).await
}

async fn against_evalsha(url: &str, runs: &Runs) -> Result<()> {
    let driver = driver(url).await?;
    let limiter = Client::connect(url).await?.rate_limiter("bench", PLENTY);
    let bare = load(&driver, BARE).await?;
    let ours = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let limiter = limiter.clone();
            async move {
                let (key, mut done) = (format!("key:{task}"), 0);
                while Instant::now() < until {
                    let decision = limiter.check(&key).await.expect("answered");
                    assert!(decision.allowed);
                    done += 1;
                }
                done
            }
        })
        .await
    };
    let theirs = async |tasks: usize, until: Instant| {
        spread(tasks, |task| {
            let (mut driver, bare) = (driver.clone(), bare.clone());
            async move {
                let (key, mut done) = (format!("bare:{{key:{task}}}"), 0);
                while Instant::now() < until {
                    let mut command = redis::cmd("EVALSHA");
                    command.arg(&bare).arg(1).arg(&key).arg(1).arg(10_000_000);
                    let level: i64 = command.query_async(&mut driver).await.expect("answered");
                    assert!(level >= 0);
                    done += 1;
                }
                done
            }
        })
        .await
    };
    for tasks in TASKS {
        if runs.wants("limit_check/bare_evalsha") {
            let name = format!("limit_check/bare_evalsha@{tasks}");
            runs.compare(&name, tasks, ours, theirs).await;
        }
    }
    Ok(())
}

async fn against_governor(url: &str, runs: &Runs) -> Result<()> {
    if !runs.wants("limit_known_refusal/governor@1") {
        return Ok(());
    }
    let limiter = Client::connect(url).await?;
    let limiter = limiter.rate_limiter("refused", Quota::per_day(1));
    while limiter.check("key").await?.decided_by != DecidedBy::KnownRefusal {}
    let one = NonZeroU32::MIN;
    let daily = governor::Quota::with_period(Duration::from_secs(86_400)).expect("a day");
    let rival = governor::RateLimiter::keyed(daily.allow_burst(one));
    assert!(rival.check_key(&"key".to_owned()).is_ok());
    let rival = &rival;
    let limiter = &limiter;
    let ours = async |_: usize, until: Instant| {
        let mut done = 0;
        while Instant::now() < until {
            for _ in 0..100 {
                let decision = limiter.check("key").await.expect("answered");
                assert!(!decision.allowed);
            }
            done += 100;
        }
        done
    };
    let theirs = async |_: usize, until: Instant| {
        let mut done = 0;
        while Instant::now() < until {
            for _ in 0..100 {
                assert!(rival.check_key(&"key".to_owned()).is_err());
            }
            done += 100;
        }
        done
    };
    runs.compare("limit_known_refusal/governor@1", 1, ours, theirs)
        .await;
    Ok(())
}

async fn open_breaker(runs: &Runs) -> Result<()> {
    let row = "open_breaker_limit_us";
    if !runs.wants(row) {
        return Ok(());
    }
    let server = Server::start().await?;
    let builder = Client::builder().url(server.url());
    let builder = builder.cache_deadline(Duration::from_millis(100));
    let strict = builder.connect().await?.rate_limiter("outage", PLENTY);
    assert!(strict.check("key").await?.allowed);
    let pid = pid(server.url()).await?;
    signal(pid, "-STOP")?;
    loop {
        let error = strict.check("key").await.expect_err("it hangs");
        if error.kind() == ErrorKind::CircuitOpen {
            break;
        }
    }
    let calls = match runs.length {
        Length::Full => 20_000,
        Length::Quick => 5_000,
    };
    let local = strict.outage(LimitOutage::Local { share: 1.0 });
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        // Now and then a call is let through to find out whether the server is back.
        assert_eq!(local.check("key").await?.decided_by, DecidedBy::Outage);
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    runs.report.add_spread(row, quartiles(&mut times));
    runs.report
        .add("open_breaker_limit_p99_us", p99(&mut times));
    signal(pid, "-CONT")
}

/// GCRA in a few lines, without checks.
const BARE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now) + ARGV[1]
if arrival - now > tonumber(ARGV[2]) then return -1 end
redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000))
return arrival - now";
