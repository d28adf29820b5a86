//! A real Chromium, driven over its DevTools protocol.
//!
//! Owns the process, its throw-away profile and what one page did: requests, and complaints (errors and warnings of
//! the console, exceptions, refused or failed loads). The protocol runs over the pipe of `--remote-debugging-pipe`:
//! JSON messages that end with a zero byte, so no port is opened and no WebSocket client is needed.
//! INVARIANT: a machine without a browser fails the test, unless `STAGE0_ALLOW_NO_BROWSER=1` says that it may have
//! none.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;
use x509_parser::prelude::{FromDer as _, X509Certificate};

const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// One browser with one page.
pub struct Browser {
    /// Ends with this value.
    _process: Child,
    _profile: TempDir,
    replies: BufReader<ChildStdout>,
    commands: ChildStdin,
    last_id: u64,
    session: Option<String>,
    loads: usize,
    requested: Vec<String>,
    complaints: Vec<String>,
}

/// The browser's binary: `STAGE0_BROWSER`, else on the `PATH`.
fn binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("STAGE0_BROWSER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name))).find(|file| file.is_file())
}

impl Browser {
    /// Starts it, trusting the server certificates with the keys of these (DER). None where the machine may have no
    /// browser.
    pub async fn start(trusted: &[Vec<u8>]) -> Option<Self> {
        let Some(binary) = binary() else {
            assert!(
                std::env::var("STAGE0_ALLOW_NO_BROWSER").is_ok_and(|value| value == "1"),
                "no Chromium on this machine: run scripts/browser.sh, or set STAGE0_ALLOW_NO_BROWSER=1 to go without"
            );
            eprintln!("NOT TESTED: no Chromium on this machine, and STAGE0_ALLOW_NO_BROWSER=1");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut process = command(&binary, profile.path(), trusted).spawn().expect("sh starts");
        let mut browser = Self {
            commands: process.stdin.take().unwrap(),
            replies: BufReader::new(process.stdout.take().unwrap()),
            _process: process,
            _profile: profile,
            last_id: 0,
            session: None,
            loads: 0,
            requested: vec![],
            complaints: vec![],
        };
        let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
        browser.call("Browser.grantPermissions", permissions).await;
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true})).await;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({})).await;
        }
        // The clipboard and the keyboard belong to the page that has the focus.
        browser.call("Emulation.setFocusEmulationEnabled", json!({"enabled": true})).await;
        Some(browser)
    }

    /// The size of the page's window in CSS pixels, and the colours that its reader prefers.
    pub async fn resize(&mut self, width: u32, height: u32, dark: bool) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// Opens an address and waits until all that the page loads has arrived.
    pub async fn open(&mut self, url: &str) {
        self.loads = 0;
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert!(opened.get("errorText").is_none(), "{url}: {opened}");
        // An address that differs in its anchor alone loads nothing.
        if opened.get("loaderId").is_some() {
            self.wait_for_load().await;
        }
    }

    pub async fn wait_for_load(&mut self) {
        while self.loads == 0 {
            let event = self.receive().await;
            self.note(&event);
        }
    }

    /// Forgets earlier loads, so that [`Browser::wait_for_load`] waits for the next.
    pub fn expect_load(&mut self) {
        self.loads = 0;
    }

    /// The value of an expression, which may be a promise.
    pub async fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", asked).await;
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Presses and releases a key: a letter, or a key with a name such as `Tab`.
    pub async fn press(&mut self, key: &str) {
        let (code, number, text) = match key {
            "Tab" => ("Tab", 9, ""),
            "Enter" => ("Enter", 13, "\r"),
            "Escape" => ("Escape", 27, ""),
            "ArrowDown" => ("ArrowDown", 40, ""),
            "/" => ("Slash", 191, "/"),
            other => panic!("no key `{other}` here"),
        };
        for kind in [if text.is_empty() { "rawKeyDown" } else { "keyDown" }, "keyUp"] {
            let mut event = json!({"type": kind, "key": key, "code": code, "windowsVirtualKeyCode": number});
            if kind == "keyDown" {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event).await;
        }
    }

    pub async fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text})).await;
    }

    /// Writes `target/screenshots/<name>.png`: what the window shows.
    pub async fn screenshot(&mut self, name: &str) {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        let png = BASE64.decode(shot["data"].as_str().unwrap().as_bytes()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    /// Every address that was requested since the start.
    pub fn requested(&self) -> &[String] {
        &self.requested
    }

    /// Everything that the browser complained of since the start.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).await.expect("the browser reads");
        loop {
            let mut message = self.receive().await;
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].take();
            }
            self.note(&message);
        }
    }

    async fn receive(&mut self) -> Value {
        let mut bytes = vec![];
        let read = timeout(REPLY_TIMEOUT, self.replies.read_until(0, &mut bytes)).await;
        read.expect("the browser answers in time").expect("the browser's pipe is open");
        assert_eq!(bytes.pop(), Some(0), "the browser ended");
        serde_json::from_slice(&bytes).expect("a message of the DevTools protocol")
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Page.loadEventFired") => self.loads += 1,
            Some("Network.requestWillBeSent") => {
                self.requested.push(params["request"]["url"].as_str().unwrap_or_default().to_owned());
            }
            Some("Runtime.consoleAPICalled")
                if ["error", "warning"].contains(&params["type"].as_str().unwrap_or("")) =>
            {
                self.complaints.push(params["args"].to_string());
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(params["exceptionDetails"].to_string()),
            Some("Log.entryAdded") if params["entry"]["level"] != "verbose" && params["entry"]["level"] != "info" => {
                self.complaints.push(params["entry"].to_string());
            }
            _ => {}
        }
    }
}

/// The shell connects the protocol's pipe, which Chromium expects at the descriptors 3 and 4, with the standard ones.
fn command(binary: &Path, profile: &Path, trusted: &[Vec<u8>]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1"]).arg(binary);
    command.args([
        "--headless",
        "--remote-debugging-pipe",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
    ]);
    // Its sandbox refuses to work for root.
    if rustix::process::getuid().is_root() {
        command.arg("--no-sandbox");
    }
    // Only these keys are trusted beside the system's authorities. An own authority would need a profile made with
    // NSS's tools, and `--ignore-certificate-errors` would also hide a request that went to somebody else's server.
    let keys: Vec<_> = trusted.iter().map(|certificate| key_hash(certificate)).collect();
    command.arg(format!("--ignore-certificate-errors-spki-list={}", keys.join(",")));
    command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

fn key_hash(certificate: &[u8]) -> String {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    BASE64.encode(&Sha256::digest(certificate.public_key().raw))
}
