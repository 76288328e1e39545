//! The scripts of limits with a clock of the test: the text of the crate, in which the time comes
//! from the last two arguments, and in which keys have no end, since that would be by the true
//! clock.

use redis::Value;

use crate::support::lua;
use crate::support::server::Server;

/// What a script answers: its status, and its numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer(pub String, pub Vec<i64>);

/// A script that takes its time from the test.
pub struct Clocked(String);

impl Clocked {
    /// The script `name` in the folder of limits.
    pub fn of(name: &str) -> Self {
        let path = format!("limit/{name}.lua");
        let script = lua::scripts().into_iter().find(|it| it.name == path);
        let script = script.unwrap_or_else(|| panic!("no script is at {path}"));
        let text = script.whole();
        let clocked = text.replace("redis.call('TIME')", "{ARGV[#ARGV - 1], ARGV[#ARGV]}");
        assert_ne!(clocked, text, "{path} reads the clock");
        let endless = clocked.replace("'PX', ttl", "'KEEPTTL'");
        Self(format!("{}\n{endless}", script.shebang))
    }

    /// Runs it on `keys` at `now` (µs).
    pub async fn run(
        &self,
        server: &Server,
        keys: &[&str],
        arguments: &[String],
        now: u64,
    ) -> Answer {
        let (count, (seconds, micros)) = (
            keys.len().to_string(),
            ((now / 1_000_000).to_string(), (now % 1_000_000).to_string()),
        );
        let mut words = vec!["EVAL", &self.0, &count];
        words.extend(keys);
        words.extend(arguments.iter().map(String::as_str));
        words.extend([seconds.as_str(), micros.as_str()]);
        let mut parts = server.run::<Vec<Value>>(&words).await.into_iter();
        let status = match parts.next() {
            Some(Value::BulkString(status)) => String::from_utf8(status).expect("text"),
            other => panic!("no status: {other:?}"),
        };
        let numbers = parts.map(|part| match part {
            Value::Int(number) => number,
            other => panic!("no number: {other:?}"),
        });
        Answer(status, numbers.collect())
    }
}

/// Arguments of a script.
pub fn words<const N: usize>(words: [&dyn ToString; N]) -> Vec<String> {
    words.iter().map(|word| word.to_string()).collect()
}
