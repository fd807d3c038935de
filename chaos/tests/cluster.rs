//! The harness's own claims, against real servers.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidegate_chaos::cluster::{
    Cluster, ClusterOptions, Node, NodeOptions, Programs, Replication, SecretKind, Signal, StopMode,
    inhabitants,
};

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn node() -> Node {
    Node::start(&NodeOptions::new(Programs::find().unwrap())).unwrap()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn every_major_version_that_can_be_had_starts_and_answers() {
    // A version that is found but cannot run here would fail; the wheel's must always be there.
    let all = Programs::all().unwrap();
    assert!(all.iter().any(|programs| programs.major() == 18), "{all:?}");
    for programs in all {
        let major = programs.major();
        let node = Node::start(&NodeOptions::new(programs)).unwrap();

        let answer = node.sql("SELECT current_setting('server_version_num')::int / 10000").unwrap();

        assert_eq!(answer, major.to_string());
    }
}

#[test]
fn programs_in_a_relative_folder_are_found_from_everywhere() {
    // Servers start in a folder of their own, where PG_BIN=../bin leads elsewhere.
    let here = std::env::current_dir().unwrap();
    let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
    let absolute = Programs::find().unwrap().program("psql");

    let relative = Programs::at(&up.join(absolute.parent().unwrap().strip_prefix("/").unwrap())).unwrap();

    assert_eq!(relative.program("psql"), absolute);
}

#[test]
fn a_dropped_server_leaves_no_process_and_no_folder() {
    // Backends of frozen servers are the ones that survive a careless stop.
    let node = node();
    let (dir, port) = (node.socket_dir().to_owned(), node.port());
    node.freeze().unwrap();

    drop(node);

    assert_eq!(inhabitants(&dir), Vec::<u32>::new());
    assert!(!dir.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

/// Not a claim: the process that the next test kills.
#[test]
fn helper_that_holds_a_server() {
    if std::env::var_os("TIDEGATE_HOLD_SERVER").is_some() {
        let node = node();
        println!("\nholding {}", node.socket_dir().display());
        std::thread::sleep(Duration::from_mins(2));
    }
}

#[test]
fn servers_end_when_the_process_that_holds_them_is_killed() {
    // SIGKILL runs no destructor: only the reaper can clean up.
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_holds_a_server", "--nocapture"])
        .env("TIDEGATE_HOLD_SERVER", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let dir = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holding ").map(PathBuf::from));
    let dir = dir.unwrap();
    assert!(!inhabitants(&dir).is_empty());

    holder.kill().unwrap();
    holder.wait().unwrap();

    eventually("folder and processes are gone", || inhabitants(&dir).is_empty() && !dir.exists());
}

#[test]
fn a_killed_server_recovers_what_was_committed() {
    // With the processes gone, only WAL can bring the row back.
    let node = node();
    node.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)").unwrap();

    node.kill().unwrap();
    assert!(node.processes().is_empty());
    node.resume().unwrap();

    assert_eq!(node.sql("SELECT id FROM t").unwrap(), "1");
}

#[test]
fn restart_and_reload_take_effect_before_they_return() {
    // A reload that returned too early would show the old value.
    let node = node();

    node.set("statement_timeout", "7s").unwrap();
    let reloaded = node.sql("SHOW statement_timeout").unwrap();
    node.configure("max_connections", "33").unwrap();
    node.restart(StopMode::Fast).unwrap();

    assert_eq!(reloaded, "7s");
    assert_eq!(node.sql("SHOW max_connections").unwrap(), "33");
}

#[test]
fn a_promoted_standby_accepts_writes_on_a_new_timeline() {
    // In recovery, CREATE TABLE fails with 25006.
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Asynchronous };
    let cluster = Cluster::start(&options).unwrap();
    let standby = &cluster.standbys()[0];
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()").unwrap(), "t");
    assert!(standby.is_standby() && !cluster.primary().is_standby());

    cluster.primary().kill().unwrap();
    standby.promote().unwrap();
    assert!(!standby.is_standby());

    standby.sql("CREATE TABLE t (id int)").unwrap();
    assert_eq!(standby.sql("SELECT timeline_id FROM pg_control_checkpoint()").unwrap(), "2");
}

#[test]
fn commits_wait_while_the_synchronous_standby_is_frozen() {
    // An asynchronous or thawed standby would let the insert finish at once.
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Synchronous };
    let cluster = Cluster::start(&options).unwrap();
    let (primary, standby) = (cluster.primary(), &cluster.standbys()[0]);
    primary.sql("CREATE TABLE t (id int)").unwrap();
    assert_eq!(standby.freeze_only("walreceiver").unwrap(), 1);

    std::thread::scope(|scope| {
        let insert = scope.spawn(|| primary.sql("INSERT INTO t VALUES (1)"));
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("the insert waits for the standby", || primary.sql(waiting).unwrap() == "1");
        assert!(!insert.is_finished());

        standby.thaw().unwrap();

        insert.join().unwrap().unwrap();
    });
}

#[test]
fn secrets_are_kept_as_asked() {
    // The prefix of the stored secret says which method made it.
    let node = node();

    node.create_user("modern", "it's", SecretKind::Scram).unwrap();
    node.create_user("old", "x", SecretKind::Md5).unwrap();

    let kinds =
        "SELECT left(rolpassword, 3) FROM pg_authid WHERE rolname IN ('modern', 'old') ORDER BY rolname";
    assert_eq!(node.sql(kinds).unwrap(), "SCR\nmd5");
}

#[test]
fn a_bad_setting_shows_the_reason_in_the_error() {
    // Without the server's own words nobody can mend it.
    let options = NodeOptions::new(Programs::find().unwrap()).set("shared_buffers", "nonsense");

    let error = Node::start(&options).unwrap_err().to_string();

    assert!(error.contains("shared_buffers"), "{error}");
}

#[test]
fn one_backend_can_be_killed_and_strangers_cannot() {
    // Killing a backend makes the postmaster restart all others: an old session must have ended.
    let node = node();
    let before = node.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").unwrap();

    let refused = node.signal(std::process::id(), Signal::CONT);
    node.signal(before.parse().unwrap(), Signal::KILL).unwrap();

    assert!(refused.is_err());
    let now = || node.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    eventually("a new checkpointer", || now().is_ok_and(|pid| !pid.is_empty() && pid != before));
}

#[test]
fn a_former_primary_follows_the_new_one_after_rewinding() {
    // Without the rewind its own last write would keep it from streaming.
    let node = NodeOptions::new(Programs::find().unwrap()).set("wal_log_hints", "on");
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Asynchronous };
    let cluster = Cluster::start(&options).unwrap();
    let (old, new) = (cluster.primary(), &cluster.standbys()[0]);
    old.sql("CREATE TABLE t (id int)").unwrap();
    eventually("the table is on the standby", || new.sql("SELECT count(*) FROM t").is_ok());
    new.promote().unwrap();
    old.sql("INSERT INTO t VALUES (1)").unwrap();
    new.sql("INSERT INTO t VALUES (2)").unwrap();

    old.kill().unwrap();
    old.rewind(new).unwrap();

    eventually("it streams", || new.sql("SELECT count(*) FROM pg_stat_replication").unwrap() == "1");
    eventually("it has the new row alone", || old.sql("SELECT id FROM t").unwrap() == "2");
}

#[test]
fn a_fresh_copy_replaces_what_was_there() {
    // A folder that was only started again would still have its own timeline.
    let node = NodeOptions::new(Programs::find().unwrap());
    let options = ClusterOptions { node, standbys: 1, replication: Replication::Asynchronous };
    let cluster = Cluster::start(&options).unwrap();
    let (primary, standby) = (cluster.primary(), &cluster.standbys()[0]);
    standby.promote().unwrap();
    standby.stop(StopMode::Fast).unwrap();

    standby.reclone(primary).unwrap();

    assert_eq!(standby.sql("SELECT pg_is_in_recovery()").unwrap(), "t");
    cluster.wait_streaming(1).unwrap();
}
