//! Draws the charts of `docs/performance/` and writes the tables of `docs/performance.md`, from the
//! JSON that the benchmarks have left in `target/bench/`.
//!
//! Invariant: each figure in a table or a chart stands in the JSON that is copied beside the
//! charts. Text between the marks of a table is replaced, and all other text stays. A benchmark
//! that was not run leaves its part as it was.

mod bars;
mod charts;
mod figures;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use figures::{CodecRow, Ratio};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let charts = root.join("docs/performance");
    fs::create_dir_all(&charts)?;
    let mut page = Page::open(root.join("docs/performance.md"))?;

    if let Some(rows) = measured::<Ratio>(&root, "cache")? {
        page.put("cache", &tables::ratios(&rows))?;
        let title = "The cache against its targets";
        charts::against_targets(&charts.join("cache.svg"), title, &rows)?;
    }
    if let Some(rows) = measured::<Ratio>(&root, "rivals")? {
        page.put("rivals", &tables::ratios(&rows))?;
        charts::against_rivals(&charts.join("rivals.svg"), &rows)?;
    }
    let web = measured::<Ratio>(&root, "web")?;
    let web_rivals = measured::<Ratio>(&root, "web-rivals")?;
    if let (Some(mut rows), Some(rivals)) = (web, web_rivals) {
        rows.extend(rivals);
        page.put("web", &tables::ratios(&rows))?;
        let title = "Pages, limits and sessions against their targets";
        charts::against_targets(&charts.join("web.svg"), title, &rows)?;
    }
    if let Some(ours) = measured::<CodecRow>(&root, "codecs")? {
        let theirs = measured::<CodecRow>(&root, "codecs-django-redis")?.unwrap_or_default();
        page.put("codecs", &tables::codecs(&ours))?;
        page.put("peers", &tables::peers(&ours, &theirs))?;
        charts::codecs(&charts.join("codecs.svg"), &ours, &theirs)?;
        charts::compressors(&charts.join("compressors.svg"), &ours, &theirs)?;
        charts::sizes(&charts.join("sizes.svg"), &ours)?;
    }
    page.save()
}

/// Reads the rows of a benchmark, and keeps them beside the charts. `None` if it was not run.
fn measured<R: DeserializeOwned>(root: &Path, name: &str) -> Result<Option<Vec<R>>> {
    let file = format!("{name}.json");
    let path = root.join("target/bench").join(&file);
    if !path.exists() {
        eprintln!("target/bench/{file} is missing: its tables and charts stay as they are");
        return Ok(None);
    }
    let text = fs::read_to_string(path)?;
    fs::write(root.join("docs/performance").join(file), &text)?;
    Ok(Some(serde_json::from_str(&text)?))
}

/// A document with marked parts.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn open(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path)?;
        Ok(Self { path, text })
    }

    /// Replaces the part between `<!-- NAME begins -->` and `<!-- NAME ends -->`.
    fn put(&mut self, name: &str, part: &str) -> Result<()> {
        let (begins, ends) = (
            format!("<!-- {name} begins -->\n"),
            format!("<!-- {name} ends -->"),
        );
        let missing = || format!("{}: no part {name:?}", self.path.display());
        let (before, rest) = self.text.split_once(&begins).ok_or_else(missing)?;
        let (_, after) = rest.split_once(&ends).ok_or_else(missing)?;
        self.text = format!("{before}{begins}\n{part}\n{ends}{after}");
        Ok(())
    }

    fn save(self) -> Result<()> {
        fs::write(&self.path, self.text)?;
        println!("written: {}", self.path.display());
        Ok(())
    }
}
