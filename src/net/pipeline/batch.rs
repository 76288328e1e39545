//! `Batch`: commands and reads that travel together in one pipeline.
//!
//! Invariant: what is in a batch is sent, and everybody in it is told what became of it. Reads
//! share: a key that several ask for is read once.

use std::sync::Arc;

use redis::{Cmd, Pipeline, Value};
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
    keys: Vec<Key>,
    /// Where each key is in `keys`.
    places: SeededMap<Key, usize>,
    /// How many readers want each key.
    wanted: Vec<u32>,
    deadline: Option<Instant>,
}

/// Who asked for the keys at `places` of the batch.
struct Reader {
    places: Vec<usize>,
    to: To,
}

/// Where the answer to a reader goes.
enum To {
    Whole(Reply<KeyReplies>),
    /// To a read that asks other servers, too: this part of it.
    Part(Arc<ScatterRead>, usize),
}

impl Batch {
    /// What the carrier of this number has taken.
    pub(crate) fn of(taken: Vec<Queued>, carrier: u64) -> Self {
        let now = Instant::now();
        let mut batch = Self::default();
        for Queued {
            ask,
            deadline,
            settled,
        } in taken
        {
            // Past its deadline the caller gives up by itself, and says that nothing was sent.
            if deadline <= now || ask.caller_left() || settled.is_some_and(|it| it.take(carrier)) {
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

    /// The place of `key` in the batch, for one more reader.
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

    /// How many calls are in it.
    pub(crate) fn len(&self) -> usize {
        self.commands.len() + self.readers.len()
    }

    /// Sends it over `live`, a connection of `link`, and tells `learn` what its reads have found.
    /// It waits for no other connection: not all in it may wait as long.
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
        let mut pipeline = match reads {
            MultiGet::Together => Pipeline::with_capacity(self.commands.len() + 1),
            MultiGet::OneByOne => gets(&self.keys),
        };
        if reads == MultiGet::Together && !self.keys.is_empty() {
            pipeline.add_command(mget(&self.keys));
        }
        let reading = pipeline.len();
        let mut singles = Vec::with_capacity(self.commands.len());
        for (command, reply) in self.commands {
            pipeline.add_command(command);
            singles.push(reply);
        }
        let sent = link.send_all_over(live.clone(), &pipeline, deadline);
        let (mut replies, sent) = match sent.await {
            Ok((replies, sent)) => (replies.into_iter(), sent),
            Err(error) => {
                for reply in singles {
                    let _ = reply.send(Err(error.clone()));
                }
                for reader in self.readers {
                    reader.refuse(error.clone());
                }
                return;
            }
        };
        let read: Vec<Value> = replies.by_ref().take(reading).collect();
        for reply in singles {
            let answer = replies.next().map(|value| Answer { value, sent });
            let _ = reply.send(answer.ok_or_else(short));
        }
        if reading == 0 {
            return;
        }
        let count = self.keys.len();
        let all = match (reads, &read[..]) {
            // Nobody may fail for what another has asked for, such as a forbidden key.
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

/// Gives each reader the cells at its places.
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
        // The last who wants it gets it without a copy.
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
