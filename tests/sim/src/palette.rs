//! The units of the simulated cluster: their files, and what these ask for.

use std::sync::Arc;

use muster_core::ids::MachineId;
use muster_core::unit::{ContentHash, UnitName};

/// How many units there are; and with those that fail or run to their end, which are drawn apart and come last.
pub(crate) const UNITS: usize = 30;
pub(crate) const ALL_UNITS: usize = UNITS + 6;

/// What each machine can give.
pub(crate) const CPU: u64 = 4_000;
pub(crate) const MEMORY: u64 = 1 << 30;

/// What a file asks for, written down beside it, so that nothing of what is checked is needed to read it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Patterns of names: of the characters `?` and `*` besides ordinary ones.
    pub(crate) conflicts: &'static [&'static str],
    /// Patterns of units that make room for it.
    pub(crate) replaces: &'static [&'static str],
    pub(crate) machine_of: &'static [usize],
    pub(crate) global: bool,
    /// The number of the machine.
    pub(crate) machine: Option<usize>,
    pub(crate) role: Option<&'static str>,
    pub(crate) cpu: u64,
    pub(crate) memory: u64,
    /// Whether there may be one at most, and how many seconds it may take to stop after a lease.
    pub(crate) exclusive: Option<u64>,
    /// Units that must be active first, and one that must be if it is being started.
    pub(crate) requires: &'static [usize],
    pub(crate) after: Option<usize>,
    /// Whether it stays with its machine through a reboot.
    pub(crate) keep: bool,
    /// What is done when it fails, if not the usual.
    pub(crate) reschedule: Option<Reschedule>,
    /// Whether it runs to its end.
    pub(crate) oneshot: bool,
}

/// How often a unit that fails is started anew within how many seconds, and after how many at first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reschedule {
    pub(crate) attempts: u32,
    pub(crate) delay: u64,
    pub(crate) interval: u64,
}

impl Options {
    pub(crate) fn reschedule(&self) -> Reschedule {
        self.reschedule.unwrap_or(Reschedule { attempts: 3, delay: 5, interval: 600 })
    }
}

/// A unit file.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) text: Arc<str>,
    pub(crate) hash: ContentHash,
    pub(crate) options: Options,
}

/// All unit files and all names.
#[derive(Debug)]
pub(crate) struct Palette {
    pub(crate) names: Vec<UnitName>,
    pub(crate) contents: Vec<Content>,
}

/// How long exclusive units may take to stop after a lease, in seconds.
pub(crate) const EXCLUSIVE_STOPS: [u64; 2] = [2, 10];

/// How many kinds of files there are: see [`options`].
const KINDS: usize = 30;
/// Files that differ in nothing that the leader cares about.
const VARIANTS: usize = 3;
/// The first of the files that are exclusive, and the first after them.
pub(crate) const EXCLUSIVE: usize = 14 * VARIANTS;
/// The first of the files that wait for other units or for their machine, and are drawn apart.
pub(crate) const WAITING: usize = 16 * VARIANTS;
pub(crate) const WAITING_END: usize = 20 * VARIANTS;
/// The first of the files of units that fail or run to their end. They are drawn apart, too.
pub(crate) const FAILING: usize = WAITING_END;
pub(crate) const FAILING_END: usize = 28 * VARIANTS;
/// The first of the files of units that replace others. They are drawn apart, too.
pub(crate) const REPLACING: usize = FAILING_END;
pub(crate) const REPLACING_END: usize = KINDS * VARIANTS;
/// The units for which they wait. These wait for none themselves.
pub(crate) const WAITED_FOR: [usize; 2] = [1, 2];
/// How many of the files ask for nothing; they come first.
pub(crate) const PLAIN: usize = 4 * VARIANTS;

fn options(kind: usize) -> Options {
    let none = Options::default();
    match kind {
        0..=3 | 20 => none,
        4 => Options { conflicts: &["u01.*"], ..none },
        5 => Options { conflicts: &["u0?.service", "u2*"], ..none },
        6 => Options { machine_of: &[0], ..none },
        7 => Options { machine_of: &[3], ..none },
        8 => Options { global: true, ..none },
        9 => Options { global: true, conflicts: &["u02.service"], ..none },
        10 => Options { machine: Some(0), ..none },
        11 => Options { role: Some("db"), ..none },
        12 => Options { cpu: 1_500, ..none },
        13 => Options { memory: 300 << 20, machine_of: &[0, 1], ..none },
        14 => Options { exclusive: Some(10), ..none },
        15 => Options { exclusive: Some(2), cpu: 500, ..none },
        16 => Options { requires: &[1], ..none },
        17 => Options { after: Some(2), ..none },
        18 => Options { keep: true, ..none },
        19 => Options { exclusive: Some(2), requires: &[2], after: Some(1), ..none },
        21 => Options { reschedule: Some(reschedule(2, 2, 60)), memory: 100 << 20, ..none },
        22 => Options { reschedule: Some(reschedule(5, 1, 30)), ..none },
        23 => Options { reschedule: Some(reschedule(0, 5, 600)), ..none },
        24 => Options { oneshot: true, ..none },
        25 => Options { oneshot: true, reschedule: Some(reschedule(3, 1, 60)), ..none },
        26 => Options { exclusive: Some(2), reschedule: Some(reschedule(2, 2, 600)), ..none },
        27 => Options { memory: 400 << 20, ..none },
        28 => Options { replaces: &["u0?.service"], cpu: 500, ..none },
        _ => Options { replaces: &["u01.service", "u1*"], ..none },
    }
}

