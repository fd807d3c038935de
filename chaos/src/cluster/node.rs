//! One throwaway `PostgreSQL` server: its folder, its port, its processes.
//!
//! Faults are what an operator would see: [`Node::kill`] is a crash, [`Node::freeze`] a paused machine (its
//! kernel still accepts connections and acknowledges data), [`Node::stop`] an orderly end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::command;
use super::error::{Doing, Error, Result};
use super::owner::Owner;
use super::ports::PortLease;
use super::processes::{self, ServerProcess};
use super::programs::Programs;
use super::settings::{self, NodeOptions, TlsFiles};
use super::template;
use super::wal::{self, WalStorage};
use super::workdir::Workdir;

/// Generous, for machines that do many things at once.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// How `pg_ctl stop` ends a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are terminated (57P01), transactions rolled back, a checkpoint is written.
    Fast,
    /// Backends quit at once, with recovery at the next start.
    Immediate,
}

/// A server. It runs until it is stopped or dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
    programs: Programs,
    owner: Owner,
    port: PortLease,
    state: Mutex<State>,
    /// Dropped before the state's child is: the reaper must not depend on anybody waiting.
    workdir: Workdir,
    wal: WalStorage,
}

#[derive(Debug)]
struct State {
    postmaster: Option<Child>,
    settings: BTreeMap<String, String>,
}

impl Node {
    /// Creates a database cluster and starts it.
    pub fn start(options: &NodeOptions) -> Result<Self> {
        let node = Self::prepare(options, |node| {
            template::create(&node.programs, &node.owner, options.identity, &node.data_dir())
        })?;
        node.resume()?;
        Ok(node)
    }

    /// Creates a standby of this server and starts it; see [`super::Cluster`].
    pub fn start_standby_of(&self, options: &NodeOptions) -> Result<Self> {
        let node = Self::prepare(options, |standby| self.base_backup(standby))?;
        node.point_at(self)?;
        node.resume()?;
        Ok(node)
    }

    fn prepare(options: &NodeOptions, fill: impl FnOnce(&Self) -> Result<()>) -> Result<Self> {
        let owner = Owner::of_servers()?;
        let workdir = Workdir::create(&options.name, &owner)?;
        let port = PortLease::take()?;
        let mut settings = settings::base(port.port(), &workdir.path().to_string_lossy(), options.durability);
        settings.extend(options.settings.clone());
        let state = Mutex::new(State { postmaster: None, settings });
        let programs = options.programs.clone();
        let name = options.name.clone();
        let node = Self { name, programs, owner, port, state, workdir, wal: options.wal };
        fill(&node)?;
        wal::prepare(options.wal, node.workdir.path(), &node.data_dir(), &node.owner)?;
        node.write("postgresql.conf", "include 'tidegate.conf'\n")?;
        node.write_settings()?;
        node.write("pg_hba.conf", &settings::render_hba(&options.hba))?;
        if let Some(files) = &options.tls {
            node.use_tls(files)?;
        }
        Ok(node)
    }

    pub(super) fn base_backup(&self, standby: &Self) -> Result<()> {
        let mut command = self.command("pg_basebackup");
        command.args(["--host=127.0.0.1", "--username=postgres", "--checkpoint=fast", "--no-sync"]);
        command.arg(format!("--port={}", self.port())).arg("--pgdata").arg(standby.data_dir());
        command::run(&mut command, "", PATIENCE).map(drop)
    }

    /// Name given by the options.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The installation whose programs run.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// One of the installation's programs, to be run as the server's user.
    pub fn command(&self, program: &str) -> Command {
        self.owner.command(self.programs.program(program))
    }

