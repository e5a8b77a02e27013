//! How batches of changes lie in values of etcd, and how they come out again.
//!
//! A value holds 1.5 MiB at most, a transaction 128 operations; a batch of Muster's may be larger. So a batch is one text,
//! and lies in one entry of the log, or in several of which the last makes it valid: it is there as a whole or not at all.

use muster_core::ids::Term;
use muster_core::leader::{Change, Durable, Place};
use serde::{Deserialize, Serialize};

use crate::store::unreadable;

/// How much of a batch goes into one value, in bytes: what etcd takes by default is 1.5 MiB a request.
pub(crate) const PART_BYTES: usize = 1024 * 1024;

/// About how much of a snapshot is written at once, in bytes: a commit may wait for that.
const CHUNK_BYTES: usize = 512 * 1024;

/// What stands in the first line of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    /// The leader's that wrote it.
    term: Term,
    /// Which part of the batch this is, from 0.
    part: u32,
    /// Whether more parts follow.
    more: bool,
}

/// The values that hold a batch.
///
/// # Errors
/// When it cannot be written as JSON.
pub(crate) fn values(term: Term, changes: &[Change]) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    let text = serde_json::to_vec(changes)?;
    let mut parts = text.chunks(PART_BYTES).enumerate().peekable();
    let mut values = Vec::new();
    while let Some((part, bytes)) = parts.next() {
        let part = u32::try_from(part).unwrap_or(u32::MAX);
        let mut value = serde_json::to_vec(&Header { term, part, more: parts.peek().is_some() })?;
        value.push(b'\n');
        value.extend_from_slice(bytes);
        values.push(value);
    }
    Ok(values)
}

/// Puts parts together.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// The term of the parts that have come, and what they hold.
    begun: Option<(Term, Vec<u8>)>,
    count: u32,
}

impl Parts {
    /// Takes the next value in; gives the batch when that is whole. One of which the last part is missing, since its leader
    /// came no further, is forgotten when another one begins.
    ///
    /// # Errors
    /// What makes no sense.
    pub(crate) fn push(&mut self, value: &[u8]) -> Result<Option<Vec<Change>>, String> {
        let end = value.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
        let (header, text) = (&value[..end], &value[end + 1..]);
        let header: Header = serde_json::from_slice(header).map_err(|error| unreadable(&error))?;
        let begun = self.begun.take();
        let mut bytes = if header.part == 0 {
            Vec::new()
        } else {
            let (term, bytes) = begun.ok_or("the part before it is missing")?;
            if term != header.term || self.count != header.part {
                return Err("the part before it is missing".to_owned());
            }
            bytes
        };
        self.count = header.part + 1;
        let whole = if header.part == 0 && !header.more {
            text
        } else {
            bytes.extend_from_slice(text);
            if header.more {
                self.begun = Some((header.term, bytes));
                return Ok(None);
            }
            &bytes
        };
        serde_json::from_slice(whole).map(Some).map_err(|error| unreadable(&error))
    }
}

/// What of the state comes after this place, as changes that make it: about [`CHUNK_BYTES`] of it, with the place where
/// that ends. None at the end.
pub(crate) fn chunk(durable: &Durable, after: Option<&Place>) -> Option<(Vec<Change>, Place)> {
    let mut bytes = 0;
    let mut changes = Vec::new();
    let mut last = None;
    for (place, change) in durable.changes_after(after) {
        bytes += 200
            + match &change {
                Change::PutFile(_, content) => content.len(),
                Change::PutUnit(_, unit) => 80 * unit.placements.len(),
                Change::PutCommand(_, command) => 200 * command.result.as_ref().map_or(0, Vec::len),
                _ => 0,
            };
        changes.push(change);
        last = Some(place);
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    last.map(|place| (changes, place))
}

#[cfg(test)]
mod tests {
    use muster_core::ids::{ClusterId, MachineId};
    use muster_core::leader::StoredUnit;
    use muster_core::state::DesiredState;
    use muster_core::unit::UnitName;

    use super::*;

    fn name(number: usize) -> UnitName {
        format!("unit-{number:04}.service").parse().expect("a name")
    }

    fn file(number: usize, bytes: usize) -> Change {
        Change::PutFile(name(number), "x".repeat(bytes).into())
    }

    /// What comes out of these values.
    fn read(values: &[Vec<u8>]) -> Vec<Vec<Change>> {
        let mut parts = Parts::default();
        values.iter().filter_map(|value| parts.push(value).expect("it makes sense")).collect()
    }

    #[test]
    fn a_batch_comes_out_as_it_went_in_however_large() {
        for bytes in [0, 1, PART_BYTES - 40, PART_BYTES, 3 * PART_BYTES] {
            let batch = vec![Change::DeleteCommand(7), file(1, bytes), Change::DeleteUnit(name(2))];
            let values = values(Term(3), &batch).expect("it can be written");
            assert!(values.iter().all(|value| value.len() < PART_BYTES + 100));
            assert_eq!(read(&values), [batch]);
        }
        assert_eq!(read(&values(Term(3), &[]).expect("written")), [vec![]]);
    }

    #[test]
    fn half_a_batch_is_none() {
        let large = vec![file(1, 2 * PART_BYTES)];
        let small = vec![Change::DeleteCommand(7)];
        let (mut torn, after) =
            (values(Term(3), &large).expect("written"), values(Term(4), &small).expect("written"));
        torn.pop();
        assert_eq!(read(&torn), [[]; 0]);
        torn.extend(after);
        assert_eq!(read(&torn), [small], "another leader goes on");
        // The same leader does, after a part was refused.
        let mut torn = values(Term(3), &large).expect("written");
        torn.truncate(1);
        torn.extend(values(Term(3), &large).expect("written"));
        assert_eq!(read(&torn), std::slice::from_ref(&large));
        // A part of one is no part of another.
        let mut parts = Parts::default();
        let whole = values(Term(3), &large).expect("written");
        parts.push(&whole[0]).expect("the first part");
        parts.push(&values(Term(4), &large).expect("written")[1]).expect_err("of another batch");
        Parts::default().push(&whole[1]).expect_err("the first part is missing");
        Parts::default().push(b"{}").expect_err("no line");
    }

    #[test]
    fn a_snapshot_has_everything_and_comes_in_pieces() {
        let mut durable = Durable::new(ClusterId::new(1));
        for number in 0..700 {
            let placements = [(MachineId::new(1), muster_core::ids::Epoch::default())].into_iter().collect();
            let unit = StoredUnit {
                desired: DesiredState::Loaded,
                order: 1,
                placements,
                done: false,
                adopted: None,
            };
            durable.apply(Change::PutUnit(name(number), unit));
            durable.apply(file(number, 3000));
        }
        durable
            .apply(Change::PutAvailability(MachineId::new(4), muster_core::machine::Availability::Cordoned));
        let mut copy = Durable::new(ClusterId::new(1));
        let (mut after, mut pieces) = (None, 0);
        while let Some((changes, place)) = chunk(&durable, after.as_ref()) {
            assert!(after < Some(place.clone()), "it goes on");
            changes.into_iter().for_each(|change| copy.apply(change));
            (after, pieces) = (Some(place), pieces + 1);
        }
        assert!(pieces > 3, "{pieces}");
        assert_eq!(copy, durable);
    }
}
