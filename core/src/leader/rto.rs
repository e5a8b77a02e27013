//! How long it takes at worst from the loss of a unit's machine until the unit is started elsewhere, as a sum of named
//! parts.

use std::time::Duration;

use super::Leader;
use super::doubt::{PULSE, TOLERANCE};
use super::gates::GUARD_LAG;
use crate::command::{Rto, RtoPart};
use crate::leader::io::Settings;
use crate::unit::{Options, UnitFile, UnitName, UnitType, time_span};

/// From the decision to the call that starts the unit: the choice of a machine, one flush of the store's disk, the way to
/// the agent, the writing of the file. On idle machines it is 44 ms until the report that the unit has started (from the
/// events of a lost machine with three units); what is allowed for is a busy disk.
const DECIDE: Duration = Duration::from_millis(500);
/// `DefaultTimeoutStartSec=` of a systemd that nobody configured.
const DEFAULT_START: Duration = Duration::from_secs(90);

/// The worst-case time of a unit with these options and this file.
pub fn worst_case(settings: &Settings, name: &UnitName, options: &Options, file: &UnitFile) -> Rto {
    let start_ms = start_bound(name, file).map(millis);
    if options.global {
        let note =
            "it is global: it runs on every machine that takes it, so it is not moved when one is lost";
        return Rto { parts: Vec::new(), start_ms, notes: vec![note.to_owned()] };
    }
    let part = |name: &str, span: Duration, what: &str| RtoPart {
        name: name.to_owned(),
        span_ms: millis(span),
        what: what.to_owned(),
    };
    let counted = settings.lease_ttl + options.exclusive.unwrap_or_default();
    let margin = settings.with_margin(counted).saturating_sub(counted);
    let mut parts = vec![
        part(
            "lease",
            settings.lease_ttl,
            "the lease of the machine ends, counted from its last heartbeat (lease_ttl)",
        ),
        part("clock_margin", margin, "for clocks that drift"),
        part(
            "look",
            PULSE + TOLERANCE,
            "the scheduler looks at its clock, and may be late without taking that for a stall",
        ),
    ];
    if let Some(stop) = options.exclusive {
        parts.push(part(
            "exclusive_stop",
            stop,
            "the machine may take so long to stop it (ExclusiveStopSec=)",
        ));
        parts.push(part("guard_lag", GUARD_LAG, "so late the machine's PID 1 may be with that"));
    }
    parts.push(part(
        "decide",
        DECIDE,
        "another machine is chosen, the choice is written to disk, the machine is told",
    ));
    Rto { parts, start_ms, notes: notes(settings, options) }
}

fn notes(settings: &Settings, options: &Options) -> Vec<String> {
    let mut notes = vec![
        format!(
            "where many machines seem to die at once nothing is moved for up to {} s more (brake_hold)",
            settings.brake_hold.as_secs_f64()
        ),
        format!(
            "a machine whose agent lives while its systemd hangs is given up after {} s (systemd_timeout), and while it \
             reloads up to 60 s later",
            settings.systemd_timeout.as_secs_f64()
        ),
        format!(
            "a machine that is lost while its agent is restarted has {} s instead of lease_ttl (restart_grace)",
            settings.restart_grace.as_secs_f64()
        ),
        "while the scheduler itself is away, its store does not answer, or no machine has room, it waits"
            .to_owned(),
        "a scheduler that has just begun counts from then: it knows of no heartbeat before".to_owned(),
        "where one machine takes many units at once they are started some at a time".to_owned(),
    ];
    if options.exclusive.is_some() {
        let waits = settings.longest_lease() + settings.exclusive_end(options.exclusive.unwrap_or_default());
        notes.push(format!(
            "a scheduler whose store may be an old copy (its machine has booted anew) starts nothing exclusive for {:.1} s",
            waits.as_secs_f64()
        ));
    }
    if options.tied_to().next().is_some() {
        notes.push(
            "the units that it is tied to (MachineOf=, or what it activates) must fit on the same machine"
                .to_owned(),
        );
    }
    if options.has_dependencies() {
        notes.push("the units in Requires= and After= of [X-Muster] must have started before it".to_owned());
    }
    if options.keep_on_reboot {
        notes.push(
            "it stays with a machine that reboots (OnReboot=keep): that counts from the loss only".to_owned(),
        );
    }
    notes
}

