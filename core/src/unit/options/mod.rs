//! The options in `[X-Fleet]` and `[X-Muster]`, and what a unit file says about the resources that it needs.
//!
//! Anything that is not understood is an error: an option that was dropped in silence would place a unit where it must
//! not run.

mod values;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use self::values::{
    expand, parse_bool, parse_dependency, parse_label, parse_memory, parse_peer, span_between, split_quoted,
};
use super::file::Item;
use super::{
    Bytes, Entry, Glob, MilliCpu, OptionError, QuantityError, UnitFile, UnitName, UnitType, WHITESPACE,
    Warning, did_you_mean, install, keys, nearest, quantity,
};

/// A machine as `MachineID=` names it: by its whole id or exactly the first eight digits of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineIdMatch(Box<str>);

impl MachineIdMatch {
    /// Reads 32 or 8 hexadecimal digits; none for anything else.
    pub fn parse(text: &str) -> Option<MachineIdMatch> {
        let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hex && matches!(text.len(), 8 | 32)).then(|| MachineIdMatch(text.to_ascii_lowercase().into()))
    }

    /// The digits, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineIdMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for MachineIdMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// What a unit asks of its placement. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `MachineID=`: the machine that it must run on.
    pub machine_id: Option<MachineIdMatch>,
    /// `MachineOf=`: the units that must be on the same machine.
    pub machine_of: BTreeSet<UnitName>,
    /// `MachineMetadata=`: for each label, the values of which the machine must have one.
    pub metadata: BTreeMap<String, BTreeSet<String>>,
    /// `Conflicts=`: units that must not be on the same machine, whichever of the two says so.
    pub conflicts: BTreeSet<Glob>,
    /// `Replaces=`: units that must not be on the same machine either, and that are placed elsewhere where they are in its way.
    /// Not together with `conflicts`.
    pub replaces: BTreeSet<Glob>,
    /// `Global=`: it runs on every machine that fits.
    pub global: bool,
    /// `Priority=`: from -1000 to 1000, the greater goes first.
    pub priority: i32,
    /// `CPU=`, or `CPUQuota=` of the unit itself: what is set aside for it.
    pub cpu: Option<MilliCpu>,
    /// `Memory=`, or `MemoryMax=` or `MemoryMin=` of the unit itself: what is set aside for it.
    pub memory: Option<Bytes>,
    /// `Exclusive=`: at most one copy runs in the whole cluster at any moment. Here: how long a copy may take to stop after
    /// the lease of its machine has ended (`ExclusiveStopSec=`), in whole seconds from 1 to 300.
    pub exclusive: Option<Duration>,
    /// `OnReboot=keep`: it stays with its machine through a reboot.
    pub keep_on_reboot: bool,
    /// `Requires=` in `[X-Muster]`: units that must be active, on any machine, before it is started.
    pub requires: BTreeSet<UnitName>,
    /// `After=` in `[X-Muster]`: units whose start is waited for, where they are to be started as well.
    pub after: BTreeSet<UnitName>,
    /// What happens when systemd gives it up.
    pub reschedule: Reschedule,
    /// Whether it runs to its end and then is done: a service with `Type=oneshot` and without `RemainAfterExit=`.
    pub ends: bool,
    /// The units that it activates, if it is a socket, a timer or a path.
    pub triggers: BTreeSet<UnitName>,
}

/// What happens to a unit that systemd gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reschedule {
    /// `RescheduleAttempts=`: how often it is started anew within the interval, from 0 to 1000.
    pub attempts: u32,
    /// `RescheduleDelay=`: how long is waited before the first time, from 0 to a day; it doubles each time.
    pub delay: Duration,
    /// `RescheduleInterval=`: after this time a failure does not count any more, from a second to 30 days.
    pub interval: Duration,
}

impl Default for Reschedule {
    /// So that a unit has been tried on several machines before somebody has been called, and a machine that restarts
    /// what the unit needs has had the time to.
    fn default() -> Self {
        Self { attempts: 3, delay: Duration::from_secs(5), interval: Duration::from_secs(600) }
    }
}

/// `ExclusiveStopSec=` where it is left out.
const EXCLUSIVE_STOP: Duration = Duration::from_secs(10);
/// The shortest and the longest.
pub(crate) const EXCLUSIVE_STOPS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// A unit file that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it asks for.
    pub options: Options,
    /// What is odd about it, in the order of lines.
    pub warnings: Vec<Warning>,
}

