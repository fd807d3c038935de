//! Prometheus' text format, version 0.0.4, for figures that are read off a document when somebody asks. Nothing is
//! remembered from one page to the next: a pool that is gone leaves no series behind.

use std::fmt::{self, Write as _};

use super::histogram::{BOUNDS, Snapshot};

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

impl Kind {
    /// The word of the format.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Name, kind and meaning of a metric. The unit is the end of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// The kind.
    pub kind: Kind,
    /// What HELP says.
    pub meaning: &'static str,
}

/// A page that grows.
#[derive(Debug)]
pub struct Page(String);

impl Page {
    /// Goes on after what another exporter wrote.
    pub fn after(text: String) -> Self {
        Self(text)
    }

    /// Begins a family; its samples follow.
    pub fn family(&mut self, family: &Family) {
        let Family { name, kind, meaning } = family;
        self.put(format_args!("# HELP {name} {meaning}\n# TYPE {name} {}\n", kind.word()));
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.series(name, labels, None);
        self.put(format_args!(" {value}\n"));
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, name: &str, labels: &[(&str, &str)], all: &Snapshot) {
        let bucket = format!("{name}_bucket");
        for (bound, count) in BOUNDS.iter().zip(all.cumulative()) {
            self.series(&bucket, labels, Some(&bound.to_string()));
            self.put(format_args!(" {count}\n"));
        }
        let count = all.count();
        self.series(&bucket, labels, Some("+Inf"));
        self.put(format_args!(" {count}\n"));
        self.series(&format!("{name}_sum"), labels, None);
        self.put(format_args!(" {}\n", all.sum_seconds()));
        self.series(&format!("{name}_count"), labels, None);
        self.put(format_args!(" {count}\n"));
    }

    /// The whole.
    pub fn into_text(self) -> String {
        self.0
    }

    fn series(&mut self, name: &str, labels: &[(&str, &str)], le: Option<&str>) {
        self.0.push_str(name);
        let mut open = '{';
        for (key, value) in labels.iter().copied().chain(le.map(|bound| ("le", bound))) {
            self.put(format_args!("{open}{key}=\"{}\"", Escaped(value)));
            open = ',';
        }
        if open == ',' {
            self.0.push('}');
        }
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        // A string takes everything.
        let _ = self.0.write_fmt(text);
    }
}

/// A label's value: backslash, quote and line feed are escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::histogram::Histogram;

    #[test]
    fn a_hostile_label_stays_in_its_quotes() {
        // The name of a database may hold anything; it must not forge a line.
        let mut page = Page::after(String::new());

        page.sample("m", &[("database", "a\"} 1\nforged \\")], 2.0);

        assert_eq!(page.into_text(), "m{database=\"a\\\"} 1\\nforged \\\\\"} 2\n");
    }

    #[test]
    fn a_histogram_has_all_buckets_up_to_infinity() {
        // histogram_quantile() needs le="+Inf" to equal the count.
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(3));
        histogram.record(Duration::from_secs(100));
        let mut page = Page::after(String::new());

        page.histogram("t_seconds", &[("lane", "read")], &histogram.snapshot());

        let text = page.into_text();
        assert!(text.contains("t_seconds_bucket{lane=\"read\",le=\"0.0025\"} 0\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{lane=\"read\",le=\"0.005\"} 1\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{lane=\"read\",le=\"30\"} 1\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{lane=\"read\",le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("t_seconds_count{lane=\"read\"} 2\n"), "{text}");
    }
}
