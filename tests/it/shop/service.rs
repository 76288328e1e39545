//! Two instances of the shop on a Redis that keeps what it has acknowledged.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use hedgerow::Client;
use rusqlite::Connection;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::visitor::Visitor;
use crate::support::server::signal;
use crate::support::topology::{Node, Recipe};
use crate::support::wait::{bounded, patient, until};

/// The shop of one test. It ends with the test, however that ends.
pub struct Service {
    pub instances: [Instance; 2],
    pub redis: Node,
    directory: tempfile::TempDir,
}

impl Service {
    /// Its calls wait for long: machines under test are slow at times.
    pub async fn start() -> Self {
        Self::start_with(&["--patience", "20"]).await
    }

    /// As [`start`](Self::start), with these arguments for both instances.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let redis = Recipe::new().with(&["--appendonly", "yes", "--appendfsync", "always"]);
        let redis = redis.start().await;
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("shop.db");
        let start = async |name| {
            let mut command = Command::new(binary());
            command
                .args(["--redis", &redis.url(), "--name", name, "--with-parent"])
                .args(["--logins-per-minute", "1000"])
                .args(["--trusted-proxy", "127.0.0.1", "--database"])
                .arg(&database)
                .args(arguments)
                .env("SHOP_ADMIN_PASSWORD", ADMIN_PASSWORD);
            Instance::start(command).await
        };
        let instances = [start("A").await, start("B").await];
        Self {
            instances,
            redis,
            directory,
        }
    }

    /// The addresses of both instances.
    pub fn addresses(&self) -> [String; 2] {
        self.instances.each_ref().map(|it| it.address.clone())
    }

    /// A visitor of both instances, without cookies.
    pub fn visitor(&self) -> Visitor {
        Visitor::new(self.addresses())
    }

    /// A visitor who has made an account and is logged in.
    pub async fn customer(&self, name: &str) -> Visitor {
        let visitor = self.visitor();
        let form = format!("name={name}&password={PASSWORD}");
        let page = visitor.post("/signup", &form).await;
        match page.status {
            303 => return visitor,
            // There was no session to be had, so there is an account without one.
            503 => log_in(&visitor, &form).await,
            status => panic!("{status} {}", page.text),
        }
        visitor
    }

    pub async fn admin(&self) -> Visitor {
        let visitor = self.visitor();
        let form = format!("name=admin&password={ADMIN_PASSWORD}");
        log_in(&visitor, &form).await;
        visitor
    }

    /// A client of the shop's own keys.
    pub fn client(&self) -> Client {
        let builder = Client::builder().url(&self.redis.url()).namespace("shop");
        patient(builder).open().expect("a good URL")
    }

    pub fn database(&self) -> Connection {
        let database = Connection::open(self.directory.path().join("shop.db"));
        database.expect("the shop has made it")
    }

    /// A product of the shop with this much stock, and its price.
    pub fn product_with(&self, stock: i64) -> (i64, i64) {
        let sql = "SELECT id, cents FROM product WHERE stock = ?1 ORDER BY id LIMIT 1";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        self.database()
            .query_row(sql, [stock], row)
            .expect("there is one")
    }
}

/// Logs in, as soon as that is possible.
async fn log_in(visitor: &Visitor, form: &str) {
    until("the login succeeds", async || {
        let page = visitor.post("/login", form).await;
        assert!(
            [303, 503].contains(&page.status),
            "{} {}",
            page.status,
            page.text
        );
        page.status == 303
    })
    .await;
}

/// A running binary that has said where it listens.
pub struct Instance {
    pub address: String,
    process: Child,
    said: tokio::io::Lines<BufReader<ChildStdout>>,
    /// The process ends when this closes.
    stdin: ChildStdin,
}

impl Instance {
    pub async fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().expect("the shop starts");
        let stdin = process.stdin.take().expect("piped");
        let said = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut instance = Self {
            address: String::new(),
            process,
            said,
            stdin,
        };
        instance.address = instance.says().await;
        instance
    }

    /// The next line that it prints, from its address on.
    pub async fn says(&mut self) -> String {
        let line = bounded("the shop says something", self.said.next_line()).await;
        let line = line.expect("a pipe can be read").expect("the shop runs");
        let address = line.find("http://").map_or("", |at| &line[at..]);
        address.to_owned()
    }

    pub fn signal(&self, name: &str) {
        signal(self.process.id().expect("it runs"), name);
    }

    pub async fn ends(mut self) -> ExitStatus {
        let ended = bounded("the instance ends", self.process.wait()).await;
        ended.expect("it can be waited for")
    }

    /// Lets go of it, as a parent does that dies.
    pub async fn ends_without_parent(self) -> ExitStatus {
        let Self {
            mut process, stdin, ..
        } = self;
        drop(stdin);
        let ended = bounded("the instance ends", process.wait()).await;
        ended.expect("it can be waited for")
    }
}

/// Where cargo has put the example: beside this binary.
pub fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("this binary has a path");
    let profile = tests.parent().and_then(|it| it.parent());
    let binary = profile.expect("target/debug/deps").join("examples/shop");
    assert!(
        binary.is_file(),
        "{} is missing; build it: cargo build --all-features --example shop",
        binary.display()
    );
    binary
}

pub const PASSWORD: &str = "correct-horse";
const ADMIN_PASSWORD: &str = "only-for-tests";
