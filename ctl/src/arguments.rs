//! Which units the arguments of a command mean, and where their files come from.
//!
//! As fleetctl: the name is the last part of a path, `.service` is added to a name without a type, and a file is looked
//! for under the path that was given; for an instance, its template's file in the same directory. Beyond fleetctl, a
//! quoted glob (`'web@*'`) means the units of the cluster that match, and where files may be given, an argument with a
//! `/` must be one: a path that is misspelt must not mean a unit of the cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_core::command::Verb;
use muster_core::state::DesiredState;
use muster_core::unit::{ContentHash, Glob, UnitFile, UnitName};

use crate::failure::{Exit, Failure};

/// Of how many units it is said why a glob leaves them out.
const SHOWN_LEFT_OUT: usize = 5;

/// A unit that a command names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: UnitName,
    /// Its file, or its template's, where there is one here.
    pub file: Option<LocalFile>,
}

/// A unit file on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// What is in it.
    pub text: Arc<str>,
    /// Its hash.
    pub hash: ContentHash,
    /// The template whose file it is, where it is not the unit's own.
    pub template: Option<UnitName>,
}

/// An argument, before it is known what the cluster knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// One unit.
    Unit(Unit),
    /// The units of the cluster that match.
    Glob(Pattern),
}

/// A glob as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    globs: Vec<Glob>,
}

impl Pattern {
    /// `*`, `?` and `[` stand in no unit name, so an argument with one of them is a glob.
    fn parse(argument: &str) -> Result<Option<Self>, Failure> {
        if !argument.contains(['*', '?', '[']) {
            return Ok(None);
        }
        let parse = |text: &str| {
            Glob::parse(text)
                .map_err(|error| Failure::new(Exit::Usage, format_args!("{argument:?}: {error}")))
        };
        // `web@?` means `web@1.service` as `web` means `web.service`.
        let globs = vec![parse(argument)?, parse(&format!("{argument}.service"))?];
        Ok(Some(Self { text: argument.to_owned(), globs }))
    }

    /// What it means for units that need not be known.
    pub fn globs(&self) -> &[Glob] {
        &self.globs
    }

    fn matches(&self, name: &UnitName) -> bool {
        self.globs.iter().any(|glob| glob.matches(name.as_str()))
    }
}

/// Reads arguments that name units of the cluster.
///
/// # Errors
/// An argument that is neither a unit name nor a glob.
pub fn names(arguments: &[String]) -> Result<Vec<Argument>, Failure> {
    let read = |argument: &String| match Pattern::parse(argument)? {
        Some(pattern) => Ok(Argument::Glob(pattern)),
        None => Ok(Argument::Unit(Unit { name: name(argument)?, file: None })),
    };
    arguments.iter().map(read).collect()
}

/// Reads arguments that name units of the cluster or files here.
///
/// # Errors
/// An argument that is none of these; a path where no file is; a file that cannot be read or be a unit file.
pub fn names_or_files(arguments: &[String]) -> Result<Vec<Argument>, Failure> {
    let read = |argument: &String| {
        if !Path::new(argument).is_file()
            && let Some(pattern) = Pattern::parse(argument)?
        {
            if argument.contains('/') {
                let hint = "a quoted glob means units of the cluster, not files";
                return Err(Failure::failed(format_args!("{argument}: no such file ({hint})")));
            }
            return Ok(Argument::Glob(pattern));
        }
        let name = name(argument)?;
        let file = local_file(argument, &name)?;
        if file.is_none() && argument.contains('/') {
            return Err(no_file(argument, &name));
        }
        Ok(Argument::Unit(Unit { name, file }))
    };
    arguments.iter().map(read).collect()
}

/// Reads the name of one unit, as it may be written for any.
///
/// # Errors
/// When it is none.
pub fn name(argument: &str) -> Result<UnitName, Failure> {
    UnitName::from_argument(argument)
        .map_err(|error| Failure::failed(format_args!("{argument:?} is no unit: {error}")))
}

fn no_file(path: &str, name: &UnitName) -> Failure {
    let why = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => "is a directory".to_owned(),
        Ok(_) => "is no regular file".to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "no such file".to_owned(),
        Err(error) => error.to_string(),
    };
    let known = "the unit that the cluster knows";
    Failure::failed(format_args!("{path}: {why} (without its directory, {name} means {known})"))
}

