//! Amounts of CPU and memory.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::WHITESPACE;

/// A text is no amount; the message says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuantityError(String);

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The sum, or none when it is out of range.
            pub fn checked_add(self, other: $name) -> Option<$name> {
                self.0.checked_add(other.0).map($name)
            }

            /// The difference, or none when it would be less than nothing.
            pub fn checked_sub(self, other: $name) -> Option<$name> {
                self.0.checked_sub(other.0).map($name)
            }

            /// The sum, or the largest amount there is.
            #[must_use]
            pub fn saturating_add(self, other: $name) -> $name {
                $name(self.0.saturating_add(other.0))
            }

            /// The difference, or nothing.
            #[must_use]
            pub fn saturating_sub(self, other: $name) -> $name {
                $name(self.0.saturating_sub(other.0))
            }
        }
    };
}

quantity! {
    /// Thousandths of a CPU.
    MilliCpu
}

quantity! {
    /// Bytes of memory.
    Bytes
}

impl fmt::Display for MilliCpu {
    /// Whole CPUs as such (`2`), else thousandths (`1500m`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text =
            if self.0.is_multiple_of(1000) { (self.0 / 1000).to_string() } else { format!("{}m", self.0) };
        f.pad(&text)
    }
}

impl FromStr for MilliCpu {
    type Err = QuantityError;

    /// `500m`, `1.5` (CPUs) or `50%` (of one CPU).
    fn from_str(text: &str) -> Result<MilliCpu, QuantityError> {
        let bad = || {
            QuantityError(format!(
                "{text:?} is no amount of CPU; write thousandths (500m), CPUs (1.5) or percent (50%)"
            ))
        };
        let (number, scale) = match (text.strip_suffix('m'), text.strip_suffix('%')) {
            (Some(number), _) => (number, 1),
            (_, Some(number)) => (number, 10),
            _ => (text, 1000),
        };
        let decimal = Decimal::take(number).filter(|(_, rest)| rest.is_empty()).ok_or_else(bad)?.0;
        match decimal.times(scale) {
            None => Err(QuantityError(format!("{text:?} is too much"))),
            Some((_, true)) => Err(QuantityError(format!("{text:?} is finer than a thousandth of a CPU"))),
            Some((milli, false)) => Ok(MilliCpu(milli)),
        }
    }
}

impl fmt::Display for Bytes {
    /// With the largest suffix that leaves a whole number: `512M`, `1536M`, `1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffixes = ["K", "M", "G", "T", "P", "E"];
        let mut amount = self.0;
        let mut suffix = "";
        for larger in suffixes {
            if amount == 0 || !amount.is_multiple_of(1024) {
                break;
            }
            amount /= 1024;
            suffix = larger;
        }
        f.pad(&format!("{amount}{suffix}"))
    }
}

impl FromStr for Bytes {
    type Err = QuantityError;

