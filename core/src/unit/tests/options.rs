use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::unit::{Bytes, Glob, MachineIdMatch, MilliCpu, Options, Parsed, Reschedule, UnitFile, UnitName};

const ID: &str = "0123456789abcdef0123456789abcdef";

fn read(name: &str, text: &str) -> Result<Parsed, Vec<String>> {
    let file = UnitFile::parse(text.as_bytes()).unwrap();
    Options::parse(&name.parse().unwrap(), &file)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// Options of a text that is right and gives no warning.
fn options(name: &str, text: &str) -> Options {
    let parsed = read(name, text).unwrap();
    assert_eq!(parsed.warnings, [], "{text}");
    parsed.options
}

fn errors(text: &str) -> Vec<String> {
    read("web.service", text).unwrap_err()
}

fn warnings(name: &str, text: &str) -> Vec<String> {
    read(name, text).unwrap().warnings.iter().map(ToString::to_string).collect()
}

fn metadata<const N: usize>(pairs: [(&str, &[&str]); N]) -> BTreeMap<String, BTreeSet<String>> {
    pairs
        .into_iter()
        .map(|(key, values)| (key.into(), values.iter().map(|value| (*value).into()).collect()))
        .collect()
}

fn globs(options: &Options) -> Vec<&str> {
    options.conflicts.iter().map(Glob::as_str).collect()
}

#[test]
fn nothing_asked_for() {
    assert_eq!(
        options("a.service", "[Unit]\nDescription=x\n[X-Other]\nfoo\n[Service]\nX-Foo=1\n"),
        Options::default()
    );
}

#[test]
fn everything_from_both_sections() {
    let text = "[X-Fleet]\nMachineMetadata=\"disk=ssd\" \"region=eu\"\nMachineOf=db.service\nConflicts=web@*.service  x?.timer\n\
                [X-Muster]\nMachineMetadata=disk=nvme\nMachineOf=\"a.service\" \"b.socket\"\nConflicts=c.service\nPriority=-5\n\
                CPU=1.5\nMemory=512M\n";
    let options = options("web@1.service", text);
    assert_eq!(options.metadata, metadata([("disk", &["ssd", "nvme"]), ("region", &["eu"])]));
    let peers: Vec<&str> = options.machine_of.iter().map(AsRef::as_ref).collect();
    assert_eq!(peers, ["a.service", "b.socket", "db.service"]);
    assert_eq!(globs(&options), ["c.service", "web@*.service", "x?.timer"]);
    assert_eq!((options.priority, options.global, options.machine_id), (-5, false, None));
    assert_eq!((options.cpu, options.memory), (Some(MilliCpu(1500)), Some(Bytes(512 << 20))));
}

#[test]
fn legacy_spellings() {
    let text =
        "[X-Fleet]\nX-ConditionMachineOf=a.service\nX-Conflicts=b.service\nX-ConditionMachineMetadata=k=v\n";
    let options1 = options("web.service", text);
    assert_eq!(options1.machine_of.len(), 1);
    assert_eq!(globs(&options1), ["b.service"]);
    assert_eq!(options1.metadata, metadata([("k", &["v"])]));
    for key in ["MachineID", "X-ConditionMachineID", "X-ConditionMachineBootID"] {
        let options = options("web.service", &format!("[X-Fleet]\n{key}={ID}\n"));
        assert_eq!(options.machine_id, MachineIdMatch::parse(ID), "{key}");
    }
    // Not in the new section.
    assert_eq!(
        errors("[X-Muster]\nX-ConditionMachineOf=a.service\n"),
        ["line 2: [X-Muster] X-ConditionMachineOf=: unknown option; did you mean MachineOf=?"]
    );
}

#[test]
fn machine_id() {
    for (text, read) in [("0123456f", "0123456f"), (&ID.to_uppercase(), ID)] {
        assert_eq!(MachineIdMatch::parse(text).unwrap().as_str(), read);
    }
    for bad in
        ["", "0123456", "012345678", "0123456g", &ID[..31], "web1", "01234567-89ab-cdef-0123-456789abcdef"]
    {
        assert_eq!(MachineIdMatch::parse(bad), None, "{bad}");
    }
    assert_eq!(
        errors("[X-Fleet]\nMachineID=web1\n"),
        [
            "line 2: [X-Fleet] MachineID=: \"web1\" is no machine: write the 32 digits of its machine id, or the first 8 of them"
        ]
    );
    // The first counts, the modern name before the legacy one, [X-Muster] before both.
    let text = "[X-Fleet]\nX-ConditionMachineID=aaaaaaaa\nMachineID=bbbbbbbb\nMachineID=cccccccc\nMachineID=bbbbbbbb\n";
    let parsed = read("web.service", text).unwrap();
    assert_eq!(parsed.options.machine_id.unwrap().as_str(), "bbbbbbbb");
    assert_eq!(parsed.warnings.len(), 2);
    assert_eq!(parsed.warnings[0].line, Some(2));
    let parsed = read("web.service", &format!("{text}[X-Muster]\nMachineID=dddddddd\n")).unwrap();
    assert_eq!(parsed.options.machine_id.unwrap().as_str(), "dddddddd");
}

#[test]
fn global() {
    for yes in ["true", "YES", "1", "on", "t", "\"true\""] {
        assert!(options("web.service", &format!("[X-Fleet]\nGlobal={yes}\n")).global, "{yes}");
    }
    for no in ["false", "No", "0", "off", "f"] {
        assert!(!options("web.service", &format!("[X-Fleet]\nGlobal={no}\n")).global, "{no}");
    }
    assert!(!options("web.service", "[X-Fleet]\nGlobal=true\nGlobal=false\n").global);
    assert_eq!(
        errors("[X-Fleet]\nGlobal=maybe\n"),
        ["line 2: [X-Fleet] Global=: \"maybe\" is neither yes nor no"]
    );
    let both = "[X-Fleet]\nGlobal=yes\n[X-Muster]\nGlobal=no\n";
    assert!(!read("web.service", both).unwrap().options.global);
    assert_eq!(
        warnings("web.service", both),
        ["line 2: [X-Fleet] Global=: ignored, since [X-Muster] says otherwise"]
    );
}

#[test]
fn metadata_fails_closed() {
    let table = [
        ("a", "\"a\" is not key=value: there is no \"=\""),
        ("a=b=c", "\"a=b=c\" is not key=value: there is more than one \"=\""),
        ("=a", "\"=a\" is not key=value: one side is empty"),
        ("a=", "\"a=\" is not key=value: one side is empty"),
        ("ram>=2", "\"ram>=2\" is not key=value: labels can only be compared for equality"),
        ("a!=b", "\"a!=b\" is not key=value: labels can only be compared for equality"),
        ("a = b", "\"a = b\" is not key=value: there are blanks beside the \"=\" or at an end"),
        (
            "a=1 b=2",
            "\"a=1 b=2\" is not key=value: there is more than one \"=\"; write several pairs as \"a=1\" \"b=2\" or one on each line",
        ),
    ];
    for (value, expected) in table {
        let expected = format!("line 2: [X-Fleet] MachineMetadata=: {expected}");
        assert_eq!(errors(&format!("[X-Fleet]\nMachineMetadata={value}\n")), [expected]);
    }
    assert_eq!(
        options("web.service", "[X-Fleet]\nMachineMetadata=region=us east\nMachineMetadata=region=us east\n")
            .metadata,
        metadata([("region", &["us east"])])
    );
}

#[test]
fn quotes() {
    for bad in ["\"a=1", "\"a=1\"b", "\"a=1\" b=2", "a=\"1\"", "\"a=1\"\"b=2\""] {
        let errors = errors(&format!("[X-Fleet]\nMachineMetadata={bad}\n"));
        assert!(errors[0].contains("unbalanced quotes"), "{bad}: {errors:?}");
    }
}

#[test]
fn peers() {
    let table = [
        ("web.service", "a unit cannot be tied to itself"),
        ("%n", "a unit cannot be tied to itself"),
        ("db", "\"db\": unit name must contain \".\""),
        ("db@.service", "db@.service is a template, which is never placed; name an instance of it"),
        (
            "a.service b.service",
            "\"a.service b.service\": invalid character ' ' in unit name; write several names as \"a.service\" \"b.service\" or one on each line",
        ),
        ("db@*.service", "\"db@*.service\": invalid character '*' in unit name"),
    ];
    for (value, expected) in table {
        let expected = format!("line 2: [X-Fleet] MachineOf=: {expected}");
        assert_eq!(errors(&format!("[X-Fleet]\nMachineOf={value}\n")), [expected]);
    }
}

#[test]
fn conflicts() {
    assert_eq!(
        errors("[X-Fleet]\nConflicts=a.service [b.service\n"),
        ["line 2: [X-Fleet] Conflicts=: \"[\" without \"]\" in glob \"[b.service\""]
    );
    assert_eq!(
        warnings("web.service", "[X-Fleet]\nConflicts=db\n"),
        ["line 2: [X-Fleet] Conflicts=: \"db\" can match no unit: unit name must contain \".\""]
    );
    // A unit may well conflict with its kin.
    assert_eq!(globs(&options("web@1.service", "[X-Fleet]\nConflicts=%p@*.service\n")), ["web@*.service"]);
}

#[test]
fn specifiers() {
    let text = "[X-Fleet]\nMachineMetadata=host=%i\nMachineMetadata=share=100%%\nMachineOf=%p-db@%i.service\nConflicts=%N.timer\n";
    let instance = options(r"web@a\x2db.service", text);
    assert_eq!(instance.metadata, metadata([("host", &[r"a\x2db"]), ("share", &["100%"])]));
    assert!(instance.machine_of.contains(r"web-db@a\x2db.service"));
    // In a glob the name is meant as it is.
    let glob = instance.conflicts.first().unwrap();
    assert!(glob.matches(r"web@a\x2db.timer"), "{glob}");
    // Of the template only what does not wait for an instance is known.
    let template = options("web@.service", text);
    assert_eq!(template.metadata, metadata([("share", &["100%"])]));
    assert!(template.machine_of.is_empty() && template.conflicts.is_empty());
    // What is wrong in any case is wrong in the template already; the rest comes out with the instance.
    assert_eq!(
        read("web@.service", "[X-Fleet]\nMachineOf=%H.service\nMachineMetadata=a=%i\n").unwrap_err(),
        ["line 2: [X-Fleet] MachineOf=: unknown specifier %H; write %% for a percent sign"]
    );
    assert!(read("web@.service", "[X-Fleet]\nMachineID=%i\n").is_ok());
    assert!(read("web@x.service", "[X-Fleet]\nMachineID=%i\n").is_err());
    assert!(read("web@01234567.service", "[X-Fleet]\nMachineID=%i\n").is_ok());
    assert_eq!(
        options("web.service", "[X-Fleet]\nMachineMetadata=a=x%iy\n").metadata,
        metadata([("a", &["xy"])])
    );
}

#[test]
fn combinations() {
    let table = [
        (
            "MachineID=01234567\nMachineOf=a.service",
            "line 2: [X-Fleet] MachineID cannot be used with Peers (MachineOf=)",
        ),
        (
            "MachineID=01234567\nConflicts=a.service",
            "line 2: [X-Fleet] MachineID cannot be used with Conflicts",
        ),
        ("MachineID=01234567\nGlobal=true", "line 2: [X-Fleet] MachineID cannot be used with Global"),
        (
            "Global=true\nMachineOf=a.service",
            "line 2: [X-Fleet] Global cannot be used with Peers (MachineOf=)",
        ),
        (
            "MachineID=01234567\nReplaces=a.service",
            "line 2: [X-Fleet] MachineID cannot be used with Replaces",
        ),
        ("Replaces=a.service\nGlobal=true", "line 2: [X-Fleet] Global cannot be used with Replaces"),
        (
            "Replaces=a.service\nConflicts=b.service",
            "line 2: [X-Fleet] Conflicts cannot be used with Replaces",
        ),
        (
            "Replaces=a*\nMachineOf=a.service",
            "line 2: [X-Fleet] unresolvable requirements: peer \"a.service\" matches replace \"a*\"",
        ),
        (
            "Conflicts=a*\nMachineOf=a.service",
            "line 2: [X-Fleet] unresolvable requirements: peer \"a.service\" matches conflict \"a*\"",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(errors(&format!("[X-Fleet]\n{text}\n")), [expected]);
    }
    for text in [
        "Global=true\nMachineMetadata=a=b\nConflicts=x.service",
        "MachineID=01234567\nMachineMetadata=a=b",
        "MachineID=01234567\nGlobal=false",
        "MachineOf=a.service\nMachineMetadata=a=b\nConflicts=b.service",
        "MachineOf=a.service\nMachineMetadata=a=b\nReplaces=b.service",
    ] {
        options("web.service", &format!("[X-Fleet]\n{text}\n"));
    }
    // A template is refused for what all its instances would be refused for.
    assert!(read("web@.service", "[X-Fleet]\nMachineID=%i\nConflicts=a.service\n").is_err());
}

#[test]
fn unsupported_options_are_refused_by_name() {
    for key in ["Replicas", "Prefer", "Spread", "UpdateParallelism", "UpdateMinActive", "Secret", "Config"] {
        for section in ["X-Fleet", "X-Muster"] {
            let expected = format!("line 2: [{section}] {key}= is not supported by this version");
            assert_eq!(errors(&format!("[{section}]\n{key}=1\n")), [expected]);
        }
    }
}

#[test]
fn unknown_options() {
    let table = [
        ("X-Fleet", "Conflict", "; did you mean Conflicts=?"),
        ("X-Fleet", "MachineMetaData", "; did you mean MachineMetadata=?"),
        ("X-Fleet", "machineid", "; did you mean MachineID=?"),
        ("X-Muster", "Exlusive", "; did you mean Exclusive=?"),
        ("X-Muster", "cpu", "; did you mean CPU=?"),
        ("X-Muster", "Colour", ""),
        ("X-Fleet", "X-ConditionMachineId", "; did you mean X-ConditionMachineID=?"),
    ];
    for (section, key, suggestion) in table {
        let expected = format!("line 2: [{section}] {key}=: unknown option{suggestion}");
        assert_eq!(errors(&format!("[{section}]\n{key}=1\n")), [expected]);
    }
    assert_eq!(
        errors("[X-Fleet]\nPriority=1\n"),
        ["line 2: [X-Fleet] Priority=: this option belongs into [X-Muster]"]
    );
}

#[test]
fn empty_values() {
    let options = options(
        "web.service",
        "[X-Muster]\nConflicts=a.service\nCPU=1\nConflicts=\nCPU=\nConflicts=b.service\n",
    );
    assert_eq!((globs(&options), options.cpu), (vec!["b.service"], None));
    assert_eq!(
        errors("[X-Fleet]\nConflicts=a.service\nConflicts=\n"),
        ["line 3: [X-Fleet] Conflicts=: the value is empty; remove the line"]
    );
    // A reset in one section leaves the other alone.
    let text = "[X-Fleet]\nConflicts=a.service\n[X-Muster]\nConflicts=\n";
    assert_eq!(globs(&read("web.service", text).unwrap().options), ["a.service"]);
}

#[test]
fn lines_that_systemd_would_ignore_are_errors_in_our_sections() {
    assert_eq!(
        errors("[X-Fleet]\nConflicts a.service\n=b\n"),
        ["line 2: [X-Fleet]: missing \"=\"", "line 3: [X-Fleet]: missing key before \"=\""]
    );
    assert_eq!(
        errors("[X-fleet]\nGlobal=1\n"),
        ["line 1: [X-fleet]: unknown section; did you mean [X-Fleet]?"]
    );
    assert_eq!(errors("[ X-Muster ]\n"), ["line 1: [ X-Muster ]: unknown section; did you mean [X-Muster]?"]);
}

#[test]
fn all_errors_are_reported() {
    let text = "[X-Muster]\nPriority=high\nReplicas=3\nCPU=lots\nMemory=50%\nMachineMetadata=x\n[X-Fleet]\nBogus=1\nConflicts=[\n";
    let errors = errors(text);
    let lines: Vec<&str> = errors.iter().map(|error| error.split(':').next().unwrap()).collect();
    assert_eq!(lines, ["line 2", "line 3", "line 4", "line 5", "line 6", "line 8", "line 9"], "{errors:#?}");
}

#[test]
fn priority() {
    for (text, priority) in [("0", 0), ("1000", 1000), ("-1000", -1000), ("+7", 7)] {
        assert_eq!(options("web.service", &format!("[X-Muster]\nPriority={text}\n")).priority, priority);
    }
    for bad in ["1001", "-1001", "1.5", "high", "99999999999"] {
        assert_eq!(
            errors(&format!("[X-Muster]\nPriority={bad}\n")),
            [format!("line 2: [X-Muster] Priority=: {bad:?} is no whole number from -1000 to 1000")]
        );
    }
}

#[test]
fn resources_of_the_unit_itself() {
    let read = |name: &str, text: &str| {
        let options = read(name, text).unwrap().options;
        (options.cpu.map(|cpu| cpu.0), options.memory.map(|memory| memory.0))
    };
    assert_eq!(
        read("a.service", "[Service]\nCPUQuota=150%\nMemoryMax=1G\nMemoryMin=1M\n"),
        (Some(1500), Some(1 << 30))
    );
    assert_eq!(read("a.service", "[Service]\nMemoryMax=infinity\nMemoryMin=1M\n"), (None, Some(1 << 20)));
    assert_eq!(read("a.service", "[Service]\nMemoryMax=50%\nMemoryMin=infinity\n"), (None, None));
    assert_eq!(
        read("a.service", "[Service]\nMemoryMax=1G\nMemoryMax=\nCPUQuota=1%\nCPUQuota=\n"),
        (None, None)
    );
    // What systemd ignores leaves the value before it.
    assert_eq!(
        read("a.service", "[Service]\nMemoryMax=1G\nMemoryMax=much\nCPUQuota=5%\nCPUQuota=5\n"),
        (Some(50), Some(1 << 30))
    );
    // What Muster's own section says counts, even nothing.
    assert_eq!(
        read("a.service", "[Service]\nMemoryMax=1G\nCPUQuota=5%\n[X-Muster]\nCPU=0\nMemory=2G\n"),
        (Some(0), Some(2 << 30))
    );
    // Only in the unit's own section.
    assert_eq!(read("a.socket", "[Service]\nCPUQuota=5%\n[Socket]\nMemoryMax=1K\n"), (None, Some(1024)));
    assert_eq!(
        warnings("a.service", "[Service]\nCPUQuota=5\n"),
        ["line 2: [Service] CPUQuota=: systemd will ignore \"5\""]
    );
    assert!(errors("[X-Muster]\nMemory=infinity\n")[0].contains("cannot be set aside"));
}

#[test]
fn what_systemd_does_not_know_is_warned_of() {
    let text = "Foo=1\n[Unit]\nDescripton=x\nExecStart=/a\nX-Mine=1\nfoo\n[Sevice]\nbar\n[Socket]\nListenStream=1\n[Service]\nBogusKey=1\n\
                [Install]\nAfter=a\nAlias=b.service\nWantedBy=multi-user.target\n[X-Fleets]\nfoo\n";
    assert_eq!(
        warnings("a.service", text),
        [
            "line 1: assignment outside of a section, ignored",
            "line 3: [Unit] Descripton=: unknown to systemd 252; did you mean Description=?",
            "line 4: [Unit] ExecStart=: unknown to systemd 252; did you mean ExecStart= in [Service]?",
            "line 6: [Unit]: missing \"=\", line ignored",
            "line 7: [Sevice]: unknown section, ignored; did you mean [Service]?",
            "line 9: [Socket]: systemd ignores this section in a service unit",
            "line 12: [Service] BogusKey=: unknown to systemd 252",
            "line 14: [Install] After=: unknown to systemd 252; did you mean After= in [Unit]?",
            "line 15: [Install] Alias=: has no effect in a cluster",
            "line 17: [X-Fleets]: unknown section, ignored; did you mean [X-Fleet]?",
        ]
    );
}

#[test]
fn findings_and_values_are_limited() {
    let lines = |line: &str| line.repeat(500_000 / line.len());
    let found = errors(&format!("[X-Fleet]\n{}", lines("Conflict=a\n")));
    assert_eq!(found.len(), 100);
    assert_eq!(warnings("a.service", &format!("[Service]\n{}", lines("ExecStat=a\n"))).len(), 100);
    let found = errors(&format!("[X-Fleet]\nConflicts={}\n", lines("a ")));
    assert_eq!(found, ["line 2: [X-Fleet] Conflicts=: the options have more than 1000 values"]);
    let found = errors(&format!("[X-Fleet]\nGlobal={}\n", lines("é")));
    assert!(found.len() == 1 && found[0].chars().count() < 450, "{found:?}");
    // Many settings, taken back many times.
    let text = format!("[X-Muster]\n{}{}", lines("Conflicts=a\n"), lines("Conflicts=\n"));
    assert_eq!(options("a.service", &text), Options::default());
}

#[test]
fn exclusive_units() {
    let exclusive = |text: &str| options("web.service", &format!("[X-Muster]\n{text}\n")).exclusive;
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(exclusive("Exclusive=no"), None);
    assert_eq!(exclusive("Exclusive=yes"), seconds(10));
    assert_eq!(exclusive("ExclusiveStopSec=1min\nExclusive=yes"), seconds(60));
    assert_eq!(exclusive("Exclusive=yes\nExclusiveStopSec=1500ms"), seconds(2));
    assert_eq!(exclusive("Exclusive=yes\nExclusive="), None);
    for (text, why) in [
        ("Exclusive=yes\nGlobal=yes", "Global cannot be used with Exclusive: it would run on every machine"),
        ("ExclusiveStopSec=3", "ExclusiveStopSec has no effect without Exclusive=yes"),
        ("Exclusive=yes\nExclusiveStopSec=0", "ExclusiveStopSec=: \"0\" is not between 1 s and 300 s"),
        ("Exclusive=yes\nExclusiveStopSec=6min", "ExclusiveStopSec=: \"6min\" is not between 1 s and 300 s"),
        (
            "Exclusive=yes\nExclusiveStopSec=soon",
            "ExclusiveStopSec=: \"soon\" is no time span; write seconds (10) or units (500ms, 2min 30s)",
        ),
    ] {
        let found = errors(&format!("[X-Muster]\n{text}\n"));
        assert!(found.len() == 1 && found[0].ends_with(why), "{found:?}");
    }
    let found = read("srv.mount", "[X-Muster]\nExclusive=yes\n").unwrap_err();
    assert_eq!(
        found,
        [
            "line 2: [X-Muster] Exclusive cannot be used with a mount: what is in use stays mounted, whoever ends it; have an \
          exclusive service mount it for itself alone (PrivateMounts=yes)"
        ]
    );
}

#[test]
fn names_of_musters_own_units_are_taken() {
    for name in ["muster-lease.service", "muster-x@1.service", "muster.slice"] {
        assert_eq!(
            read(name, "[Unit]\n").unwrap_err(),
            ["names that begin with \"muster-\" are Muster's own"]
        );
    }
    assert!(read("muster.service", "[Unit]\n").is_ok() && read("mustermann.service", "[Unit]\n").is_ok());
}

#[test]
fn what_a_unit_waits_for() {
    let options =
        options("web@1.service", "[X-Muster]\nRequires=db.service cache@%i.service\nAfter=db.service\n");
    let names = |set: &BTreeSet<UnitName>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&options.requires), ["cache@1.service", "db.service"]);
    assert_eq!(names(&options.after), ["db.service"]);
    for (text, why) in [
        ("Requires=web.service", "a unit cannot wait for itself"),
        ("After=a@.service", "a@.service is a template, which is never started; name an instance of it"),
    ] {
        let found = errors(&format!("[X-Muster]\n{text}\n"));
        assert!(found.len() == 1 && found[0].ends_with(why), "{found:?}");
    }
}