/// The values that `Priority=` may have.
const PRIORITIES: std::ops::RangeInclusive<i32> = -1000..=1000;

/// How many errors and how many warnings of one file are reported; a reader is lost long before.
const MAX_FINDINGS: usize = 100;

/// How many values the options of one file may have in all: they are compared with those of every other unit.
const MAX_VALUES: usize = 1000;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Options {
    /// The units that it must be with, if the cluster knows them: those in `MachineOf=`, and what it activates, unless it is
    /// global.
    pub fn tied_to(&self) -> impl Iterator<Item = &UnitName> {
        let activates = self.triggers.iter().filter(|name| !self.global && !self.machine_of.contains(*name));
        self.machine_of.iter().chain(activates)
    }

    /// Reads what the file asks for when it runs under this name.
    ///
    /// Of a template, values with specifiers that follow from the instance (`%i`, `%n`, `%N`) are left out; they are
    /// checked when the same file is read under the name of an instance.
    ///
    /// # Errors
    /// Everything that is wrong with the two sections, in the order of lines, up to 100 errors.
    pub fn parse(name: &UnitName, file: &UnitFile) -> Result<Parsed, Vec<OptionError>> {
        let mut reader = Reader {
            name,
            settings: Vec::new(),
            reset_at: [0; KEYS.len()],
            own: Own::default(),
            exclusive: (false, None),
            errors: Vec::new(),
            warnings: Vec::new(),
        };
        for item in file.items() {
            if reader.errors.len() >= MAX_FINDINGS {
                break;
            }
            match item {
                Item::Section { name, line } => reader.section(&name, line),
                Item::Assignment(entry) => reader.assignment(entry),
                Item::Ignored { section, line, why } => {
                    reader.ignored(section.as_deref(), line, why);
                }
            }
        }
        let options = reader.options();
        if is_ours(name) {
            let message = "names that begin with \"muster-\" are Muster's own".to_owned();
            reader.errors.push(OptionError { line: None, message });
        }
        let Reader { mut errors, mut warnings, .. } = reader;
        if errors.is_empty() {
            warnings.sort_by_key(|warning| warning.line);
            warnings.truncate(MAX_FINDINGS);
            Ok(Parsed { options, warnings })
        } else {
            errors.sort_by_key(|error| error.line);
            errors.truncate(MAX_FINDINGS);
            Err(errors)
        }
    }
}

/// Whether the name is one that Muster's own units have or may have, such as the guard of exclusive units.
fn is_ours(name: &UnitName) -> bool {
    let (stem, _) = name.as_str().rsplit_once('.').unwrap_or_default();
    stem.starts_with("muster-") || stem == "muster" && name.unit_type() == UnitType::Slice
}

/// Muster's own sections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Fleet,
    Muster,
}

impl Section {
    const ALL: [Section; 2] = [Section::Fleet, Section::Muster];

    fn of(name: &str) -> Option<Section> {
        Section::ALL.into_iter().find(|section| section.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Section::Fleet => "X-Fleet",
            Section::Muster => "X-Muster",
        }
    }
}

/// The options that work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    MachineId,
    MachineOf,
    MachineMetadata,
    Conflicts,
    Replaces,
    Global,
    Priority,
    Cpu,
    Memory,
    Exclusive,
    ExclusiveStopSec,
    OnReboot,
    Requires,
    After,
    RescheduleAttempts,
    RescheduleDelay,
    RescheduleInterval,
}

/// Every option that works, and whether `[X-Fleet]` has it too.
const KEYS: [(&str, Key, bool); 17] = [
    ("MachineID", Key::MachineId, true),
    ("MachineOf", Key::MachineOf, true),
    ("MachineMetadata", Key::MachineMetadata, true),
    ("Conflicts", Key::Conflicts, true),
    ("Replaces", Key::Replaces, true),
    ("Global", Key::Global, true),
    ("Priority", Key::Priority, false),
    ("CPU", Key::Cpu, false),
    ("Memory", Key::Memory, false),
    ("Exclusive", Key::Exclusive, false),
    ("ExclusiveStopSec", Key::ExclusiveStopSec, false),
    ("OnReboot", Key::OnReboot, false),
    ("Requires", Key::Requires, false),
    ("After", Key::After, false),
    ("RescheduleAttempts", Key::RescheduleAttempts, false),
    ("RescheduleDelay", Key::RescheduleDelay, false),
    ("RescheduleInterval", Key::RescheduleInterval, false),
];

