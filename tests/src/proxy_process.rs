//! A running tidegate, known only from outside.

use std::fs::{self, File};
use std::io::PipeWriter;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tidegate_chaos::cluster::{Owner, PortLease, Signal, Workdir};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::http::{self, Answer, Metrics};
use crate::wait::{PATIENCE, wait_for, within};

/// Lines of the log that a failing test shows.
const LOG_LINES_SHOWN: usize = 200;

/// How to start one. In the configuration, the arguments and the files, `@LISTEN@`, `@ADMIN@` and `@DIR@`
/// stand for the addresses and the folder that the fixture chooses.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    binary: PathBuf,
    config: Option<String>,
    upstreams: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    files: Vec<(String, String)>,
    log_to: Option<Arc<PipeWriter>>,
}

impl ProxyOptions {
    /// `tidegate run` of this binary, as `env!("CARGO_BIN_EXE_tidegate")` names it.
    pub fn new(binary: impl AsRef<Path>) -> Self {
        Self {
            binary: binary.as_ref().to_owned(),
            config: None,
            upstreams: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            files: Vec::new(),
            log_to: None,
        }
    }

    /// Configuration file. Addresses come as flags, unless the text says `@LISTEN@` or `@ADMIN@` itself.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config = Some(toml.to_owned());
        self
    }

    /// `--upstream`.
    #[must_use]
    pub fn upstream(mut self, url: &str) -> Self {
        self.upstreams.push(url.to_owned());
        self
    }

    /// One more argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A file in its folder, such as a userlist; the process runs there, so a relative name finds it.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Its log goes into this pipe, and is not known to the fixture.
    #[must_use]
    pub fn log_to(mut self, pipe: PipeWriter) -> Self {
        self.log_to = Some(Arc::new(pipe));
        self
    }

    /// Starts it and waits until it serves.
    pub async fn start(self) -> Proxy {
        let mut proxy = Proxy::spawn(&self);
        proxy.wait_ready().await;
        proxy
    }

    /// `tidegate check` of the configuration alone: no flags for addresses, no upstreams but the file's.
    pub async fn check(self) -> Ended {
        let options = Self { upstreams: Vec::new(), ..self };
        let mut proxy = Proxy::spawn_command(&options, |places| places.check_arguments(&options));
        let status = proxy.wait_exit(PATIENCE).await;
        Ended { status, log: proxy.log() }
    }

    /// Starts it and waits for its end: for configurations that must be refused.
    pub async fn run_to_end(self) -> Ended {
        let mut proxy = Proxy::spawn(&self);
        let status = proxy.wait_exit(PATIENCE).await;
        Ended { status, log: proxy.log() }
    }
}

/// What was left of a process that ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// Everything that it printed.
    pub log: String,
}

/// A running tidegate. It is killed and its folder removed on drop; a panicking test shows its log.
pub struct Proxy {
    listen: PortLease,
    admin: PortLease,
    workdir: Workdir,
    options: ProxyOptions,
    child: Child,
    pid: u32,
}

impl Proxy {
    fn spawn(options: &ProxyOptions) -> Self {
        Self::spawn_command(options, |places| places.arguments(options))
    }

    fn spawn_command(options: &ProxyOptions, arguments: impl FnOnce(&Places<'_>) -> Vec<String>) -> Self {
        let workdir = Workdir::create("proxy", &Owner::caller()).expect("a folder");
        let listen = PortLease::take().expect("a port to listen on");
        let admin = PortLease::take().expect("a port for the admin page");
        let places = Places { dir: workdir.path(), listen: listen.port(), admin: admin.port() };
        for (name, text) in &options.files {
            fs::write(workdir.path().join(name), places.fill(text)).expect("a file in the folder");
        }
        File::create(workdir.path().join("log")).expect("a log file");
        let child = start(&places, options, arguments(&places));
        let pid = child.id().expect("a process that was just started");
        Self { listen, admin, workdir, options: options.clone(), child, pid }
    }

    /// SIGKILL, and a new process with the same command line, folder and ports. Its log begins anew.
    pub async fn kill_and_restart(&mut self) {
        self.child.kill().await.expect("a running process");
        fs::rename(self.dir().join("log"), self.dir().join("log.killed")).expect("a log file");
        let places = Places { dir: self.dir(), listen: self.listen.port(), admin: self.admin.port() };
        let child = start(&places, &self.options, places.arguments(&self.options));
        self.pid = child.id().expect("a process that was just started");
        self.child = child;
        self.wait_ready().await;
    }

    /// It says so in its log; one that logs nothing is ready when it accepts.
    async fn wait_ready(&mut self) {
        const QUIET: Duration = Duration::from_secs(1);
        let start = Instant::now();
        loop {
            if self.log().lines().any(says_ready) {
                return;
            }
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                panic!("ended ({status}) before it was ready:\n{}", self.log());
            }
            if start.elapsed() > QUIET && TcpStream::connect(self.address()).await.is_ok() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "not ready within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where applications connect.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.listen.port()).into()
    }

    /// Where the admin page is.
    pub fn admin_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.admin.port()).into()
    }

    /// Connection URL of a user and a database, as they are.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@{}/{database}", self.address())
    }

    /// Its folder: working directory, configuration, log.
    pub fn dir(&self) -> &Path {
        self.workdir.path()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Everything that it printed so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.workdir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the log contains a text.
    pub async fn wait_logged(&self, text: &str) {
        wait_for(PATIENCE, &format!("{text:?} in the log"), async || self.log().contains(text).then_some(()))
            .await;
    }

    /// Replaces the configuration file, to be read on SIGHUP.
    pub fn write_config(&self, toml: &str) {
        let places = Places { dir: self.dir(), listen: self.listen.port(), admin: self.admin.port() };
        fs::write(self.dir().join(CONFIG), places.fill(toml)).expect("the configuration file");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid =
            i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("a running process");
    }

    /// Stops it where it stands. SIGSTOP returns while threads still run; this waits until none does.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let patient_until = Instant::now() + PATIENCE;
        while !self.is_frozen() {
            assert!(Instant::now() < patient_until, "the threads do not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether all of its threads are stopped: proc(5), `stat`, the state behind the name in parentheses.
    fn is_frozen(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("a running process");
        let mut stats =
            threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok());
        stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        within(limit, "the end of the process", self.child.wait()).await.expect("a child of ours")
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Resident memory now, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Resident memory at its highest, in bytes.
    pub fn rss_bytes_max(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("a running process");
        let line =
            text.lines().find_map(|line| line.strip_prefix(field)).expect("a line of /proc/PID/status");
        // proc(5): in kB.
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Processor time so far, user and system, of all threads.
    pub fn cpu_time(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("a running process");
        // The second field may contain spaces; utime and stime are fields 14 and 15 of proc(5).
        let (_, fields) = text.rsplit_once(')').expect("a command name in parentheses");
        let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
        let ticks: u64 = ticks.sum();
        Duration::from_nanos(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second()))
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("a running process").count()
    }

    /// A GET on the admin page.
    pub async fn get(&self, path: &str) -> Answer {
        http::request(self.admin_address(), "GET", path, "").await.expect("an answer of the admin page")
    }

    /// A POST on the admin page.
    pub async fn post(&self, path: &str, body: &str) -> Answer {
        http::request(self.admin_address(), "POST", path, body).await.expect("an answer of the admin page")
    }

    /// The metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics(self.get("/metrics").await.body)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            eprintln!("---- log of the proxy (process {}) ----\n{shown}\n----", self.pid);
        }
    }
}

