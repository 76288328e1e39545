//! `Bounded`: ends a stream when a reply grows without bound.
//!
//! The driver keeps the whole of a reply in memory, so a peer that answers without end would fill
//! it. This follows the frames of RESP without looking into them: lines, and strings whose length a
//! line has announced.
//!
//! Invariant: the driver gets at most [`MOST_IN_A_REPLY`] bytes of one reply, and no byte of a
//! string that is announced as longer than [`MOST_IN_A_STRING`].
//!
//! [`dial`](crate::net::connection::dial) puts it around each socket.

use super::tapped::Tap;

/// The position in a stream of replies.
#[derive(Debug, Default)]
pub(crate) struct Bounded {
    /// The first byte of the present line; `None` between frames.
    kind: Option<u8>,
    /// The digits of the present line, as a number.
    // Only a length uses it. In other lines it means nothing.
    number: u64,
    /// The present line has a minus sign, which means null for a length.
    negative: bool,
    /// How many bytes of a string are still to come, with its line end.
    string: u64,
    /// How many bytes the present line has so far.
    line: usize,
    /// How many parts of the present reply are still to come.
    parts: u64,
    /// How many parts of the present reply have come.
    taken: u64,
    /// Bytes of the present reply so far.
    reply: u64,
}

impl Bounded {
    /// Follows the bytes that were read.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while let Some(first) = bytes.first() {
            let taken = match self.kind {
                _ if self.string > 0 => self.part_of_string(bytes.len())?,
                None => {
                    self.kind = Some(*first);
                    self.grow(1)?;
                    1
                }
                Some(kind) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let part = &bytes[..end.map_or(bytes.len(), |end| end + 1)];
                    self.part_of_line(part)?;
                    if end.is_some() {
                        self.line_ended(kind)?;
                    }
                    part.len()
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Follows the bytes that belong to the present string, of `bytes` that are there. Returns how
    /// many they are.
    fn part_of_string(&mut self, bytes: usize) -> Result<usize, &'static str> {
        // A string is skipped by its length, since its bytes may look like frames.
        let taken = self.string.min(bytes as u64);
        self.string -= taken;
        self.grow(taken)?;
        if self.string == 0 {
            self.frame_ended();
        }
        Ok(taken as usize)
    }

    /// Follows the next bytes of a line.
    fn part_of_line(&mut self, part: &[u8]) -> Result<(), &'static str> {
        self.grow(part.len() as u64)?;
        self.line += part.len();
        for byte in part {
            match byte {
                b'-' => self.negative = true,
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    // Saturating: a huge announced length must be refused, not wrap to a small one.
                    self.number = self.number.saturating_mul(10).saturating_add(digit);
                }
                _ => {}
            }
        }
        match self.line > LONGEST_LINE {
            true => Err("the server sends a line without end"),
            false => Ok(()),
        }
    }

    /// Handles the end of a line of this kind: it may announce a string, or more parts.
    fn line_ended(&mut self, kind: u8) -> Result<(), &'static str> {
        let number = std::mem::take(&mut self.number);
        let is_null = std::mem::take(&mut self.negative);
        (self.kind, self.line) = (None, 0);
        self.parts = self.parts.saturating_sub(1);
        self.taken += 1;
        let follow = match kind {
            _ if is_null => 0,
            b'$' | b'=' | b'!' => {
                // Refused by its announcement, before the driver reserves memory for it.
                if number > MOST_IN_A_STRING {
                    return Err("the server announces a value that is larger than any it may hold");
                }
                self.string = number + LINE_END;
                return Ok(());
            }
            b'*' | b'~' | b'>' => number,
            // A map has a key and a value for each entry.
            b'%' => number.saturating_mul(2),
            // Attributes come before the reply that they describe, so that is one part more.
            b'|' => number.saturating_mul(2).saturating_add(1),
            _ => 0,
        };
        self.parts = self.parts.saturating_add(follow);
        if self.parts.saturating_add(self.taken) > MOST_PARTS {
            return Err("the server sends a reply of more parts than any command has");
        }
        self.frame_ended();
        Ok(())
    }

    /// Starts the next reply if this frame was the last of the present one.
    fn frame_ended(&mut self) {
        if self.parts == 0 {
            (self.reply, self.taken) = (0, 0);
        }
    }

    /// Counts bytes of the present reply.
    fn grow(&mut self, bytes: u64) -> Result<(), &'static str> {
        self.reply += bytes;
        match self.reply > MOST_IN_A_REPLY {
            true => Err("the server sends a reply without end"),
            false => Ok(()),
        }
    }
}

impl Tap for Bounded {
    fn read(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.take(bytes)
    }
}

/// The most bytes of one string: what Redis allows by default (`proto-max-bulk-len`).
const MOST_IN_A_STRING: u64 = 512 << 20;

