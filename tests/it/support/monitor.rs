//! Counts the commands that clients send, as the server sees them.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::support::server::Server;
use crate::support::wait::until;

/// Sees every command from when it was started; ends with the test.
pub struct Monitor {
    lines: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Monitor {
    pub async fn start(server: &Server) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for path in server.sockets() {
            let stream = UnixStream::connect(path).await.expect("a connection");
            let mut stream = BufReader::new(stream);
            let written = stream.write_all(b"MONITOR\r\n").await;
            written.expect("the server reads");
            let mut first = String::new();
            let read = stream.read_line(&mut first).await;
            read.expect("the server answers");
            assert_eq!(first.trim(), "+OK");
            let seen = lines.clone();
            tasks.push(tokio::spawn(async move {
                let mut lines = stream.lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    seen.lock().expect("no panic").push(line);
                }
            }));
        }
        Self { lines, tasks }
    }

    /// The commands so far that name `word`, without those that scripts and the test itself sent.
    pub async fn commands(&self, server: &Server, word: &str) -> Vec<String> {
        let ours = |line: &String| {
            line.contains(word)
                && !line.contains(" lua]")
                && !["ECHO", "HKEYS", "KEYS", "COMMAND", "EXISTS"]
                    .iter()
                    .any(|verb| line.contains(&format!("] \"{verb}\"")))
        };
        self.so_far(server).await.into_iter().filter(ours).collect()
    }

    /// The commands so far that scripts sent.
    pub async fn of_scripts(&self, server: &Server) -> Vec<String> {
        let mut lines = self.so_far(server).await;
        lines.retain(|line| line.contains(" lua]"));
        lines
    }

    async fn so_far(&self, server: &Server) -> Vec<String> {
        let mark = format!("mark-{}", rand::random::<u64>());
        let _: String = server.run(&["ECHO", &mark]).await;
        let lines = || self.lines.lock().expect("no panic").clone();
        until("the monitor has caught up", async || {
            let marks = lines().iter().filter(|line| line.contains(&mark)).count();
            marks == self.tasks.len()
        })
        .await;
        lines()
    }
}
