//! What the documents say of the crate is what it is.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Everything between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_code_map_has_every_file_of_the_crate() {
    // A map with blanks sends its readers searching.
    let map = fs::read_to_string(root().join("../ARCHITECTURE.md")).unwrap();
    let map = map.split("### `client/src`").nth(1).unwrap().split("\n## ").next().unwrap();
    let mapped: BTreeSet<&str> = code(map).collect();
    let files = fs::read_dir(root().join("src")).unwrap().map(|file| file.unwrap().file_name());
    let files = files.map(|name| name.into_string().unwrap()).filter(|name| name != "lib.rs");

    let missing: Vec<String> = files.filter(|file| !mapped.contains(file.as_str())).collect();

    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_table_of_metrics_is_what_is_recorded() {
    // A dashboard that is built after the table would stay empty.
    let source = fs::read_to_string(root().join("src/names.rs")).unwrap();
    let (table, rest): (Vec<&str>, Vec<&str>) = source.lines().partition(|line| line.starts_with("//! |"));
    let names = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("tidegate_client_")).map(str::to_owned).collect()
    };

    assert_eq!(names(&table.join("\n")), names(&rest.join("\n")));
}

#[test]
fn every_trap_of_the_readme_has_its_test() {
    // A row that nobody holds the crate to is advertising.
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let table = readme.split("| trap | bb8 + bb8-postgres | tidegate-client |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|')).count();
    let tests = ["cancelling", "connecting", "returning", "waiting"].map(|module| {
        let source = fs::read_to_string(root().join(format!("tests/traps/{module}.rs"))).unwrap();
        source.matches("// THE TRAP").count()
    });

    // Two tests share the row about `connect_timeout`.
    assert_eq!(tests.iter().sum::<usize>(), rows + 1);
}
