//! distkit as a user sets it up: a toolkit of the same kind, with a strict counter by script and a
//! mutex that polls, without fence or queue.

use std::sync::Arc;
use std::time::Instant;

use distkit::DistkitRedisKey;
use distkit::counter::{CounterOptions, CounterTrait as _, StrictCounter};
use distkit::lock::{LockOptions, Mutex};
use redis::aio::ConnectionManager;

use crate::slices::{Result, spread};

#[derive(Clone)]
pub(crate) struct Distkit {
    connection: ConnectionManager,
    counter: Arc<StrictCounter>,
}

impl Distkit {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let connection = ConnectionManager::new(redis::Client::open(url)?).await?;
        let options = CounterOptions::new(key("bench"), connection.clone());
        Ok(Self {
            connection,
            counter: StrictCounter::new(options),
        })
    }

    /// The mutex called `name`, with its poll interval at the default.
    pub(crate) fn mutex(&self, name: &str) -> Arc<Mutex> {
        Mutex::new(LockOptions::new(key(name), self.connection.clone()))
    }

    pub(crate) async fn adds(&self, tasks: usize, until: Instant) -> u64 {
        spread(tasks, |task| {
            let (counter, name) = (self.counter.clone(), key(&format!("rival:{task}")));
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    counter.inc(&name, 1).await.expect("counted");
                    done += 1;
                }
                done
            }
        })
        .await
    }

    pub(crate) async fn lock_cycles(&self, tasks: usize, until: Instant) -> u64 {
        spread(tasks, |task| {
            let mutex = self.mutex(&format!("rival:{task}"));
            async move {
                let mut done = 0;
                while Instant::now() < until {
                    let guard = mutex.lock().await.expect("free");
                    guard.release().await.expect("held");
                    done += 1;
                }
                done
            }
        })
        .await
    }
}

fn key(name: &str) -> DistkitRedisKey {
    // Colons are not for users there.
    DistkitRedisKey::try_from(name.replace(':', "-")).expect("a valid key")
}
