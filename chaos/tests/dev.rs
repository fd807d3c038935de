//! Claims of `tidegate-chaos dev`. The sidecar's place is taken by a relay in Python or a shell script.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tidegate_chaos::cluster::{PortLease, inhabitants};

/// Relays connections to the first upstream, and says in which folder it runs.
const RELAY: &str = r"#!/usr/bin/env python3
import os, socket, sys, threading, urllib.parse
arguments = sys.argv[1:]
value = lambda flag: arguments[arguments.index(flag) + 1]
upstream = urllib.parse.urlparse(value('--upstream'))
print('folder', os.getcwd(), flush=True)
print('upstreams', arguments.count('--upstream'), flush=True)
def pipe(a, b):
    while data := a.recv(65536): b.sendall(data)
    b.shutdown(socket.SHUT_WR)
host, port = value('--listen').split(':')
listener = socket.create_server((host, int(port)))
while True:
    app, _ = listener.accept()
    try: server = socket.create_connection((upstream.hostname, upstream.port))
    except OSError: app.close(); continue
    for pair in ((app, server), (server, app)): threading.Thread(target=pipe, args=pair, daemon=True).start()
";

struct Run {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn script(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sidecar");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

fn dev(sidecar: &Path, listen: u16, admin: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-chaos"));
    command.arg("dev").arg("--tidegate").arg(sidecar);
    command.arg("--listen").arg(format!("127.0.0.1:{listen}"));
    command.arg("--admin").arg(format!("127.0.0.1:{admin}"));
    command
}

impl Run {
    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    fn line(&mut self, containing: &str) -> String {
        self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(containing)).unwrap()
    }

    #[expect(clippy::unwrap_used, reason = "a helper of tests")]
    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }
}

#[test]
fn the_printed_line_connects_and_interrupt_removes_everything() {
    // The printed words are run as they are; a leftover process or folder fails the last lines.
    let (_dir, sidecar) = script(RELAY);
    let (listen, admin) = (PortLease::take().unwrap(), PortLease::take().unwrap());
    let mut run = Run::start(dev(&sidecar, listen.port(), admin.port()));
    let folder = PathBuf::from(run.line("folder ").replace("folder ", ""));
    assert_eq!(run.line("upstreams "), "upstreams 2");

    let printed = run.line("psql -h");
    let (psql, words) = printed.trim().strip_prefix("connect:").unwrap().trim().split_once(' ').unwrap();
    let words: Vec<&str> = words.split_whitespace().collect();
    let query = ["-XAtc", "SELECT current_user, current_setting('data_directory')"];
    let answer = Command::new(psql).args(&words).args(query).output().unwrap();
    let plain =
        Command::new(psql).args(&words[..4]).args(["-XAtc", "SELECT current_database()"]).output().unwrap();
    let answer = String::from_utf8(answer.stdout).unwrap();
    let (user, data) = answer.trim().split_once('|').unwrap();
    let data = PathBuf::from(data);
    run.interrupt();
    let status = run.child.wait().unwrap();

    assert_eq!(user, "postgres");
    assert!(plain.status.success(), "{plain:?}");
    assert!(status.success());
    assert!(inhabitants(&data).is_empty() && inhabitants(&folder).is_empty());
    assert!(!data.exists() && !folder.exists());
}

#[test]
fn the_printed_line_makes_commits_hang_and_again_work_and_a_frozen_standby_is_removed_too() {
    // A look at a database that is well shows nothing of what the sidecar is for.
    let (_dir, sidecar) = script(RELAY);
    let (listen, admin) = (PortLease::take().unwrap(), PortLease::take().unwrap());
    let mut run = Run::start(dev(&sidecar, listen.port(), admin.port()));
    let connect = run.line("psql -h");
    let psql = |sql: &str| {
        let mut words = connect.trim().strip_prefix("connect:").unwrap().split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["-XAtc", sql]).stdout(Stdio::piped());
        command
    };
    let stall = run.line("stall:");
    let words: Vec<&str> = stall.trim().strip_prefix("stall:").unwrap().split_whitespace().take(3).collect();
    let toggle = || assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());

    toggle();
    run.line("frozen");
    let mut write = psql("CREATE TABLE kept ()").spawn().unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    while psql(waiting).output().unwrap().stdout != b"1\n" {
        assert_eq!(write.try_wait().unwrap(), None, "the commit waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    toggle();
    run.line("goes on");
    assert!(write.wait().unwrap().success());

    toggle();
    run.line("frozen");
    let data = psql("SHOW data_directory").output().unwrap().stdout;
    let data = PathBuf::from(String::from_utf8(data).unwrap().trim());
    run.interrupt();
    assert!(run.child.wait().unwrap().success());
    assert!(inhabitants(&data).is_empty() && !data.exists());
}

#[test]
fn a_sidecar_has_time_to_tell_its_sessions_at_the_end() {
    // Seen: it was killed while it drained, so that applications met a connection that just broke.
    let text = "#!/bin/sh\ntrap 'sleep 4; echo told; exit 0' TERM\necho drain $TIDEGATE_TIMEOUTS_DRAIN\n\
                while :; do sleep 0.1; done\n";
    let (_dir, sidecar) = script(text);
    let (listen, admin) = (PortLease::take().unwrap(), PortLease::take().unwrap());
    let mut command = dev(&sidecar, listen.port(), admin.port());
    command.args(["--upstream", "postgres://somebody@127.0.0.1:1/somewhere"]);
    command.env_remove("TIDEGATE_TIMEOUTS_DRAIN");
    let mut run = Run::start(command);
    assert_eq!(run.line("drain "), "drain 2s");

    run.interrupt();

    run.line("told");
    assert!(run.child.wait().unwrap().success());
}

#[test]
fn a_taken_port_is_named_before_anything_starts() {
    // With the port taken, a sidecar would fail late and less clearly.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let admin = PortLease::take().unwrap();

    let output = dev(Path::new("/bin/false"), port, admin.port()).output().unwrap();

    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains(&format!("127.0.0.1:{port}")) && words.contains("--listen"), "{words}");
}

#[test]
fn a_sidecar_that_dies_ends_the_run_with_its_message() {
    // Waiting for a port that will never open would hide the reason.
    let (_dir, sidecar) = script("#!/bin/sh\necho 'wrong configuration' >&2\nexit 2\n");
    let (listen, admin) = (PortLease::take().unwrap(), PortLease::take().unwrap());
    let mut command = dev(&sidecar, listen.port(), admin.port());
    command.args(["--upstream", "postgres://somebody@127.0.0.1:1/somewhere"]);

    let start = std::time::Instant::now();
    let output = command.output().unwrap();

    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(words.contains("wrong configuration") && words.contains("ended"), "{words}");
    assert!(start.elapsed() < Duration::from_secs(10));
}
