//! The source of truth: a version for each key, in the process that runs the world, and the history
//! of all that happens there.
//!
//! Invariant: what the processes of a world do is written down here, under one lock, so that there
//! is one order and one clock for all of them. They speak lines over a Unix socket.
//!
//! | line | answer |
//! |---|---|
//! | `raise 3 4` | the new versions |
//! | `see 3 4` | the present versions |
//! | `gone <client> <hard or soft> 3=17 4=2` | `noted` |
//! | `ask <client> <near> <window> <most> 3 4` (ms, or `-`) | the number of the first read |
//! | `got 812=17 813=2` | none |
//! | `load <client> 3 4`, on a line of its own that closes when the load ends | none |
//! | `meet 3` | `met`, once a load of the key runs, or after 10 ms |

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::check::{Entry, Event, How, KeyNumber, Rule};
use crate::support::wait::until;

/// Serves the truth of one world until it is dropped.
pub struct Truth {
    directory: tempfile::TempDir,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

struct State {
    begun: Instant,
    book: Mutex<Book>,
    /// The client whose loads are kept waiting for their versions.
    held_up: watch::Sender<Option<u32>>,
}

#[derive(Default)]
struct Book {
    history: Vec<Entry>,
    versions: Vec<u64>,
    reads: u64,
    loads: usize,
    /// How often a version was raised while a load of its key was running.
    met: usize,
    /// How many loads of each key run.
    loading: HashMap<KeyNumber, usize>,
    /// How many loads are held up.
    waiting: usize,
}

impl Truth {
    /// Of so many keys, all at version 0.
    pub fn of(keys: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(socket(directory.path())).expect("a new socket");
        let state = Arc::new(State {
            begun: Instant::now(),
            book: Mutex::new(Book {
                versions: vec![0; keys],
                ..Book::default()
            }),
            held_up: watch::Sender::new(None),
        });
        let serving = tokio::spawn(serve(listener, state.clone()));
        Self {
            directory,
            state,
            serving,
        }
    }

    pub fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// Keeps the loads of `client` waiting from now on. Returns when one of them does.
    pub async fn hold_up(&self, client: u32) {
        self.state.held_up.send_replace(Some(client));
        let held = async || self.state.book().waiting > 0;
        until("a load of this process is held up", held).await;
    }

    /// Lets all loads go on.
    pub fn let_go(&self) {
        self.state.held_up.send_replace(None);
    }

    pub fn reads(&self) -> usize {
        let book = self.state.book();
        let answered = |entry: &&Entry| matches!(entry.event, Event::Answered { .. });
        book.history.iter().filter(answered).count()
    }

    pub fn invalidations(&self) -> usize {
        let book = self.state.book();
        let returned = |entry: &&Entry| matches!(entry.event, Event::Invalidated { .. });
        book.history.iter().filter(returned).count()
    }

    pub fn loads(&self) -> usize {
        self.state.book().loads
    }

    /// How often a version was raised while a load of its key was running.
    pub fn met(&self) -> usize {
        self.state.book().met
    }

    pub fn history(&self) -> Vec<Entry> {
        self.state.book().history.clone()
    }

    /// Makes the present version of `key` untrue, and tells nobody.
    pub fn raise(&self, key: KeyNumber) {
        self.state.book().raise(self.state.begun.elapsed(), key);
    }
}

impl Drop for Truth {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("truth")
}

async fn serve(listener: UnixListener, state: Arc<State>) {
    let mut lines = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        lines.spawn(listen(stream, state.clone()));
    }
}

