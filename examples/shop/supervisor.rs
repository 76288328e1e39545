//! A private Redis and two instances of the shop on it.
//!
//! Invariant: nothing outlives this process, however it ends. The instances watch their standard
//! input, whose other end is here; the server does the same.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hedgerow::embedded::Server;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::state::{ADMIN_PASSWORD, random_word};

pub(crate) async fn run(args: &Args) -> Result<()> {
    // Before anything is started: from here on, a signal lets the instances finish.
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let server = Server::start().await?;
    let directory = tempfile::tempdir().context("a directory cannot be made")?;
    let database = directory.path().join("shop.db");
    let admin_password = std::env::var(ADMIN_PASSWORD).unwrap_or_else(|_| random_word());

    let mut instances = Vec::new();
    for (name, offset) in [("A", 0), ("B", 1)] {
        let port = match args.port {
            0 => 0,
            port => port.checked_add(offset).context("the port is too high")?,
        };
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--redis", server.url(), "--name", name, "--with-parent"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--logins-per-minute", &args.logins_per_minute.to_string()])
            .args(["--give-up-after", &args.give_up_after.to_string()])
            .arg("--database")
            .arg(&database)
            .env(ADMIN_PASSWORD, &admin_password);
        instances.push(Instance::start(name, command).await?);
    }
    for instance in &instances {
        println!("instance {}: {}", instance.name, instance.address);
    }
    println!("both have the same pages, sessions and stock; log in as admin with {admin_password}");
    println!("ctrl-c ends all of it");

    let ended = tokio::select! {
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
        ended = any_ends(&mut instances) => ended,
    };
    for instance in instances {
        instance.end().await?;
    }
    ended
}

/// Returns when an instance has ended by itself, which is an error.
async fn any_ends(instances: &mut [Instance]) -> Result<()> {
    let all = instances.iter_mut().map(|it| Box::pin(it.child.wait()));
    let (status, which, _) = futures::future::select_all(all).await;
    bail!("instance {which} has ended: {}", status?)
}

struct Instance {
    name: &'static str,
    address: String,
    child: Child,
    /// The instance ends when this is closed.
    stdin: ChildStdin,
}

impl Instance {
    /// Starts it and waits until it listens.
    async fn start(name: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("an instance cannot be started")?;
        let stdin = child.stdin.take().context("the instance has no stdin")?;
        let stdout = child.stdout.take().context("the instance has no stdout")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        let address = line.with_context(|| format!("instance {name} did not start"))?;
        Ok(Self {
            name,
            address,
            child,
            stdin,
        })
    }

    /// Lets it finish its requests.
    async fn end(mut self) -> Result<()> {
        drop(self.stdin);
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        if ended.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(15);
