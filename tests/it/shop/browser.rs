//! A real browser, if Chromium and its driver are installed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fantoccini::{ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::service::{PASSWORD, Service};
use crate::support::wait::{bounded, until};

#[tokio::test]
async fn a_browser_buys_and_shows_nothing_private_after_the_logout() {
    let Some(window) = Window::open().await else {
        return;
    };
    let service = Service::start().await;
    let [first, second] = service.addresses();
    let (product, _) = service.product_with(12);

    window.go(&format!("{first}/")).await;
    window.pictures("front").await;
    window.go(&format!("{second}/products/{product}")).await;
    window.pictures("product").await;
    window.click("form.buy button").await;
    window.is_at("/login").await;
    window.pictures("login").await;
    window.fill("name", "hedy").await;
    window.fill("password", PASSWORD).await;
    window.click("button[formaction='/signup']").await;

    // On to what was asked for before the login.
    window.is_at(&format!("/buy/{product}")).await;
    window.pictures("buy").await;
    window.click("main button.main").await;
    window.is_at("/orders/").await;
    assert!(window.text().await.contains("Thank you"));
    window.pictures("order").await;
    window.go(&format!("{first}/account")).await;
    let account = window.text().await;
    assert!(
        account.contains("hedy") && account.contains("this one"),
        "{account}"
    );
    window.pictures("account").await;
    window.click("form[action='/logout'] button").await;
    window.is_at("/login").await;

    // The account, the receipt, and the form of the order.
    for private in ["/account", "/orders/", "/buy/"] {
        window.back_to_login(private).await;
    }
    window.go(&format!("{second}/account")).await;
    window.is_at("/login").await;
    window.go(&format!("{first}/countries/XX")).await;
    window.pictures("message").await;
    window.close().await;
}

/// A browser with an empty profile, and its driver.
struct Window {
    page: fantoccini::Client,
    /// Where the driver takes commands of this browser.
    session: String,
    _processes: Processes,
}

impl Window {
    /// Returns nothing if there is no browser here, and says so.
    async fn open() -> Option<Self> {
        let (Some(chromium), Some(driver)) = (on_path("chromium"), on_path("chromedriver")) else {
            let why = "not shown here: chromium and chromedriver are not installed, so no browser \
                       has looked at the shop; scripts/setup.sh installs them on Debian";
            let _ = writeln!(std::io::stderr(), "{why}");
            return None;
        };
        let mut processes = Processes::start(&driver);
        let port = processes.port().await;
        let mut arguments = FLAGS.map(str::to_owned).to_vec();
        arguments.push(format!(
            "--user-data-dir={}",
            processes.profile.path().display()
        ));
        let options = json!({ "binary": chromium, "args": arguments });
        let capabilities = json!({ "goog:chromeOptions": options });
        let driver = format!("http://127.0.0.1:{port}");
        let page = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().expect("an object").clone())
            .connect(&driver)
            .await
            .expect("a browser opens");
        let id = page
            .session_id()
            .await
            .expect("an answer")
            .expect("a session");
        Some(Self {
            page,
            session: format!("{driver}/session/{id}"),
            _processes: processes,
        })
    }

    async fn go(&self, url: &str) {
        bounded("the page is there", self.page.goto(url))
            .await
            .expect("a page");
    }

    async fn fill(&self, name: &str, text: &str) {
        let field = format!("[name={name}]");
        let field = self.page.find(Locator::Css(&field)).await.expect("a field");
        field.send_keys(text).await.expect("it takes keys");
    }

    async fn click(&self, what: &str) {
        let found = self.page.find(Locator::Css(what)).await;
        found.expect(what).click().await.expect("it can be clicked");
    }

    /// Waits until the path of the page begins so.
    async fn is_at(&self, path: &str) {
        until(path, async || self.path().await.starts_with(path)).await;
    }

    async fn path(&self) -> String {
        let url = self
            .page
            .current_url()
            .await
            .expect("a page has an address");
        url.path().to_owned()
    }

    async fn text(&self) -> String {
        let body = self.page.find(Locator::Css("body")).await.expect("a body");
        body.text().await.expect("text")
    }

    /// Goes back in the history, to a page that was private: the login is there in its place.
    async fn back_to_login(&self, private: &str) {
        // Over the login pages that stand there already.
        bounded("the page before", async {
            loop {
                self.page.back().await.expect("it goes back");
                let text = self.text().await;
                for secret in ["hedy", "Thank you", "Your credit", "Your order"] {
                    assert!(!text.contains(secret), "{private} is shown: {text}");
                }
                let query = self.page.current_url().await.expect("an address");
                let query = query.query().unwrap_or_default().to_owned();
                if query.contains(private) {
                    return;
                }
            }
        })
        .await;
        assert!(self.path().await.starts_with("/login"));
    }

    /// Pictures for people to look at: on a phone and on a desk, in the light and in the dark.
    async fn pictures(&self, name: &str) {
        for (of, width, height, scheme) in [
            ("phone", 390, 844, "light"),
            ("phone-dark", 390, 844, "dark"),
            ("desk", 1280, 900, "light"),
            ("desk-dark", 1280, 900, "dark"),
        ] {
            let metrics = json!({
                "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500,
            });
            self.devtools("Emulation.setDeviceMetricsOverride", metrics)
                .await;
            let media =
                json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
            self.devtools("Emulation.setEmulatedMedia", media).await;
            let picture = self.page.screenshot().await.expect("a picture");
            let path = format!("target/shop-{name}-{of}.png");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            std::fs::write(path, picture).expect("it can be written");
            let wide = "return document.documentElement.scrollWidth > window.innerWidth";
            let wide = self
                .page
                .execute(wide, Vec::new())
                .await
                .expect("an answer");
            assert_eq!(wide, Value::Bool(false), "{name} is wider than {width}");
        }
    }

    /// A command for the browser that WebDriver has no word for.
    async fn devtools(&self, command: &str, parameters: Value) {
        let body = json!({ "cmd": command, "params": parameters }).to_string();
        let request = reqwest::Client::new().post(format!("{}/goog/cdp/execute", self.session));
        let answer = request.body(body).send().await.expect("the driver answers");
        assert_eq!(answer.status(), 200, "{command}");
    }

    async fn close(self) {
        self.page.close().await.expect("it closes");
    }
}

/// The driver and the browser that it has started. They end with the test, also when that fails.
struct Processes {
    driver: tokio::process::Child,
    /// Nobody else has it, so whatever was started with it is ours.
    profile: tempfile::TempDir,
}

impl Processes {
    fn start(driver: &Path) -> Self {
        let driver = tokio::process::Command::new(driver)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the driver starts");
        let profile = tempfile::tempdir().expect("a directory");
        Self { driver, profile }
    }

    /// The port that it has chosen, which it says when it is ready.
    async fn port(&mut self) -> u16 {
        let said = self.driver.stdout.take().expect("piped");
        let mut lines = BufReader::new(said).lines();
        bounded("the driver listens", async {
            loop {
                let line = lines.next_line().await.expect("a pipe can be read");
                let line = line.expect("the driver runs");
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse().expect("a port");
                }
            }
        })
        .await
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        let _ = self.driver.start_kill();
        let profile = self.profile.path().to_string_lossy().into_owned();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(&profile) {
                let id = entry.file_name();
                let _ = Command::new("kill")
                    .arg("-KILL")
                    .arg(id)
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|it| it.join(name));
    candidates.find(|it| it.is_file())
}

const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    // The shared memory of containers is small.
    "--disable-dev-shm-usage",
];
