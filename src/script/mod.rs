//! Lua scripts: a [`Script`], a [`Call`] of it, and its [`Reply`].
//!
//! Invariant: the header of a `.lua` file is the truth about its script. Arity and retry class are
//! read from the header, and debug builds check each call against them. Scripts are constant text:
//! user input travels only in `KEYS` and `ARGV`.
//!
//! Nothing here does I/O. The primitives own the scripts, and the client sends the calls.

mod reply;
mod stripped;

use std::fmt::Write as _;
use std::sync::LazyLock;

use sha1::{Digest, Sha1};

pub(crate) use reply::Reply;

use crate::key::Key;
use stripped::stripped;

/// A script of the crate, parsed once from its `.lua` file.
#[derive(Debug)]
pub(crate) struct Script {
    name: &'static str,
    /// The text that is sent and hashed, without comments and indentation.
    source: String,
    sha: String,
    keys: Arity,
    args: Arity,
    retry: Retry,
    /// The script declares that it does not write, so it is sent as `EVALSHA_RO`. Replicas accept
    /// that form, and it cannot write by mistake.
    read_only: bool,
}

/// A script in a `static`. It is parsed when it is first used.
pub(crate) type LazyScript = LazyLock<Script>;

/// How many keys or arguments a script takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Arity {
    least: usize,
    /// More than `least` are allowed.
    open: bool,
}

/// Whether a call may be sent again when it is unknown whether it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It changes nothing, so it may always be sent again, and it never leaves in doubt whether it
    /// was applied.
    Reads,
    /// A second run answers as the first did, and changes nothing more.
    Safe,
    /// A second run would change something more.
    Unsafe,
}

impl Script {
    /// Parses the text of a `.lua` file. `prelude` is inserted at the line that marks its position,
    /// or after the first line if there is no such line.
    ///
    /// # Panics
    /// If the header is malformed. A test rules that out for every file of the crate.
    pub(crate) fn parse(name: &'static str, prelude: &str, text: &str) -> Self {
        let (shebang, body) = text.split_once('\n').expect("a script has a first line");
        assert!(shebang.starts_with("#!lua"), "{name} opens with #!lua");
        let (ahead, rest) = body.split_once(PRELUDE).unwrap_or(("", body));
        let source = stripped(&format!("{shebang}\n{ahead}{prelude}{rest}"));
        // The server hashes the text that it is sent, so the stripped one is hashed here.
        let mut sha = String::with_capacity(40);
        for byte in Sha1::digest(source.as_bytes()) {
            let _ = write!(sha, "{byte:02x}");
        }
        let retry = match header(text, "Retry")
            .next()
            .and_then(|line| line.split(' ').next())
        {
            // The flag makes the server refuse writes, so it proves that the script only reads.
            Some("safe") if shebang.contains("no-writes") => Retry::Reads,
            Some("safe") => Retry::Safe,
            Some("unsafe") => Retry::Unsafe,
            other => panic!("{name} says Retry: {other:?}, not safe or unsafe"),
        };
        Self {
            // The same for each owner of a script that several folders use.
            name: name.trim_start_matches("../"),
            sha,
            keys: Arity::of(text, "KEYS"),
            args: Arity::of(text, "ARGV"),
            retry,
            read_only: shebang.contains("no-writes"),
            source,
        }
    }

    /// The name of its file.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Starts a call of the script with `keys`, which share a slot.
    pub(crate) fn call<'k>(
        &'static self,
        keys: impl IntoIterator<Item = &'k Key, IntoIter: ExactSizeIterator>,
    ) -> Call {
        let mut slot = None;
        let keys = keys.into_iter().inspect(|key| {
            debug_assert_eq!(
                *slot.get_or_insert_with(|| key.slot()),
                key.slot(),
                "{} has keys of several slots",
                self.name
            );
        });
        self.call_together(keys)
    }

    /// Starts a call of the script with `keys`, which may be in several slots of one server.
    pub(crate) fn call_together<'k>(
        &'static self,
        keys: impl IntoIterator<Item = &'k Key, IntoIter: ExactSizeIterator>,
    ) -> Call {
        let keys = keys.into_iter();
        debug_assert!(
            self.keys.admits(keys.len()),
            "{} takes other keys",
            self.name
        );
        let mut command = redis::Cmd::with_capacity(16, 512);
        command
            .arg(if self.read_only {
                "EVALSHA_RO"
            } else {
                "EVALSHA"
            })
            .arg(&self.sha)
            .arg(keys.len());
        // Any of the keys would do: one server serves all of them.
        let mut first: Option<Key> = None;
        for key in keys {
            command.arg(key.as_str());
            first.get_or_insert_with(|| key.clone());
        }
        Call {
            script: self,
            key: first,
            command,
            args: 0,
            in_full: false,
            retry: self.retry,
        }
    }
}

