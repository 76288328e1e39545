//! What the proxy does, and to which frames.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::support::wait::bounded;

/// What happens to a frame.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// It passes, with all behind it, after this time.
    Delay(Duration),
    /// It and everything after it on its connection vanish, both ways; nothing is closed.
    Vanish,
    /// It is lost, and both connections end; over TCP the client sees a reset.
    Reset,
    /// As much of it passes, never all, and both connections end in good order.
    Truncate(usize),
    /// It passes byte by byte, with pauses up to this long drawn from the seed.
    Slice(u64, Duration),
    /// It waits, with all behind it, until [`Rule::deliver`], also when the client has gone.
    Hold,
}

/// Which frames are meant: those that have all these words, from the n-th one on or only that.
#[derive(Clone, Debug)]
pub struct Request {
    name: Option<String>,
    words: Vec<String>,
    above: Option<usize>,
    from: usize,
    until: usize,
}

impl Request {
    /// The first request of any kind.
    pub fn any() -> Self {
        Self {
            name: None,
            words: Vec::new(),
            above: None,
            from: 1,
            until: 1,
        }
    }

    /// The n-th, from 1.
    pub fn nth(n: usize) -> Self {
        Self {
            from: n,
            until: n,
            ..Self::any()
        }
    }

    /// All from the first on.
    pub fn every() -> Self {
        Self {
            until: usize::MAX,
            ..Self::any()
        }
    }

    /// Only those whose first word is this.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Only those that have this word, such as a key or the hash of a script.
    pub fn with(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }

    /// Only those that have a word of more bytes than this.
    pub fn above(mut self, bytes: usize) -> Self {
        self.above = Some(bytes);
        self
    }

    fn matches(&self, words: &[String]) -> bool {
        let name = self.name.as_ref();
        let first = words.first();
        name.is_none_or(|name| first.is_some_and(|first| first.eq_ignore_ascii_case(name)))
            && self.words.iter().all(|word| words.contains(word))
            && self
                .above
                .is_none_or(|least| words.iter().any(|word| word.len() > least))
    }
}

/// Where a rule looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    Request,
    Reply,
    Push,
}

/// A rule in force; every clone tells the same.
#[derive(Clone, Debug)]
pub struct Rule(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    request: Request,
    act: Act,
    seen: AtomicUsize,
    last: Mutex<Vec<String>>,
    hits: watch::Sender<usize>,
    delivered: watch::Sender<bool>,
}

impl Rule {
    pub(super) fn new(place: Place, request: Request, act: Act) -> Self {
        Self(Arc::new(Inner {
            place,
            request,
            act,
            seen: AtomicUsize::new(0),
            last: Mutex::default(),
            hits: watch::Sender::new(0),
            delivered: watch::Sender::new(false),
        }))
    }

    /// How many frames it has acted on.
    pub fn hits(&self) -> usize {
        *self.0.hits.borrow()
    }

    /// Waits until it has acted on one.
    pub async fn hit(&self) {
        let mut hits = self.0.hits.subscribe();
        let hit = bounded("the fault hits", hits.wait_for(|hits| *hits > 0)).await;
        drop(hit.expect("the rule is in force"));
    }

    /// The words of the last frame that it meant.
    pub fn words(&self) -> Vec<String> {
        self.0.last.lock().expect("no panic").clone()
    }

    /// Lets what is held go on.
    pub fn deliver(&self) {
        self.0.delivered.send_replace(true);
    }

    pub(super) fn act(&self) -> Act {
        self.0.act
    }

    /// Whether this frame is meant. Counts it if it is of the kind.
    pub(super) fn picks(&self, place: Place, words: &[String]) -> bool {
        if self.0.place != place || !self.0.request.matches(words) {
            return false;
        }
        let nth = self.0.seen.fetch_add(1, Ordering::SeqCst) + 1;
        let is_meant = (self.0.request.from..=self.0.request.until).contains(&nth);
        if is_meant {
            *self.0.last.lock().expect("no panic") = words.to_vec();
        }
        is_meant
    }

    pub(super) fn has_hit(&self) {
        self.0.hits.send_modify(|hits| *hits += 1);
    }

    pub(super) async fn is_delivered(&self) {
        let mut delivered = self.0.delivered.subscribe();
        let _ = delivered.wait_for(|delivered| *delivered).await;
    }
}
