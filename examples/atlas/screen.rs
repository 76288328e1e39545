//! The live display, on stderr; nothing when that is no terminal or the caller wants JSON.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Args;
use crate::ledger::Tally;

/// What is known while the workers run.
pub(crate) struct Status {
    pub(crate) total: Tally,
    pub(crate) workers: Vec<(u32, Tally)>,
    pub(crate) killed: u64,
}

pub(crate) struct Screen {
    lines: MultiProgress,
    clock: ProgressBar,
    total: ProgressBar,
    workers: Vec<ProgressBar>,
    shape: String,
    quiet: bool,
}

impl Screen {
    pub(crate) fn new(args: &Args) -> Self {
        let seen = !args.json && std::io::stderr().is_terminal();
        let target = if seen {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let lines = MultiProgress::with_draw_target(target);
        let clock = lines.add(ProgressBar::new(args.seconds * 1000));
        clock.set_style(style("{bar:40.green} {msg}"));
        clock.set_message("loading the places into SQLite");
        let total = lines.add(ProgressBar::new_spinner());
        total.set_style(style("{msg}"));
        let workers = (0..args.workers).map(|_| {
            let line = lines.add(ProgressBar::new_spinner());
            line.set_style(style("{msg:.dim}"));
            line
        });
        let shape = format!(
            "{} worker processes for {} s, {} readers and {} writers each; a load takes {} ms and its SQL",
            args.workers, args.seconds, args.readers, args.writers, args.think_ms
        );
        Self {
            workers: workers.collect(),
            clock,
            total,
            shape,
            lines,
            quiet: args.json,
        }
    }

    pub(crate) fn ready(&self, server: &str) {
        if self.quiet {
            return;
        }
        // Above the live lines on a terminal, and plainly where there is none.
        self.lines.suspend(|| {
            eprintln!("atlas: 10,776 places of the world in SQLite, {server}");
            eprintln!("       {}\n", self.shape);
        });
    }

    pub(crate) fn show(&self, elapsed: Duration, status: &Status) {
        self.clock.set_position(elapsed.as_millis() as u64);
        self.clock
            .set_message(format!("{:.0} s", elapsed.as_secs_f64()));
        let Tally {
            requests,
            answered,
            missed,
            loads_begun,
            renames,
            ..
        } = status.total;
        let hits = 100.0 * (answered - missed.min(answered)) as f64 / answered.max(1) as f64;
        let mut line = format!(
            "{} requests · {hits:.1} % hits · {} loads for {} misses · {} renames",
            HumanCount(requests),
            HumanCount(loads_begun),
            HumanCount(missed),
            HumanCount(renames),
        );
        if status.killed > 0 {
            line += &format!(" · {} killed", status.killed);
        }
        self.total.set_message(line);
        for (bar, (number, tally)) in self.workers.iter().zip(&status.workers) {
            let loading = tally.loads_begun - tally.loads_finished.min(tally.loads_begun);
            let doing = match (loading, tally.in_lock()) {
                (0, false) => String::new(),
                (0, true) => "in a lock".to_owned(),
                (loads, false) => format!("{loads} loading"),
                (loads, true) => format!("{loads} loading, in a lock"),
            };
            let requests = HumanCount(tally.requests).to_string();
            bar.set_message(format!(
                "worker {number:<3} {requests:>9} requests   {doing}"
            ));
        }
    }

    pub(crate) fn settling(&self) {
        self.clock.set_message("ending the workers");
    }

    pub(crate) fn end(&self) {
        for line in self.workers.iter().chain([&self.total, &self.clock]) {
            line.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates are constants and valid")
        .progress_chars("━╸─")
}
