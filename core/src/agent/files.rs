//! What Muster adds to a unit's file, in a drop-in of its own.

use std::fmt::Write as _;

use crate::ids::Epoch;
use crate::unit::{UnitFile, UnitName, UnitType};

/// Over how many slices the units of a machine are spread.
///
/// PID 1's cost for a unit grows with the number of units in its slice: 30 slices start 1,000 units nearly twice as
/// fast as one.
pub const SLICES: u64 = 30;

/// The unit whose stop has the agent say goodbye before a shutdown.
pub const GOODBYE: &str = "muster-goodbye.service";

/// The text of a unit's `90-muster.conf`; none for a type of unit that runs no processes.
///
/// It hands the epoch to the unit's processes, puts a unit whose file names no slice into one of Muster's, and has
/// [`GOODBYE`] stop before it when the machine shuts down.
pub fn drop_in(name: &UnitName, epoch: Epoch, file: &str) -> Option<String> {
    let section = match name.unit_type() {
        kind @ (UnitType::Service | UnitType::Socket | UnitType::Mount | UnitType::Swap) => kind.section(),
        _ => return None,
    };
    let mut text = format!("[Unit]\nBefore={GOODBYE}\n[{section}]\nEnvironment=MUSTER_EPOCH={epoch}\n");
    let has_slice = UnitFile::parse(file.as_bytes()).is_ok_and(|file| file.value(section, "Slice").is_some());
    if !has_slice {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "Slice=muster-{:02}.slice", slice_of(name));
    }
    Some(text)
}

/// FNV-1a: the same in every version, so that a unit does not change its slice when the agent is upgraded.
fn slice_of(name: &UnitName) -> u64 {
    let hash = name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its weakest.
    (hash >> 32) % SLICES
}