    /// As systemd reads sizes: a number with `K`, `M`, `G`, `T`, `P` or `E` (powers of 1024), a fraction, or a sum from
    /// large to small such as `1G 512M`.
    fn from_str(text: &str) -> Result<Bytes, QuantityError> {
        let bad = || {
            QuantityError(format!(
                "{text:?} is no amount of memory; write bytes, or a number with K, M, G or T"
            ))
        };
        let mut units: &[(&str, u32)] =
            &[("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10), ("B", 0), ("", 0)];
        let mut rest = text;
        let mut sum = 0_u64;
        loop {
            let (decimal, after) = Decimal::take(rest.trim_start_matches(WHITESPACE)).ok_or_else(bad)?;
            let after = after.trim_start_matches(WHITESPACE);
            let at = units.iter().position(|(suffix, _)| after.starts_with(suffix)).ok_or_else(bad)?;
            let (suffix, shift) = units[at];
            units = &units[at + 1..];
            let (amount, _) =
                decimal.times(1 << shift).ok_or_else(|| QuantityError(format!("{text:?} is too much")))?;
            sum = sum.checked_add(amount).ok_or_else(|| QuantityError(format!("{text:?} is too much")))?;
            rest = &after[suffix.len()..];
            if rest.is_empty() {
                return Ok(Bytes(sum));
            }
        }
    }
}

/// What `CPUQuota=` allows, as systemd reads it: percent of one CPU with at most two decimals, or `‰` or `‱`. Rounded up.
/// None when systemd would ignore it.
pub(super) fn cpu_quota(text: &str) -> Option<MilliCpu> {
    let (number, per_unit, decimals) =
        match (text.strip_suffix('%'), text.strip_suffix('‰'), text.strip_suffix('‱')) {
            (Some(number), _, _) => (number, 100, 2),
            (_, Some(number), _) => (number, 10, 1),
            (_, _, Some(number)) => (number, 1, 0),
            _ => return None,
        };
    let fraction = number.split_once('.').map_or("", |(_, fraction)| fraction);
    if number.ends_with('.') || fraction.len() > decimals {
        return None;
    }
    let (decimal, "") = Decimal::take(number)? else {
        return None;
    };
    // In ten-thousandths of a CPU.
    let (amount, _) = decimal.times(per_unit)?;
    // systemd counts them in an int.
    (amount > 0 && i32::try_from(amount).is_ok()).then(|| MilliCpu(amount.div_ceil(10)))
}

/// A decimal number without sign or exponent.
struct Decimal {
    whole: u64,
    /// The digits after the point, as a number, and how many they are.
    fraction: u64,
    digits: u32,
}

impl Decimal {
    /// The number at the start of a text, and what follows it. Digits after the 18th decimal do not count.
    fn take(text: &str) -> Option<(Decimal, &str)> {
        let (whole, rest) = take_digits(text);
        let whole = whole.parse().ok()?;
        let Some(rest) = rest.strip_prefix('.') else {
            return Some((Decimal { whole, fraction: 0, digits: 0 }, rest));
        };
        let (fraction, rest) = take_digits(rest);
        let fraction = &fraction[..fraction.len().min(18)];
        let digits = u32::try_from(fraction.len()).ok()?;
        let fraction = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
        Some((Decimal { whole, fraction, digits }, rest))
    }

    /// The product with `scale`, without its fraction, and whether there was one; none when it is out of range.
    fn times(&self, scale: u64) -> Option<(u64, bool)> {
        let unit = 10_u128.pow(self.digits);
        let fraction = u128::from(self.fraction) * u128::from(scale);
        let whole = u128::from(self.whole) * u128::from(scale) + fraction / unit;
        Some((u64::try_from(whole).ok()?, fraction % unit != 0))
    }
}

fn take_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// Reads a time span as `systemd.time(7)` has them: seconds without a unit, or numbers with units one after another.
/// None for anything else, and for `infinity`.
pub fn time_span(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 26] = [
        ("us", 1),
        ("usec", 1),
        ("µs", 1),
        ("ms", 1_000),
        ("msec", 1_000),
        ("s", 1_000_000),
        ("sec", 1_000_000),
        ("second", 1_000_000),
        ("seconds", 1_000_000),
        ("", 1_000_000),
        ("m", 60_000_000),
        ("min", 60_000_000),
        ("minute", 60_000_000),
        ("minutes", 60_000_000),
        ("h", 3_600_000_000),
        ("hr", 3_600_000_000),
        ("hour", 3_600_000_000),
        ("hours", 3_600_000_000),
        ("d", 86_400_000_000),
        ("day", 86_400_000_000),
        ("days", 86_400_000_000),
        ("w", 604_800_000_000),
        ("week", 604_800_000_000),
        ("weeks", 604_800_000_000),
        ("M", 2_629_800_000_000),
        ("y", 31_557_600_000_000),
    ];
    let mut rest = text.trim_matches(WHITESPACE);
    let mut micros: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = Decimal::take(rest)?;
        let after = after.trim_start_matches(WHITESPACE);
        let letters = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        micros = micros.checked_add(number.times(*scale)?.0)?;
        rest = after.trim_start_matches(WHITESPACE);
    }
    Some(Duration::from_micros(micros))
}