fn reschedule(attempts: u32, delay: u64, interval: u64) -> Reschedule {
    Reschedule { attempts, delay, interval }
}

fn text(kind: usize, variant: usize, options: &Options) -> String {
    use std::fmt::Write as _;
    let kind_of_service = if options.oneshot { "Type=oneshot\n" } else { "" };
    let mut text =
        format!("[Service]\n{kind_of_service}ExecStart=/bin/sleep {kind}{variant}000\n[X-Fleet]\n");
    // Writing to a String cannot fail.
    for pattern in options.conflicts {
        let _ = writeln!(text, "Conflicts={pattern}");
    }
    for pattern in options.replaces {
        let _ = writeln!(text, "Replaces={pattern}");
    }
    for target in options.machine_of {
        let _ = writeln!(text, "MachineOf={}", unit_name(*target));
    }
    if options.global {
        text.push_str("Global=true\n");
    }
    if let Some(machine) = options.machine {
        let _ = writeln!(text, "MachineID={}", machine_id(machine));
    }
    if let Some(role) = options.role {
        let _ = writeln!(text, "MachineMetadata=role={role}");
    }
    text.push_str("[X-Muster]\n");
    if options.cpu > 0 {
        let _ = writeln!(text, "CPU={}.{:03}", options.cpu / 1_000, options.cpu % 1_000);
    }
    if options.memory > 0 {
        let _ = writeln!(text, "Memory={}", options.memory);
    }
    if let Some(stop) = options.exclusive {
        let _ = writeln!(text, "Exclusive=yes\nExclusiveStopSec={stop}");
    }
    for required in options.requires {
        let _ = writeln!(text, "Requires={}", unit_name(*required));
    }
    if let Some(first) = options.after {
        let _ = writeln!(text, "After={}", unit_name(first));
    }
    if options.keep {
        text.push_str("OnReboot=keep\n");
    }
    if let Some(Reschedule { attempts, delay, interval }) = options.reschedule {
        let _ = writeln!(
            text,
            "RescheduleAttempts={attempts}\nRescheduleDelay={delay}\nRescheduleInterval={interval}"
        );
    }
    if kind == 3 || kind == 12 {
        text.push_str("Priority=10\n");
    }
    text
}

fn unit_name(number: usize) -> String {
    format!("u{number:02}.service")
}

/// The id of the machine with this number.
pub(crate) fn machine_id(number: usize) -> MachineId {
    MachineId::new((number as u128 + 1) << 96)
}

/// The label that machines differ in.
pub(crate) const ROLE: &str = "role";

/// What the agent of the machine with this number says of that.
pub(crate) fn role(number: usize) -> &'static str {
    if number.is_multiple_of(2) { "web" } else { "db" }
}

impl Palette {
    pub(crate) fn new() -> Self {
        let names = (0..ALL_UNITS).filter_map(|number| UnitName::parse(&unit_name(number)).ok()).collect();
        let content = |number: usize| {
            let (kind, variant) = (number / VARIANTS, number % VARIANTS);
            let options = options(kind);
            let text: Arc<str> = text(kind, variant, &options).into();
            Content { hash: ContentHash::of(text.as_bytes()), text, options }
        };
        Self { names, contents: (0..KINDS * VARIANTS).map(content).collect() }
    }

    /// The number of the file with this content.
    pub(crate) fn content(&self, hash: ContentHash) -> Option<&Content> {
        self.contents.iter().find(|content| content.hash == hash)
    }

    pub(crate) fn number(&self, text: &str) -> Option<usize> {
        self.contents.iter().position(|content| &*content.text == text)
    }

    pub(crate) fn unit(&self, name: &UnitName) -> Option<usize> {
        self.names.iter().position(|known| known == name)
    }
}

/// Whether a pattern means this name.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    fn tail(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=name.len()).any(|skip| tail(rest, &name[skip..])),
            ([b'?', rest @ ..], [_, more @ ..]) => tail(rest, more),
            ([first, rest @ ..], [other, more @ ..]) => first == other && tail(rest, more),
            _ => false,
        }
    }
    tail(pattern.as_bytes(), name.as_bytes())
}