fn local_file(argument: &str, name: &UnitName) -> Result<Option<LocalFile>, Failure> {
    let given = Path::new(argument);
    // `web` means the file `web.service`, and one that is called just `web` too.
    let own = [given.to_owned(), given.with_file_name(name.as_str())].into_iter().find(|path| path.is_file());
    let (path, template) = match (own, name.template()) {
        (Some(path), _) => (path, None),
        (None, Some(template)) => {
            let path = given.with_file_name(template.as_str());
            if !path.is_file() {
                return Ok(None);
            }
            (path, Some(template))
        }
        (None, None) => return Ok(None),
    };
    let file = std::fs::read(&path)
        .map_err(|error| error.to_string())
        .and_then(|bytes| UnitFile::parse(&bytes).map_err(|error| error.to_string()))
        .map_err(|why| Failure::failed(format_args!("{}: {why}", path.display())))?;
    Ok(Some(LocalFile { path, text: file.text().clone(), hash: file.hash(), template }))
}

/// What must be asked of the cluster before the arguments can be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Nothing.
    Nothing,
    /// Whether it knows these.
    Names(Vec<UnitName>),
    /// All that it knows.
    All,
}

/// What must be asked of the cluster before these can be resolved.
pub fn needed(arguments: &[Argument], replace: bool) -> Needed {
    let mut names = Vec::new();
    for argument in arguments {
        match argument {
            Argument::Glob(_) => return Needed::All,
            Argument::Unit(Unit { name, file: Some(LocalFile { template: Some(template), .. }) })
                if !replace =>
            {
                names.extend([name.clone(), template.clone()]);
            }
            Argument::Unit(_) => {}
        }
    }
    if names.is_empty() { Needed::Nothing } else { Needed::Names(names) }
}

/// What the cluster knows of a unit, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The hash of its file.
    pub hash: ContentHash,
    /// What was asked for.
    pub desired: DesiredState,
}

/// What the arguments mean.
#[derive(Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The units, each once, in the order of the arguments.
    pub units: Vec<Unit>,
    /// Templates that the cluster knows with other content than the file here, which is therefore not used.
    pub differing: Vec<(UnitName, PathBuf)>,
}

/// Finds out which units the arguments of a command mean, with what the cluster knows of what was [`needed`]. `verb` is
/// what the command does, if it changes anything.
///
/// # Errors
/// A glob that means no unit; a unit that is given with two files that differ.
pub fn resolve(
    arguments: Vec<Argument>,
    known: &BTreeMap<UnitName, Known>,
    verb: Option<Verb>,
    replace: bool,
) -> Result<Resolved, Failure> {
    let mut units: Vec<Unit> = Vec::new();
    let mut index: BTreeMap<UnitName, usize> = BTreeMap::new();
    let mut differing = Vec::new();
    for argument in arguments {
        let meant = match argument {
            Argument::Unit(unit) => vec![unit],
            Argument::Glob(pattern) => expand(&pattern, known, verb)?,
        };
        for mut unit in meant {
            // A template that the cluster knows counts more than its file here, as in fleet.
            if let Some(LocalFile { template: Some(template), path, hash, .. }) = &unit.file
                && !replace
                && !known.contains_key(&unit.name)
                && let Some(known) = known.get(template)
            {
                let difference = (template.clone(), path.clone());
                if known.hash != *hash && !differing.contains(&difference) {
                    differing.push(difference);
                }
                unit.file = None;
            }
            match index.get(&unit.name) {
                None => {
                    index.insert(unit.name.clone(), units.len());
                    units.push(unit);
                }
                Some(&at) => merge(&mut units[at], unit)?,
            }
        }
    }
    Ok(Resolved { units, differing })
}

