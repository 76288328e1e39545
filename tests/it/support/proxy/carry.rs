//! One connection through the proxy.
//!
//! Each way is a sequence: a frame that waits keeps those behind it waiting, as on a wire. A client
//! that leaves ends nothing before all that it said is delivered.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

use super::Rules;
use super::frames::{Scanner, words};
use super::rule::{Act, Place, Rule};

/// One end of a carried connection.
pub(super) struct Side {
    from: Box<dyn AsyncRead + Send + Unpin>,
    to: Box<dyn AsyncWrite + Send + Unpin>,
    /// The same socket, for its settings. Unix sockets know no reset.
    socket: Option<socket2::Socket>,
}

impl Side {
    pub(super) fn unix(stream: UnixStream) -> Self {
        let (from, to) = stream.into_split();
        Self {
            from: Box::new(from),
            to: Box::new(to),
            socket: None,
        }
    }

    pub(super) fn tcp(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        let socket = socket2::SockRef::from(&stream).try_clone();
        let (from, to) = stream.into_split();
        Self {
            from: Box::new(from),
            to: Box::new(to),
            socket: Some(socket.expect("a descriptor")),
        }
    }
}

/// Why a way ended.
enum End {
    /// The side that speaks on it closed, or is gone.
    Closed,
    /// Both sides are to be closed.
    Cut,
    /// Both sides are to be closed, the client's with a reset.
    Reset,
}

/// What both ways of a connection know.
struct Shared {
    rules: Rules,
    /// For every request that awaits its reply: what is to be done with that.
    unanswered: Mutex<VecDeque<Option<Rule>>>,
    vanished: AtomicBool,
}

impl Shared {
    fn rule(&self, place: Place, words: &[String]) -> Option<Rule> {
        let rules = self.rules.lock().expect("no panic");
        // All count, the first one acts.
        let picked: Vec<_> = rules
            .iter()
            .filter(|rule| rule.picks(place, words))
            .collect();
        picked.first().map(|&rule| rule.clone())
    }
}

/// Carries until either side ends or a rule says so.
pub(super) async fn carry(client: Side, server: Side, rules: Rules) {
    let shared = Shared {
        rules,
        unanswered: Mutex::default(),
        vanished: AtomicBool::new(false),
    };
    let requests = requests(client.from, server.to, &shared);
    let replies = replies(server.from, client.to, &shared);
    tokio::pin!(replies);
    let end = tokio::select! {
        (end, mut server) = requests => match end {
            End::Closed => {
                let _ = server.shutdown().await;
                replies.await
            }
            end => end,
        },
        end = &mut replies => end,
    };
    if let (End::Reset, Some(socket)) = (end, &client.socket) {
        let _ = socket.set_linger(Some(Duration::ZERO));
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Carries what the client asks. Gives the way to the server back, which stays open.
async fn requests(mut from: Reader, mut to: Writer, shared: &Shared) -> (End, Writer) {
    let (mut scanner, mut frame) = (Scanner::default(), Vec::new());
    let mut buffer = vec![0; 65536];
    loop {
        let mut bytes = match from.read(&mut buffer).await {
            Ok(length) if length > 0 => &buffer[..length],
            _ => return (End::Closed, to),
        };
        while !bytes.is_empty() {
            let (passed, ended) = scanner.scan(bytes);
            frame.extend_from_slice(&bytes[..passed]);
            bytes = &bytes[passed..];
            if !ended {
                continue;
            }
            let frame = std::mem::take(&mut frame);
            let words = words(&frame);
            let rule = shared.rule(Place::Request, &words);
            let answer = shared.rule(Place::Reply, &words);
            if !is_answered_by_pushes(&words) {
                shared
                    .unanswered
                    .lock()
                    .expect("no panic")
                    .push_back(answer);
            }
            if let Some(end) = pass(&frame, rule, &mut to, shared).await {
                return (end, to);
            }
        }
    }
}

/// Carries what the server says. A client that has gone is not told, but the server is heard.
async fn replies(mut from: Reader, mut to: Writer, shared: &Shared) -> End {
    let (mut scanner, mut frame) = (Scanner::default(), Vec::new());
    let mut buffer = vec![0; 65536];
    // What is to be done with the frame that has begun.
    let mut begun: Option<Option<Rule>> = None;
    loop {
        let mut bytes = match from.read(&mut buffer).await {
            Ok(length) if length > 0 => &buffer[..length],
            _ => return End::Closed,
        };
        while let Some(&first) = bytes.first() {
            let is_push = frame.first().unwrap_or(&first) == &b'>';
            let rule = begun.take().unwrap_or_else(|| {
                let answer = || shared.unanswered.lock().expect("no panic").pop_front();
                if is_push { None } else { answer().flatten() }
            });
            let (passed, ended) = scanner.scan(bytes);
            // Kept whole only where somebody may act on it.
            if is_push || rule.is_some() {
                frame.extend_from_slice(&bytes[..passed]);
            } else if !shared.vanished.load(Ordering::SeqCst) {
                let _ = to.write_all(&bytes[..passed]).await;
            }
            bytes = &bytes[passed..];
            if !ended {
                begun = Some(rule);
                continue;
            }
            let frame = std::mem::take(&mut frame);
            if !frame.is_empty() {
                let rule = rule.or_else(|| {
                    let pushed = is_push.then(|| words(&frame));
                    pushed.and_then(|words| shared.rule(Place::Push, &words))
                });
                if let Some(end) = pass(&frame, rule, &mut to, shared).await {
                    return end;
                }
            }
        }
    }
}

/// Lets a whole frame pass, as the rule says.
async fn pass(frame: &[u8], rule: Option<Rule>, to: &mut Writer, shared: &Shared) -> Option<End> {
    if shared.vanished.load(Ordering::SeqCst) {
        return None;
    }
    let Some(rule) = rule else {
        let _ = to.write_all(frame).await;
        return None;
    };
    rule.has_hit();
    match rule.act() {
        Act::Delay(time) => tokio::time::sleep(time).await,
        Act::Hold => rule.is_delivered().await,
        Act::Vanish => {
            shared.vanished.store(true, Ordering::SeqCst);
            return None;
        }
        Act::Reset => return Some(End::Reset),
        Act::Truncate(length) => {
            let _ = to.write_all(&frame[..length.min(frame.len() - 1)]).await;
            let _ = to.flush().await;
            return Some(End::Cut);
        }
        Act::Slice(seed, pause) => {
            let mut chance = rand::rngs::StdRng::seed_from_u64(seed);
            for byte in frame {
                let _ = to.write_all(&[*byte]).await;
                tokio::time::sleep(pause.mul_f64(chance.random())).await;
            }
            return None;
        }
    }
    let _ = to.write_all(frame).await;
    None
}

/// Subscriptions have no reply of their own; each channel is confirmed by a push.
fn is_answered_by_pushes(words: &[String]) -> bool {
    let name = words.first().map(|word| word.to_ascii_uppercase());
    name.is_some_and(|name| name.ends_with("SUBSCRIBE"))
}
