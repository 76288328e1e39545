//! `Batch`: commands and reads that travel together in one pipeline.
//!
//! Invariant: everything in a batch is sent, or fails as a whole, and every caller in it gets an
//! answer. Reads are shared: a key that several callers ask for is read once.
//!
//! A flusher of the [`Pipeliner`](super::pipeliner::Pipeliner) builds and sends it.

use std::sync::Arc;

use redis::{Arg, Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::replies::{KeyReplies, KeyReply, MultiGet, Reply, cells, gets, mget, short, together};
use super::request::{Operation, Queued};
use super::scatter_read::ScatterRead;
use crate::error::{Error, Result};
use crate::hash::SeededMap;
use crate::key::Key;
use crate::net::connection::{Answer, Connection, Session};

/// Commands that travel together.
#[derive(Default)]
pub(crate) struct Batch {
    commands: Vec<(Cmd, Reply<Answer>)>,
    readers: Vec<Reader>,
    /// The distinct keys of all readers.
    keys: Vec<Key>,
    /// The index of each key in `keys`.
    places: SeededMap<Key, usize>,
    /// How many readers still want each key, by its index.
    wanted: Vec<u32>,
    /// The latest deadline of all callers; `None` while the batch is empty.
    // The latest, because the server may answer in time for that caller. The others leave by
    // themselves.
    deadline: Option<Instant>,
}

/// A caller that reads, and the indexes of its keys in the batch.
struct Reader {
    places: Vec<usize>,
    to: To,
}

/// Where the answer to a reader goes.
enum To {
    /// To a read of this server alone.
    Whole(Reply<KeyReplies>),
    /// To this part of a read that asks other servers, too.
    Part(Arc<ScatterRead>, usize),
}

impl Batch {
    /// Builds a batch from what the flusher of this number has taken from the queue.
    pub(crate) fn of(taken: Vec<Queued>, flusher: u64) -> Self {
        let now = Instant::now();
        let mut batch = Self::default();
        for Queued {
            ask,
            deadline,
            settled,
        } in taken
        {
            // Past its deadline the caller gives up by itself, and reports that nothing was sent. A
            // command whose caller has settled it in the meantime must not be sent.
            if deadline <= now || ask.caller_left() || settled.is_some_and(|it| it.take(flusher)) {
                continue;
            }
            batch.deadline = batch.deadline.max(Some(deadline));
            match ask {
                Operation::Command(command, reply) => batch.commands.push((command, reply)),
                Operation::Read(keys, reply) => {
                    let places = keys.into_iter().map(|key| batch.place(&key)).collect();
                    let to = To::Whole(reply);
                    batch.readers.push(Reader { places, to });
                }
                Operation::Part(read, part) => {
                    let places = read.keys(part).map(|key| batch.place(key)).collect();
                    let to = To::Part(read, part);
                    batch.readers.push(Reader { places, to });
                }
            }
        }
        batch
    }

    /// The index of `key` in the batch, counted for one more reader.
    fn place(&mut self, key: &Key) -> usize {
        let place = match self.places.get(key) {
            Some(place) => *place,
            None => {
                self.keys.push(key.clone());
                self.wanted.push(0);
                self.places.insert(key.clone(), self.keys.len() - 1);
                self.keys.len() - 1
            }
        };
        self.wanted[place] += 1;
        place
    }

    /// How many calls are in the batch.
    pub(crate) fn len(&self) -> usize {
        self.commands.len() + self.readers.len()
    }

    /// Sends the batch over `live`, a session of `link`, and passes what its reads found to
    /// `learn`. If `live` is gone it fails, and waits for no other session: the callers have
    /// different deadlines.
    pub(crate) async fn send(
        self,
        link: &Arc<Connection>,
        reads: MultiGet,
        live: Session,
        learn: impl FnOnce(&[Key], &KeyReplies),
    ) {
        let Some(deadline) = self.deadline else {
            return;
        };
        // Together, so that their replies are.
        let reads_of = match reads {
            MultiGet::Together => self.keys.chunks(self.keys.len().max(1)),
            MultiGet::OneByOne => self.keys.chunks(1),
        };
        let reading = reads_of.len();
        // What a caller asks of a key beside reading it, such as how long it still lives, goes just
        // ahead of the reads, and scripts go behind them. So no write of this client comes between.
        let mut pipeline = Pipeline::with_capacity(self.commands.len() + reading);
        let (mut questions, mut behind) = (Vec::new(), Vec::new());
        for (command, reply) in self.commands {
            if is_script(&command) {
                behind.push((command, reply));
                continue;
            }
            pipeline.add_command(command);
            questions.push(reply);
        }
        for keys in reads_of {
            pipeline.add_command(mget(keys));
        }
        let mut scripts = Vec::with_capacity(behind.len());
        for (command, reply) in behind {
            pipeline.add_command(command);
            scripts.push(reply);
        }
        let sent = link.send_all_over(live.clone(), &pipeline, deadline);
        let (mut replies, sent) = match sent.await {
            Ok((replies, sent)) => (replies.into_iter(), sent),
            Err(error) => {
                for reply in questions.into_iter().chain(scripts) {
                    let _ = reply.send(Err(error.clone()));
                }
                for reader in self.readers {
                    reader.refuse(error.clone());
                }
                return;
            }
        };
        let answered = |reply: Reply<Answer>, value: Option<Value>| {
            let answer = value.map(|value| Answer { value, sent });
            let _ = reply.send(answer.ok_or_else(short));
        };
        for reply in questions {
            answered(reply, replies.next());
        }
        let read: Vec<Value> = replies.by_ref().take(reading).collect();
        for reply in scripts {
            answered(reply, replies.next());
        }
        if reading == 0 {
            return;
        }
        let count = self.keys.len();
        let all = match (reads, &read[..]) {
            // The one `MGET` serves several callers. No caller may fail because of the key of
            // another, such as a forbidden one, so each key is read by its own `GET`.
            (MultiGet::Together, [Value::ServerError(_)]) if self.readers.len() > 1 => {
                let gets = gets(&self.keys);
                let replies = link.send_all_over(live, &gets, deadline).await;
                replies.and_then(|(replies, _)| cells(replies, count))
            }
            (MultiGet::Together, _) => {
                let reply = read.into_iter().next().ok_or_else(short);
                reply.and_then(|value| together(value, count))
            }
            (MultiGet::OneByOne, _) => cells(read, count),
        };
        if let Ok(all) = &all {
            learn(&self.keys, all);
        }
        hand_out(all, self.readers, self.wanted);
    }
}

/// Whether a command runs a script. All that caches, locks and limits write is written by scripts.
fn is_script(command: &Cmd) -> bool {
    matches!(command.args_iter().next(), Some(Arg::Simple(name)) if name.starts_with(b"EVAL"))
}

/// Gives each reader the replies for its keys.
fn hand_out(all: Result<KeyReplies>, readers: Vec<Reader>, mut wanted: Vec<u32>) {
    let mut all = match all {
        Ok(all) => all,
        Err(error) => {
            for reader in readers {
                reader.refuse(error.clone());
            }
            return;
        }
    };
    let mut take = |place: usize| -> KeyReply {
        // The last reader of a key gets the reply itself, without a copy.
        wanted[place] -= 1;
        match wanted[place] {
            0 => std::mem::replace(&mut all[place], Ok(None)),
            _ => all[place].clone(),
        }
    };
    for Reader { places, to } in readers {
        let own = places.into_iter().map(&mut take);
        match to {
            To::Whole(reply) => drop(reply.send(Ok(own.collect()))),
            To::Part(read, part) => read.answered(part, own),
        }
    }
}

impl Reader {
    fn refuse(self, error: Error) {
        match self.to {
            To::Whole(reply) => drop(reply.send(Err(error))),
            To::Part(read, part) => read.refuse(part, error),
        }
    }
}