/// One connection of a process. It ends with that process at the latest.
async fn listen(stream: UnixStream, state: Arc<State>) {
    let (from, mut to) = stream.into_split();
    let mut lines = BufReader::new(from).lines();
    let mut loads_for = None;
    let mut loaded: Vec<KeyNumber> = Vec::new();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["load", client, keys @ ..] = &words[..] {
            loads_for = Some(number(client));
            loaded = keys.iter().map(|key| number(key)).collect();
            let mut book = state.book();
            book.loads += 1;
            for key in &loaded {
                *book.loading.entry(*key).or_default() += 1;
            }
            continue;
        }
        if let ["meet", key] = words[..] {
            for _ in 0..20 {
                if state.book().is_loading(number(key)) {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        }
        if loads_for.is_some() && *state.held_up.borrow() == loads_for {
            state.book().waiting += 1;
            let mut held_up = state.held_up.subscribe();
            let free = held_up.wait_for(|held_up| *held_up != loads_for).await;
            drop(free.expect("the world goes on"));
            state.book().waiting -= 1;
        }
        let Some(mut answer) = state.hear(&words) else {
            continue;
        };
        answer.push('\n');
        if to.write_all(answer.as_bytes()).await.is_err() {
            break;
        }
    }
    let mut book = state.book();
    for key in loaded {
        *book.loading.get_mut(&key).expect("it has begun") -= 1;
    }
}

impl State {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no panic")
    }

    /// Writes down what a process says, and answers.
    fn hear(&self, words: &[&str]) -> Option<String> {
        let mut book = self.book();
        let at = self.begun.elapsed();
        match words {
            ["raise", keys @ ..] => {
                let mut keys = keys.iter().map(|key| number(key));
                book.met += usize::from(keys.clone().any(|key| book.is_loading(key)));
                let versions = keys.by_ref().map(|key| book.raise(at, key));
                Some(joined(versions))
            }
            ["meet", _] => Some("met".to_owned()),
            ["see", keys @ ..] => {
                let versions = keys.iter().map(|key| book.versions[number::<usize>(key)]);
                Some(joined(versions))
            }
            ["gone", client, how, pairs @ ..] => {
                let how = if *how == "hard" { How::Hard } else { How::Soft };
                for (key, version) in pairs.iter().map(|pair| pair_of(pair)) {
                    book.note(
                        at,
                        Event::Invalidated {
                            client: number(client),
                            key: key as usize,
                            version,
                            how,
                        },
                    );
                }
                Some("noted".to_owned())
            }
            ["ask", client, near, window, most, keys @ ..] => {
                let rule = Rule {
                    near: millis(near),
                    window: millis(window).unwrap_or_default(),
                    most: millis(most),
                };
                let first = book.reads;
                for (read, key) in (first..).zip(keys.iter()) {
                    book.note(
                        at,
                        Event::Asked {
                            read,
                            client: number(client),
                            key: number(key),
                            rule,
                        },
                    );
                }
                book.reads += keys.len() as u64;
                Some(first.to_string())
            }
            ["got", pairs @ ..] => {
                for (read, version) in pairs.iter().map(|pair| pair_of(pair)) {
                    book.note(at, Event::Answered { read, version });
                }
                None
            }
            unknown => panic!("not a line: {unknown:?}"),
        }
    }
}

impl Book {
    fn note(&mut self, at: Duration, event: Event) {
        self.history.push(Entry { at, event });
    }

    fn is_loading(&self, key: KeyNumber) -> bool {
        self.loading.get(&key).is_some_and(|loads| *loads > 0)
    }

    fn raise(&mut self, at: Duration, key: KeyNumber) -> u64 {
        self.versions[key] += 1;
        let version = self.versions[key];
        self.note(at, Event::Raised { key, version });
        version
    }
}

/// The other end: a line to the truth.
pub struct Line {
    answers: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

impl Line {
    pub async fn to(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.expect("the world is on");
        let (from, to) = stream.into_split();
        Self {
            answers: BufReader::new(from),
            to,
        }
    }

    pub async fn tell(&mut self, line: &str) {
        let line = format!("{line}\n");
        let told = self.to.write_all(line.as_bytes()).await;
        told.expect("the world goes on");
    }

    /// Says a line, and returns the numbers of the answer.
    pub async fn ask(&mut self, line: &str) -> Vec<u64> {
        self.tell(line).await;
        let mut answer = String::new();
        let heard = self.answers.read_line(&mut answer).await;
        assert!(heard.expect("the world goes on") > 0, "the world goes on");
        let words = answer.split_whitespace();
        words.filter_map(|word| word.parse().ok()).collect()
    }
}

/// The words of an iterator, with blanks between them.
pub fn joined(words: impl IntoIterator<Item = impl ToString>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| word.to_string()).collect();
    words.join(" ")
}

fn number<N: std::str::FromStr>(word: &str) -> N {
    word.parse().unwrap_or_else(|_| panic!("no number: {word}"))
}

fn millis(word: &str) -> Option<Duration> {
    (word != "-").then(|| Duration::from_millis(number(word)))
}

fn pair_of(pair: &str) -> (u64, u64) {
    let (one, other) = pair.split_once('=').expect("a pair");
    (number(one), number(other))
}
