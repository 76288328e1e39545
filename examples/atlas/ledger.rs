//! What a worker has done so far, in a file, where a SIGKILL cannot reach it.
//!
//! Invariant: every reader, every writer and the loader own one row each, and write it whole with
//! one `pwrite`. What was written is in the page cache, so it outlives the process; a process that
//! has ended cannot write any more, so its parent then reads the exact last state. While it runs
//! the parent reads the same file for the live display and to find the moment for a kill.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of one reader, writer or loader; or the sum of many.
        #[derive(Debug, Default, Clone, Copy)]
        pub(crate) struct Tally { $($(#[$doc])* pub(crate) $name: u64,)* }

        impl Tally {
            fn words(&self) -> Vec<u64> { vec![$(self.$name),*] }

            fn from_words(mut words: impl Iterator<Item = u64>) -> Self {
                Self { $($name: words.next().unwrap_or_default(),)* }
            }

            pub(crate) fn add(&mut self, other: &Self) { $(self.$name += other.$name;)* }
        }
    };
}

tally! {
    /// Requests begun: written before anything else is done for the request.
    requests,
    /// Requests that got a page.
    answered,
    /// Of these, the ones that began before the load of their page had finished.
    missed,
    /// Answered requests that began after an invalidation of their country had returned.
    checked,
    /// Of these, the ones whose page was older than that invalidation.
    stale,
    /// Requests that got an error.
    failed,
    /// Times the loader began, and finished.
    loads_begun,
    loads_finished,
    /// Critical sections entered, and left.
    entered,
    left,
    /// Sections whose predecessor in the same country was somebody else.
    handoffs,
    /// Waits for a lock that came to nothing.
    gave_up,
    /// Locks that the holder was told it had lost.
    lost,
    /// Renames that SQLite refused because their fence was older than one it had seen.
    refused,
    /// Names changed, and tags invalidated.
    renames,
    invalidations,
    /// Proofs that two guards of one lock were held at once.
    overlaps,
}

impl Tally {
    pub(crate) fn in_load(&self) -> bool {
        self.loads_begun > self.loads_finished
    }

    pub(crate) fn in_lock(&self) -> bool {
        self.entered > self.left
    }
}

/// One actor's row: change `tally`, then `write`.
#[derive(Debug)]
pub(crate) struct Row {
    file: Arc<File>,
    index: u64,
    pub(crate) tally: Tally,
}

impl Row {
    /// Puts the row where the parent finds it.
    pub(crate) fn write(&self) -> io::Result<()> {
        let bytes: Vec<u8> = self
            .tally
            .words()
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        self.file
            .write_all_at(&bytes, self.index * bytes.len() as u64)
    }
}

/// The rows of one worker, as it hands them to its actors.
pub(crate) struct Ledger {
    file: Arc<File>,
    rows: u64,
}

impl Ledger {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: Arc::new(File::create(path)?),
            rows: 0,
        })
    }

    /// A row of the caller's own.
    pub(crate) fn row(&mut self) -> io::Result<Row> {
        let row = Row {
            file: self.file.clone(),
            index: self.rows,
            tally: Tally::default(),
        };
        self.rows += 1;
        row.write()?;
        Ok(row)
    }
}

/// A worker's ledger as its parent reads it.
#[derive(Debug)]
pub(crate) struct Reading {
    path: PathBuf,
}

impl Reading {
    pub(crate) fn of(path: PathBuf) -> Self {
        Self { path }
    }

    /// All rows in order; none before the worker has made the file.
    pub(crate) fn rows(&self) -> io::Result<Vec<Tally>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let size = Tally::default().words().len() * WORD;
        let rows = bytes.chunks_exact(size).map(|row| {
            let (words, _) = row.as_chunks::<WORD>();
            Tally::from_words(words.iter().map(|word| u64::from_le_bytes(*word)))
        });
        Ok(rows.collect())
    }

    pub(crate) fn sum(&self) -> io::Result<Tally> {
        let mut sum = Tally::default();
        for row in self.rows()? {
            sum.add(&row);
        }
        Ok(sum)
    }
}

const WORD: usize = size_of::<u64>();
