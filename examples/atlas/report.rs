//! The figures of a run, and the checks that decide whether it passed.
//!
//! A check that had nothing to look at fails: no invalidation, no hit, no hand-off proves nothing.

use std::fmt;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use indicatif::HumanCount;
use serde::Serialize;

use crate::args::Args;
use crate::ledger::Tally;

/// All that was found out, before it is judged.
pub(crate) struct Audit {
    pub(crate) tally: Tally,
    pub(crate) killed: u64,
    pub(crate) killed_in_load: u64,
    pub(crate) killed_in_lock: u64,
    pub(crate) cached: Histogram<u64>,
    pub(crate) direct: Histogram<u64>,
    pub(crate) counted: i64,
    pub(crate) lost_updates: i64,
    pub(crate) last_rename: Option<(String, String, String)>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) hit_ratio: f64,
    pub(crate) loads: u64,
    pub(crate) loads_unprotected: u64,
    pub(crate) stale_reads: u64,
    pub(crate) counter_drift: i64,
    pub(crate) lock_overlaps: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    p50_uncached_us: u64,
    p99_uncached_us: u64,
    failed_requests: u64,
    reads_after_invalidation: u64,
    invalidations: u64,
    renames: u64,
    renames_refused: u64,
    lost_updates: i64,
    locks_acquired: u64,
    lock_handoffs: u64,
    locks_given_up: u64,
    locks_lost: u64,
    workers_killed: u64,
    killed_in_load: u64,
    killed_in_lock: u64,
    seconds: u64,
    passed: bool,
}

pub(crate) struct Report {
    pub(crate) figures: Figures,
    checks: Vec<Check>,
    last_rename: Option<(String, String, String)>,
}

struct Check {
    holds: bool,
    says: String,
}

impl Report {
    pub(crate) fn new(args: &Args, audit: Audit) -> Self {
        let tally = audit.tally;
        let mut figures = Figures {
            requests: tally.requests,
            hit_ratio: (tally.answered - tally.missed) as f64 / tally.answered.max(1) as f64,
            loads: tally.loads_begun,
            loads_unprotected: tally.missed,
            stale_reads: tally.stale,
            counter_drift: audit.counted - tally.requests as i64,
            lock_overlaps: tally.overlaps,
            p50_us: audit.cached.value_at_quantile(0.5),
            p99_us: audit.cached.value_at_quantile(0.99),
            p50_uncached_us: audit.direct.value_at_quantile(0.5),
            p99_uncached_us: audit.direct.value_at_quantile(0.99),
            failed_requests: tally.failed,
            reads_after_invalidation: tally.checked,
            invalidations: tally.invalidations,
            renames: tally.renames,
            renames_refused: tally.refused,
            lost_updates: audit.lost_updates,
            locks_acquired: tally.entered,
            lock_handoffs: tally.handoffs,
            locks_given_up: tally.gave_up,
            locks_lost: tally.lost,
            workers_killed: audit.killed,
            killed_in_load: audit.killed_in_load,
            killed_in_lock: audit.killed_in_lock,
            seconds: args.seconds,
            passed: true,
        };
        let checks = checks(args, &figures);
        figures.passed = checks.iter().all(|check| check.holds);
        Self {
            figures,
            checks,
            last_rename: audit.last_rename,
        }
    }

