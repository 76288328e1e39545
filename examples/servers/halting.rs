//! A private server that can be made to stand still, as a server in trouble does.

use std::io;
use std::process::Command;

use hedgerow::embedded::Server;

pub(crate) struct Halting {
    server: Server,
    process: String,
}

impl Halting {
    pub(crate) async fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let server = Server::start().await?;
        let admin = redis::Client::open(server.url())?;
        let mut admin = admin.get_multiplexed_async_connection().await?;
        let info: String = redis::cmd("INFO").query_async(&mut admin).await?;
        let mut lines = info.lines();
        let process = lines.find_map(|line| line.strip_prefix("process_id:"));
        let process = process.ok_or("INFO names no process")?.to_owned();
        Ok(Self { server, process })
    }

    pub(crate) fn url(&self) -> &str {
        self.server.url()
    }

    /// The server keeps its connections and answers nothing.
    pub(crate) fn halt(&self) -> io::Result<()> {
        self.signal("-STOP")
    }

    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.signal("-CONT")
    }

    fn signal(&self, name: &str) -> io::Result<()> {
        let status = Command::new("kill").args([name, &self.process]).status()?;
        match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!("kill {name} {}", self.process))),
        }
    }
}
