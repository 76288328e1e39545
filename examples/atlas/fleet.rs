//! The parent: starts the workers, kills some when asked to, and settles what the dead left open.
//!
//! Invariant: a worker's ledger is read for good only after the process has been waited for, and
//! its last views are settled at once, well within the window in which their ids are remembered.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use hedgerow::embedded::Server;
use rand::RngExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::args::Args;
use crate::database::Database;
use crate::ledger::{Reading, Tally};
use crate::reader::Views;
use crate::report::{Audit, Report};
use crate::screen::{Screen, Status};
use crate::worker::{Order, Samples};

/// Runs the whole show.
pub(crate) async fn run(args: &Args) -> Result<Report> {
    let screen = Screen::new(args);
    let directory = tempfile::Builder::new().prefix("atlas-").tempdir();
    let directory = directory.context("no temporary directory could be made")?;
    let server = Redis::find().await?;
    let order = Order {
        worker: 0,
        url: server.url().to_owned(),
        // Runs on a shared server do not see each other.
        namespace: format!("atlas-{:08x}", rand::random::<u32>()),
        directory: directory.path().to_owned(),
        readers: args.readers,
        writers: args.writers,
        think: args.think(),
        sabotage: args.sabotage,
    };
    Database::create(&order.database(), PLACES)?;
    let views = Views::new(order.client().await?, args.sabotage);
    screen.ready(&server.describe());

    let mut fleet = Fleet::new(order.clone(), views.clone());
    for _ in 0..args.workers {
        let worker = fleet.start().await?;
        fleet.workers.push(worker);
    }
    fleet.watch(args, &screen).await?;
    screen.settling();
    fleet.finish().await?;
    screen.end();

    let database = Database::open(&order.database())?;
    Ok(Report::new(
        args,
        fleet.audit(views.total().await?, &database)?,
    ))
}

/// The server that all workers share.
enum Redis {
    Ours(Server),
    Theirs(String),
}

impl Redis {
    async fn find() -> Result<Self> {
        match std::env::var("REDIS_URL") {
            Ok(url) => Ok(Self::Theirs(url)),
            Err(_) => Ok(Self::Ours(Server::start().await?)),
        }
    }

    fn url(&self) -> &str {
        match self {
            Self::Ours(server) => server.url(),
            Self::Theirs(url) => url,
        }
    }

    /// Without the URL, which may carry a password.
    fn describe(&self) -> String {
        match self {
            Self::Ours(_) => "a private Redis of its own".to_owned(),
            Self::Theirs(_) => "the Redis at REDIS_URL".to_owned(),
        }
    }
}

struct Fleet {
    order: Order,
    views: Views,
    workers: Vec<Worker>,
    /// The sum of the workers that have ended.
    ended: Tally,
    killed: u64,
    killed_in_load: u64,
    killed_in_lock: u64,
    cached: Histogram<u64>,
    direct: Histogram<u64>,
}

struct Worker {
    order: Order,
    child: Child,
    stdin: ChildStdin,
    ledger: Reading,
    samples: JoinHandle<Result<Samples>>,
}

/// The moment at which a worker is to be killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    Load,
    Lock,
}

impl Fleet {
    fn new(order: Order, views: Views) -> Self {
        let histogram = || Histogram::new(3).expect("three digits is within its range");
        Self {
            order,
            views,
            workers: Vec::new(),
            ended: Tally::default(),
            killed: 0,
            killed_in_load: 0,
            killed_in_lock: 0,
            cached: histogram(),
            direct: histogram(),
        }
    }

    async fn start(&mut self) -> Result<Worker> {
        self.order.worker += 1;
        Worker::start(self.order.clone()).await
    }

    /// Lets the workers work, shows it, and kills if asked to.
    async fn watch(&mut self, args: &Args, screen: &Screen) -> Result<()> {
        let began = Instant::now();
        let length = Duration::from_secs(args.seconds);
        let mut next_kill = KILL_EVERY;
        let mut moments = [Moment::Load, Moment::Lock].into_iter().cycle();
        while began.elapsed() < length {
            tokio::time::sleep(REFRESH).await;
            for worker in &mut self.workers {
                if let Some(status) = worker.child.try_wait()? {
                    anyhow::bail!("worker {} ended by itself: {status}", worker.order.worker);
                }
            }
            screen.show(began.elapsed(), &self.status()?);
            if args.kill && began.elapsed() >= next_kill {
                next_kill += KILL_EVERY;
                if let Some(moment) = moments.next() {
                    self.kill_at(moment).await?;
                }
            }
        }
        Ok(())
    }