#[test]
fn what_happens_when_a_unit_is_given_up() {
    let text = "[X-Muster]\nRescheduleAttempts=7\nRescheduleDelay=1min\nRescheduleInterval=1h\n";
    let wanted =
        Reschedule { attempts: 7, delay: Duration::from_secs(60), interval: Duration::from_secs(3600) };
    assert_eq!(options("web.service", text).reschedule, wanted);
    assert!(!options("web.service", "[Service]\n").keep_on_reboot);
    assert!(options("web.service", "[X-Muster]\nOnReboot=keep\n").keep_on_reboot);
    for (text, why) in [
        ("RescheduleAttempts=1001", "\"1001\" is no whole number from 0 to 1000"),
        ("RescheduleDelay=2d", "\"2d\" is not between 0 s and 86400 s"),
        ("RescheduleInterval=0", "\"0\" is not between 1 s and 2592000 s"),
        (
            "Global=yes\nRescheduleDelay=1",
            "RescheduleDelay cannot be used with Global: there is nowhere else to go",
        ),
        ("OnReboot=stay", "\"stay\" is neither move nor keep"),
    ] {
        let found = errors(&format!("[X-Muster]\n{text}\n"));
        assert!(found.len() == 1 && found[0].ends_with(why), "{found:?}");
    }
}

#[test]
fn units_that_end_and_units_that_activate_others() {
    let ends = |text: &str| options("job.service", &format!("[Service]\n{text}\n")).ends;
    assert!(ends("Type=oneshot"));
    assert!(!ends("Type=oneshot\nRemainAfterExit=yes") && !ends("Type=oneshot\nType=simple") && !ends(""));
    let triggers = |name: &str, text: &str| options(name, text).triggers.into_iter().collect::<Vec<_>>();
    let unit = |name: &str| UnitName::parse(name).unwrap();
    assert_eq!(triggers("a.timer", "[Timer]\nOnCalendar=daily\n"), [unit("a.service")]);
    assert_eq!(triggers("a.timer", "[Timer]\nUnit=%p-b.target\n"), [unit("a-b.target")]);
    assert_eq!(triggers("a.socket", "[Socket]\nService=b.service\n"), [unit("b.service")]);
    assert_eq!(triggers("a.service", "[Service]\n"), []);
}
