//! Where one RESP frame ends and the next begins.
//!
//! Invariant: bytes may come in any pieces; a frame's end is found without keeping its values.
//! Knows RESP2, RESP3 and inline requests; not the streamed types, which no server sends.

/// Finds ends of frames in bytes as they pass.
#[derive(Debug, Default)]
pub struct Scanner {
    /// The line being read, where it has not ended yet.
    line: Vec<u8>,
    /// Bytes of a bulk, with its end of line, still to come.
    bulk: usize,
    /// Values still to come in this frame.
    open: usize,
    within: bool,
}

impl Scanner {
    /// How many of `bytes` belong to the current frame, and whether it ends with them.
    pub fn scan(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < bytes.len() {
            if !self.within {
                (self.within, self.open) = (true, 1);
            }
            if self.bulk > 0 {
                let passed = self.bulk.min(bytes.len() - at);
                self.bulk -= passed;
                at += passed;
                if self.bulk == 0 {
                    self.open -= 1;
                }
            } else {
                self.line.push(bytes[at]);
                at += 1;
                if self.line.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.line);
                    self.header(&line);
                }
            }
            if self.open == 0 {
                self.within = false;
                return (at, true);
            }
        }
        (at, false)
    }

    /// One line: a whole value, or how much of one follows.
    fn header(&mut self, line: &[u8]) {
        let number = std::str::from_utf8(&line[1..])
            .ok()
            .and_then(|text| text.trim().parse::<i64>().ok());
        let count = usize::try_from(number.unwrap_or(-1)).ok();
        match (line[0], count) {
            (b'$' | b'=' | b'!', Some(length)) => self.bulk = length + 2,
            (b'*' | b'~' | b'>', Some(values)) => self.open += values - usize::from(values > 0),
            (b'%', Some(pairs)) => self.open += 2 * pairs,
            // The value that the attributes belong to follows them.
            (b'|', Some(pairs)) => self.open += 2 * pairs + 1,
            _ => {}
        }
        let aggregate_of_values = matches!(line[0], b'*' | b'~' | b'>') && count > Some(0);
        if self.bulk == 0 && !aggregate_of_values {
            self.open -= 1;
        }
    }
}

/// The words of a request, or of a push whose values are strings.
pub fn words(frame: &[u8]) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut rest = frame;
    let mut words = Vec::new();
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let line = text(&rest[..end]);
        rest = &rest[end + 1..];
        match (line.as_bytes()[0], line[1..].trim().parse::<usize>()) {
            (b'$', Ok(length)) => {
                words.push(text(&rest[..length]));
                rest = &rest[length + 2..];
            }
            (b'*' | b'>', _) => {}
            (b'+' | b':', _) => words.push(line[1..].trim().to_owned()),
            // Inline.
            _ => words.extend(line.split_whitespace().map(str::to_owned)),
        }
    }
    words
}

#[test]
fn frames_end_where_they_end_however_they_are_cut() {
    let frames: [&[u8]; 16] = [
        b"+OK\r\n",
        b"-ERR no\r\n",
        b":42\r\n",
        b"$0\r\n\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"_\r\n",
        b"#t\r\n",
        b"$7\r\n*3\r\n$1\n\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n\r\n\r\n",
        b"*2\r\n*2\r\n:1\r\n*0\r\n%1\r\n+a\r\n~2\r\n$1\r\nb\r\n$-1\r\n",
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
        b"|1\r\n+ttl\r\n:3600\r\n*1\r\n:1\r\n",
        b"%0\r\n",
        b"PING\r\n",
    ];
    let stream = frames.concat();
    for size in [1, 2, 3, 7, 64, stream.len()] {
        let (mut scanner, mut found, mut frame) = (Scanner::default(), Vec::new(), Vec::new());
        for mut piece in stream.chunks(size) {
            while !piece.is_empty() {
                let (passed, ended) = scanner.scan(piece);
                frame.extend_from_slice(&piece[..passed]);
                piece = &piece[passed..];
                if ended {
                    found.push(std::mem::take(&mut frame));
                }
            }
        }
        assert_eq!(found, frames, "in pieces of {size}");
    }
    assert_eq!(words(frames[10]), ["SET", "a", "\r\n"]);
    assert_eq!(words(frames[12]), ["message", "c", "m"]);
    assert_eq!(words(frames[15]), ["PING"]);
}