/// fleet's older names, in `[X-Fleet]` only.
const LEGACY_KEYS: [(&str, Key); 5] = [
    ("X-ConditionMachineID", Key::MachineId),
    ("X-ConditionMachineBootID", Key::MachineId),
    ("X-ConditionMachineOf", Key::MachineOf),
    ("X-ConditionMachineMetadata", Key::MachineMetadata),
    ("X-Conflicts", Key::Conflicts),
];

/// Options whose effect does not exist yet. Taking them and doing nothing would be a lie.
const UNSUPPORTED: [&str; 7] =
    ["Config", "Prefer", "Replicas", "Secret", "Spread", "UpdateMinActive", "UpdateParallelism"];

/// One assignment to an option that works.
struct Setting<'a> {
    section: Section,
    key: Key,
    /// The name as it is written, which may be a legacy one.
    name: Cow<'a, str>,
    legacy: bool,
    value: Cow<'a, str>,
    line: u32,
}

impl Setting<'_> {
    fn message(&self, what: impl fmt::Display) -> String {
        format!("[{}] {}=: {what}", self.section.name(), self.name)
    }

    fn error(&self, what: impl fmt::Display) -> OptionError {
        OptionError { line: Some(self.line), message: clip(self.message(what)) }
    }

    fn warning(&self, what: impl fmt::Display) -> Warning {
        Warning { line: Some(self.line), message: clip(self.message(what)) }
    }
}

/// What the unit's own section says that concerns its placement.
#[derive(Default)]
struct Own {
    oneshot: bool,
    remains: bool,
    /// `Unit=` of a timer or a path, `Service=` of a socket.
    activates: Option<UnitName>,
    cpu_quota: Option<MilliCpu>,
    memory_max: Option<Bytes>,
    memory_min: Option<Bytes>,
}

struct Reader<'a> {
    name: &'a UnitName,
    settings: Vec<Setting<'a>>,
    /// For each option, how many settings there were when `[X-Muster]` last took it back.
    reset_at: [usize; KEYS.len()],
    own: Own,
    /// `Exclusive=` and `ExclusiveStopSec=`.
    exclusive: (bool, Option<Duration>),
    errors: Vec<OptionError>,
    warnings: Vec<Warning>,
}

impl<'a> Reader<'a> {
    fn section(&mut self, section: &str, line: u32) {
        if Section::of(section).is_some() || self.is_read_by_systemd(section) {
            return;
        }
        let wanted = section.trim_matches(WHITESPACE);
        if let Some(ours) = Section::ALL.into_iter().find(|ours| ours.name().eq_ignore_ascii_case(wanted)) {
            let message = format!("[{section}]: unknown section; did you mean [{}]?", ours.name());
            self.errors.push(OptionError { line: Some(line), message: clip(message) });
            return;
        }
        if self.warnings.len() >= MAX_FINDINGS {
            return;
        }
        let message = if section.starts_with("X-") {
            // systemd says nothing about these, and other programs may well have one.
            match nearest(section, Section::ALL.map(Section::name)) {
                Some(near) => {
                    format!("[{section}]: unknown section, ignored; did you mean [{near}]?")
                }
                None => return,
            }
        } else if keys::of_section(section).is_some() {
            format!("[{section}]: systemd ignores this section in a {} unit", self.name.unit_type())
        } else {
            let near = nearest(section, keys::sections().filter(|near| self.is_read_by_systemd(near)));
            format!(
                "[{section}]: unknown section, ignored{}",
                did_you_mean(near.map(|near| format!("[{near}]")))
            )
        };
        self.warnings.push(Warning { line: Some(line), message: clip(message) });
    }

    fn ignored(&mut self, section: Option<&str>, line: u32, why: &str) {
        let message = match section {
            None => why.to_owned(),
            Some(section) => format!("[{section}]: {why}"),
        };
        match section {
            // systemd ignores such a line, but here it may have been meant to keep a unit away from somewhere.
            Some(section) if Section::of(section).is_some() => {
                let message = message.trim_end_matches(", line ignored").to_owned();
                self.errors.push(OptionError { line: Some(line), message: clip(message) });
            }
            // systemd does not look into sections that it does not know.
            Some(section) if !self.is_read_by_systemd(section) => {}
            _ if self.warnings.len() >= MAX_FINDINGS => {}
            _ => self.warnings.push(Warning { line: Some(line), message: clip(message) }),
        }
    }