/// The units that a glob means: those that match and that the command can be carried out for. Who writes a glob does not
/// name each of them, so the others are left out, where a unit that is named makes the command fail.
fn expand(
    pattern: &Pattern,
    known: &BTreeMap<UnitName, Known>,
    verb: Option<Verb>,
) -> Result<Vec<Unit>, Failure> {
    let (mut units, mut left_out) = (Vec::new(), Vec::new());
    for (name, known) in known.iter().filter(|(name, _)| pattern.matches(name)) {
        match verb.and_then(|verb| unfit(verb, name, known.desired)) {
            Some(why) => left_out.push(format!("{name} is {why}")),
            None => units.push(Unit { name: name.clone(), file: None }),
        }
    }
    if !units.is_empty() {
        return Ok(units);
    }
    let text = &pattern.text;
    if left_out.is_empty() {
        return Err(Failure::new(
            Exit::NoSuchUnit,
            format_args!("no unit of the cluster matches {text:?}; `musterctl list-unit-files` shows them"),
        ));
    }
    let more = left_out.len().saturating_sub(SHOWN_LEFT_OUT);
    left_out.truncate(SHOWN_LEFT_OUT);
    if more > 0 {
        left_out.push(format!("and {more} more"));
    }
    let verb = verb.map_or("show", verb_name);
    Err(Failure::failed(format_args!(
        "{text:?} matches nothing that there is to {verb}: {}",
        left_out.join(", ")
    )))
}

/// Why a command with this verb could not be carried out for such a unit.
fn unfit(verb: Verb, name: &UnitName, desired: DesiredState) -> Option<&'static str> {
    let instances_only = !matches!(verb, Verb::Submit | Verb::Destroy);
    let active_only = matches!(verb, Verb::Stop | Verb::Restart);
    if instances_only && name.is_template() {
        Some("a template")
    } else if active_only && desired == DesiredState::Inactive {
        Some("inactive")
    } else {
        None
    }
}

/// A verb as it is written on the command line.
pub fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Submit => "submit",
        Verb::Load => "load",
        Verb::Start => "start",
        Verb::Stop => "stop",
        Verb::Unload => "unload",
        Verb::Destroy => "destroy",
        Verb::Restart => "restart",
        Verb::Release => "release",
    }
}

