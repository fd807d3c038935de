//! A long-running program of a run: the subject, the service, the reverse proxy.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cluster::{Doing, Error, Owner, Result, Signal, Workdir, command, send_signal};

/// How long a program may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take to end when asked; afterwards it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What to run.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Where it accepts connections once it is ready.
    pub listens: SocketAddr,
}

/// A running program in a folder of its own; both end with the value.
#[derive(Debug)]
pub struct Daemon {
    recipe: Recipe,
    owner: Owner,
    child: Mutex<Option<Child>>,
    workdir: Workdir,
}

impl Daemon {
    /// Runs it in a prepared folder, and waits until it listens. Blocks.
    pub fn start(recipe: Recipe, owner: Owner, workdir: Workdir) -> Result<Self> {
        let daemon = Self { recipe, owner, child: Mutex::new(None), workdir };
        daemon.resume()?;
        Ok(daemon)
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.workdir.path()
    }

    /// What it printed.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.workdir.path().join("log")
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Starts it (again) and waits until it listens. Blocks.
    pub fn resume(&self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.doing_to("open", &self.log_path())?;
        let errors = log.try_clone().doing_to("open", &self.log_path())?;
        let mut command = self.owner.command(&self.recipe.program);
        command.args(&self.recipe.arguments).current_dir(self.workdir.path()).stdin(Stdio::null());
        for (name, value) in &self.recipe.environment {
            command.env(name, value);
        }
        let child = command.stdout(log).stderr(errors).spawn();
        let child = child.doing(|| format!("cannot run {}", self.recipe.program.display()))?;
        *self.child() = Some(child);
        self.wait_ready()
    }

    fn wait_ready(&self) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < READY_WITHIN {
            if let Some(status) = self.ended()? {
                let log = command::tail(&self.log(), 15);
                return Err(Error::Failed { program: self.name(), status, output: log });
            }
            if TcpStream::connect_timeout(&self.recipe.listens, READY_WITHIN).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(Error::Late { what: format!("the start of {}", self.name()), limit: READY_WITHIN })
    }

    fn name(&self) -> String {
        let path = &self.recipe.program;
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Its exit status, when it ended by itself.
    pub fn ended(&self) -> Result<Option<String>> {
        let mut child = self.child();
        let Some(child) = child.as_mut() else { return Ok(Some("stopped".to_owned())) };
        let status = child.try_wait().doing(|| "cannot wait for a program".to_owned())?;
        Ok(status.map(|status| status.to_string()))
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.pid().map_or(Ok(()), |pid| send_signal(pid, signal))
    }

    /// SIGKILL, and wait.
    pub fn kill(&self) {
        if let Some(mut child) = self.child().take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM and a moment to drain; then SIGKILL. Blocks.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.signal(Signal::TERM)?;
        if let Some(child) = self.child().as_mut() {
            command::wait(child, STOP_WITHIN).doing(|| "cannot wait for a program".to_owned())?;
        }
        self.kill();
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