    fn assignment(&mut self, entry: Entry<'a>) {
        if let Some(section) = Section::of(&entry.section) {
            self.setting(section, entry);
        } else if self.is_read_by_systemd(&entry.section) {
            self.check_systemd_key(&entry);
            if entry.section == self.name.unit_type().section() {
                self.own_setting(&entry);
            } else if entry.section == "Install" {
                self.install_setting(&entry);
            }
        }
    }

    fn setting(&mut self, section: Section, entry: Entry<'a>) {
        let error = |what: String| OptionError {
            line: Some(entry.line),
            message: clip(format!("[{}] {}=: {what}", section.name(), entry.key)),
        };
        let modern = KEYS.iter().find(|(name, ..)| *name == entry.key);
        let legacy = LEGACY_KEYS.iter().find(|(name, _)| section == Section::Fleet && *name == entry.key);
        let key = match (modern, legacy) {
            (Some((_, key, in_fleet)), _) if *in_fleet || section == Section::Muster => *key,
            (Some(_), _) => {
                return self.errors.push(error("this option belongs into [X-Muster]".into()));
            }
            (None, Some((_, key))) => *key,
            (None, None) if UNSUPPORTED.contains(&&*entry.key) => {
                let message = format!("[{}] {}= is not supported by this version", section.name(), entry.key);
                return self.errors.push(OptionError { line: Some(entry.line), message: clip(message) });
            }
            (None, None) => {
                let known = KEYS.iter().filter(|(_, _, in_fleet)| *in_fleet || section == Section::Muster);
                let known = known.map(|(name, ..)| *name).chain(UNSUPPORTED);
                let near = match LEGACY_KEYS.iter().find(|(name, _)| *name == entry.key) {
                    Some((_, key)) => {
                        KEYS.iter().find(|(_, modern, _)| modern == key).map(|(name, ..)| *name)
                    }
                    None => nearest(&entry.key, known.chain(LEGACY_KEYS.map(|(name, _)| name))),
                };
                let near = did_you_mean(near.map(|near| format!("{near}=")));
                return self.errors.push(error(format!("unknown option{near}")));
            }
        };
        if !entry.value.is_empty() {
            let Entry { key: name, value, line, .. } = entry;
            self.settings.push(Setting { section, key, name, legacy: legacy.is_some(), value, line });
        } else if section == Section::Muster {
            // As everywhere in systemd: an empty assignment takes back what this section said before.
            self.reset_at[key as usize] = self.settings.len();
        } else {
            // fleet knew no such reset, so taking something back here would loosen a unit written for it.
            self.errors.push(error("the value is empty; remove the line".into()));
        }
    }

    fn check_systemd_key(&mut self, entry: &Entry<'_>) {
        let Some(keys) = keys::of_section(&entry.section) else {
            return;
        };
        let enough = self.warnings.len() >= MAX_FINDINGS;
        if enough || keys.contains(&*entry.key) || entry.key.starts_with("X-") {
            return;
        }
        let elsewhere = keys::sections_with(&entry.key).find(|section| self.is_read_by_systemd(section));
        let near = match elsewhere {
            Some(section) => Some(format!("{}= in [{section}]", entry.key)),
            None => nearest(&entry.key, keys.iter().copied()).map(|near| format!("{near}=")),
        };
        let message =
            format!("[{}] {}=: unknown to systemd 252{}", entry.section, entry.key, did_you_mean(near));
        self.warnings.push(Warning { line: Some(entry.line), message: clip(message) });
    }

    /// What is said of being enabled: some of it has no effect.
    fn install_setting(&mut self, entry: &Entry<'_>) {
        let known = keys::of_section("Install").is_some_and(|keys| keys.contains(&*entry.key));
        let works = install::KEYS.iter().any(|(key, _)| *key == entry.key);
        if known && !works && self.warnings.len() < MAX_FINDINGS {
            let message = format!("[Install] {}=: has no effect in a cluster", entry.key);
            self.warnings.push(Warning { line: Some(entry.line), message: clip(message) });
        }
    }

