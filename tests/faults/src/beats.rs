//! Whether an exclusive unit ran twice, by what its processes wrote down themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use muster_cluster::Beat;

/// A copy of a unit that went on when a later one had begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Overlap {
    unit: String,
    /// The copies' machines and epochs.
    earlier: String,
    later: String,
    /// From the first sign that the earlier one gave beside the later one to its last: where it stood still, from when it went
    /// on.
    pub(crate) lasted: Duration,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, earlier, later, lasted } = self;
        write!(f, "{unit} ran on {earlier} for {:.1} s beside {later}", lasted.as_secs_f64())
    }
}

impl Overlap {
    /// Whether the copy that went on was on this machine.
    pub(crate) fn is_of(&self, machine: &str) -> bool {
        self.earlier.split(' ').next() == Some(machine)
    }
}

/// All overlaps in what was written, in the order in which it was.
pub(crate) fn overlaps(beats: &[Beat]) -> Vec<Overlap> {
    let mut units: BTreeMap<&str, Vec<Copy<'_>>> = BTreeMap::new();
    for beat in beats {
        let copies = units.entry(&beat.name).or_default();
        let known = copies.iter_mut().find(|copy| copy.machine == beat.machine && copy.epoch == beat.epoch);
        if let Some(copy) = known {
            copy.beats.push(beat.at);
        } else {
            let Beat { machine, epoch, at, .. } = beat;
            copies.push(Copy { machine, epoch, beats: vec![*at] });
        }
    }
    let mut found = Vec::new();
    for (unit, copies) in units {
        for (earlier, later) in copies.iter().zip(copies.iter().skip(1)) {
            let begun = later.beats.first().copied().unwrap_or_default();
            let mut beside = earlier.beats.iter().filter(|at| **at > begun);
            if let Some(first) = beside.next() {
                let last = beside.next_back().unwrap_or(first);
                found.push(Overlap {
                    unit: unit.to_owned(),
                    earlier: earlier.to_string(),
                    later: later.to_string(),
                    lasted: last.saturating_sub(*first),
                });
            }
        }
    }
    found
}

struct Copy<'b> {
    machine: &'b str,
    epoch: &'b str,
    beats: Vec<Duration>,
}

impl fmt::Display for Copy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.machine, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(text: &str) -> Vec<Beat> {
        let beat = |(at, word): (u64, &str)| Beat {
            name: "only.service".to_owned(),
            machine: word[..2].to_owned(),
            epoch: word[2..].to_owned(),
            at: Duration::from_secs(at),
        };
        (1..).zip(text.split(' ')).map(beat).collect()
    }

    #[test]
    fn one_after_the_other_is_none() {
        assert_eq!(overlaps(&beats("m1a m1a m2b m2b m1c m1d")), []);
    }

    #[test]
    fn one_beside_the_other_is_found_with_how_long() {
        let found = overlaps(&beats("m1a m2b m2b m1a m1a m2b"));
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["only.service ran on m1 (a) for 1.0 s beside m2 (b)"]);
    }
}
