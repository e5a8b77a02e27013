//! Figures, and how they are shown.

use serde::{Serialize, Serializer};

/// Something that was measured.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: &'static str,
    /// What was measured.
    #[serde(serialize_with = "thousandths")]
    pub value: f64,
    /// What `value` counts.
    pub unit: &'static str,
    /// What it must be; none where it is for information only.
    pub bar: Option<Bar>,
    /// How it was measured.
    pub method: String,
}

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// At most this.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// At least this.
    AtLeast(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bar) => value <= bar,
            Self::Below(bar) => value < bar,
            Self::AtLeast(bar) => value >= bar,
        }
    }
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bar) => write!(f, "<= {}", number(*bar)),
            Self::Below(bar) => write!(f, "< {}", number(*bar)),
            Self::AtLeast(bar) => write!(f, ">= {}", number(*bar)),
        }
    }
}

impl Serialize for Bar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Figure {
    /// Whether it misses its bar.
    pub fn missed(&self) -> bool {
        self.bar.is_some_and(|bar| !bar.holds(self.value))
    }

    /// Its line in the table.
    pub fn row(&self) -> String {
        let bar = self.bar.map_or_else(|| "-".to_owned(), |bar| bar.to_string());
        let verdict = match self.bar {
            None => "-",
            Some(_) if self.missed() => "MISSED",
            Some(_) => "ok",
        };
        let Self { name, value, unit, method, .. } = self;
        format!("{name:<24}{:>12} {unit:<6} {bar:<12} {verdict:<7} {method}", number(*value))
    }
}

/// The table's first line.
pub fn head() -> String {
    format!("{:<24}{:>12} {:<6} {:<12} {:<7} METHOD", "NAME", "VALUE", "UNIT", "BAR", "")
}

/// What is beyond was not measured.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn thousandths<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1000.0).round() / 1000.0)
}

/// As many digits as say something.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The middle one, or the middle of the two in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Says on standard error what is being done.
pub fn say(text: &str) {
    eprintln!("muster-bench: {text}");
}