    /// Reads a setting of the unit itself as systemd does: the last valid one counts, an empty one takes it back.
    fn own_setting(&mut self, entry: &Entry<'_>) {
        let value: &str = &entry.value;
        let ok = match &*entry.key {
            "Type" => {
                self.own.oneshot = value == "oneshot";
                true
            }
            "RemainAfterExit" => {
                self.own.remains = parse_bool(value).unwrap_or(self.own.remains);
                true
            }
            "Unit" | "Service" => {
                let named = expand(value, self.name, false).ok().flatten();
                self.own.activates = named.and_then(|named| UnitName::parse(&named).ok());
                true
            }
            "CPUQuota" => {
                let quota = quantity::cpu_quota(value);
                if quota.is_some() || value.is_empty() {
                    self.own.cpu_quota = quota;
                }
                quota.is_some() || value.is_empty()
            }
            "MemoryMax" | "MemoryMin" => {
                let bytes = value.parse::<Bytes>();
                // Without a figure in bytes there is nothing to set aside.
                let unknown = value.is_empty() || value == "infinity" || value.ends_with(['%', '‰', '‱']);
                let field = if entry.key == "MemoryMax" {
                    &mut self.own.memory_max
                } else {
                    &mut self.own.memory_min
                };
                if bytes.is_ok() || unknown {
                    *field = bytes.clone().ok();
                }
                bytes.is_ok() || unknown
            }
            _ => true,
        };
        if !ok && self.warnings.len() < MAX_FINDINGS {
            let message = format!("[{}] {}=: systemd will ignore {value:?}", entry.section, entry.key);
            self.warnings.push(Warning { line: Some(entry.line), message: clip(message) });
        }
    }

    /// Whether systemd looks into a section of this name in a unit of this type.
    fn is_read_by_systemd(&self, section: &str) -> bool {
        matches!(section, "Unit" | "Install") || section == self.name.unit_type().section()
    }

    fn options(&mut self) -> Options {
        let mut options = Options::default();
        let reset_at = self.reset_at;
        let mut settings: Vec<Setting<'_>> = std::mem::take(&mut self.settings)
            .into_iter()
            .enumerate()
            .filter(|(at, setting)| {
                setting.section == Section::Fleet || *at >= reset_at[setting.key as usize]
            })
            .map(|(_, setting)| setting)
            .collect();
        // Of options with one value, [X-Muster] beats [X-Fleet], and there the modern name beats the legacy one.
        settings.sort_by_key(|setting| (setting.section != Section::Muster, setting.legacy));
        let mut global = None;
        let mut count = 0;
        for setting in &settings {
            let values = self.values(setting);
            count += values.len();
            if count > MAX_VALUES {
                self.errors
                    .push(setting.error(format_args!("the options have more than {MAX_VALUES} values")));
                break;
            }
            for value in values {
                if let Err(error) = self.apply(&mut options, &mut global, setting, &value) {
                    self.errors.push(setting.error(error));
                }
            }
        }
        options.global = global.is_some_and(|(_, global)| global);
        if let (true, stop) = std::mem::take(&mut self.exclusive) {
            options.exclusive = Some(stop.unwrap_or(EXCLUSIVE_STOP));
        }
        self.check_combinations(&options, &settings);
        options.cpu = options.cpu.or(self.own.cpu_quota);
        options.memory = options.memory.or(self.own.memory_max).or(self.own.memory_min);
        options.ends = self.name.unit_type() == UnitType::Service && self.own.oneshot && !self.own.remains;
        options.triggers = self.triggers();
        options
    }

    /// What the unit activates: what it names, else the service of the same name (`systemd.socket(5)`, `systemd.timer(5)`,
    /// `systemd.path(5)`). A socket with `Accept=yes` activates instances that Muster does not start.
    fn triggers(&mut self) -> BTreeSet<UnitName> {
        if !matches!(self.name.unit_type(), UnitType::Socket | UnitType::Timer | UnitType::Path) {
            return BTreeSet::new();
        }
        let same = || UnitName::parse(&format!("{}.service", self.name.stem())).ok();
        self.own.activates.take().or_else(same).into_iter().collect()
    }

