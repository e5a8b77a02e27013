//! The sections and keys that systemd knows, for warnings about misspelt ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

type Table = BTreeMap<&'static str, BTreeSet<&'static str>>;

/// The file says how to make it anew.
static TABLE: LazyLock<Table> = LazyLock::new(|| read(include_str!("systemd-keys.txt")));

fn read(text: &'static str) -> Table {
    let mut table = Table::new();
    let mut section = "";
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            table.entry(section).or_default();
        } else {
            table.entry(section).or_default().insert(line);
        }
    }
    table
}

/// The keys of a section, or none when systemd has no such section.
pub(super) fn of_section(section: &str) -> Option<&'static BTreeSet<&'static str>> {
    TABLE.get(section)
}

/// The sections that have this key.
pub(super) fn sections_with(key: &str) -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(move |(_, keys)| keys.contains(key)).map(|(section, _)| *section)
}

/// All sections.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    TABLE.keys().copied()
}
