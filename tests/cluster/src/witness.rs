//! A cluster's witness: one file, outside of the machines, in which their units say that they run. What it holds does not
//! depend on the word of any scheduler or agent.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Cluster;
use crate::supervisor::WITNESS;

/// One line that a unit has written: that it ran at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// What the unit calls itself.
    pub name: String,
    /// Which placement of the unit it is (`MUSTER_EPOCH`); `-` when nobody said that.
    pub epoch: String,
    /// The host name of the machine on which it ran.
    pub machine: String,
    /// When, by the host's clock since the host's boot, to the hundredth of a second: for a container when it was written,
    /// for a virtual machine when it reached the host.
    pub at: Duration,
}

impl Cluster {
    /// What the machines' units have told the witness, in the order in which it came.
    ///
    /// In every machine `/usr/lib/muster-cluster/beat NAME` tells it for ever, ten times a second. Other programs append
    /// lines `NAME EPOCH HOSTNAME TIME` to `/run/muster-witness`, TIME in hundredths of a second since the boot; in virtual
    /// machines only one at a time can have that file open, and TIME is replaced by the host's.
    ///
    /// # Errors
    /// It cannot be read, or somebody wrote another line.
    pub fn witness(&self) -> Result<Vec<Beat>> {
        let path = self.supervisor().path(WITNESS);
        parse(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)
    }
}

fn parse(text: &str) -> Result<Vec<Beat>> {
    // The last line may be half written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| beat(line).with_context(|| format!("no beat: {line:?}"))).collect()
}

fn beat(line: &str) -> Option<Beat> {
    let [name, epoch, machine, at] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let [name, epoch, machine] = [name, epoch, machine].map(str::to_owned);
    let at = Duration::from_millis(at.parse::<u64>().ok()?.checked_mul(10)?);
    Some(Beat { name, epoch, machine, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_when_they_are_whole() {
        let beats = parse("web 1.2 m1 345\nweb - m2 346\nweb 1.3 m").unwrap();
        let read: Vec<_> = beats
            .iter()
            .map(|beat| (beat.epoch.as_str(), beat.machine.as_str(), beat.at.as_millis()))
            .collect();
        assert_eq!(read, [("1.2", "m1", 3450), ("-", "m2", 3460)]);
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("web 1").unwrap(), []);
        for bad in ["web 1.2 m1\n", "web 1.2 m1 soon\n", "web 1.2 m1 1 2\n"] {
            assert!(parse(bad).unwrap_err().to_string().contains("no beat"), "{bad}");
        }
    }
}