    pub(crate) fn verdict(&self) -> ExitCode {
        for check in self.checks.iter().filter(|check| !check.holds) {
            eprintln!("FAILED: {}", check.says);
        }
        if self.figures.passed {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

fn checks(args: &Args, figures: &Figures) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |holds: bool, says: String| checks.push(Check { holds, says });
    let count = |number: u64| HumanCount(number).to_string();

    check(
        figures.stale_reads == 0 && figures.reads_after_invalidation > 0,
        format!(
            "no stale read: {} of {} reads that began after an invalidation saw an older page",
            figures.stale_reads,
            count(figures.reads_after_invalidation)
        ),
    );
    check(
        figures.lock_overlaps == 0 && figures.lock_handoffs > 0,
        format!(
            "one holder at a time: {} overlaps in {} critical sections with {} hand-offs",
            figures.lock_overlaps,
            count(figures.locks_acquired),
            count(figures.lock_handoffs)
        ),
    );
    check(
        figures.lost_updates == 0 && figures.renames > 0,
        format!(
            "no rename overwritten: {} of {} are missing in the versions",
            figures.lost_updates,
            count(figures.renames)
        ),
    );
    check(
        figures.counter_drift == 0 && figures.requests > 0,
        format!(
            "every view counted once: the counter is {:+} against {} requests",
            figures.counter_drift,
            count(figures.requests)
        ),
    );
    check(
        figures.loads < figures.loads_unprotected,
        format!(
            "the herd is held back: {} loads where {} requests missed",
            count(figures.loads),
            count(figures.loads_unprotected)
        ),
    );
    check(
        figures.failed_requests == 0 && figures.hit_ratio > 0.0,
        format!("every request answered: {} failed", figures.failed_requests),
    );
    if args.kill {
        check(
            figures.killed_in_load > 0 && figures.killed_in_lock > 0,
            format!(
                "all that in spite of {} workers killed: {} in mid-load, {} in mid-lock",
                figures.workers_killed, figures.killed_in_load, figures.killed_in_lock
            ),
        );
    }
    checks
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = &self.figures;
        let count = |number: u64| HumanCount(number).to_string();
        let ms = |us: u64| us as f64 / 1000.0;

        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "", "what it means"]);
        let mut row = |name: &str, value: String, means: &str| {
            table.add_row([name, &value, means]);
        };
        row(
            "requests",
            count(figures.requests),
            "pages asked for by all readers",
        );
        row(
            "hit ratio",
            format!("{:.1} %", 100.0 * figures.hit_ratio),
            "answered by a page that was there",
        );
        row(
            "loads",
            count(figures.loads),
            "times the loader queried SQLite",
        );
        row(
            "loads without protection",
            count(figures.loads_unprotected),
            "requests that found no page [1]",
        );
        row(
            "p50, p99 with the cache",
            format!("{:.2}, {:.2} ms", ms(figures.p50_us), ms(figures.p99_us)),
            "around memoize, hits and misses [2]",
        );
        row(
            "p50, p99 without it",
            format!(
                "{:.2}, {:.2} ms",
                ms(figures.p50_uncached_us),
                ms(figures.p99_uncached_us)
            ),
            "the same pages loaded directly [3]",
        );
        row(
            "locks acquired",
            count(figures.locks_acquired),
            "critical sections, one per rename",
        );
        row(
            "lock hand-offs",
            count(figures.lock_handoffs),
            "of these, taken over from another writer",
        );
        row(
            "invalidations",
            count(figures.invalidations),
            "a country's tag, after a rename in it",
        );
        row("stale reads", count(figures.stale_reads), "must be 0 [4]");
        row(
            "lock overlaps",
            count(figures.lock_overlaps),
            "must be 0 [5]",
        );
        row(
            "counter against requests",
            format!("{:+}", figures.counter_drift),
            "must be 0 [6]",
        );
        if figures.workers_killed > 0 {
            row(
                "workers killed",
                count(figures.workers_killed),
                "with SIGKILL, and replaced",
            );
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}\n{NOTES}\n")?;

        if let Some((country, old, new)) = &self.last_rename {
            writeln!(f, "Last rename, in {country}: {old} is now {new}.\n")?;
        }
        for Check { holds, says } in &self.checks {
            writeln!(f, "{} {says}", if *holds { "✓" } else { "✗" })?;
        }
        match self.figures.passed {
            true => write!(f, "\nAll checks hold."),
            false => write!(f, "\nNOT ALL CHECKS HOLD."),
        }
    }
}

const NOTES: &str = "\
[1] Requests that began before the load of the page they got had finished: the one that loaded
    it and those that waited for it. Without herd protection each loads for itself.
[2] The slowest hundredth are misses, which wait for a load. A worker that is killed takes its
    last half second of samples with it.
[3] After 1 % of the requests the page is also loaded directly: SQL and think time, no cache.
[4] A writer announces a version in SQLite after its invalidation has returned. A reader notes
    the announced version before it asks, and the page it gets must be no older.
[5] Two guards of one lock that were provably held at once; see referee.rs.
[6] Requests are written down before their view is added under an id; the last ones of each
    worker are added again after its end, and must not count twice.";
