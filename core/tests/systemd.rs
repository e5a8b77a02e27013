//! Core's reading of unit files against systemd's own.
//!
//! `systemd --test --user` loads units from a directory, prints what it made of them and exits: the real parser, with
//! no service manager running and nothing started.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use muster_core::unit::specifier::{Specifiers, expand};
use muster_core::unit::words::{Escapes, plain, split_exec, split_with};
use muster_core::unit::{UnitFile, UnitFileError, UnitName, UnitType};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const SYSTEMD: &str = "/usr/lib/systemd/systemd";
const NOBODY: u32 = 65534;

/// What systemd says of one unit.
#[derive(Debug, Default)]
struct Loaded {
    state: String,
    description: String,
    after: BTreeSet<String>,
    /// The arguments of each command of `ExecStart=`.
    commands: Vec<Vec<String>>,
}

/// Lets systemd load all these units.
fn load(units: &BTreeMap<UnitName, Vec<u8>>) -> BTreeMap<String, Loaded> {
    assert!(Path::new(SYSTEMD).exists(), "this test needs systemd, as {SYSTEMD}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let runtime = path.join("run");
    fs::create_dir_all(runtime.join("systemd")).unwrap();
    fs::create_dir(path.join("units")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut all = "[Unit]\nDefaultDependencies=no\n".to_owned();
    for (name, bytes) in units {
        fs::write(path.join("units").join(name.as_str()), bytes).unwrap();
        all = all + "Wants=" + name.as_str() + "\n";
    }
    fs::write(path.join("units/muster-all.target"), all).unwrap();

    // A user's manager refuses to run as root.
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if root {
        for directory in [&runtime, &runtime.join("systemd")] {
            chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={NOBODY}"), "--clear-groups", SYSTEMD]);
        command
    } else {
        Command::new(SYSTEMD)
    };
    let output = command
        .args(["--test", "--user", "--no-pager", "--unit=muster-all.target"])
        .env_clear()
        .env("SYSTEMD_UNIT_PATH", path.join("units"))
        .env("XDG_RUNTIME_DIR", &runtime)
        .env("HOME", &runtime)
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let loaded = read_dump(&text);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(loaded.contains_key("muster-all.target"), "{}: {text}\n{errors}", output.status);
    loaded
}

fn read_dump(text: &str) -> BTreeMap<String, Loaded> {
    let mut units: BTreeMap<String, Loaded> = BTreeMap::new();
    let mut current = None;
    let mut exec = String::new();
    for line in text.split('\n') {
        if let Some(name) = line.strip_prefix("\t-> Unit ") {
            current = Some(units.entry(name.trim_end_matches(':').to_owned()).or_default());
            exec.clear();
        } else if line.starts_with("\t-> ") || line.starts_with("-> ") {
            current = None;
        }
        let Some(unit) = &mut current else { continue };
        if let Some(value) = line.strip_prefix("\t\tDescription: ") {
            value.clone_into(&mut unit.description);
        } else if let Some(value) = line.strip_prefix("\t\tUnit Load State: ") {
            value.clone_into(&mut unit.state);
        } else if let Some(value) = line.strip_prefix("\t\tAfter: ") {
            if let Some((name, origin)) = value.split_once(" (")
                && origin.contains("origin-file")
            {
                unit.after.insert(name.to_owned());
            }
        } else if let Some(value) = line.strip_prefix("\t\t-> ") {
            value.clone_into(&mut exec);
        } else if let Some(value) = line.strip_prefix("\t\t\tCommand Line: ")
            && exec == "ExecStart:"
        {
            // Quoted as for a shell, but control characters as in C.
            let words = split_with(value, Escapes::DecodeRelaxed).unwrap();
            unit.commands
                .push(words.iter().map(|word| word.replace(r"\$", "$").replace(r"\`", "`")).collect());
        }
    }
    units
}

fn description(name: &UnitName, file: &UnitFile) -> Option<String> {
    let specifiers = Specifiers::of(name);
    match file.value("Unit", "Description") {
        None => Some(name.to_string()),
        Some(value) => expand(&value, &specifiers).ok(),
    }
}

/// The commands of `ExecStart=`; none where systemd would refuse a line, or where the machine has a say.
fn commands(name: &UnitName, file: &UnitFile) -> Option<Vec<Vec<String>>> {
    let specifiers = Specifiers::of(name);
    let mut commands = Vec::new();
    for line in file.values("Service", "ExecStart") {
        for command in split_exec(&line).ok()? {
            let arguments = command.arguments.iter().map(|word| expand(word, &specifiers).ok());
            commands.push(arguments.collect::<Option<Vec<String>>>()?);
        }
    }
    Some(commands)
}

fn sample<T>(count: usize, strategy: impl Strategy<Value = T>) -> Vec<T> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Files of lines that are hard to read.
fn awkward_files() -> Vec<Vec<u8>> {
    let piece = prop_oneof![
        4 => Just("[Unit]\n".to_owned()),
        1 => Just("[X-Other]\n".to_owned()),
        1 => Just("[Unitt]\n".to_owned()),
        1 => Just("[Unit\\\n]\n".to_owned()),
        1 => Just("[Unit] #\n".to_owned()),
        1 => Just("\u{feff}".to_owned()),
        1 => Just("\u{fffe}".to_owned()),
        6 => Just("Description=".to_owned()),
        3 => Just("After=".to_owned()),
        3 => Just("a.target b\\x2dc.target \"d.target\" e.target".to_owned()),
        2 => Just("Description = ".to_owned()),
        2 => Just("Description".to_owned()),
        4 => Just("\\\n".to_owned()),
        8 => Just("\n".to_owned()),
        3 => Just("\r\n".to_owned()),
        1 => Just("\r".to_owned()),
        1 => Just("\n\r".to_owned()),
        2 => Just("# c\\\n".to_owned()),
        2 => Just("\n ; c\n".to_owned()),
        2 => Just("\\".to_owned()),
        1 => Just("%n %%p %p".to_owned()),
        4 => "[ a-z=;#\t]{1,6}",
        1 => "[é😀\u{a0}\u{c}\\[\\]]{1,3}",
    ];
    let file = (any::<bool>(), prop::collection::vec(piece, 1..20)).prop_map(|(unit, pieces)| {
        let start = if unit { "[Unit]\n" } else { "" };
        (start.to_owned() + &pieces.concat()).into_bytes()
    });
    sample(1500, file)
}

#[test]
fn awkward_files_are_read_alike() {
    let files = awkward_files();
    let units: BTreeMap<UnitName, Vec<u8>> = files
        .into_iter()
        .enumerate()
        .map(|(number, bytes)| (format!("x-{number}.target").parse().unwrap(), bytes))
        .collect();
    let loaded = load(&units);
    let (mut read, mut refused) = (0, 0);
    for (name, bytes) in &units {
        let theirs = &loaded[name.as_str()];
        let text = String::from_utf8_lossy(bytes);
        let file = match UnitFile::parse(bytes) {
            // systemd takes them for masked, or for units of which it knows nothing: Muster refuses them.
            Err(UnitFileError::Empty | UnitFileError::NoSection) => continue,
            Err(error) => {
                assert!(theirs.state != "loaded", "{error}\n{text:?}\n{theirs:?}");
                refused += 1;
                continue;
            }
            Ok(file) => file,
        };
        read += 1;
        assert_eq!(theirs.state, "loaded", "{text:?}");
        // Unknown specifiers do not occur, so the description is known.
        assert_eq!(description(name, &file).unwrap(), theirs.description, "{text:?}");
        let values = file.values("Unit", "After");
        let after: BTreeSet<String> = values
            .iter()
            .flat_map(|value| plain(value))
            .filter_map(|word| expand(word, &Specifiers::of(name)).ok())
            .filter(|word| UnitName::parse(word).is_ok_and(|after| after != *name))
            .collect();
        assert_eq!(after, theirs.after, "{text:?}");
    }
    assert!(read > 300 && refused > 100, "{read} read, {refused} refused: the samples say too little");
}

#[test]
fn exec_lines_are_cut_alike() {
    let word = prop_oneof![
        6 => "[a-z]{1,4}",
        2 => "\"[a-z ;']{0,6}\"",
        2 => "'[a-z ;\"]{0,6}'",
        1 => Just("a;".to_owned()),
        1 => Just("\\;".to_owned()),
        1 => Just("; /bin/cat x".to_owned()),
        1 => Just("%n%%".to_owned()),
        2 => prop::sample::select(&[r"\x41", r"\101", r"\u00e9", r"\s", r"\q", r"\x4", r"\\", r"\ ", r#"\""#][..])
            .prop_map(str::to_owned),
        1 => "[\"']",
        1 => Just("\\".to_owned()),
        1 => Just("a\"b c\"d".to_owned()),
    ];
    let gap = prop::sample::select(&[" ", "  ", "\t", "", " \\\n ", "\\\n# c\n"][..]);
    let line = (
        prop::sample::select(&["", "-", "@", "+", ":", "!!", "-@"][..]),
        prop::collection::vec((gap, word), 0..8),
    );
    let lines = sample(1500, line).into_iter().map(|(prefix, words)| {
        let words: String = words.iter().flat_map(|(gap, word)| [*gap, word.as_str()]).collect();
        format!("{prefix}/bin/echo {words}")
    });
    let units: BTreeMap<UnitName, Vec<u8>> = lines
        .enumerate()
        .map(|(number, line)| {
            let text = format!("[Service]\nType=oneshot\nExecStart={line}\n");
            (format!("x-{number}.service").parse().unwrap(), text.into_bytes())
        })
        .collect();
    let loaded = load(&units);
    let (mut read, mut refused) = (0, 0);
    for (name, bytes) in &units {
        let theirs = &loaded[name.as_str()];
        let file = UnitFile::parse(bytes).unwrap();
        let line = file.value("Service", "ExecStart").unwrap();
        if let Some(commands) = commands(name, &file) {
            assert_eq!(theirs.state, "loaded", "{line:?}");
            assert_eq!(commands, theirs.commands, "{line:?}");
            read += 1;
        } else {
            // It may keep the commands before one whose program it cannot read.
            assert!(theirs.state != "loaded" || line.contains("; "), "{line:?} {theirs:?}");
            refused += 1;
        }
    }
    assert!(read > 300 && refused > 100, "{read} read, {refused} refused: the samples say too little");
}

#[test]
fn installed_units_are_read_alike() {
    let mut units = BTreeMap::new();
    for entry in fs::read_dir("/usr/lib/systemd/system").unwrap() {
        let entry = entry.unwrap();
        let Ok(name) = UnitName::parse(&entry.file_name().to_string_lossy()) else { continue };
        // A user's manager does not load mounts and the like; templates are not loaded by anybody.
        let plain = matches!(
            name.unit_type(),
            UnitType::Service | UnitType::Socket | UnitType::Target | UnitType::Timer | UnitType::Path
        );
        if plain && !name.is_template() && entry.file_type().unwrap().is_file() {
            units.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    let loaded = load(&units);
    let mut compared = 0;
    for (name, bytes) in &units {
        let theirs = &loaded[name.as_str()];
        let file = UnitFile::parse(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(file.warnings(), [], "{name}");
        if theirs.state == "loaded" {
            assert_eq!(description(name, &file).unwrap(), theirs.description, "{name}");
            if let Some(commands) = commands(name, &file) {
                assert_eq!(commands, theirs.commands, "{name}");
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "only {compared} of {} units could be compared", units.len());
}
