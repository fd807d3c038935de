//! Programs that we start, watch and stop: each belongs to a [`Daemon`], which stops it when dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};

/// How long a daemon may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long a daemon may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a program's log that are worth showing when it failed.
const LOG_LINES_SHOWN: usize = 5;

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on SIGINT and SIGTERM no longer end this process but make [`check_interrupted`] fail, so that
/// everything that was started is stopped and every folder removed.
pub fn catch_interrupts() -> Result<()> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("signal handler")?;
    }
    Ok(())
}

/// Fails once the operator has asked us to stop.
pub fn check_interrupted() -> Result<()> {
    if INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// Raises our own limit of open files to the hard limit; children inherit it.
pub fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")
}

/// A TCP port of 127.0.0.1 that nobody listens on right now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// Finds a program in `PATH` and in the folders for daemons, which are not in every user's `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let daemon_folders = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(daemon_folders)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Who runs the programs that refuse to run as root.
#[derive(Debug, Clone, Copy)]
pub enum RunAs {
    /// We are not root: everything runs as the user that we are.
    Ourselves,
    /// We are root: `PostgreSQL` and `PgBouncer` run as this user.
    Other {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl RunAs {
    /// `postgres` if it exists, else `nobody`, when we are root.
    pub fn find() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Self::Other { uid: user.uid.as_raw(), gid: user.gid.as_raw() });
            }
        }
        bail!("running as root, and there is neither a user postgres nor a user nobody")
    }

    /// Makes `command` run as this user.
    pub fn apply(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Hands a file or folder to this user.
    pub fn own(self, path: &Path) -> Result<()> {
        if let Self::Other { uid, gid } = self {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot hand over {}", path.display()))?;
        }
        Ok(())
    }
}

/// A command that runs `program` in a session of its own, as a service manager starts it. Where Linux shares the
/// processors among sessions first (`sched_autogroup_enabled`, sched(7)), a proxy in the session of its load generator would
/// have to share that one's part.
pub fn service(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setsid");
    command.arg(program);
    command
}

/// A running program; stopped when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
    stop_signal: Signal,
}

impl Daemon {
    /// Starts `command` with its output in `folder/name.log`. `stop_signal` is its signal for "end at once, but in
    /// order".
    pub fn spawn(
        name: &'static str,
        command: &mut Command,
        folder: &Path,
        stop_signal: Signal,
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let child = into_file(command, &log)?.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log, stop_signal })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Repeats `probe` until it succeeds. Fails when the program ends or the time is over.
    pub fn wait_until_ready(&mut self, mut probe: impl FnMut() -> std::io::Result<()>) -> Result<()> {
        let give_up = Instant::now() + READY_WITHIN;
        loop {
            check_interrupted()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, last_lines(&self.log));
            }
            match probe() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > give_up => {
                    return Err(error)
                        .with_context(|| format!("{} is not ready: {}", self.name, last_lines(&self.log)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A failure means that it has ended already; waiting for it below is right in both cases.
        let _ = kill(self.pid(), self.stop_signal);
        let give_up = Instant::now() + STOP_WITHIN;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > give_up {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Sends both output streams of `command` to a new file: a pipe that nobody reads would block the program.
pub fn into_file<'a>(command: &'a mut Command, file: &Path) -> Result<&'a mut Command> {
    let output = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let errors = output.try_clone()?;
    Ok(command.stdin(Stdio::null()).stdout(output).stderr(errors))
}

/// Runs a program to its end and fails, with the end of its output, unless it succeeds.
pub fn run_to_end(command: &mut Command, log: &Path) -> Result<()> {
    let status = into_file(command, log)?.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{} failed with {status}: {}", command.get_program().display(), last_lines(log));
    }
    Ok(())
}

/// The first line that a program prints, as its version.
pub fn version_of(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned())
}

/// The end of a log, on one line.
pub fn last_lines(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join(" / ")
}
