use std::time::Duration;

use muster_core::command::{CommandError, Done, UnitOutcome};
use muster_core::ids::{AgentKey, BootId, CommandId, Epoch, MachineId};
use muster_core::leader::{Retired, StoredCommand, StoredUnit};
use muster_core::machine::{Availability, Capacity, Drain, Labels, MachineRecord};
use muster_core::state::DesiredState;
use muster_core::unit::{Bytes, MilliCpu};
use proptest::prelude::*;

use super::*;

fn name(number: usize) -> UnitName {
    format!("unit-{number}.service").parse().unwrap()
}

fn machine() -> MachineRecord {
    MachineRecord {
        address: "198.18.0.7".to_owned(),
        labels: Labels::from([("rack".to_owned(), "\"a\"\n".to_owned())]),
        capacity: Capacity { cpu: MilliCpu(2000), memory: Bytes(u64::MAX) },
        version: "0.1.0".to_owned(),
        boot: BootId::new(1),
        key: AgentKey::new(2),
        restarting: false,
        leaving: true,
        lease: Duration::from_secs(5),
        grace: Duration::ZERO,
    }
}

/// A state with one of everything, and so many units with these files.
fn state(files: &[String]) -> Durable {
    let mut durable = Durable::new(ClusterId::new(7));
    let id = MachineId::new(1 << 100);
    let epoch = Epoch { term: Term(3), counter: 4 };
    for (number, file) in files.iter().enumerate() {
        let placements = [(id, epoch)].into_iter().collect();
        let unit = StoredUnit {
            desired: DesiredState::Launched,
            order: number as u64,
            placements,
            done: number % 2 == 1,
        };
        durable.apply(Change::PutUnit(name(number), unit));
        durable.apply(Change::PutFile(name(number), (&**file).into()));
    }
    durable.apply(Change::PutMachine(id, machine()));
    let drain = Availability::Draining(Drain { timeout_ms: 1000, max_parallel: 2 });
    durable.apply(Change::PutAvailability(id, drain));
    let edits = [("disk".to_owned(), Some("ssd".to_owned())), ("rack".to_owned(), None)].into();
    durable.apply(Change::PutLabels(id, edits));
    let exclusive = Some(Duration::from_secs(10));
    durable.apply(Change::PutRetired(id, name(99), Retired { epoch, exclusive }));
    let outcome = UnitOutcome { name: name(0), done: Done::Created, warnings: vec!["odd".to_owned()] };
    let result = Ok(vec![outcome]);
    durable.apply(Change::PutCommand(5, StoredCommand { id: CommandId::new(5), result }));
    let result = Err(CommandError::Store("full".to_owned()));
    durable.apply(Change::PutCommand(6, StoredCommand { id: CommandId::new(6), result }));
    durable
}

fn file(content: &str) -> String {
    format!("[Service]\nExecStart=/bin/echo {content}\n")
}

fn written(durable: &Durable) -> (Header, Vec<u8>) {
    let made = "2026-01-31T12:00:00Z".to_owned();
    let header = Header::new(durable, Term(3), "0.1.0".to_owned(), made);
    let mut bytes = Vec::new();
    write(&header, durable, &mut bytes).unwrap();
    (header, bytes)
}

/// Reads it in pieces of this size.
fn read(bytes: &[u8], piece: usize) -> Result<Backup, BackupError> {
    let mut reader = Reader::default();
    for piece in bytes.chunks(piece) {
        reader.push(piece)?;
    }
    reader.finish()
}

#[test]
fn it_is_lines_that_can_be_read() {
    let (_, bytes) = written(&state(&[file("a")]));
    insta::assert_snapshot!(String::from_utf8(bytes).unwrap());
}

#[test]
fn every_cut_and_every_flipped_bit_is_found() {
    let (_, whole) = written(&state(&[file("a"), file("b")]));
    read(&whole, 4096).unwrap();
    for end in 0..whole.len() {
        let error = read(&whole[..end], 4096).expect_err("it is cut off");
        let lines = whole[..end].split(|byte| *byte == b'\n').count() as u64 - 1;
        let expected = if lines == 0 { BackupError::Other } else { BackupError::CutOff(lines) };
        assert_eq!(error, expected, "after {end} bytes");
    }
    let mut bytes = whole.clone();
    for index in 0..whole.len() {
        for bit in 0..8 {
            bytes[index] ^= 1 << bit;
            read(&bytes, 4096).expect_err("a bit was flipped");
            bytes[index] ^= 1 << bit;
        }
    }
    for extra in ["\n", " ", "{}\n"] {
        let error = read(&[&whole, extra.as_bytes()].concat(), 4096).expect_err("something was added");
        assert!(error.to_string().ends_with("it comes after the last one"), "{error}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let (_, whole) = written(&state(&[file("a"), file("b")]));
    let text = String::from_utf8(whole).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let without = |number: usize| {
        let kept: Vec<_> = (0..lines.len()).filter(|line| *line != number).map(|line| lines[line]).collect();
        kept.join("\n") + "\n"
    };
    let last = lines.len() - 1;
    let cases = [
        String::new(),
        "[Service]\nExecStart=/bin/true\n".to_owned(),
        "{\"some\":\"JSON\"}\n".to_owned(),
        "\0\0\0\0 a database".to_owned(),
        text.replacen("\"muster_backup\":1", "\"muster_backup\":2,\"more\":{}", 1),
        text.replacen("\"cluster\"", "\"clutter\"", 1),
        text.replacen("\"order\":1", "\"order\":true", 1),
        text.replacen("PutMachine", "PutNachine", 1),
        text.replacen("echo b", "echo c", 1),
        without(3),
        without(last),
        text.replacen(lines[3], "{\"DeleteCommand\":5}", 1),
    ];
    let errors: Vec<String> =
        cases.iter().map(|case| read(case.as_bytes(), 4096).expect_err("refused").to_string()).collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn units_have_files_and_files_have_units() {
    let mut durable = state(&[file("a")]);
    durable.files.clear();
    let error = read(&written(&durable).1, 4096).expect_err("a file is missing");
    assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
}

#[test]
fn unit_files_that_would_be_refused_are_named() {
    let durable = state(&[file("a"), "no section\n".to_owned(), "[X-Fleet]\nReplicas=2\n".to_owned()]);
    assert_eq!(read(&written(&durable).1, 4096).unwrap().durable, durable, "they are kept all the same");
    let refused = refused_files(&durable);
    let names: Vec<_> = refused.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, [name(1), name(2)], "{refused:?}");
}

proptest! {
    #[test]
    fn what_comes_out_is_what_went_in(
        files in prop::collection::vec(".{0,60}", 0..6),
        piece in 1_usize..200,
    ) {
        let durable = state(&files);
        let (header, bytes) = written(&durable);
        prop_assert_eq!(read(&bytes, piece), Ok(Backup { header, durable }));
    }
}
