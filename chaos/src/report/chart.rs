//! One chart as SVG.

use std::fmt::Write as _;

use crate::run::Record;

use super::series::{Series, seconds};

/// Size of the plotting area and its margins.
pub(super) const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 110.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 24.0;

/// Height of a chart with its title and axis.
pub(super) const FULL_HEIGHT: f64 = TOP + HEIGHT + 22.0;

/// How values become heights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From zero to this.
    Linear(f64),
    /// Milliseconds from 1 to 100,000.
    Decades,
}

impl Scale {
    /// From zero to the largest value of all.
    pub(super) fn covering(all: &[Vec<Series>]) -> Self {
        let largest = all.iter().flatten().map(Series::max).fold(1.0, f64::max);
        Self::up_to(largest)
    }

    /// From zero to a round number not below this.
    pub(super) fn up_to(value: f64) -> Self {
        Self::Linear(round_up(value))
    }

    /// Share of the height.
    fn height(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear(max) => value / max,
            Self::Decades => value.max(1.0).log10() / 5.0,
        };
        share.clamp(0.0, 1.0)
    }

    fn ticks(self) -> Vec<(f64, String)> {
        match self {
            Self::Linear(max) => {
                [0.0, max / 2.0, max].into_iter().map(|value| (value, format!("{value}"))).collect()
            }
            Self::Decades => [(1.0, "1 ms"), (10.0, "10 ms"), (100.0, "0.1 s"), (1e3, "1 s"), (1e4, "10 s")]
                .into_iter()
                .map(|(value, text)| (value, text.to_owned()))
                .collect(),
        }
    }
}

/// To a number that divides well.
fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0];
    steps.into_iter().map(|step| step * decade).find(|top| *top >= value).unwrap_or(value)
}

/// The chart, its top left corner at (0, 0).
pub(super) fn chart(record: &Record, title: &str, series: &[Series], scale: Scale) -> String {
    let span = seconds(record, record.end).max(1.0);
    let x = |second: f64| LEFT + (second / span).clamp(0.0, 1.0) * (WIDTH - LEFT);
    let y = |value: f64| TOP + HEIGHT * (1.0 - scale.height(value));
    let mut svg = String::new();
    bands(&mut svg, record, &x);
    for (value, text) in scale.ticks() {
        let y = y(value);
        let _ = write!(
            svg,
            "<line x1='{LEFT}' y1='{y:.1}' x2='{WIDTH}' y2='{y:.1}' class='grid'/>\
             <text x='{:.1}' y='{:.1}' class='tick' text-anchor='end'>{text}</text>",
            LEFT - 5.0,
            y + 3.5
        );
    }
    let mut second = 0.0;
    while second <= span {
        let bottom = TOP + HEIGHT + 14.0;
        let _ = write!(
            svg,
            "<text x='{:.1}' y='{bottom:.1}' class='tick' text-anchor='middle'>{second} s</text>",
            x(second)
        );
        second += if span > 60.0 { 20.0 } else { 10.0 };
    }
    legend(&mut svg, title, series);
    for one in series {
        line(&mut svg, one, &x, &y);
    }
    svg
}

fn bands(svg: &mut String, record: &Record, x: &dyn Fn(f64) -> f64) {
    for fault in &record.faults {
        let from = x(seconds(record, fault.from));
        let until = x(seconds(record, fault.until.unwrap_or(record.end)));
        let width = (until - from).max(1.0);
        let _ = write!(
            svg,
            "<rect x='{from:.1}' y='{TOP}' width='{width:.1}' height='{HEIGHT}' class='fault'><title>{}</title></rect>",
            escaped(&fault.label)
        );
    }
}

fn legend(svg: &mut String, title: &str, series: &[Series]) {
    let _ = write!(svg, "<text x='{LEFT}' y='14' class='title'>{}</text>", escaped(title));
    let mut right = WIDTH;
    for one in series.iter().rev() {
        let width = length(&one.name) * 6.2 + 18.0;
        right -= width;
        let _ = write!(
            svg,
            "<rect x='{right:.1}' y='7' width='9' height='9' rx='2' fill='{}'/>\
             <text x='{:.1}' y='15' class='tick'>{}</text>",
            one.colour,
            right + 12.0,
            escaped(&one.name)
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "the length of a name")]
fn length(name: &str) -> f64 {
    name.chars().count() as f64
}

fn line(svg: &mut String, series: &Series, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
    let mut path = String::new();
    for (second, value) in &series.points {
        let step = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{step}{:.1} {:.1}", x(*second), y(*value));
    }
    let _ = write!(
        svg,
        "<path d='{path}' fill='none' stroke='{}' stroke-width='1.8' stroke-linejoin='round'/>",
        series.colour
    );
}

/// Text for HTML and SVG.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

/// Looks of the charts, for a page or a picture of their own.
pub(super) const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;fill:#343a40}\
.tick{font-size:10.5px;fill:#868e96}.title{font-size:12px;font-weight:600}.grid{stroke:#e9ecef;stroke-width:1}\
.fault{fill:#ff6b6b;fill-opacity:.13}.head{font-size:16px;font-weight:700}.sub{font-size:11.5px;fill:#868e96}\
.good{fill:#2b8a3e;font-size:11.5px;font-weight:600}.bad{fill:#c92a2a;font-size:11.5px;font-weight:600}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_ends_above_the_largest_value() {
        // A curve that leaves the chart shows nothing where it matters most.
        for value in [0.3, 1.0, 37.0, 41.0, 999.0] {
            assert!(round_up(value) >= value, "{value}");
            assert!(round_up(value) <= value * 2.5, "{value}");
        }
        assert!((Scale::Decades.height(1e5) - 1.0).abs() < 1e-9);
        assert!(Scale::Decades.height(0.0).abs() < 1e-9);
    }
}