    /// Kills a worker at such a moment and starts another in its place.
    async fn kill_at(&mut self, moment: Moment) -> Result<()> {
        let victim = rand::rng().random_range(0..self.workers.len());
        let give_up = Instant::now() + KILL_EVERY / 2;
        while Instant::now() < give_up {
            let tally = self.workers[victim].ledger.sum()?;
            let now = match moment {
                Moment::Load => tally.in_load(),
                Moment::Lock => tally.in_lock(),
            };
            if now {
                break;
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        self.workers[victim].child.kill().await?;
        // What counts is where it really died, not where it was aimed at.
        let tally = self.workers[victim].ledger.sum()?;
        self.killed += 1;
        self.killed_in_load += u64::from(tally.in_load());
        self.killed_in_lock += u64::from(tally.in_lock());
        let next = self.start().await?;
        let dead = std::mem::replace(&mut self.workers[victim], next);
        self.close(dead).await
    }

    /// Asks every worker to end and takes in what they did.
    async fn finish(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            worker.stdin.write_all(b"stop\n").await?;
        }
        for mut worker in std::mem::take(&mut self.workers) {
            let number = worker.order.worker;
            let status = timeout(PATIENCE, worker.child.wait()).await;
            let status = status.with_context(|| format!("worker {number} does not end"))??;
            anyhow::ensure!(status.success(), "worker {number} failed: {status}");
            self.close(worker).await?;
        }
        Ok(())
    }

    /// Takes in what a worker that has ended did, and settles its last views.
    async fn close(&mut self, worker: Worker) -> Result<()> {
        let rows = worker.ledger.rows()?;
        // Each reader's last view may or may not have been counted, if the worker was killed.
        // Adding it again under its id makes sure that it was, and once.
        let last = rows.iter().enumerate().filter(|(_, row)| row.requests > 0);
        try_join_all(last.map(async |(index, row)| {
            self.views
                .add(&format!("{}/{}", worker.order.actor(index), row.requests))
                .await
        }))
        .await?;
        for row in &rows {
            self.ended.add(row);
        }
        let samples = worker.samples.await??;
        for took in samples.cached {
            self.cached.record(took)?;
        }
        for took in samples.direct {
            self.direct.record(took)?;
        }
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let mut total = self.ended;
        let mut workers = Vec::new();
        for worker in &self.workers {
            let tally = worker.ledger.sum()?;
            total.add(&tally);
            workers.push((worker.order.worker, tally));
        }
        Ok(Status {
            total,
            workers,
            killed: self.killed,
        })
    }

    fn audit(self, counted: i64, database: &Database) -> Result<Audit> {
        Ok(Audit {
            killed: self.killed,
            killed_in_load: self.killed_in_load,
            killed_in_lock: self.killed_in_lock,
            tally: self.ended,
            cached: self.cached,
            direct: self.direct,
            counted,
            lost_updates: database.lost_updates()?,
            last_rename: database.last_rename()?,
        })
    }
}

impl Worker {
    async fn start(order: Order) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("a worker could not be started")?;
        let mut stdin = child.stdin.take().context("the worker has no stdin")?;
        let stdout = child.stdout.take().context("the worker has no stdout")?;
        // On stdin, not on the command line: the URL may carry a password.
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        stdin.write_all(&line).await?;
        let samples = tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            let mut all = Samples::default();
            while let Some(line) = lines.next_line().await? {
                // A worker that was killed may have left half a line.
                let Ok(mut samples) = serde_json::from_str::<Samples>(&line) else {
                    continue;
                };
                all.cached.append(&mut samples.cached);
                all.direct.append(&mut samples.direct);
            }
            Ok(all)
        });
        Ok(Self {
            ledger: Reading::of(order.ledger()),
            order,
            child,
            stdin,
            samples,
        })
    }
}

const PLACES: &str = include_str!("../data/cities.csv");
const REFRESH: Duration = Duration::from_millis(100);
const KILL_EVERY: Duration = Duration::from_millis(1200);
const PATIENCE: Duration = Duration::from_secs(20);