    /// The values of one assignment, with specifiers replaced and without those that only an instance can have.
    fn values(&mut self, setting: &Setting<'_>) -> Vec<String> {
        let Some(quoted) = split_quoted(&setting.value) else {
            self.errors
                .push(setting.error("unbalanced quotes; write each value as \"value\", with blanks between"));
            return Vec::new();
        };
        let parts: Vec<&str> = match setting.key {
            Key::Conflicts | Key::Replaces | Key::Requires | Key::After => {
                quoted.iter().flat_map(|value| value.split_whitespace()).collect()
            }
            _ => quoted,
        };
        let mut values = Vec::new();
        for part in parts {
            match expand(part, self.name, matches!(setting.key, Key::Conflicts | Key::Replaces)) {
                Ok(Some(value)) => values.push(value),
                Ok(None) => {}
                Err(error) => self.errors.push(setting.error(error)),
            }
        }
        values
    }

    fn apply(
        &mut self,
        options: &mut Options,
        global: &mut Option<(Section, bool)>,
        setting: &Setting<'_>,
        value: &str,
    ) -> Result<(), String> {
        match setting.key {
            Key::MachineId => {
                let wanted = MachineIdMatch::parse(value).ok_or_else(|| {
                    format!("{value:?} is no machine: write the 32 digits of its machine id, or the first 8 of them")
                })?;
                let chosen = options.machine_id.get_or_insert_with(|| wanted.clone());
                if *chosen != wanted {
                    let what = format!("{wanted} is ignored, since {chosen} comes first");
                    self.warnings.push(setting.warning(what));
                }
            }
            Key::MachineOf => {
                options.machine_of.insert(parse_peer(value, self.name)?);
            }
            Key::MachineMetadata => {
                let (label, value) = parse_label(value)?;
                options.metadata.entry(label.to_owned()).or_default().insert(value.to_owned());
            }
            Key::Conflicts | Key::Replaces => {
                let glob = Glob::parse(value).map_err(|error| error.to_string())?;
                if glob.is_literal()
                    && let Err(error) = UnitName::parse(value)
                {
                    self.warnings.push(setting.warning(format_args!("{value:?} can match no unit: {error}")));
                }
                let patterns = match setting.key {
                    Key::Replaces => &mut options.replaces,
                    _ => &mut options.conflicts,
                };
                patterns.insert(glob);
            }
            Key::Global => {
                let wanted = parse_bool(value)?;
                match *global {
                    Some((section, chosen)) if section != setting.section => {
                        if chosen != wanted {
                            self.warnings.push(setting.warning("ignored, since [X-Muster] says otherwise"));
                        }
                    }
                    _ => *global = Some((setting.section, wanted)),
                }
            }
            Key::Priority => {
                options.priority = value
                    .parse()
                    .ok()
                    .filter(|priority| PRIORITIES.contains(priority))
                    .ok_or_else(|| format!("{value:?} is no whole number from -1000 to 1000"))?;
            }
            Key::Cpu => {
                let cpu = value.parse().map_err(|error: QuantityError| error.to_string())?;
                options.cpu = Some(cpu);
            }
            Key::Memory => options.memory = Some(parse_memory(value)?),
            // How long it may take to stop stays when it was said before.
            Key::Exclusive => self.exclusive.0 = parse_bool(value)?,
            Key::ExclusiveStopSec => {
                let span = span_between(value, EXCLUSIVE_STOPS.0, EXCLUSIVE_STOPS.1)?;
                // PID 1 and its helpers count whole seconds.
                self.exclusive.1 =
                    Some(Duration::from_secs(span.as_secs() + u64::from(span.subsec_nanos() > 0)));
            }
            Key::OnReboot => {
                options.keep_on_reboot = match value {
                    "keep" => true,
                    "move" => false,
                    _ => return Err(format!("{value:?} is neither move nor keep")),
                };
            }
            Key::Requires => {
                options.requires.insert(parse_dependency(value, self.name)?);
            }
            Key::After => {
                options.after.insert(parse_dependency(value, self.name)?);
            }
            Key::RescheduleAttempts => {
                options.reschedule.attempts = value
                    .parse()
                    .ok()
                    .filter(|attempts| *attempts <= 1000)
                    .ok_or_else(|| format!("{value:?} is no whole number from 0 to 1000"))?;
            }
            Key::RescheduleDelay => {
                options.reschedule.delay = span_between(value, Duration::ZERO, DAY)?;
            }
            Key::RescheduleInterval => {
                options.reschedule.interval = span_between(value, Duration::from_secs(1), DAY * 30)?;
            }
        }
        Ok(())
    }

