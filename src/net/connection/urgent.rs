//! Urgent connects, while a lease is at stake.
//!
//! The backoff, an attempt that hangs, or a session that has fallen silent may each cost more time
//! than the lease has left. So while the connection is urgent, more attempts are made beside what
//! hangs, and the first that completes its handshake is used.
//!
//! Invariant: none of these three blocks a caller that must reach the server in time. A session
//! that answers is never replaced. Callers on a replaced session still get their answers, if these
//! come.
//!
//! Requests that must not be late, such as renewals of locks, call [`Connection::urgent`].

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Connection, Session, Urgent};
use crate::net::stream::traffic::Moved;

/// The session in use that an attempt is made beside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    pub(crate) epoch: u64,
    /// What it had moved by then.
    // If it moves more before the attempt completes, it is not replaced.
    moved: Moved,
}

/// Since when the session in use owes replies and has shown no progress.
#[derive(Debug, Clone, Copy)]
struct Quiet {
    at: Beside,
    since: Instant,
}

impl Connection {
    /// Makes the connection urgent until `until`: while no session answers, a connect attempt
    /// starts every `every`, but at least 10 ms after the last. Concurrent requests combine: the
    /// latest end and the shortest pause count. Call it with each request that must not be late.
    pub(crate) fn urgent(self: &Arc<Self>, until: Instant, every: Duration) {
        // A brought connection cannot be opened a second time.
        if !self.is_ours() {
            return;
        }
        let (now, every) = (Instant::now(), every.max(LEAST));
        let mut state = self.state();
        // The task clears this under the same lock when it ends, so a set value means that it runs.
        let is_seen_to = state.urgent.is_some();
        let known = state.urgent.filter(|urgent| urgent.until > now);
        let new = Urgent {
            until,
            every,
            asked: now,
        };
        state.urgent = Some(known.map_or(new, |known| Urgent {
            until: known.until.max(until),
            every: known.every.min(every),
            asked: now,
        }));
        let is_up = state.live.as_ref().is_some_and(|live| !live.is_dead());
        drop(state);
        if !is_up {
            // Callers that wait out the backoff must see that it is shorter now.
            self.changed.notify_waiters();
        }
        let urging = || urge(Arc::downgrade(self));
        match is_seen_to {
            true => self.urging.ensure(urging),
            false => self.urging.renew(urging),
        }
    }

    /// Starts an attempt if no session answers. Returns when to look again, or `None` when the
    /// connection is not urgent any more.
    fn press(self: &Arc<Self>, quiet: &mut Option<Quiet>) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.state();
        let urgent = state.urgent.filter(|urgent| urgent.until > now);
        let Some(urgent) = urgent.filter(|_| !state.retired) else {
            state.urgent = None;
            return None;
        };
        self.tidy(&mut state);
        let mut beside = None;
        if let Some(live) = &state.live {
            if !live.health.owes_now() && now - urgent.asked >= urgent.every {
                // The session has answered everything, and no caller asked lately.
                state.urgent = None;
                return None;
            }
            // Any progress starts the count again: a slow answer is not silence.
            let known = quiet.filter(|quiet| live.is_quiet_since(quiet.at));
            let quiet = quiet.insert(known.unwrap_or_else(|| Quiet {
                at: live.beside(),
                since: now,
            }));
            if now - quiet.since < SILENT * urgent.every {
                return Some(urgent.every);
            }
            beside = Some(quiet.at);
        }
        let last = state.backoff.last_try();
        // The pace of attempts counts from the last start, also if a caller started that one.
        let is_time = last.is_none_or(|last| now - last >= urgent.every);
        if is_time && state.attempts.len() < MOST_ATTEMPTS {
            self.begin(&mut state, beside);
        }
        Some(urgent.every)
    }

    /// Whether a new session replaces the one in use. The one in use gets a moment more to answer:
    /// what delayed it may have delayed the new handshake, too.
    pub(crate) async fn is_to_be_replaced(link: &Weak<Self>, beside: Beside) -> bool {
        let in_use = || {
            let link = link.upgrade()?;
            let state = link.state();
            let live = state.live.clone().filter(|live| !live.is_dead())?;
            Some((live, state.urgent.map(|urgent| urgent.every)))
        };
        match in_use() {
            None => return true,
            Some((live, Some(every))) if live.is_quiet_since(beside) => sleep(every / MOMENT).await,
            Some(_) => return false,
        }
        in_use().is_none_or(|(live, _)| live.is_quiet_since(beside))
    }
}

