//! What Muster adds to a unit's file, in a drop-in of its own.

use std::fmt::Write as _;
use std::time::Duration;

use super::guard::LEASE;
use super::io::Held;
use crate::ids::{Epoch, Term};
use crate::unit::{ContentHash, Options, UnitFile, UnitName, UnitType};

/// What stands before the epoch in a drop-in.
const EPOCH: &str = "MUSTER_EPOCH=";

/// Over how many slices the units of a machine are spread.
///
/// PID 1's cost for a unit grows with the number of units in its slice: 30 slices start 1,000 units nearly twice as
/// fast as one.
pub const SLICES: u64 = 30;

/// The unit whose stop has the agent say goodbye before a shutdown.
pub const GOODBYE: &str = "muster-goodbye.service";

/// The slices of exclusive units are this one's children, in systemd's way of naming: `muster-exclusive-10.slice`.
pub const EXCLUSIVE_SLICE: &str = "muster-exclusive";

/// The text of a unit's `90-muster.conf`; none for a type of unit that runs no processes, unless it is exclusive.
///
/// It hands the epoch to the unit's processes, puts a unit whose file names no slice into one of Muster's, and has
/// [`GOODBYE`] stop before it when the machine shuts down.
///
/// An exclusive unit is bound to the guard ([`LEASE`]), in a slice that is killed when so much time has passed since the
/// end of the lease. What its own file says of its slice and its stop does not count. A shutdown stops it at once: it is
/// started elsewhere only when it has ended here, and [`GOODBYE`] waits for that.
pub fn drop_in(name: &UnitName, epoch: Epoch, file: &str, exclusive: Option<Duration>) -> Option<String> {
    let relations = match exclusive {
        // One that could not be stopped would keep all others from starting.
        Some(_) => format!("BindsTo={LEASE}\nAfter={LEASE}\nRefuseManualStop=no\n"),
        None => format!("Before={GOODBYE}\n"),
    };
    let kind = name.unit_type();
    if !matches!(kind, UnitType::Service | UnitType::Socket | UnitType::Mount | UnitType::Swap) {
        return exclusive.map(|_| format!("# {EPOCH}{epoch}\n[Unit]\n{relations}"));
    }
    let section = kind.section();
    let mut text = format!("[Unit]\n{relations}[{section}]\nEnvironment={EPOCH}{epoch}\n");
    if let Some(stop) = exclusive {
        let timeout = if kind == UnitType::Service { "TimeoutStopSec" } else { "TimeoutSec" };
        let seconds = stop.as_secs();
        // systemd's own SIGKILL comes a second before the slice's. Each of its stages may take that long, and some can be
        // prolonged, so the slice's is the bound.
        let before = seconds.saturating_sub(1).max(1);
        let _ = write!(
            text,
            "Slice={}\n{timeout}={before}s\nKillMode=control-group\nSendSIGKILL=yes\nFinalKillSignal=SIGKILL\n",
            exclusive_slice(stop),
        );
        return Some(text);
    }
    let has_slice = UnitFile::parse(file.as_bytes()).is_ok_and(|file| file.value(section, "Slice").is_some());
    if !has_slice {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "Slice=muster-{:02}.slice", slice_of(name));
    }
    Some(text)
}

/// The copy whose file and drop-in these are, where nothing else tells of it; none where they do not say which it is, as of
/// a type of unit that runs no processes.
pub fn found(name: &UnitName, file: &str, drop_in: &str) -> Option<Held> {
    let epoch = drop_in.lines().find_map(|line| line.split_once(EPOCH))?.1;
    let (term, counter) = epoch.split_once('.')?;
    let epoch = Epoch { term: Term(term.parse().ok()?), counter: counter.parse().ok()? };
    let options = UnitFile::parse(file.as_bytes()).ok().and_then(|file| Options::parse(name, &file).ok());
    let exclusive = options.and_then(|parsed| parsed.options.exclusive);
    Some(Held::found(epoch, ContentHash::of(file.as_bytes()), exclusive))
}

/// The slice of the exclusive units that may take so long to stop, in whole seconds.
fn exclusive_slice(stop: Duration) -> String {
    format!("{EXCLUSIVE_SLICE}-{}.slice", stop.as_secs())
}

/// FNV-1a: the same in every version, so that a unit does not change its slice when the agent is upgraded.
fn slice_of(name: &UnitName) -> u64 {
    let hash = name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its weakest.
    (hash >> 32) % SLICES
}