    /// What fleet refused to have together.
    fn check_combinations(&mut self, options: &Options, settings: &[Setting<'_>]) {
        // Presence, not value: an option that waits for an instance counts.
        let first =
            |key| settings.iter().filter(|setting| setting.key == key).min_by_key(|setting| setting.line);
        let global = first(Key::Global).filter(|_| options.global);
        let mut refuse = |setting: &Setting<'_>, what: String| {
            let message = format!("[{}] {what}", setting.section.name());
            self.errors.push(OptionError { line: Some(setting.line), message: clip(message) });
        };
        if let Some(machine_id) = first(Key::MachineId) {
            if first(Key::MachineOf).is_some() {
                refuse(machine_id, "MachineID cannot be used with Peers (MachineOf=)".to_owned());
            }
            if first(Key::Conflicts).is_some() {
                refuse(machine_id, "MachineID cannot be used with Conflicts".to_owned());
            }
            if first(Key::Replaces).is_some() {
                refuse(machine_id, "MachineID cannot be used with Replaces".to_owned());
            }
            if global.is_some() {
                refuse(machine_id, "MachineID cannot be used with Global".to_owned());
            }
        }
        if let Some(global) = global
            && first(Key::MachineOf).is_some()
        {
            refuse(global, "Global cannot be used with Peers (MachineOf=)".to_owned());
        }
        if let Some(replaces) = first(Key::Replaces) {
            if global.is_some() {
                refuse(replaces, "Global cannot be used with Replaces".to_owned());
            }
            if first(Key::Conflicts).is_some() {
                refuse(replaces, "Conflicts cannot be used with Replaces".to_owned());
            }
        }
        if let (Some(_), Some(exclusive)) = (options.exclusive, first(Key::Exclusive))
            && let Some(why) = why_not_exclusive(self.name.unit_type())
        {
            refuse(exclusive, format!("Exclusive cannot be used with a {}: {why}", self.name.unit_type()));
        }
        if let (Some(global), Some(_)) = (global, options.exclusive) {
            refuse(global, "Global cannot be used with Exclusive: it would run on every machine".to_owned());
        }
        if let (None, Some(stop)) = (options.exclusive, first(Key::ExclusiveStopSec)) {
            refuse(stop, "ExclusiveStopSec has no effect without Exclusive=yes".to_owned());
        }
        for key in [Key::RescheduleAttempts, Key::RescheduleDelay, Key::RescheduleInterval] {
            if let (Some(_), Some(reschedule)) = (global, first(key)) {
                let what =
                    format!("{} cannot be used with Global: there is nowhere else to go", reschedule.name);
                refuse(reschedule, what);
            }
        }
        let apart =
            [(Key::Conflicts, "conflict", &options.conflicts), (Key::Replaces, "replace", &options.replaces)];
        for (key, what, patterns) in apart {
            for peer in &options.machine_of {
                let pattern = patterns.iter().find(|pattern| pattern.matches(peer.as_str()));
                if let (Some(pattern), Some(setting)) = (pattern, first(key)) {
                    refuse(
                        setting,
                        format!("unresolvable requirements: peer {peer:?} matches {what} {pattern:?}"),
                    );
                }
            }
        }
    }
}

/// Why nobody could see to it that a unit of this type ends with its machine's lease, if that is so: that is done by ending
/// processes.
fn why_not_exclusive(unit_type: UnitType) -> Option<&'static str> {
    match unit_type {
        UnitType::Mount | UnitType::Automount => Some(
            "what is in use stays mounted, whoever ends it; have an exclusive service mount it for itself alone \
             (PrivateMounts=yes)",
        ),
        UnitType::Swap => Some("what is in use stays in use, whoever ends it"),
        UnitType::Slice => Some("what runs in it are other units; say it in these"),
        _ => None,
    }
}

/// Keeps a message readable whatever it quotes.
fn clip(mut message: String) -> String {
    const MAX_CHARS: usize = 400;
    if let Some((end, _)) = message.char_indices().nth(MAX_CHARS) {
        message.truncate(end);
        message.push('…');
    }
    message
}
