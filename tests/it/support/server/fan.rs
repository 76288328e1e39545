//! Commands that mean all servers, and one answer out of many.

use redis::{FromRedisValue as _, Value};

/// Whether the administrator means all servers: commands without keys that set something, or ask
/// about everything.
pub(super) fn is_for_all(words: &[&str]) -> bool {
    let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    match upper[0] {
        "FLUSHALL" | "FLUSHDB" | "SCRIPT" | "FUNCTION" | "ACL" | "KEYS" | "DBSIZE" | "INFO"
        | "PUBSUB" | "SLOWLOG" | "ECHO" => true,
        "CONFIG" => matches!(upper[1], "SET" | "RESETSTAT"),
        "CLIENT" => matches!(upper[1], "KILL" | "PAUSE" | "UNPAUSE" | "LIST"),
        "DEBUG" => !matches!(upper[1], "OBJECT" | "DIGEST-VALUE"),
        _ => false,
    }
}

/// One reply out of those of all servers: numbers are added, lists and texts joined, and what all
/// say alike is said once. A script exists if all have it.
pub(super) fn merged(words: &[&str], replies: Vec<Value>) -> Value {
    let script_exists = words[0].eq_ignore_ascii_case("SCRIPT")
        && words
            .get(1)
            .is_some_and(|word| word.eq_ignore_ascii_case("EXISTS"));
    let mut replies = replies.into_iter();
    let first = replies.next().expect("there are servers");
    replies.fold(first, |sum, reply| match (sum, reply) {
        (Value::Array(sum), Value::Array(reply)) if script_exists => {
            let known = |(one, two)| if one == Value::Int(0) { one } else { two };
            Value::Array(sum.into_iter().zip(reply).map(known).collect())
        }
        (Value::Int(sum), Value::Int(reply)) => Value::Int(sum + reply),
        (sum, reply) if sum == reply => sum,
        (Value::Array(mut sum), Value::Array(reply)) => {
            sum.extend(reply);
            Value::Array(sum)
        }
        (sum, reply) => {
            let text = |value| String::from_redis_value(value).expect("text");
            let mut sum: String = text(sum);
            if !sum.ends_with('\n') {
                sum.push('\n');
            }
            Value::BulkString((sum + &text(reply)).into_bytes())
        }
    })
}

/// The ids of connections in a `CLIENT LIST` whose name ends in `suffix`.
pub(super) fn named(list: &str, suffix: &str) -> Vec<String> {
    assert!(!suffix.is_empty(), "this would kill the administrator");
    let field = |line: &str, name: &str| {
        let value = line.split(' ').find_map(|part| part.strip_prefix(name));
        value.unwrap_or_default().to_owned()
    };
    list.lines()
        .filter(|line| field(line, "name=").ends_with(suffix))
        .map(|line| field(line, "id="))
        .collect()
}

#[test]
fn answers_of_many_are_one() {
    let text = |text: &str| Value::BulkString(text.into());
    let list =
        |values: &[i64]| Value::Array(values.iter().map(|&value| Value::Int(value)).collect());
    let info = ["INFO"].as_slice();
    for (words, replies, whole) in [
        (
            info,
            [text("a:1\r\n"), text("a:2\r\n")],
            text("a:1\r\na:2\r\n"),
        ),
        (info, [text("a"), text("b")], text("a\nb")),
        (
            &["SCRIPT", "LOAD", "return 1"],
            [text("sha"), text("sha")],
            text("sha"),
        ),
        (
            &["SCRIPT", "EXISTS", "a", "b"],
            [list(&[1, 1]), list(&[0, 1])],
            list(&[0, 1]),
        ),
        (&["KEYS", "*"], [list(&[]), list(&[])], list(&[])),
        (
            &["KEYS", "*"],
            [list(&[1, 2]), list(&[3])],
            list(&[1, 2, 3]),
        ),
        (&["DBSIZE"], [Value::Int(2), Value::Int(2)], Value::Int(4)),
        (&["FLUSHALL"], [Value::Okay, Value::Okay], Value::Okay),
    ] {
        assert_eq!(merged(words, replies.into()), whole, "{words:?}");
    }
    assert!(is_for_all(&["config", "set", "maxmemory", "0"]));
    assert!(!is_for_all(&["CONFIG", "GET", "maxmemory"]));
    assert!(!is_for_all(&["DEL", "a"]));
}
