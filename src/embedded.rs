//! A private server for examples, tests and local development.
//!
//! Invariant: the server never outlives its [`Server`] value, nor the process that holds it,
//! however that process ends. A shell between the two waits for the end of its standard input. The
//! operating system closes that pipe with its last holder. The shell then kills the server and
//! removes its directory. `Client::embedded` and the tests call this.

use std::env;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// A private server. It ends when this is dropped or when the process ends.
#[derive(Debug)]
pub struct Server {
    url: String,
    /// The shell that ends the server. Its standard input is the pipe.
    supervisor: Child,
    /// Removed when this is dropped, or by the shell if this process is killed.
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts `redis-server` or `valkey-server` on a Unix socket in a temporary directory, without
    /// persistence. Uses the path in `HEDGEROW_SERVER` if it is set, and otherwise the first that
    /// is found on `PATH`.
    ///
    /// # Errors
    /// `Embedded` if none is found (the message says how to install one), or if it does not answer
    /// within ten seconds.
    ///
    /// # Cancel safety
    /// Dropping the future ends the server.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with more arguments for the server, for example `["--maxmemory",
    /// "64mb"]`.
    ///
    /// # Errors
    /// As [`start`](Self::start). If the server refuses an argument, it does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future ends the server.
    pub async fn start_with(arguments: &[&str]) -> Result<Self> {
        let binary = binary()?;
        // The output of the server itself is discarded, so a binary that cannot run is found out
        // here.
        let version = Command::new(&binary)
            .arg("--version")
            .stdin(Stdio::null())
            .output();
        if !version.is_ok_and(|output| output.status.success()) {
            return Err(failed(
                "the server binary does not run; try it by hand with --version",
            ));
        }
        let directory = private_directory(&env::temp_dir())?;
        let socket = directory.path().join("s");
        let supervisor = supervised(&binary, directory.path())
            .args(arguments)
            .spawn()
            .map_err(|error| failed("the server could not be started").with_source(error))?;
        // Made before the first await, so that dropping the future ends the server.
        let server = Self {
            url: format!("unix://{}", socket.display()),
            supervisor,
            directory,
        };
        server.answers(&socket).await?;
        Ok(server)
    }

    /// Returns the URL to connect to: `unix:///..`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until the server accepts connections.
    async fn answers(&self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if tokio::net::UnixStream::connect(socket).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(failed("the server did not answer within ten seconds"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closing the pipe ends the server. The shell takes a few milliseconds for that, and is
        // waited for so that no zombie process stays.
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
        debug_assert!(
            self.directory.path().is_absolute(),
            "removed when the field is dropped"
        );
    }
}

/// Makes a directory in `parent` that no other user may enter. Its path leaves room for the name of
/// a socket.
fn private_directory(parent: &Path) -> Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("hedgerow-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(|error| failed("no temporary directory could be made").with_source(error))?;
    if directory.path().join("s").as_os_str().len() > LONGEST_SOCKET {
        return Err(failed(
            "the path of the temporary directory is too long for a Unix socket; set TMPDIR to a shorter one, \
             such as /tmp",
        ));
    }
    Ok(directory)
}

/// Returns the command that runs `binary` under a shell. The shell outlives this process just long
/// enough to clean up after it.
fn supervised(binary: &Path, directory: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SUPERVISOR, "sh"])
        .arg(directory)
        .arg(binary)
        .args([
            // No TCP port: the socket is in a directory that no other user may enter.
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--unixsocket",
        ])
        .arg(directory.join("s"))
        .args(["--unixsocketperm", "700", "--dir"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The most bytes in the path of a Unix socket. `sun_path` has 104 on some systems and 108 on
/// others, including a zero at the end.
const LONGEST_SOCKET: usize = 103;

/// The server runs in the background; `read` returns when the pipe is closed. The shell waits for
/// the end of the server, which may take a while and could still write to the directory. It ignores
/// signals, so that one to the whole process group does not end it before it has cleaned up.
const SUPERVISOR: &str = r#"
directory=$1; shift
"$@" </dev/null >/dev/null 2>&1 &
server=$!
trap 'kill -KILL $server 2>/dev/null; wait $server; rm -rf "$directory"' EXIT
trap '' INT TERM HUP
read -r _
"#;

fn binary() -> Result<PathBuf> {
    if let Some(named) = env::var_os("HEDGEROW_SERVER") {
        return Ok(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .flat_map(|directory| ["redis-server", "valkey-server"].map(|name| directory.join(name)))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            failed(
                "neither redis-server nor valkey-server is on PATH; install one \
                 (apt-get install redis-server, dnf install valkey, apk add redis, brew install redis) \
                 or name one in HEDGEROW_SERVER",
            )
        })
}

fn failed(message: &'static str) -> Error {
    Error::new(ErrorKind::Embedded, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused_at_once() {
        let parent = tempfile::tempdir().expect("a directory");
        let long = parent.path().join("x".repeat(100));
        std::fs::create_dir(&long).expect("a directory");
        let error = private_directory(&long).expect_err("too long");
        assert!(error.to_string().contains("TMPDIR"), "{error}");
        assert!(private_directory(parent.path()).is_ok());
    }

    #[tokio::test]
    async fn nobody_else_may_enter_or_connect() {
        let server = Server::start().await.expect("a server");
        let mode = |path: &Path| {
            let metadata = std::fs::metadata(path).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        let directory = server.directory.path();
        assert_eq!(mode(directory), 0o700);
        assert_eq!(mode(&directory.join("s")), 0o700);
    }
}
