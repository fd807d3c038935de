//! A disk that runs full while the sidecar runs costs no page, repeats none, and is said.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tidegate_chaos::cluster::Signal;
use tidegate_chaos::fault::{Fault, SubjectFault};
use tidegate_tests::{Proxy, ProxyOptions, WebReceiver, shared_postgres, wait_for};

use crate::TIDEGATE;
use crate::rig::SOON;

/// A small filesystem in memory.
struct Disk(TempDir);

impl Disk {
    fn mount() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k", "tidegate-state"]).arg(disk.path());
        assert!(mount.status().unwrap().success());
        disk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Until there is no space left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The sidecar may still have files open there.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

async fn order(proxy: &Proxy, command: &str) {
    assert_eq!(proxy.post(&format!("/debug/{command}"), "").await.status, 202, "{command}");
}

async fn wait_metric(proxy: &Proxy, name: &str, value: f64) {
    wait_for(SOON, &format!("{name} is {value}"), async || {
        (proxy.metrics().await.get(name, &[]) == Some(value)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pages_leave_from_memory_while_the_disk_is_full_and_are_still_told_once_after_a_kill() {
    // What fills disks is what pages are about. A sidecar that loses them, or forgets on its way that it has sent
    // them, or says nothing of it, fails when it is needed.
    if let Some(why) = (Fault::Subject { what: SubjectFault::StateFull }).obstacle() {
        println!("skipped: {why}");
        return;
    }
    let disk = Disk::mount();
    let mut receiver = WebReceiver::down();
    let config = format!(
        "state_dir = \"{}\"\nlisten.auth = \"trust\"\ncluster.upstreams = [\"127.0.0.1:{}\"]\n\
         alerts.webhooks = [{{ url = \"{}\" }}]\n",
        disk.path().display(),
        shared_postgres().port(),
        receiver.url("/hook")
    );
    let options = ProxyOptions::new(TIDEGATE).config(&config).environment("TIDEGATE_DEBUG", "1");
    let mut proxy = options.start().await;
    order(&proxy, "fire?alert=before").await;
    proxy.wait_logged("alert not sent").await;

    disk.fill();
    order(&proxy, "fire?alert=during").await;
    wait_metric(&proxy, "tidegate_alerts_in_memory", 1.0).await;
    // The last page of the journal has room for some decisions.
    wait_for(SOON, "the journal is in memory", async || {
        proxy.signal(Signal::HUP);
        (proxy.metrics().await.get("tidegate_journal_in_memory", &[]) == Some(1.0)).then_some(())
    })
    .await;
    receiver.listen().await;
    receiver.wait_accepted(2).await;
    for said in ["alerts to be sent are kept in memory", "the journal is kept in memory"] {
        proxy.wait_logged(said).await;
    }

    std::fs::remove_file(disk.ballast()).unwrap();
    wait_metric(&proxy, "tidegate_alerts_in_memory", 0.0).await;
    wait_metric(&proxy, "tidegate_journal_in_memory", 0.0).await;
    proxy.kill_and_restart().await;
    for alert in ["before", "during"] {
        order(&proxy, &format!("fire?alert={alert}")).await;
        order(&proxy, &format!("resolve?alert={alert}")).await;
    }
    receiver.wait_accepted(4).await;
    wait_metric(&proxy, "tidegate_alerts_pending", 0.0).await;

    let bodies = receiver.accepted();
    let mut told: Vec<(String, String)> = bodies
        .iter()
        .map(|body| serde_json::from_str::<Value>(body).unwrap())
        .map(|body| (body["alert"].as_str().unwrap().to_owned(), body["status"].as_str().unwrap().to_owned()))
        .collect();
    told.sort();
    let wanted = [("before", "firing"), ("before", "resolved"), ("during", "firing"), ("during", "resolved")];
    assert_eq!(told, wanted.map(|(alert, status)| (alert.to_owned(), status.to_owned())));
    let journal = std::fs::read_to_string(disk.path().join("journal.jsonl")).unwrap();
    assert!(journal.contains("configuration"), "what was decided meanwhile is written later: {journal}");
}