/// The same unit twice is the unit once, if both mean the same.
fn merge(unit: &mut Unit, again: Unit) -> Result<(), Failure> {
    match (&unit.file, again.file) {
        (Some(one), Some(other)) if one.hash != other.hash => Err(Failure::failed(format_args!(
            "{} is given twice, with different files: {} and {}",
            unit.name,
            one.path.display(),
            other.path.display()
        ))),
        (None, Some(file)) => {
            unit.file = Some(file);
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = "[Service]\nExecStart=/bin/true\n";
    const OTHER: &str = "[Service]\nExecStart=/bin/false\n";

    struct Files(tempfile::TempDir);

    impl Files {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            for (name, text) in files {
                let path = directory.path().join(name);
                std::fs::create_dir_all(path.parent().expect("within the directory")).expect("created");
                std::fs::write(path, text).expect("written");
            }
            Self(directory)
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn read(&self, name: &str) -> Argument {
            names_or_files(&[self.path(name)]).expect("readable").remove(0)
        }
    }

    fn unit_name(text: &str) -> UnitName {
        UnitName::parse(text).expect("a name")
    }

    fn known(units: &[(&str, &str)]) -> BTreeMap<UnitName, Known> {
        let known =
            |text: &str| Known { hash: ContentHash::of(text.as_bytes()), desired: DesiredState::Inactive };
        units.iter().map(|(name, text)| (unit_name(name), known(text))).collect()
    }

    fn resolved_names(arguments: &[&str], known: &BTreeMap<UnitName, Known>) -> Result<Vec<String>, Failure> {
        resolved_for(None, arguments, known)
    }

    fn resolved_for(
        verb: Option<Verb>,
        arguments: &[&str],
        known: &BTreeMap<UnitName, Known>,
    ) -> Result<Vec<String>, Failure> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let resolved = resolve(names(&arguments)?, known, verb, false)?;
        Ok(resolved.units.into_iter().map(|unit| unit.name.to_string()).collect())
    }

    #[test]
    fn names_are_completed_as_in_fleetctl() {
        let nothing = BTreeMap::new();
        let names =
            resolved_names(&["web", "units/db.socket", "web@1", "web.service"], &nothing).expect("names");
        assert_eq!(names, ["web.service", "db.socket", "web@1.service"]);
        let failure = resolved_names(&["we b"], &nothing).expect_err("no name");
        assert_eq!(failure.message, "\"we b\" is no unit: invalid character ' ' in unit name");
    }

    #[test]
    fn globs_match_what_the_cluster_knows() {
        let known = known(&[
            ("web@1.service", UNIT),
            ("web@2.service", UNIT),
            ("web@.service", UNIT),
            ("db.socket", UNIT),
        ]);
        assert_eq!(resolved_names(&["web@?"], &known).expect("two"), ["web@1.service", "web@2.service"]);
        assert_eq!(resolved_names(&["*.socket", "db.socket"], &known).expect("one"), ["db.socket"]);
        assert_eq!(resolved_names(&["web@[2-9]"], &known).expect("one"), ["web@2.service"]);
        let none = resolved_names(&["mail*"], &known).expect_err("no match");
        assert_eq!(none.exit, Exit::NoSuchUnit);
        assert_eq!(
            none.message,
            "no unit of the cluster matches \"mail*\"; `musterctl list-unit-files` shows them"
        );
        assert_eq!(resolved_names(&["web@["], &known).expect_err("no glob").exit, Exit::Usage);
        let glob = names(&["web@*".to_owned()]).expect("a glob");
        assert_eq!(needed(&glob, false), Needed::All);
    }

    #[test]
    fn a_path_is_a_file_or_its_last_part_is_a_name() {
        let files = Files::new(&[("web.service", UNIT), ("sub/plain", UNIT)]);
        for argument in ["web.service", "web"] {
            let Argument::Unit(Unit { name, file: Some(file) }) = files.read(argument) else {
                panic!("{argument}")
            };
            assert_eq!((name.as_str(), &*file.text, file.template), ("web.service", UNIT, None));
        }
        let Argument::Unit(unit) = files.read("sub/plain") else { panic!("a unit") };
        assert_eq!(unit.name.as_str(), "plain.service");
        assert!(unit.file.is_some());
    }

    #[test]
    fn a_path_without_a_file_is_no_name() {
        let files = Files::new(&[("sub/plain", UNIT)]);
        let cases = [
            ("gone/web.service", "no such file", "web.service"),
            ("sub/web@1", "no such file", "web@1.service"),
            ("sub", "is a directory", "sub.service"),
            ("sub/plain/web.service", "Not a directory (os error 20)", "web.service"),
        ];
        for (path, why, name) in cases {
            let path = files.path(path);
            let failure = names_or_files(std::slice::from_ref(&path)).expect_err("refused");
            let hint = format!("without its directory, {name} means the unit that the cluster knows");
            assert_eq!((failure.exit, failure.message), (Exit::Failed, format!("{path}: {why} ({hint})")));
        }
        // No name has a `/`, so this is no glob either.
        let glob = names_or_files(&[files.path("sub/*.service")]).expect_err("refused");
        assert!(
            glob.message.ends_with(
                "sub/*.service: no such file (a quoted glob means units of the cluster, not files)"
            )
        );
        // Where no file is asked for, the last part of a path is a name, as in fleetctl.
        assert!(names(&[files.path("gone/web.service")]).is_ok());
        assert_eq!(
            names_or_files(&["gone-web".to_owned()]).expect("a name"),
            [Argument::Unit(Unit { name: unit_name("gone-web.service"), file: None })]
        );
    }

    #[test]
    fn globs_leave_out_what_a_command_cannot_be_meant_for() {
        let mut known = known(&[("web@.service", UNIT), ("web@1.service", UNIT), ("web@2.service", UNIT)]);
        known.get_mut(&unit_name("web@2.service")).expect("known").desired = DesiredState::Loaded;
        let all = ["web@.service", "web@1.service", "web@2.service"];
        let cases = [
            (None, &all[..]),
            (Some(Verb::Submit), &all),
            (Some(Verb::Destroy), &all),
            (Some(Verb::Load), &all[1..]),
            (Some(Verb::Start), &all[1..]),
            (Some(Verb::Unload), &all[1..]),
            (Some(Verb::Stop), &all[2..]),
            (Some(Verb::Restart), &all[2..]),
        ];
        for (verb, left) in cases {
            assert_eq!(resolved_for(verb, &["web@*"], &known).expect("units"), left, "{verb:?}");
        }
        // What is named is meant.
        assert_eq!(resolved_for(Some(Verb::Stop), &["web@*", "web@1"], &known).expect("both").len(), 2);

        let nothing = resolved_for(Some(Verb::Stop), &["web@[1.]*"], &known).expect_err("none left");
        assert_eq!(nothing.exit, Exit::Failed);
        insta::assert_snapshot!(nothing.message, @r#""web@[1.]*" matches nothing that there is to stop: web@.service is a template, web@1.service is inactive"#);
        let many: Vec<String> = (1..=9).map(|n| format!("u{n}.service")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), UNIT)).collect();
        let nothing = resolved_for(Some(Verb::Restart), &["*"], &self::known(&many)).expect_err("none left");
        insta::assert_snapshot!(nothing.message, @r#""*" matches nothing that there is to restart: u1.service is inactive, u2.service is inactive, u3.service is inactive, u4.service is inactive, u5.service is inactive, and 4 more"#);
    }

    #[test]
    fn an_instance_takes_its_templates_file_from_the_same_directory() {
        let files = Files::new(&[("web@.service", UNIT), ("web@2.service", OTHER)]);
        let first = files.read("web@1");
        let Argument::Unit(Unit { file: Some(file), .. }) = &first else { panic!("a file") };
        assert_eq!((&*file.text, file.template.clone()), (UNIT, Some(unit_name("web@.service"))));
        let Argument::Unit(Unit { file: Some(file), .. }) = files.read("web@2") else { panic!("a file") };
        assert_eq!((&*file.text, file.template), (OTHER, None));

        // Nobody knows either: the file goes with the command.
        let names = vec![unit_name("web@1.service"), unit_name("web@.service")];
        assert_eq!(needed(std::slice::from_ref(&first), false), Needed::Names(names));
        let resolved = resolve(vec![first.clone()], &BTreeMap::new(), None, false).expect("resolved");
        assert!(resolved.units[0].file.is_some());

        // The template is known: it counts, and the user is told where it differs.
        let resolved =
            resolve(vec![first.clone()], &known(&[("web@.service", UNIT)]), None, false).expect("resolved");
        assert_eq!((resolved.units[0].file.clone(), resolved.differing.len()), (None, 0));
        let resolved =
            resolve(vec![first.clone()], &known(&[("web@.service", OTHER)]), None, false).expect("resolved");
        assert_eq!(resolved.differing, [(unit_name("web@.service"), files.0.path().join("web@.service"))]);

        // The instance is known: its file goes along, so that the scheduler can compare.
        let both = known(&[("web@.service", OTHER), ("web@1.service", OTHER)]);
        let resolved = resolve(vec![first.clone()], &both, None, false).expect("resolved");
        assert!(resolved.units[0].file.is_some() && resolved.differing.is_empty());

        // --replace means what is here.
        assert_eq!(needed(std::slice::from_ref(&first), true), Needed::Nothing);
        let resolved =
            resolve(vec![first], &known(&[("web@.service", OTHER)]), None, true).expect("resolved");
        assert!(resolved.units[0].file.is_some());
    }

    #[test]
    fn one_unit_with_two_files_is_a_mistake() {
        let files = Files::new(&[("a/web.service", UNIT), ("b/web.service", UNIT), ("c/web.service", OTHER)]);
        let same = vec![files.read("a/web.service"), files.read("b/web.service")];
        assert_eq!(resolve(same, &BTreeMap::new(), None, false).expect("the same").units.len(), 1);
        let differ = vec![files.read("a/web.service"), files.read("c/web.service")];
        let failure = resolve(differ, &BTreeMap::new(), None, false).expect_err("they differ");
        assert!(
            failure.message.starts_with("web.service is given twice, with different files: "),
            "{}",
            failure.message
        );
    }

    #[test]
    fn a_file_that_cannot_be_one_is_named() {
        let files =
            Files::new(&[("web.service", "[Service]\nExecStart=/bin/true\0\n"), ("empty.service", "")]);
        let failure = names_or_files(&[files.path("web.service")]).expect_err("refused");
        let expected = format!("{}: line 2: unit file contains a NUL byte", files.path("web.service"));
        assert_eq!((failure.exit, failure.message), (Exit::Failed, expected));
        assert!(names_or_files(&[files.path("empty")]).is_err());
    }
}
