//! The server that this run is about, and what it says of itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

/// Where it is: found as `embedded::Server` finds it.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("HEDGEROW_SERVER") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|directory| ["redis-server", "valkey-server"].map(|name| directory.join(name)))
        .find(|candidate| candidate.is_file())
        .expect("redis-server or valkey-server is on PATH")
}

/// Whether nodes of a cluster know each other's shards, as they do from 7.2 on.
pub fn knows_shards() -> bool {
    *VERSION >= (7, 2)
}

/// Tells, past what captures the output of tests, what this test cannot show on this server.
pub fn not_here(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let _ = writeln!(std::io::stderr(), "not shown on this server: {test}: {why}");
}

/// What `--version` says: `.. server v=8.1.1 sha=..`.
static VERSION: LazyLock<(u32, u32)> = LazyLock::new(|| {
    let output = Command::new(binary()).arg("--version").output();
    let said = output.expect("the server tells its version").stdout;
    let said = String::from_utf8_lossy(&said);
    let numbers = said.split_once(" v=").and_then(|(_, version)| {
        let mut numbers = version.split(['.', ' ']).map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    numbers.unwrap_or_else(|| panic!("a version: {said}"))
});