const CONFIG: &str = "tidegate.toml";

fn start(places: &Places<'_>, options: &ProxyOptions, arguments: Vec<String>) -> Child {
    let log = File::options().append(true).create(true).open(places.dir.join("log")).expect("a log file");
    let errors = match &options.log_to {
        Some(pipe) => pipe.try_clone().map(Stdio::from),
        None => log.try_clone().map(Stdio::from),
    };
    let errors = errors.expect("where errors go");
    let mut command = Command::new(&options.binary);
    if !options.config.as_ref().is_some_and(|config| config.contains("state_dir")) {
        // The default is one folder for the whole machine.
        command.env("TIDEGATE_STATE_DIR", places.dir.join("state"));
    }
    command.args(arguments).envs(options.environment.iter().map(|(name, value)| (name, places.fill(value))));
    command.current_dir(places.dir).stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0);
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", options.binary.display()))
}

/// "ready" as a word of its own, not as part of "already", and not denied.
fn says_ready(line: &str) -> bool {
    let mut words = line.split(|character: char| !character.is_alphanumeric()).peekable();
    while let Some(word) = words.next() {
        if word == "ready" {
            return true;
        }
        if word == "not" && words.peek() == Some(&"ready") {
            return false;
        }
    }
    false
}

/// What the placeholders stand for.
struct Places<'a> {
    dir: &'a Path,
    listen: u16,
    admin: u16,
}

impl Places<'_> {
    fn fill(&self, text: &str) -> String {
        text.replace("@LISTEN@", &format!("127.0.0.1:{}", self.listen))
            .replace("@ADMIN@", &format!("127.0.0.1:{}", self.admin))
            .replace("@DIR@", &self.dir.to_string_lossy())
    }

    /// Writes the configuration and gives the flag that names it.
    fn config_flag(&self, options: &ProxyOptions) -> Vec<String> {
        let Some(text) = &options.config else { return Vec::new() };
        fs::write(self.dir.join(CONFIG), self.fill(text)).expect("the configuration file");
        vec!["--config".to_owned(), self.fill(&format!("@DIR@/{CONFIG}"))]
    }

    fn check_arguments(&self, options: &ProxyOptions) -> Vec<String> {
        let mut all = vec!["check".to_owned()];
        all.extend(self.config_flag(options));
        all.extend(options.arguments.iter().map(|argument| self.fill(argument)));
        all
    }

    /// Writes the configuration and gives the command line.
    fn arguments(&self, options: &ProxyOptions) -> Vec<String> {
        let mut all = vec!["run".to_owned()];
        all.extend(self.config_flag(options));
        let mut flag = |name: &str, value: &str| all.extend([name.to_owned(), self.fill(value)]);
        let mut given = options.config.clone().unwrap_or_default();
        given.extend(options.arguments.iter().map(String::as_str));
        for (name, placeholder) in [("--listen", "@LISTEN@"), ("--admin", "@ADMIN@")] {
            if !given.contains(placeholder) {
                flag(name, placeholder);
            }
        }
        options.upstreams.iter().for_each(|url| flag("--upstream", url));
        all.extend(options.arguments.iter().map(|argument| self.fill(argument)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_ready_counts() {
        // "already" in a warning would start the test too early.
        assert!(says_ready(r#"{"level":"INFO","message":"ready","listen":"127.0.0.1:1"}"#));
        assert!(says_ready("INFO ready listen=127.0.0.1:1"));
        assert!(!says_ready("port already in use"));
        assert!(!says_ready("upstream not ready"));
    }
}
