//! What a translation has come to: keys of ours with where they come from, and what is left to say.

use std::fmt::Write as _;
use std::time::Duration;

use super::ini::Place;

/// Sections in the order in which they are printed.
const SECTIONS: [&str; 5] = ["listen", "admin", "cluster", "pool", "timeouts"];

/// Lines of comments are no longer than this.
const WIDTH: usize = 110;

/// One key of ours.
#[derive(Debug)]
struct Entry {
    key: &'static str,
    /// As TOML.
    value: String,
    /// What it is made of.
    from: String,
}

/// A `tidegate.toml` in the making.
#[derive(Debug, Default)]
pub(super) struct Target {
    entries: Vec<Entry>,
    rules: Vec<(String, String)>,
    attention: Vec<String>,
    left: Vec<String>,
}

impl Target {
    /// `section.key = value`, and why.
    pub(super) fn set(&mut self, key: &'static str, value: String, from: impl Into<String>) {
        self.entries.push(Entry { key, value, from: from.into() });
    }

    /// One `[[rule]]`.
    pub(super) fn rule(&mut self, body: String, from: impl Into<String>) {
        self.rules.push((body, from.into()));
    }

    /// Something that an operator should know before anything else.
    pub(super) fn attention(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.attention.contains(&text) {
            self.attention.push(text);
        }
    }

    /// A setting that has no counterpart, and why. Its value is not shown: it may be a secret.
    pub(super) fn left(&mut self, name: &str, place: &Place, why: &str) {
        self.left.push(format!("{name} ({place}): {why}"));
    }

    /// How many keys were set, and how many settings were left out.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.entries.len() + self.rules.len(), self.left.len())
    }

    /// The whole file.
    pub(super) fn text(&self, source: &str) -> String {
        let mut text = String::new();
        comment(&mut text, "", &format!("Made by `tidegate import` from {source}."));
        list(&mut text, "Look at these first:", &self.attention);
        for section in SECTIONS {
            self.section(&mut text, section);
        }
        for (body, from) in &self.rules {
            text.push('\n');
            comment(&mut text, "", from);
            let _ = writeln!(text, "[[rule]]\n{body}");
        }
        list(&mut text, "Not carried over:", &self.left);
        text
    }

    fn section(&self, text: &mut String, section: &str) {
        let mut entries = self.entries.iter().filter_map(|entry| {
            let (of, key) = entry.key.split_once('.')?;
            (of == section).then_some((key, entry))
        });
        let mut next = entries.next();
        if next.is_some() {
            let _ = writeln!(text, "\n[{section}]");
        }
        while let Some((key, entry)) = next {
            comment(text, "", &entry.from);
            let _ = writeln!(text, "{key} = {}", entry.value);
            next = entries.next();
        }
    }
}

fn list(text: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    text.push('\n');
    comment(text, "", title);
    for line in lines {
        comment(text, "- ", line);
    }
}

/// A comment of as many lines as it takes.
fn comment(text: &mut String, bullet: &str, words: &str) {
    let mut line = format!("# {bullet}");
    let mut empty = true;
    for word in words.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = format!("# {:width$}", "", width = bullet.len());
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

/// A text as TOML.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Texts as a TOML list.
pub(super) fn quoted_list(texts: &[String]) -> String {
    let items: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", items.join(", "))
}

/// A duration as TOML.
pub(super) fn duration(duration: Duration) -> String {
    if duration.is_zero() { quoted("0") } else { quoted(&humantime::format_duration(duration).to_string()) }
}
