//! Replication connections pass: a base backup with streamed WAL, WAL that is received and confirmed, and a logical
//! slot that is read and confirmed.

use std::process::{Command, Stdio};
use std::time::Duration;

use tidegate_chaos::cluster::Node;
use tidegate_tests::{Proxy, wait_for};

use crate::rig::{SOON, own_postgres, sidecar};

/// Runs a program of the installation, which must succeed; what it printed.
fn run(node: &Node, program: &str, arguments: &[&str]) -> String {
    let mut command: Command = node.command(program);
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until somebody reads a slot.
fn wait_read(node: &Node) {
    let begin = std::time::Instant::now();
    while node.sql("SELECT count(*) FROM pg_replication_slots WHERE active").unwrap() == "0" {
        assert!(begin.elapsed() < SOON, "nobody reads the slot");
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn start() -> (Node, Proxy, String) {
    let node = own_postgres(&[("wal_level", "logical"), ("max_wal_senders", "8")]);
    // A stream is no statement: it outlives their deadlines.
    let proxy = sidecar("[pool]\nsize = 4\n[timeouts]\nread = \"1s\"\nwrite = \"1s\"\n")
        .upstream(&node.url())
        .start()
        .await;
    let port = proxy.address().port().to_string();
    (node, proxy, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_with_its_wal_streams_through() {
    // COPY both ways has no exchange and no end of its own; a relay that waits for one never passes a byte.
    let (node, _proxy, port) = start().await;
    node.sql("CREATE TABLE kept AS SELECT generate_series(1, 100000) AS id").unwrap();
    let folder = node.socket_dir().join("copy");
    let folder = folder.to_str().unwrap();

    tokio::task::block_in_place(|| {
        let from = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
        run(&node, "pg_basebackup", &[&from[..], &["-D", folder, "-X", "stream", "-c", "fast"]].concat());
        // It compares every file with the manifest, and replays the WAL.
        run(&node, "pg_verifybackup", &[folder]);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn received_wal_is_the_servers_byte_for_byte_and_confirmed_in_time_for_a_commit() {
    // A commit that waits for the receiver is released only by what the receiver sends back in the middle of the
    // stream. A segment that differs in a byte is an archive that nobody can restore from.
    let (node, _proxy, port) = start().await;
    let folder = node.socket_dir().join("received");
    let place = folder.to_str().unwrap();
    // By the server, so that it belongs to whom the receiver runs as.
    node.sql(&format!("COPY (SELECT 1) TO PROGRAM 'mkdir {place}'")).unwrap();
    let common = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-D", place];
    tokio::task::block_in_place(|| {
        run(&node, "pg_receivewal", &[&common[..], &["-S", "archive", "--create-slot"]].concat());
    });
    let mut command = node.command("pg_receivewal");
    command.args(common).args(["-S", "archive", "--synchronous", "--no-loop"]);
    let receiver = Ended(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let connected = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_for(SOON, "the receiver streams", async || (node.sql(connected).unwrap() == "1").then_some(()))
        .await;

    node.set("synchronous_standby_names", "*").unwrap();
    let segment = node.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").unwrap();
    let committed = tokio::task::block_in_place(|| {
        // It would wait for ever.
        node.sql("SET statement_timeout = '20s'; CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id")
    });
    assert!(committed.is_ok(), "{committed:?}");
    node.set("synchronous_standby_names", "").unwrap();
    node.sql("SELECT pg_switch_wal()").unwrap();

    let received = folder.join(&segment);
    wait_for(SOON, "the whole segment", async || received.exists().then_some(())).await;
    drop(receiver);
    let original = std::fs::read(node.data_dir().join("pg_wal").join(&segment)).unwrap();
    assert!(std::fs::read(&received).unwrap() == original, "{segment} differs");
}

/// A program that is ended at the latest with the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logical_slot_is_read_and_confirmed() {
    // The stream's confirmations go the other way in the middle of it: if they do not arrive, the slot stays where
    // it is and the server keeps its WAL for ever.
    let (node, _proxy, port) = start().await;
    node.sql("CREATE TABLE t (id int)").unwrap();
    node.sql("SELECT pg_create_logical_replication_slot('s', 'test_decoding')").unwrap();
    // Beyond what the first rows take, and before the end of the last ones.
    let end = node.sql("SELECT pg_current_wal_lsn() + 50000").unwrap();
    let database = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");

    let changes = tokio::task::block_in_place(|| {
        let read = ["-d", &database, "-S", "s", "--start", "--no-loop", "-f", "-"];
        let mut reader = node.command("pg_recvlogical");
        let reader = reader.args(read).args(["-E", &end]).stdout(Stdio::piped()).spawn().unwrap();
        wait_read(&node);
        node.sql("INSERT INTO t SELECT generate_series(1, 1000)").unwrap();
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", output.status);
        String::from_utf8(output.stdout).unwrap()
    });

    assert!(changes.lines().filter(|line| line.contains("INSERT")).count() > 100);
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots");
    assert_eq!(node.sql(&confirmed).unwrap(), "t");
}
