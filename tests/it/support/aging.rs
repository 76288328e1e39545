//! Entries and tags that have become older, without any time passing.

use std::time::Duration;

use crate::support::server::Server;

/// Makes the entry at `key` as old as it would be `by` later.
pub async fn aged(server: &Server, key: &str, by: Duration) {
    let by = by.as_millis().to_string();
    let aged: i64 = server.run(&["EVAL", AGED, "1", key, &by]).await;
    assert_eq!(aged, 1, "{key} lives longer than that");
}

/// Makes all tags as old as if they had been made in 1970.
pub async fn old_tags(server: &Server) {
    for key in server.keys("hr:t:*").await {
        let _: i64 = server.run(&["EVAL", OLD_TAG, "1", &key]).await;
    }
}

const AGED: &str = "
    local by = tonumber(ARGV[1])
    local left = redis.call('PTTL', KEYS[1])
    if left <= by then return 0 end
    local ends = redis.call('GETRANGE', KEYS[1], 8, 19)
    local fresh = struct.unpack('>I6', ends) - by
    local stale = struct.unpack('>I6', string.sub(ends, 7)) - by
    redis.call('SETRANGE', KEYS[1], 8, struct.pack('>I6', fresh) .. struct.pack('>I6', stale))
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left - by))
    return 1
";

const OLD_TAG: &str = "return redis.call('SETRANGE', KEYS[1], 9, struct.pack('>I6', 1))";
