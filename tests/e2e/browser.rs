//! A headless Chromium, driven by the Chrome DevTools Protocol over its pipe (`--remote-debugging-pipe`): one
//! JSON message after another, each ended by a zero byte.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_tests::within;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// The file descriptors of the pipe are 3 and 4; the parent has it as standard input and output.
const LAUNCH: &str = r#"exec "$0" "$@" 3<&0 4>&1 >/dev/null 2>&1"#;

/// What the page is shown on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) scheme: &'static str,
}

/// A browser with one page. It ends when it is dropped.
pub(crate) struct Browser {
    _child: Child,
    _profile: TempDir,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    next_id: u64,
}

/// The program, if there is one.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|path| path.is_file())
}

impl Browser {
    /// Starts it; `None`, and a line that says so, where there is none.
    pub(crate) async fn start() -> Option<Self> {
        let Some(program) = program() else {
            println!("skipped: there is no chromium");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(LAUNCH).arg(program).args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut browser = Self { _child: child, _profile: profile, input, output, session: None, next_id: 0 };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        Some(browser)
    }

    /// Opens a page.
    pub(crate) async fn open(&mut self, url: &str, screen: Screen) {
        let Screen { width, height, scheme } = screen;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", metrics).await;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", media).await;
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert_eq!(opened["errorText"], Value::Null, "{url}");
    }

    /// The value of an expression on the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let answer = self.evaluate(expression).await;
        assert_eq!(answer["exceptionDetails"], Value::Null, "{expression}");
        answer["result"]["value"].clone()
    }

    async fn evaluate(&mut self, expression: &str) -> Value {
        self.call("Runtime.evaluate", json!({"expression": expression, "returnByValue": true})).await
    }

    /// Waits until an expression is true. It may fail until the page is there.
    pub(crate) async fn wait(&mut self, expression: &str) {
        let become_true = async {
            while self.evaluate(expression).await["result"]["value"] != Value::Bool(true) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        within(PATIENCE, expression, become_true).await;
    }

    /// What a reader reads.
    pub(crate) async fn text(&mut self) -> String {
        let text = self.value("document.body.innerText").await;
        text.as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Keeps a picture of the whole page.
    pub(crate) async fn picture(&mut self, path: &Path) {
        let wanted = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.call("Page.captureScreenshot", wanted).await;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        println!("screenshot: {}", path.display());
    }

    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let answered = async {
            self.input.write_all(&bytes).await.unwrap();
            loop {
                let mut bytes = Vec::new();
                self.output.read_until(0, &mut bytes).await.unwrap();
                assert_eq!(bytes.pop(), Some(0), "the browser ended");
                let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
                // Everything else is news that nobody asked for.
                if answer["id"] == id {
                    assert_eq!(answer["error"], Value::Null, "{method}");
                    return answer["result"].take();
                }
            }
        };
        within(PATIENCE, method, answered).await
    }
}
