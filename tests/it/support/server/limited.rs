//! One plain server whose clients come as a user with no more rights than the crate says it needs.
//!
//! Invariant: whatever the server refused to that user fails the test, when the server goes; nobody
//! has to remember to look.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Mutex;
use std::time::Duration;

use hedgerow::{Client, ClientBuilder};
use redis::RedisResult;

use super::single::Single;

/// The server, whose administrator may do all.
pub struct Limited {
    single: Single,
    /// Looks at the end, where nothing can be awaited. Open from the start: the server may be full.
    witness: Mutex<redis::Connection>,
}

impl Limited {
    pub(super) async fn start() -> Self {
        let single = Single::start(&[]).await;
        let set = single.try_run::<()>(&words(&rule())).await;
        set.expect("a rule that the server understands");
        let witness = redis::Client::open(single.url()).expect("a good URL");
        let witness = witness.get_connection_with_timeout(PATIENCE);
        Self {
            single,
            witness: Mutex::new(witness.expect("the server accepts")),
        }
    }

    pub(super) fn builder(&self) -> ClientBuilder {
        Client::builder().url(&format!(
            "{}?user={USER}&pass={PASSWORD}",
            self.single.url()
        ))
    }

    /// What was refused to the user. Blocks.
    fn refused(&self) -> RedisResult<Vec<String>> {
        let witness = &mut *self.witness.lock().expect("no panic");
        witness.set_read_timeout(Some(PATIENCE))?;
        redis::cmd("CLIENT").arg("UNPAUSE").exec(witness)?;
        let log: Vec<HashMap<String, String>> =
            redis::cmd("ACL").arg("LOG").arg(128).query(witness)?;
        let own = log.into_iter().filter(|entry| entry["username"] == USER);
        Ok(own
            .map(|entry| {
                format!(
                    "{} {} in {}",
                    entry["reason"], entry["object"], entry["context"]
                )
            })
            .collect())
    }
}

impl Deref for Limited {
    type Target = Single;

    fn deref(&self) -> &Single {
        &self.single
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let refused = self.refused().expect("the server tells what it refused");
            assert!(refused.is_empty(), "refused to the user: {refused:?}");
        }
    }
}

fn rule() -> String {
    let rule = Client::required_acl("hr").expect("a good namespace");
    format!("ACL SETUSER {USER} on >{PASSWORD} {rule}")
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

const USER: &str = "least";
const PASSWORD: &str = "privilege";

/// How long the server may take to answer at the end.
const PATIENCE: Duration = Duration::from_secs(10);
