//! `tidegate import`: what PgBouncer was told, this is told, too.

use std::path::Path;
use std::process::Output;

use tidegate_tests::ProxyOptions;

use crate::TIDEGATE;

fn import(file: &Path) -> Output {
    let mut command = std::process::Command::new(TIDEGATE);
    command.arg("import").arg(file).env_clear().output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn what_import_prints_is_accepted_by_check() {
    // A translation that has to be mended by hand first is one that nobody trusts.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgbouncer.ini");
    std::fs::write(folder.path().join("userlist.txt"), "\"app\" \"secret\"\n").unwrap();
    let ini = "[databases]\nshop = host=10.0.0.1 pool_size=30\n[pgbouncer]\nlisten_addr = *\nlisten_port = 6432\n\
               auth_type = md5\nauth_file = userlist.txt\npool_mode = transaction\nlogfile = x.log\n\
               query_wait_timeout = 120\n";
    std::fs::write(&file, ini).unwrap();

    let imported = import(&file);
    let (toml, said) = (text(&imported.stdout), text(&imported.stderr));
    assert_eq!(imported.status.code(), Some(0), "{said}");
    let checked = ProxyOptions::new(TIDEGATE).config(&toml).check().await;

    assert!(checked.status.success(), "{}\n{toml}", checked.log);
    assert!(checked.log.contains("pool: 30 backends per database and user"), "{}", checked.log);
    assert!(!checked.log.contains("warning"), "{}", checked.log);
    assert!(toml.contains("# - logfile (pgbouncer.ini:9): logs go to standard error"), "{toml}");
    assert!(said.contains("1 setting(s) not carried over"), "{said}");
}

#[test]
fn a_file_that_makes_no_sense_prints_nothing_that_could_be_taken_for_a_configuration() {
    // A redirection would have put half a translation in the place of the last good one.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgbouncer.ini");
    std::fs::write(&file, "[databases]\n[pgbouncer]\nlisten_port = sixty\n").unwrap();

    let refused = import(&file);
    let missing = import(&folder.path().join("nothing.ini"));

    assert_eq!((refused.status.code(), &*text(&refused.stdout)), (Some(2), ""));
    let said = text(&refused.stderr);
    assert!(said.contains("pgbouncer.ini:3: listen_port: it is no whole number"), "{said}");
    assert_eq!((missing.status.code(), &*text(&missing.stdout)), (Some(2), ""));
    assert!(text(&missing.stderr).contains("nothing.ini cannot be read"), "{}", text(&missing.stderr));
}