/// How long systemd lets a start take, read as systemd reads it: the last valid setting counts, an empty one takes it
/// back.
fn start_bound(name: &UnitName, file: &UnitFile) -> Option<Duration> {
    let section = name.unit_type().section();
    let entries = || file.entries().filter(|entry| entry.section == section);
    let is_oneshot = name.unit_type() == UnitType::Service
        && entries().filter(|entry| entry.key == "Type").last().is_some_and(|entry| entry.value == "oneshot");
    let default = match name.unit_type() {
        UnitType::Service if is_oneshot => None,
        UnitType::Service | UnitType::Socket | UnitType::Mount | UnitType::Swap => Some(DEFAULT_START),
        // These do nothing that could take long.
        _ => Some(Duration::ZERO),
    };
    let keys: &[&str] = match name.unit_type() {
        UnitType::Service => &["TimeoutStartSec", "TimeoutSec"],
        UnitType::Socket | UnitType::Mount | UnitType::Swap => &["TimeoutSec"],
        _ => &[],
    };
    let mut bound = default;
    for entry in entries().filter(|entry| keys.contains(&&*entry.key)) {
        bound = match (&*entry.value, time_span(&entry.value)) {
            ("", _) => default,
            ("infinity", _) => None,
            (_, Some(span)) if span.is_zero() => None,
            (_, Some(span)) => Some(span),
            (_, None) => bound,
        };
    }
    bound
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Leader {
    /// The worst-case time of a unit that is known.
    pub(super) fn rto(&self, name: &UnitName) -> Option<Rto> {
        let unit = self.units.get(name)?;
        let file = UnitFile::parse(unit.content.as_bytes()).ok()?;
        Some(worst_case(&self.settings, name, &unit.options, &file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rto(name: &str, text: &str) -> Rto {
        let name = UnitName::parse(name).unwrap();
        let file = UnitFile::parse(text.as_bytes()).unwrap();
        let options = Options::parse(&name, &file).unwrap().options;
        worst_case(&Settings::default(), &name, &options, &file)
    }

    #[test]
    fn the_sum_for_a_plain_unit_keeps_what_the_documentation_promises() {
        let plain = rto("web.service", "[Service]\nExecStart=/bin/true\n");
        let parts: Vec<(&str, u64)> =
            plain.parts.iter().map(|part| (part.name.as_str(), part.span_ms)).collect();
        assert_eq!(parts, [("lease", 5000), ("clock_margin", 100), ("look", 350), ("decide", 500)]);
        assert_eq!(plain.sum_ms(), 5950);
        assert!(plain.sum_ms() <= 6500, "within 6.5 s of the power being cut");
        assert_eq!(plain.start_ms, Some(90_000));
    }

    #[test]
    fn an_exclusive_unit_has_the_time_to_stop_before() {
        let rto = rto(
            "db.service",
            "[Service]\nExecStart=/bin/true\n[X-Muster]\nExclusive=yes\nExclusiveStopSec=20\n",
        );
        let margin = rto.parts.iter().find(|part| part.name == "clock_margin").unwrap();
        assert_eq!(margin.span_ms, 500, "2 % of the lease and of the time to stop");
        assert_eq!(rto.sum_ms(), 5950 + 20_000 + 400 + 1000);
    }

    #[test]
    fn the_margin_is_the_same_part_of_any_lease() {
        let settings = Settings { lease_ttl: Duration::from_secs(60), ..Settings::default() };
        assert_eq!(settings.lease(), Duration::from_millis(61_200));
        assert_eq!(settings.exclusive_end(Duration::from_secs(300)), Duration::from_secs(306) + GUARD_LAG);
    }

    #[test]
    fn a_global_unit_is_not_moved() {
        let rto = rto("log.service", "[Service]\nExecStart=/bin/true\n[X-Fleet]\nGlobal=yes\n");
        assert_eq!((rto.sum_ms(), rto.notes.len()), (0, 1));
    }

    #[test]
    fn the_start_is_bounded_as_systemd_bounds_it() {
        let bound = |unit: &str, lines: &str| {
            let section = UnitName::parse(unit).unwrap().unit_type().section();
            let name = UnitName::parse(unit).unwrap();
            start_bound(&name, &UnitFile::parse(format!("[{section}]\n{lines}").as_bytes()).unwrap())
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let service = |lines: &str| bound("a.service", lines);
        assert_eq!(service("TimeoutStartSec=5min"), seconds(300));
        assert_eq!(service("TimeoutStartSec=5\nTimeoutSec=7"), seconds(7));
        assert_eq!(service("TimeoutSec=7\nTimeoutStartSec="), seconds(90));
        assert_eq!(service("TimeoutStartSec=nonsense"), seconds(90));
        assert_eq!(service("TimeoutStartSec=infinity"), None);
        assert_eq!(service("TimeoutStartSec=0"), None);
        assert_eq!(service("Type=oneshot"), None);
        assert_eq!(service("Type=oneshot\nTimeoutStartSec=3"), seconds(3));
        assert_eq!(service("TimeoutStopSec=3"), seconds(90));
        assert_eq!(bound("a.socket", "TimeoutSec=3"), seconds(3));
        assert_eq!(bound("a.timer", "OnCalendar=daily"), seconds(0));
    }
}
