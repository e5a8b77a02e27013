//! Reads arbitrary bytes as a unit file, its options and the words of its values.
//!
//! Run with `cargo +nightly fuzz run --fuzz-dir tests/fuzz unit_file`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_core::unit::specifier::{Specifiers, expand};
use muster_core::unit::words::{Escapes, split_exec, split_with};
use muster_core::unit::{Glob, Options, UnitFile, UnitName};

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = UnitFile::parse(bytes) else { return };
    assert_eq!(file.text().as_bytes(), bytes);
    let mut previous = 0;
    for entry in file.entries() {
        assert!(entry.line > previous, "lines go up");
        previous = entry.line;
        for escapes in [Escapes::Decode, Escapes::DecodeRelaxed, Escapes::Keep, Escapes::Drop] {
            let _ = split_with(&entry.value, escapes);
        }
        let _ = split_exec(&entry.value);
        let _ = file.values(&entry.section, &entry.key);
        if let Ok(glob) = Glob::parse(&entry.value) {
            let _ = glob.matches(&entry.key);
        }
        if let Ok(name) = UnitName::parse(&entry.value) {
            assert_eq!(name.as_str(), entry.value);
        }
    }
    for name in ["a.service", "a@.service", r"a@b\x2dc.service", "a.slice"] {
        let name: UnitName = name.parse().expect("a unit name");
        let _ = expand(file.text(), &Specifiers::of(&name));
        if let Err(errors) = Options::parse(&name, &file) {
            assert!(!errors.is_empty());
        }
    }
});