    /// TCP port on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port.port()
    }

    /// Folder of the unix socket (`.s.PGSQL.<port>`).
    pub fn socket_dir(&self) -> &Path {
        self.workdir.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.workdir.path().join("data")
    }

    /// Whether it is a standby, told by its files: it may not answer. A promotion removes the file.
    pub fn is_standby(&self) -> bool {
        self.data_dir().join("standby.signal").exists()
    }

    /// Connection URL of the superuser.
    pub fn url(&self) -> String {
        self.url_of("postgres", "postgres")
    }

    /// Connection URL of a user and a database, as they are (not percent-encoded).
    pub fn url_of(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port())
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.workdir.path().join("log")
    }

    /// Where its `pg_wal` lies.
    pub fn wal(&self) -> WalStorage {
        self.wal
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-done in these two fields.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process id of the postmaster. An error when the server is stopped.
    pub fn postmaster_pid(&self) -> Result<u32> {
        self.state().postmaster.as_ref().map(Child::id).ok_or_else(|| self.stopped())
    }

    fn stopped(&self) -> Error {
        Error::WrongState { node: self.name.clone(), state: "stopped" }
    }

    /// All processes of the server: postmaster, auxiliary processes, backends.
    pub fn processes(&self) -> Vec<ServerProcess> {
        processes::of(&self.data_dir())
    }

    // ---- life ----

    /// Starts a stopped server and waits until it accepts connections.
    pub fn resume(&self) -> Result<()> {
        let mut state = self.state();
        if state.postmaster.is_some() {
            return Err(Error::WrongState { node: self.name.clone(), state: "running" });
        }
        let log = fs::File::options().create(true).append(true).open(self.log_path());
        let log = log.doing_to("open", &self.log_path())?;
        let errors = log.try_clone().doing_to("open", &self.log_path())?;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data_dir()).current_dir(self.data_dir()).stdout(log).stderr(errors);
        let child = command.spawn().doing(|| "cannot run postgres".to_owned())?;
        let child = state.postmaster.insert(child);
        let outcome = self.wait_ready(child);
        if outcome.is_err() {
            let _ = child.kill();
            let _ = child.wait();
            state.postmaster = None;
        }
        outcome
    }

    /// As `pg_ctl -w` does: the postmaster writes its status into line 8 of `postmaster.pid`
    /// (`LOCK_FILE_LINE_PM_STATUS` in `src/include/utils/pidfile.h`).
    fn wait_ready(&self, child: &mut Child) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = child.try_wait().doing(|| "cannot wait for postgres".to_owned())? {
                return Err(Error::Died { status: status.to_string(), log: command::tail(&self.log(), 15) });
            }
            let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
            let mut lines = text.lines();
            // A file left behind by a crash names another process.
            let ours = lines.next().is_some_and(|pid| pid == child.id().to_string());
            let status = lines.nth(6).map_or("", str::trim);
            if ours && matches!(status, "ready" | "standby") {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err(Error::Late { what: format!("the start of {}", self.name), limit: PATIENCE })
    }

    /// Stops the server and waits for the end of all its processes.
    pub fn stop(&self, mode: StopMode) -> Result<ExitStatus> {
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        let mut state = self.state();
        let child = state.postmaster.as_mut().ok_or_else(|| self.stopped())?;
        processes::signal(child.id(), signal)?;
        let ended = command::wait(child, PATIENCE).doing(|| "cannot wait for postgres".to_owned())?;
        let late = || Error::Late { what: format!("the stop of {}", self.name), limit: PATIENCE };
        let status = ended.ok_or_else(late)?;
        state.postmaster = None;
        Ok(status)
    }

    /// Stops, then starts.
    pub fn restart(&self, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.resume()
    }

    /// SIGKILL to every process of the server at once, frozen or not; [`Node::resume`] starts it again.
    pub fn kill(&self) -> Result<()> {
        let mut state = self.state();
        let child = state.postmaster.as_mut().ok_or_else(|| self.stopped())?;
        // The postmaster first: it would start new ones.
        let _ = child.kill();
        let _ = child.wait();
        state.postmaster = None;
        let start = Instant::now();
        // The shared memory must be free of users, or the next start is refused.
        while start.elapsed() < PATIENCE {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            left.iter().try_for_each(|process| processes::signal(process.pid, Signal::KILL))?;
            thread::sleep(Duration::from_millis(2));
        }
        Err(Error::Late { what: format!("the end of {}", self.name), limit: PATIENCE })
    }

    /// Makes a standby the primary of a new timeline, and waits for it.
    pub fn promote(&self) -> Result<()> {
        self.sql("SELECT pg_promote(true, 60)").map(drop)
    }

    // ---- signals ----

    /// Stops every process of the server where it stands (SIGSTOP), as a paused virtual machine does. TCP
    /// still connects and acknowledges; nothing answers.
    pub fn freeze(&self) -> Result<()> {
        // The postmaster first: no new process appears behind our back.
        self.freeze_postmaster()?;
        self.processes().iter().try_for_each(|process| processes::signal(process.pid, Signal::STOP))
    }

    /// Stops only the postmaster: sessions go on, new connections get no answer.
    pub fn freeze_postmaster(&self) -> Result<()> {
        processes::signal(self.postmaster_pid()?, Signal::STOP)
    }

    /// Stops the processes whose title starts with this word ("walreceiver", "checkpointer"); says how many.
    pub fn freeze_only(&self, title: &str) -> Result<usize> {
        let mut all = self.processes();
        all.retain(|process| process.title.starts_with(title));
        all.iter().try_for_each(|process| processes::signal(process.pid, Signal::STOP))?;
        Ok(all.len())
    }

    /// Lets every stopped process go on.
    pub fn thaw(&self) -> Result<()> {
        self.processes().iter().try_for_each(|process| processes::signal(process.pid, Signal::CONT))
    }

    /// Sends a signal to one process of this server; refuses others.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<()> {
        if self.processes().iter().all(|process| process.pid != pid) {
            return Err(Error::WrongState { node: self.name.clone(), state: "without that process" });
        }
        processes::signal(pid, signal)
    }

    // ---- configuration ----

    /// Writes a parameter into the configuration, to be read at the next start or [`Node::reload`].
    pub fn configure(&self, parameter: &str, value: &str) -> Result<()> {
        self.state().settings.insert(parameter.to_owned(), value.to_owned());
        self.write_settings()
    }

    /// What is configured for a parameter, by us.
    pub fn setting(&self, parameter: &str) -> Option<String> {
        self.state().settings.get(parameter).cloned()
    }

    /// Writes a parameter and reloads.
    pub fn set(&self, parameter: &str, value: &str) -> Result<()> {
        self.configure(parameter, value)?;
        self.reload()
    }

    /// Replaces the test's lines of `pg_hba.conf` (none: trust on loopback) and reloads.
    pub fn set_hba(&self, lines: &[&str]) -> Result<()> {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        self.write("pg_hba.conf", &settings::render_hba(&lines))?;
        self.reload()
    }

    /// Has the files read again, and waits until new sessions see it. Running ones follow when they next
    /// wait for a command.
    pub fn reload(&self) -> Result<()> {
        let loaded = || self.sql("SELECT pg_conf_load_time()");
        let before = loaded()?;
        processes::signal(self.postmaster_pid()?, Signal::HUP)?;
        let start = Instant::now();
        while loaded()? == before {
            if start.elapsed() > PATIENCE {
                return Err(Error::Late { what: format!("the reload of {}", self.name), limit: PATIENCE });
            }
        }
        Ok(())
    }

    fn use_tls(&self, files: &TlsFiles) -> Result<()> {
        let parts = [
            ("ssl_cert_file", "server.crt", Some(&files.cert)),
            ("ssl_key_file", "server.key", Some(&files.key)),
            ("ssl_ca_file", "root.crt", files.client_ca.as_ref()),
        ];
        for (parameter, name, from) in parts {
            if let Some(from) = from {
                self.write(name, &fs::read_to_string(from).doing_to("read", from)?)?;
                self.configure(parameter, name)?;
            }
        }
        self.configure("ssl", "on")
    }

    pub(super) fn write_settings(&self) -> Result<()> {
        let text = settings::render(&self.state().settings);
        self.write("tidegate.conf", &text)
    }

    /// Replaces a file of the data directory, readable by its owner only (`PostgreSQL` insists for keys).
    pub(super) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.data_dir().join(name);
        let new = self.data_dir().join(format!("{name}.new"));
        fs::write(&new, text).doing_to("write", &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).doing_to("close", &new)?;
        self.owner.give(&new)?;
        fs::rename(&new, &path).doing_to("write", &path)
    }
}