/// The most bytes of one reply, such as that of `MGET`.
const MOST_IN_A_REPLY: u64 = 1 << 30;

/// The most parts of one reply.
// The driver needs many times the bytes of a short part to keep it, so bytes alone are no bound.
const MOST_PARTS: u64 = 1 << 20;

/// The most bytes of a line. Lines that answer our commands are short.
const LONGEST_LINE: usize = 64 << 10;

/// The bytes of the line end after a string.
const LINE_END: u64 = 2;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use std::io;

    use super::*;
    use crate::net::stream::tapped::Tapped;

    /// A reply as a server spells it.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let line = |head: &'static str| {
            "[a-z0-9 -]{0,20}".prop_map(move |text| format!("{head}{text}\r\n").into_bytes())
        };
        let string = vec(any::<u8>(), 0..60).prop_map(|bytes| {
            let mut all = format!("${}\r\n", bytes.len()).into_bytes();
            all.extend(bytes);
            all.extend(b"\r\n");
            all
        });
        let leaf = prop_oneof![
            line("+"),
            line("-"),
            any::<i64>().prop_map(|number| format!(":{number}\r\n").into_bytes()),
            Just(b"$-1\r\n".to_vec()),
            Just(b"_\r\n".to_vec()),
            Just(b"*-1\r\n".to_vec()),
            Just(b"#t\r\n".to_vec()),
            string,
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            let several = |head: &'static str, each: usize, all: Vec<Vec<u8>>| {
                let count = all.len() / each;
                let mut reply = format!("{head}{count}\r\n").into_bytes();
                reply.extend(all.into_iter().take(count * each).flatten());
                reply
            };
            prop_oneof![
                vec(inner.clone(), 0..5).prop_map(move |all| several("*", 1, all)),
                vec(inner.clone(), 0..5).prop_map(move |all| several(">", 1, all)),
                vec(inner, 0..6).prop_map(move |all| several("%", 2, all)),
            ]
        })
    }

    proptest! {
        #[test]
        fn replies_end_where_they_end_however_they_are_torn(
            replies in vec(reply(), 1..8),
            cuts in vec(1..40_usize, 1..40),
        ) {
            let mut frames = Bounded::default();
            for reply in &replies {
                let (mut rest, mut cuts) = (&reply[..], cuts.iter().cycle());
                while !rest.is_empty() {
                    prop_assert!(rest.len() == reply.len() || frames.reply > 0, "it ends too soon");
                    let (now, later) = rest.split_at(cuts.next().map_or(1, |cut| *cut.min(&rest.len())));
                    prop_assert_eq!(frames.take(now), Ok(()));
                    rest = later;
                }
                prop_assert_eq!((frames.reply, frames.parts, frames.string), (0, 0, 0));
            }
        }
    }

    /// Reads all that a peer sends, which is `said`. Returns how many bytes came.
    async fn read(said: Vec<u8>) -> io::Result<usize> {
        let (mut peer, ours) = tokio::io::duplex(1 << 10);
        let saying = tokio::spawn(async move {
            let _ = peer.write_all(&said).await;
        });
        let mut stream = Tapped::new(ours, Bounded::default());
        let mut buffer = vec![0; 512];
        let mut bytes = 0;
        let outcome = loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break Ok(bytes),
                Ok(more) => bytes += more,
                Err(error) => break Err(error),
            }
        };
        drop(stream);
        saying.await.expect("no panic");
        outcome
    }

    #[tokio::test]
    async fn a_value_that_no_server_holds_is_not_begun() {
        let mut said = b"$9223372036854775807\r\n".to_vec();
        said.extend([b'x'; 4096]);
        let error = read(said).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let said = b"*2\r\n:1\r\n$3\r\nabc\r\n+OK\r\n".to_vec();
        assert_eq!(read(said.clone()).await.expect("good replies"), said.len());
    }

    #[test]
    fn a_reply_without_end_is_ended() {
        // A line, an array, and an array of large strings.
        let mut frames = Bounded::default();
        let line = [vec![b'+'], vec![b'x'; LONGEST_LINE + 1]].concat();
        frames.take(&line).expect_err("a line without end");
        let mut frames = Bounded::default();
        frames.take(b"*4294967296\r\n").expect_err("too many parts");
        let mut frames = Bounded::default();
        frames.take(b"*3\r\n").expect("an array");
        let (head, part) = (b"$536870912\r\n", vec![b'x'; 1 << 20]);
        let mut value = || {
            frames.take(head)?;
            for _ in 0..512 {
                frames.take(&part)?;
            }
            frames.take(b"\r\n")
        };
        value().expect("a large value");
        value().expect_err("more than a reply may hold");
    }
}
