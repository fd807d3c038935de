//! Each driver's own checks (tests/drivers), through both pool modes. The programs say what failed; here only the
//! sidecar, the server and the time are given.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tidegate_chaos::cluster::Node;
use tidegate_tests::{Proxy, ProxyOptions, within};
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::{own_postgres, pool_of, sidecar};

/// Sessions that each program opens at the same time.
const SESSIONS: usize = 200;
/// Less than the test runner's own limit, so that a program that hangs still shows what it said.
const LIMIT: Duration = Duration::from_secs(165);

#[derive(Clone, Copy)]
enum Mode {
    Transaction,
    Session,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
        }
    }

    fn sidecar(self) -> ProxyOptions {
        match self {
            Self::Transaction => pool_of(5),
            Self::Session => sidecar(
                "[pool]\nmode = \"session\"\nsize = 230\nwrite_share = 1.0\nmax_per_upstream = 240\n\
                 [timeouts]\nqueue = \"10s\"\nread = \"60s\"\nwrite = \"60s\"\ncommit = \"60s\"\nconnect = \"5s\"\n",
            ),
        }
    }
}

/// Every FAIL line of the program is a failure of this test; so is an exit code, a crash, or silence.
async fn check(program: &str, mode: Mode) {
    set_up().await;
    let Some(mut command) = command_of(program) else {
        println!("skip {program}: its runtime is not installed");
        return;
    };
    let node = own_postgres(&[("max_connections", "260")]);
    let proxy = mode.sidecar().upstream(&node.url()).start().await;
    point(&mut command, &node, &proxy, mode);

    let output = proxy.dir().join("checks");
    let status = run(&mut command, &output).await;

    let text = fs::read_to_string(&output).unwrap();
    println!("{text}");
    assert!(status.is_some_and(|status| status.success()), "{program}, {}: {status:?}", mode.name());
    assert!(!text.lines().any(|line| line.starts_with("FAIL")), "{program}, {}", mode.name());
    assert!(text.contains("ok ") || text.contains("skip "), "{program} has checked nothing");
}

fn point(command: &mut Command, node: &Node, proxy: &Proxy, mode: Mode) {
    // psql and pg_dump of the server's own version: pg_dump refuses newer servers.
    let own = node.programs().program("psql");
    let mut path = vec![own.parent().unwrap().to_owned()];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    command
        .env("PATH", env::join_paths(path).unwrap())
        .env("TIDEGATE_TEST_PORT", proxy.address().port().to_string())
        .env("TIDEGATE_TEST_MODE", mode.name())
        .env("TIDEGATE_TEST_SESSIONS", SESSIONS.to_string());
}

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/drivers")
}

pub(crate) fn installed() -> PathBuf {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/drivers");
    env::var_os("TIDEGATE_DRIVERS_DIR").map_or(default, PathBuf::from)
}

/// Installs the drivers unless they are there.
pub(crate) async fn set_up() {
    let mut command = Command::new("bash");
    command.arg(folder().join("setup.sh")).stdin(Stdio::null()).kill_on_drop(true);
    let output = within(LIMIT, "the end of setup.sh", command.output()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "setup.sh: {text}");
    text.lines().filter(|line| line.starts_with("skip")).for_each(|line| println!("{line}"));
}

/// None when what runs it is missing.
fn command_of(program: &str) -> Option<Command> {
    let extension = Path::new(program).extension().and_then(|extension| extension.to_str());
    let runner = match extension {
        Some("py") => Some(installed().join("venv/bin/python")).filter(|python| python.exists()),
        Some("mjs") => installed().join("node/node_modules").exists().then(|| PathBuf::from("node")),
        // The shell programs look for theirs themselves.
        _ => Some(PathBuf::from("bash")),
    };
    let mut command = Command::new(runner?);
    command.arg(folder().join(program));
    Some(command)
}

/// None when it took too long; then the whole process group is dead.
async fn run(command: &mut Command, output: &Path) -> Option<ExitStatus> {
    let file = File::create(output).unwrap();
    let errors = file.try_clone().unwrap();
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)).unwrap();
    let ended = timeout(LIMIT, child.wait()).await;
    // What it may have left running goes with it, or it would hold our output open.
    let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    ended.ok().map(Result::unwrap)
}

macro_rules! driver {
    ($transaction:ident, $session:ident, $program:literal) => {
        #[tokio::test]
        async fn $transaction() {
            // The driver's own checks hold against PostgreSQL itself; one that fails here is a difference.
            check($program, Mode::Transaction).await;
        }

        #[tokio::test]
        async fn $session() {
            // As above; here each session has a backend of its own, which must come and go without traces.
            check($program, Mode::Session).await;
        }
    };
}

driver!(psycopg_works_through_transaction_mode, psycopg_works_through_session_mode, "check_psycopg.py");
driver!(asyncpg_works_through_transaction_mode, asyncpg_works_through_session_mode, "check_asyncpg.py");
driver!(node_works_through_transaction_mode, node_works_through_session_mode, "check_node.mjs");
driver!(jdbc_works_through_transaction_mode, jdbc_works_through_session_mode, "run_jdbc.sh");
driver!(libpq_works_through_transaction_mode, libpq_works_through_session_mode, "check_libpq.sh");
