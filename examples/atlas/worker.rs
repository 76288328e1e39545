//! One worker process: readers and writers on one client.
//!
//! It takes its order from the first line of stdin and ends well on a second line, or at once when
//! stdin closes: then its parent has died. Latencies go to stdout twice a second; everything that
//! must be exact goes to the ledger.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use hedgerow::Client;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::args::Sabotage;
use crate::database::{Database, Pool};
use crate::ledger::Ledger;
use crate::pages::Pages;
use crate::popularity::Popularity;
use crate::reader::{Reader, Views};
use crate::writer::Writer;

/// What a worker is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) worker: u32,
    pub(crate) url: String,
    pub(crate) namespace: String,
    pub(crate) directory: PathBuf,
    pub(crate) readers: usize,
    pub(crate) writers: usize,
    pub(crate) think: Duration,
    pub(crate) sabotage: Option<Sabotage>,
}

impl Order {
    pub(crate) fn database(&self) -> PathBuf {
        self.directory.join("atlas.db")
    }

    pub(crate) fn ledger(&self) -> PathBuf {
        self.directory
            .join(format!("worker-{}.ledger", self.worker))
    }

    /// The name of a reader or writer by its row: readers have the rows from 0 on.
    pub(crate) fn actor(&self, row: usize) -> String {
        format!("{}/{row}", self.worker)
    }

    pub(crate) async fn client(&self) -> hedgerow::Result<Client> {
        Client::builder()
            .url(&self.url)
            .namespace(&self.namespace)
            .cache_deadline(PATIENCE)
            .connect()
            .await
    }
}

pub(crate) async fn run() -> Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line).context("a worker is started by its parent")?;
    let stop = Stop::default();
    stop.set_by_stdin();

    let client = order.client().await?;
    let pool = Pool::new(order.database());
    let popularity = Arc::new(Popularity::new(
        Database::open(&order.database())?.catalogue()?,
    ));
    let latencies = Latencies::default();
    let mut ledger = Ledger::create(&order.ledger())?;
    let reader_rows = (0..order.readers)
        .map(|_| ledger.row())
        .collect::<io::Result<Vec<_>>>()?;
    let pages = Pages::new(&client, pool.clone(), order.think, ledger.row()?);

    let mut actors = JoinSet::new();
    for (index, row) in reader_rows.into_iter().enumerate() {
        let reader = Reader {
            pages: pages.clone(),
            popularity: popularity.clone(),
            database: Database::open(&order.database())?,
            views: Views::new(client.clone(), order.sabotage),
            row,
            name: order.actor(index),
            latencies: latencies.clone(),
            stop: stop.clone(),
        };
        actors.spawn(reader.run());
    }
    for index in 0..order.writers {
        let mut writer = Writer {
            client: client.clone(),
            pages: pages.clone(),
            popularity: popularity.clone(),
            pool: pool.clone(),
            row: ledger.row()?,
            name: order.actor(order.readers + 1 + index),
            sabotage: order.sabotage,
            stop: stop.clone(),
        };
        if index == 0 {
            writer.make_up().await?;
        }
        actors.spawn(writer.run());
    }

    let mut flush = tokio::time::interval(FLUSH);
    loop {
        tokio::select! {
            ended = actors.join_next() => match ended {
                Some(actor) => actor??,
                None => break,
            },
            _ = flush.tick() => latencies.flush()?,
        }
    }
    latencies.flush()
}

/// Set when the parent asks for an orderly end.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Watches stdin on a thread of its own, which ends with the process.
    fn set_by_stdin(&self) {
        let stop = self.0.clone();
        std::thread::spawn(
            move || match io::stdin().lock().read_line(&mut String::new()) {
                Ok(read) if read > 0 => stop.store(true, Ordering::Relaxed),
                _ => std::process::exit(1),
            },
        );
    }
}

/// How long requests took, since the last flush.
#[derive(Clone, Default)]
pub(crate) struct Latencies(Arc<Mutex<Samples>>);

/// In microseconds. As JSON, a line of a worker's stdout.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Samples {
    /// Requests through the cache, hits and misses alike.
    pub(crate) cached: Vec<u64>,
    /// The same pages loaded without it.
    pub(crate) direct: Vec<u64>,
}

impl Latencies {
    pub(crate) fn cached(&self, took: Duration) {
        self.samples(|samples| samples.cached.push(took.as_micros() as u64));
    }

    pub(crate) fn direct(&self, took: Duration) {
        self.samples(|samples| samples.direct.push(took.as_micros() as u64));
    }

    fn flush(&self) -> Result<()> {
        let samples = self.samples(std::mem::take);
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, &samples)?;
        writeln!(stdout)?;
        Ok(stdout.flush()?)
    }

    fn samples<T>(&self, look: impl FnOnce(&mut Samples) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Longer than the default: a machine that is busy with a build may starve a worker for a second,
/// and a request that fails for it would be no finding.
const PATIENCE: Duration = Duration::from_secs(5);
const FLUSH: Duration = Duration::from_millis(500);
