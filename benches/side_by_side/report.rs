//! `Report`: what was measured, each row beside its target.
//!
//! Invariant: a row is printed when it is measured, and once more in the table at the end; the
//! JSON file holds the same rows. A row without a target is neither `ok` nor `short`.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::slices::Result;

/// The rows of one run, in the order in which they were measured.
#[derive(Default)]
pub(crate) struct Report(RefCell<Vec<Row>>);

#[derive(Serialize)]
struct Row {
    name: String,
    value: f64,
    /// The quartiles of the rounds that `value` is the median of; both `value` where there is one.
    low: f64,
    high: f64,
    /// Operations a second of each side, ours first, where the row compares them.
    rates: Option<(f64, f64)>,
    target: Option<Target>,
    verdict: Option<Verdict>,
}

/// What a row should reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Short,
}

impl Report {
    /// Adds a row that was measured once.
    pub(crate) fn add(&self, name: &str, value: f64) {
        self.add_spread(name, (value, value, value));
    }

    /// Adds a row that is the median of several rounds, with its quartiles.
    pub(crate) fn add_spread(&self, name: &str, spread: (f64, f64, f64)) {
        self.push(name, spread, None);
    }

    /// Adds the ratio of two rates: the median of its rounds, with its quartiles.
    pub(crate) fn add_compared(&self, name: &str, spread: (f64, f64, f64), rates: (f64, f64)) {
        self.push(name, spread, Some(rates));
    }

    fn push(&self, name: &str, (low, value, high): (f64, f64, f64), rates: Option<(f64, f64)>) {
        let target = target(name);
        let row = Row {
            name: name.to_owned(),
            verdict: target.map(|target| target.judge(value)),
            value,
            low,
            high,
            rates,
            target,
        };
        println!("{row}");
        self.0.borrow_mut().push(row);
    }

    /// Prints all rows as a table and writes them as JSON to `path`.
    pub(crate) fn finish(self, path: &Path) -> Result<()> {
        let rows = self.0.into_inner();
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["row", "measured", "quartiles", "target", ""]);
        for row in &rows {
            table.add_row([
                row.name.clone(),
                format!("{:.2}", row.value),
                format!("{:.2} - {:.2}", row.low, row.high),
                row.target.map_or_else(String::new, |it| it.to_string()),
                row.verdict.map_or_else(String::new, |it| it.to_string()),
            ]);
        }
        for column in [1, 2, 3] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        println!("{table}");
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&rows)?)?;
        println!("written to {}", path.display());
        Ok(())
    }
}

impl Target {
    fn judge(self, value: f64) -> Verdict {
        let reached = match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        };
        match reached {
            true => Verdict::Ok,
            false => Verdict::Short,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.2}", self.name, self.value)?;
        if let (Some(target), Some(verdict)) = (self.target, self.verdict) {
            write!(f, " ({target}: {verdict})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">= {least}"),
            Self::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Short => "short",
        })
    }
}

/// The target of a row: the first whose name the row's name begins with.
fn target(name: &str) -> Option<Target> {
    let known = TARGETS.iter().find(|(start, _)| name.starts_with(start));
    known.map(|(_, target)| *target)
}

/// A row's name is `ours/theirs@tasks`; a longer start stands before a shorter one.
const TARGETS: [(&str, Target); 49] = [
    ("memoize_hit/raw_get@500", Target::AtLeast(0.95)),
    ("memoize_hit/raw_get@50", Target::AtLeast(1.2)),
    ("memoize_hit/raw_get@", Target::AtLeast(0.95)),
    ("memoize_hit_1k/raw_get_decode@", Target::AtLeast(0.97)),
    ("memoize_hit_3tags/raw_get@", Target::AtLeast(0.7)),
    // At most 1.5 times the time of a bare `moka`.
    ("near_hit/moka_get@", Target::AtLeast(0.67)),
    ("near_hit/raw_get@", Target::AtLeast(50.0)),
    ("near_tags_3/raw_get@", Target::AtLeast(0.95)),
    ("near_tags_3_commands_a_hit", Target::AtMost(1.0)),
    ("cluster_near_tags_3/raw_get@", Target::AtLeast(0.95)),
    ("cluster_near_tags_3_commands_a_hit", Target::AtMost(1.0)),
    ("memoize_many_1000/memoize_1000@1000", Target::AtLeast(1.0)),
    ("memoize_many_1000/memoize_1000@1", Target::AtLeast(20.0)),
    ("memoize_many_1000_query/", Target::AtLeast(20.0)),
    ("invalidate_", Target::AtMost(1.2)),
    // The rivals of benches/peers/rivals.
    ("hit/", Target::AtLeast(1.0)),
    ("miss/", Target::AtLeast(1.0)),
    ("herd/", Target::AtLeast(1.0)),
    // In microseconds.
    ("open_breaker_", Target::AtMost(50.0)),
    ("get_many_100/mget_100@", Target::AtLeast(0.9)),
    ("set_many_100/pipelined_set_100@", Target::AtLeast(0.8)),
    ("remove_matching/scan_unlink@", Target::AtLeast(0.8)),
    ("remove_matching/redis_cli", Target::AtLeast(0.8)),
    ("remove_matching_longest_pause_ms", Target::AtMost(5.0)),
    ("counter_add/raw_incr@", Target::AtLeast(0.95)),
    ("counter_add/distkit@", Target::AtLeast(1.2)),
    ("counter_add_beside_large/alone@", Target::AtMost(3.0)),
    ("limit_check/bare_evalsha@", Target::AtLeast(0.87)),
    ("limit_known_refusal/governor@", Target::AtLeast(0.5)),
    ("page_near/handler@", Target::AtLeast(0.6)),
    ("page_redis/handler@", Target::AtLeast(0.25)),
    ("page_near/axum_response_cache@", Target::AtLeast(1.0)),
    ("page_redis/django@", Target::AtLeast(10.0)),
    // At most twice the time.
    ("limit_refused/tower_governor@", Target::AtLeast(0.5)),
    ("session_load_save/", Target::AtLeast(1.0)),
    ("lock_cycle/two_evalsha@", Target::AtLeast(0.87)),
    ("lock_cycle/rslock@1", Target::AtLeast(0.9)),
    ("lock_cycle/rslock@50", Target::AtLeast(1.0)),
    ("lock_cycle/distkit@1", Target::AtLeast(0.9)),
    ("lock_cycle/distkit@50", Target::AtLeast(1.0)),
    ("lock_acquire_server_us", Target::AtMost(4.5)),
    ("lock_release_server_us", Target::AtMost(2.2)),
    ("handoff_p99/round_trip@", Target::AtMost(2.5)),
    ("handoff_p99/distkit@", Target::AtMost(1.0)),
    ("herd_commands_per_process", Target::AtMost(4.0)),
    ("renewal_commands_a_round@10000", Target::AtMost(100.0)),
    ("renewal_scripts_a_second@3000", Target::AtMost(60.0)),
    ("cpu_cluster_", Target::AtMost(1.15)),
    ("cpu_shards_", Target::AtMost(1.15)),
];
