//! The table of the fault matrix, written by the run itself.
//!
//! Each cell leaves a file in `target/faults` (or where `HEDGEROW_FAULTS` says); the ignored test
//! here composes `docs/faults.md` from them. `make faults` does both.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What one cell has seen.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// The number of the fault in the matrix.
    pub fault: u8,
    pub name: String,
    /// Where: `one server`, `one server, proxy`, `cluster 3+3`, ..
    pub topology: String,
    /// `counter`, `lock`, `load`, or `all`.
    pub primitive: String,
    /// What the cell has shown, in a few words.
    pub outcome: String,
    /// Operations that had succeeded before the fault.
    pub before: usize,
    /// Operations, replies or connections that the fault has hit.
    pub hit: usize,
    /// Calls that were told as failed and not executed.
    /// Calls that succeeded between the fault and the last failure.
    pub meanwhile: usize,
    pub refused: usize,
    /// Calls that were told as unknown.
    pub unknown: usize,
    /// Acknowledged operations that were gone afterwards, where the fault may lose some.
    pub lost: usize,
    /// The longest time without a success, from the fault on.
    pub recovery_ms: u64,
}

impl Row {
    /// A row that a test outside of the matrix leaves, which has shown `outcome` by itself:
    /// `before` calls had succeeded, and the fault has hit `hit` calls or processes.
    pub fn shown(fault: u8, name: &str, primitive: &str, outcome: &str, before: usize, hit: usize) {
        Self::outside(fault, name, primitive, outcome, before, hit).record();
    }

    /// As [`shown`](Self::shown), to be recorded by whoever knows more.
    pub fn outside(
        fault: u8,
        name: &str,
        primitive: &str,
        outcome: &str,
        before: usize,
        hit: usize,
    ) -> Self {
        Self {
            fault,
            name: name.into(),
            topology: "one server".into(),
            primitive: primitive.into(),
            outcome: outcome.into(),
            before,
            hit,
            meanwhile: 0,
            refused: 0,
            unknown: 0,
            lost: 0,
            recovery_ms: 0,
        }
    }

    /// Leaves the row for the table. A fault that came before any traffic, or hit nothing, has
    /// shown nothing.
    pub fn record(self) {
        assert!(self.before > 0, "traffic ran before the fault: {self:?}");
        assert!(self.hit > 0, "the fault has hit something: {self:?}");
        let directory = directory();
        std::fs::create_dir_all(&directory).expect("a directory");
        let part = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let name = format!(
            "{:02}-{}-{}-{}.json",
            self.fault,
            part(&self.name),
            part(&self.topology),
            part(&self.primitive)
        );
        let text = serde_json::to_string(&self).expect("plain data");
        std::fs::write(directory.join(name), text).expect("a new file");
    }
}

/// Milliseconds, as the table has them.
pub fn ms(duration: Duration) -> u64 {
    duration.as_millis().try_into().expect("a short time")
}

#[test]
#[ignore = "writes docs/faults.md from the rows of the last run: make faults"]
fn the_table_is_written() {
    let files = std::fs::read_dir(directory()).expect("the matrix has run");
    let mut rows: Vec<Row> = files
        .map(|file| {
            let text = std::fs::read_to_string(file.expect("a file").path()).expect("a row");
            serde_json::from_str(&text).expect("a row")
        })
        .collect();
    assert!(!rows.is_empty(), "the matrix has run");
    rows.sort_by_key(|row| {
        let place = (row.topology.clone(), row.name.clone());
        (row.fault, place, row.primitive.clone())
    });
    let mut text = HEAD.to_owned();
    for row in rows {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            row.fault,
            row.name,
            row.topology,
            row.primitive,
            row.outcome,
            row.before,
            row.hit,
            row.meanwhile,
            row.refused,
            row.unknown,
            row.lost,
            row.recovery_ms
        );
    }
    let table = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
    std::fs::write(table, text).expect("written");
}

fn directory() -> PathBuf {
    match std::env::var_os("HEDGEROW_FAULTS") {
        Some(directory) => directory.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/faults"),
    }
}

const HEAD: &str = "# Faults

Written by `make faults`: each row is a test that starts traffic, brings a fault about on real
servers, proves that it has hit something, and checks the books afterwards (`tests/it/faults`).
*Before* counts successes before the fault; *hit* what the fault has hit; *served* calls that
succeeded between the fault and the last failure; *refused* calls that were told as not executed;
*unknown* calls that were told as indeterminate, each of which was applied once or not at all;
*lost* acknowledged operations that were gone afterwards, which only faults that lose data may
cause; *gap* is the longest time without a success from the fault on, in milliseconds. Counts and
times differ from run to run and from machine to machine.

| # | fault | topology | primitive | outcome | before | hit | served | refused | unknown | lost | gap |
|---|---|---|---|---|---|---|---|---|---|---|---|
";