impl Session {
    /// This session, with what it has moved until now.
    fn beside(&self) -> Beside {
        Beside {
            epoch: self.epoch,
            moved: self.health.traffic().moved(),
        }
    }

    /// Whether it is the same session, owes replies, and has shown no progress since `then`.
    fn is_quiet_since(&self, then: Beside) -> bool {
        self.epoch == then.epoch
            && self.health.owes_now()
            && !self.health.traffic().has_progressed_since(then.moved)
    }
}

/// Starts attempts for `link` until it is not urgent any more. It does not keep `link` alive, ends
/// with it, and the next urgent request starts another after a panic.
async fn urge(link: Weak<Connection>) {
    let mut quiet = None;
    while let Some(link) = link.upgrade() {
        let Some(pause) = link.press(&mut quiet) else {
            return;
        };
        // Not held over the pause, or a dropped client would keep its connection that long.
        drop(link);
        sleep(pause).await;
    }
}

/// The shortest time from one attempt to the next.
// A lease of a few ms must not turn into a flood of connects.
const LEAST: Duration = Duration::from_millis(10);

/// A session is silent when it owes replies for this many times `every`.
const SILENT: u32 = 3;

/// Once a new session has completed its handshake, the session in use has `every` divided by this
/// to answer. It is a small part because the attempt itself may have taken all of `every`, and the
/// lease has only a few times `every` left.
const MOMENT: u32 = 4;

/// How many attempts may hang at the same time.
const MOST_ATTEMPTS: usize = 24;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::background::Spawner;
    use crate::net::connection::ConnectionConfig;
    use crate::net::connection::target::Target;
    use crate::net::endpoint::{Access, Endpoint};

    /// Answers the handshake and whatever else is asked.
    async fn serve(mut stream: TcpStream) {
        let mut bytes = vec![0; 4096];
        while let Ok(1..) = stream.read(&mut bytes).await {
            let text = String::from_utf8_lossy(&bytes).to_uppercase();
            let reply: &[u8] = match text.contains("HELLO") {
                true => b"%1\r\n$6\r\nserver\r\n$5\r\nredis\r\n",
                false => b"+OK\r\n",
            };
            bytes.fill(0);
            if stream.write_all(reply).await.is_err() {
                return;
            }
        }
    }

    /// A server that leaves its first `silent` connections unanswered, and counts all connections.
    async fn server(silent: usize) -> (Arc<Connection>, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                match counted.fetch_add(1, Ordering::SeqCst) < silent {
                    true => kept.push(stream),
                    false => drop(tokio::spawn(serve(stream))),
                }
            }
        });
        let url = format!("redis://127.0.0.1:{port}");
        let endpoint = Endpoint::parse(&url, &Access::default()).expect("a good URL");
        let link = Connection::new(ConnectionConfig {
            source: Target::Server(endpoint),
            name: "test".to_owned(),
            connect_timeout: Duration::from_secs(3600),
            pace: Arc::default(),
            spawner: Spawner::default(),
            on_push: None,
            made: None,
            on_trouble: None,
            after_demotion: None,
        });
        (link, count)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_gets_others_beside_it() {
        let (link, count) = server(5).await;
        link.urgent(soon(), Duration::from_millis(20));
        link.live(soon()).await.expect("the sixth is answered");
        assert_eq!(count.load(Ordering::SeqCst), 6);
        while !link.state().attempts.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn without_urgency_one_attempt_hangs_alone() {
        let (link, count) = server(5).await;
        let late = Instant::now() + Duration::from_millis(300);
        link.live(late).await.err().expect("it is not answered");
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_connection_that_has_fallen_silent_is_replaced_and_one_that_answers_is_not() {
        let (link, count) = server(0).await;
        let live = link.live(soon()).await.expect("it is answered");
        let ping = redis::cmd("PING");
        for _ in 0..20 {
            link.urgent(soon(), Duration::from_millis(10));
            link.send(&ping, soon()).await.expect("an answer");
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 1, "it answers");
        // It owes a reply that never comes.
        let _owed = live.health.owing();
        link.urgent(soon(), Duration::from_millis(10));
        while link.epoch() == 1 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(!live.is_dead(), "it may be only slow");
        link.send(&ping, soon()).await.expect("an answer");
    }
}
