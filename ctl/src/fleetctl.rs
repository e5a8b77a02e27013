//! What fleetctl's users bring along: its global flags, its environment, `--switch=BOOL`, and its words for a bad `--fields`.

use std::ffi::OsString;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::failure::{Exit, Failure};
use crate::style::warn;

/// How fleetctl's variables begin.
const PREFIX: &str = "FLEETCTL_";

/// The variable with fleetctl's endpoint.
pub const ENDPOINT_VARIABLE: &str = "FLEETCTL_ENDPOINT";

const NO_TLS: &str = "Muster has no encryption yet, so it would be passed over in silence; leave it out, and reach the scheduler \
                      on a network that you trust or through a tunnel of ssh's";
const ONE_WAY: &str = "musterctl speaks to the scheduler, never to its store; leave it out, and give the scheduler's address \
                       with --endpoint";

/// A global flag of fleetctl's that changes nothing here.
struct Flag {
    name: &'static str,
    is_switch: bool,
    judge: fn(&str) -> Verdict,
}

/// What is made of a value.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It asks for what is so anyway.
    AsItIs,
    /// Harmless: it has no effect, for this reason.
    NoEffect(&'static str),
    /// It would not mean what its user thinks.
    Refused(&'static str),
}

const FLAGS: [Flag; 12] = [
    Flag {
        name: "driver",
        is_switch: false,
        judge: |value| match value {
            "API" => Verdict::AsItIs,
            _ => Verdict::Refused(ONE_WAY),
        },
    },
    Flag {
        name: "etcd-key-prefix",
        is_switch: false,
        judge: |value| match value {
            "/_coreos.com/fleet/" | "/_coreos.com/fleet" => Verdict::AsItIs,
            _ => Verdict::Refused(ONE_WAY),
        },
    },
    Flag { name: "key-file", is_switch: false, judge: |_| Verdict::Refused(NO_TLS) },
    Flag { name: "cert-file", is_switch: false, judge: |_| Verdict::Refused(NO_TLS) },
    Flag { name: "ca-file", is_switch: false, judge: |_| Verdict::Refused(NO_TLS) },
    Flag { name: "etcd-keyfile", is_switch: false, judge: |_| Verdict::Refused(NO_TLS) },
    Flag { name: "etcd-certfile", is_switch: false, judge: |_| Verdict::Refused(NO_TLS) },
    Flag { name: "etcd-cafile", is_switch: false, judge: |_| Verdict::Refused(NO_TLS) },
    Flag {
        name: "experimental-api",
        is_switch: true,
        judge: |_| Verdict::NoEffect("there is one way to the scheduler"),
    },
    Flag {
        name: "request-timeout",
        is_switch: false,
        judge: |_| {
            Verdict::NoEffect(
                "a scheduler is looked for for 30 s; --timeout bounds what is waited for after that",
            )
        },
    },
    Flag {
        name: "ssh-timeout",
        is_switch: false,
        judge: |_| Verdict::NoEffect("ssh connects through the machine's agent, which is connected or not"),
    },
    Flag {
        name: "debug",
        is_switch: true,
        judge: |_| Verdict::NoEffect("what is wrong is said anyway; `musterctl events` says what happened"),
    },
];

/// Finds a variable of the environment.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Those of [`FLAGS`] that were given, with their values.
#[derive(Clone, Debug, Default)]
pub struct FleetFlags(Vec<(&'static str, String)>);

impl Args for FleetFlags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(|flag| {
            let arg = Arg::new(flag.name).long(flag.name).global(true).hide(true).action(ArgAction::Set);
            if flag.is_switch {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                arg
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FleetFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |flag: &Flag| Some((flag.name, matches.get_one::<String>(flag.name)?.clone()));
        Ok(Self(FLAGS.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl FleetFlags {
    /// Warns of those that have no effect. With `environment` fleetctl's variables count as the flags do.
    ///
    /// # Errors
    /// [`Exit::Usage`] for one that cannot be passed over.
    pub fn check(&self, environment: Option<Variables<'_>>) -> Result<(), Failure> {
        for (said, verdict) in self.judged(environment) {
            match verdict {
                Verdict::AsItIs => {}
                Verdict::NoEffect(why) => warn(&format!("{said} has no effect: {why}")),
                Verdict::Refused(why) => {
                    return Err(Failure::new(Exit::Usage, format_args!("{said} is fleetctl's: {why}")));
                }
            }
        }
        Ok(())
    }

    fn judged(&self, environment: Option<Variables<'_>>) -> Vec<(String, Verdict)> {
        let judged = |flag: &Flag| {
            if let Some((_, value)) = self.0.iter().find(|(name, _)| *name == flag.name) {
                // Nothing, given as such, is what fleetctl takes for not given.
                let verdict = if value.is_empty() { Verdict::AsItIs } else { (flag.judge)(value) };
                return Some((format!("--{}", flag.name), verdict));
            }
            let variable = format!("{PREFIX}{}", flag.name.replace('-', "_").to_ascii_uppercase());
            let value = environment?(&variable).filter(|value| !value.is_empty())?;
            Some((format!("{variable} in the environment"), (flag.judge)(&value)))
        };
        FLAGS.iter().filter_map(judged).collect()
    }
}

/// fleetctl's switches, which take `=BOOL`.
const SWITCHES: [&str; 9] = ["no-block", "replace", "sign", "full", "l", "no-legend", "follow", "f", "sudo"];

/// The command line with `--no-block=true` made `--no-block`, and without `--no-block=false`. What follows `--` is left
/// alone, and what follows `ssh`: that is the command of another machine.
pub fn plain_switches(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut plain = Vec::new();
    let mut over = false;
    for argument in arguments {
        over |= argument == "--" || argument == "ssh";
        match argument.to_str().filter(|_| !over).and_then(switch) {
            Some((name, true)) => plain.push(format!("--{name}").into()),
            Some((_, false)) => {}
            None => plain.push(argument),
        }
    }
    plain
}

fn switch(argument: &str) -> Option<(&str, bool)> {
    let (name, value) = argument.strip_prefix("--")?.split_once('=')?;
    // As Go reads it.
    let value = match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return None,
    };
    SWITCHES.contains(&name).then_some((name, value))
}

/// Reads one name of `--fields`.
#[derive(Clone)]
pub struct FieldParser(PossibleValuesParser);

impl FieldParser {
    /// One that takes these.
    pub fn new(fields: impl Iterator<Item = PossibleValue>) -> Self {
        Self(PossibleValuesParser::new(fields))
    }
}

impl TypedValueParser for FieldParser {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        self.0.parse_ref(command, arg, value).map_err(|_| {
            let value = value.to_string_lossy();
            if value.is_empty() {
                return refused(
                    command,
                    "Must define output format: --fields names none, or has a comma too many",
                );
            }
            let all: Vec<PossibleValue> = self.possible_values().into_iter().flatten().collect();
            let all: Vec<&str> =
                all.iter().filter(|field| !field.is_hide_set()).map(PossibleValue::get_name).collect();
            let near =
                all.iter().find(|known| strsim::damerau_levenshtein(&value.to_ascii_lowercase(), known) <= 2);
            let near = near.map(|known| format!("; did you mean {known:?}?")).unwrap_or_default();
            let text = format!(
                "Invalid key in output format: {value:?}{near}\n  [possible values: {}]",
                all.join(", ")
            );
            refused(command, &text)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

fn refused(command: &Command, text: &str) -> clap::Error {
    clap::Error::raw(ErrorKind::InvalidValue, format!("{text}\n")).with_cmd(command)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn flags(line: &str) -> FleetFlags {
        Cli::try_parse_from(line.split(' ')).expect("understood").fleet
    }

    fn told(flags: &FleetFlags, environment: &[(&str, &str)]) -> String {
        let find = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        let lines = flags.judged(Some(&find)).into_iter().map(|(said, verdict)| match verdict {
            Verdict::AsItIs => format!("{said}: as it is"),
            Verdict::NoEffect(why) => format!("{said} has no effect: {why}"),
            Verdict::Refused(why) => format!("{said} is refused: {why}"),
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn global_flags() {
        let line = "musterctl --driver=API --etcd-key-prefix /fleet/ list-units --request-timeout=10 --debug \
                    --ca-file= --key-file /k --experimental-api=false";
        insta::assert_snapshot!(told(&flags(line), &[]));
        let failure = flags("musterctl list-units --driver etcd").check(None).expect_err("refused");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.starts_with("--driver is fleetctl's: "), "{}", failure.message);
    }

    #[test]
    fn the_environment_counts_less_than_flags() {
        let environment =
            [("FLEETCTL_DRIVER", "etcd"), ("FLEETCTL_CA_FILE", "/ca"), ("FLEETCTL_KEY_FILE", "")];
        insta::assert_snapshot!(told(&flags("musterctl --driver=API list-units"), &environment));
        assert!(flags("musterctl list-units").check(None).is_ok(), "it counts only if it is asked");
    }

    #[test]
    fn switches_take_a_bool() {
        let plain = |line: &str| {
            let plain = plain_switches(line.split(' ').map(OsString::from));
            plain.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            plain("musterctl list-units --no-legend=true --full=0 --fields=unit --no-legend=x"),
            "musterctl list-units --no-legend --fields=unit --no-legend=x"
        );
        assert_eq!(plain("musterctl start -- --full=true"), "musterctl start -- --full=true");
        assert_eq!(plain("musterctl ssh m1 ls --full=true"), "musterctl ssh m1 ls --full=true");
    }
}