/// One call of a script, ready to be sent.
#[derive(Debug)]
pub(crate) struct Call {
    script: &'static Script,
    /// The first of its keys, which routes the call. One server serves all keys.
    key: Option<Key>,
    command: redis::Cmd,
    args: usize,
    in_full: bool,
    retry: Retry,
}

impl Call {
    /// Adds the next `ARGV`.
    pub(crate) fn arg(mut self, arg: impl redis::ToRedisArgs) -> Self {
        self.command.arg(arg);
        self.args += 1;
        self
    }

    /// Makes the client send the source at once. It is for a call that has no time to learn first
    /// that the server does not know the script.
    pub(crate) fn in_full(mut self) -> Self {
        self.in_full = true;
        self
    }

    /// Makes the client send the call again only if it was not executed for certain, although a
    /// second run would be harmless. It is for a caller that repeats it later.
    pub(crate) fn once(mut self) -> Self {
        self.retry = Retry::Unsafe;
        self
    }

    /// Whether it may be sent again when it is unknown whether it ran.
    pub(crate) fn retry(&self) -> Retry {
        self.retry
    }

    /// Whether the source is sent at once.
    pub(crate) fn is_in_full(&self) -> bool {
        self.in_full
    }

    /// The first of its keys.
    pub(crate) fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The script that is called.
    pub(crate) fn script(&self) -> &'static Script {
        self.script
    }

    /// The command `EVALSHA sha numkeys ..`, which is sent first.
    pub(crate) fn by_sha(&self) -> &redis::Cmd {
        debug_assert!(
            self.script.args.admits(self.args),
            "{} takes other arguments",
            self.script.name
        );
        &self.command
    }

    /// The same call with the source instead of the hash, for a server that does not know the
    /// script.
    pub(crate) fn by_source(&self) -> redis::Cmd {
        let mut command = redis::Cmd::with_capacity(16, self.script.source.len() + 256);
        command
            .arg(if self.script.read_only {
                "EVAL_RO"
            } else {
                "EVAL"
            })
            .arg(&self.script.source);
        for arg in self.command.args_iter().skip(2) {
            if let redis::Arg::Simple(bytes) = arg {
                command.arg(bytes);
            }
        }
        command
    }
}

impl Arity {
    /// Parses `-- KEYS: 1 ..`, `-- KEYS: 2 ..` or, for an open list, `-- KEYS: 2.. ..`.
    fn of(text: &str, what: &str) -> Self {
        let mut arity = Self {
            least: 0,
            open: false,
        };
        for line in header(text, what) {
            let number = line.split(' ').next().unwrap_or_default();
            let open = number.ends_with("..");
            match number.trim_end_matches("..").parse::<usize>() {
                Ok(number) if open => {
                    arity = Self {
                        least: number - 1,
                        open,
                    }
                }
                Ok(number) => arity.least = number,
                Err(_) => assert_eq!(number, "none", "{what} is numbered"),
            }
        }
        arity
    }

    /// Whether a call may have this many.
    fn admits(self, count: usize) -> bool {
        count == self.least || (self.open && count > self.least)
    }
}

/// The lines of the header that start with `-- what: `, without that prefix.
fn header<'t>(text: &'t str, what: &str) -> impl Iterator<Item = &'t str> {
    let prefix = format!("-- {what}: ");
    text.lines()
        .filter_map(move |line| line.strip_prefix(prefix.as_str()))
}

/// The line of a script at which its prelude is inserted.
// Each run creates the functions of the prelude again. A script that may return before this line
// saves that cost.
const PRELUDE: &str = "-- The prelude stands here.\n";

/// Declares a script beside its owner: `script!(ACQUIRE = "acquire.lua")`, or with a prelude that
/// several scripts share: `script!(ADD = "add.lua" after "prelude.lua")`. A prelude may be in
/// several files, which are given in their order.
macro_rules! script {
    ($visibility:vis $name:ident = $file:literal) => {
        $visibility static $name: $crate::script::LazyScript = std::sync::LazyLock::new(|| {
            $crate::script::Script::parse($file, "", include_str!($file))
        });
    };
    ($visibility:vis $name:ident = $file:literal after $($prelude:literal),+) => {
        $visibility static $name: $crate::script::LazyScript = std::sync::LazyLock::new(|| {
            let prelude = concat!($(include_str!($prelude)),+);
            $crate::script::Script::parse($file, prelude, include_str!($file))
        });
    };
}
pub(crate) use script;
