//! Where the schedulers are: from the flag, the environment, a configuration file, or the default, in this order.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::{Exit, Failure};
use crate::fleetctl;

/// Where a scheduler listens unless it is told otherwise.
pub const DEFAULT_ENDPOINT: &str = "127.0.0.1:7400";
/// The port that is meant when an address names none.
const DEFAULT_PORT: u16 = 7400;
/// The environment variable with the schedulers' addresses.
pub const ENDPOINT_VARIABLE: &str = "MUSTERCTL_ENDPOINT";
/// What may stand in a configuration file.
const KEYS: [&str; 1] = ["endpoint"];

/// The schedulers' addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// `HOST:PORT` each, at least one, in the order in which they are tried.
    pub addresses: Vec<String>,
    /// Who said so.
    pub source: Source,
}

impl Endpoints {
    /// The one that is tried first.
    pub fn first(&self) -> &str {
        self.addresses.first().map_or(DEFAULT_ENDPOINT, String::as_str)
    }
}

/// Who said where the schedulers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `--endpoint`.
    Flag,
    /// The environment.
    Environment,
    /// fleetctl's environment.
    Fleetctl,
    /// A configuration file.
    File(PathBuf),
    /// Nobody.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("from --endpoint"),
            Self::Environment => write!(f, "from {ENDPOINT_VARIABLE} in the environment"),
            Self::Fleetctl => write!(f, "from {} in the environment", fleetctl::ENDPOINT_VARIABLE),
            Self::File(path) => write!(f, "from {}", path.display()),
            Self::Default => f.write_str("the default"),
        }
    }
}

/// The files that may say where the schedulers are, the one that counts more first.
pub fn files() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("XDG_CONFIG_HOME").or_else(|| Some(variable("HOME")?.join(".config")));
    home.into_iter()
        .chain([PathBuf::from("/etc")])
        .map(|directory| directory.join("muster/ctl.toml"))
        .collect()
}

/// Finds the schedulers' addresses.
///
/// # Errors
/// An address that is none; a configuration file that cannot be read or understood.
pub fn endpoints(
    flag: Option<&str>,
    variable: &dyn Fn(&str) -> Option<String>,
    files: &[PathBuf],
) -> Result<Endpoints, Failure> {
    if let Some(text) = flag {
        return named(&[text.to_owned()], Source::Flag);
    }
    let variables =
        [(ENDPOINT_VARIABLE, Source::Environment), (fleetctl::ENDPOINT_VARIABLE, Source::Fleetctl)];
    for (name, source) in variables {
        if let Some(text) = variable(name).filter(|text| !text.is_empty()) {
            return named(&[text], source);
        }
    }
    for path in files {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Failure::new(
                    Exit::Usage,
                    format_args!("cannot read {}: {error}", path.display()),
                ));
            }
        };
        if let Some(texts) = endpoint_in(path, &text).map_err(|message| Failure::new(Exit::Usage, message))? {
            return named(&texts, Source::File(path.clone()));
        }
    }
    Ok(Endpoints { addresses: vec![DEFAULT_ENDPOINT.to_owned()], source: Source::Default })
}

/// The addresses in these texts, each of which may be several with commas between them.
fn named(texts: &[String], source: Source) -> Result<Endpoints, Failure> {
    let mut addresses = Vec::new();
    for text in texts.iter().flat_map(|text| text.split(',')).map(str::trim) {
        let address = address(text).map_err(|why| {
            // It may well be meant for fleetctl, and right for it.
            let hint = match source {
                Source::Fleetctl => {
                    format!("\n  {ENDPOINT_VARIABLE} counts more, and fleetctl does not read it")
                }
                _ => String::new(),
            };
            Failure::new(
                Exit::Usage,
                format_args!("{text:?} is no scheduler's address ({source}): {why}{hint}"),
            )
        })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(Endpoints { addresses, source })
}

/// The `endpoint` in a configuration file, or what is wrong with the file, with the line.
fn endpoint_in(path: &Path, text: &str) -> Result<Option<Vec<String>>, String> {
    let at = |offset: usize, message: &str| {
        let line = text[..offset.min(text.len())].matches('\n').count() + 1;
        format!("{}:{line}: {message}", path.display())
    };
    let table = DeTable::parse(text)
        .map_err(|error| at(error.span().map_or(0, |span| span.start), error.message()))?;
    let expected = |found: &Spanned<DeValue<'_>>| {
        let message = format!(
            "endpoint must be a text such as \"{DEFAULT_ENDPOINT}\", or a list of such texts; found: {}",
            found.get_ref().type_str()
        );
        at(found.span().start, &message)
    };
    let mut endpoint = None;
    for (key, value) in table.get_ref() {
        if key.get_ref() != KEYS[0] {
            return Err(at(key.span().start, &unknown_key(key.get_ref())));
        }
        let one = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(expected(value)),
        };
        endpoint = Some(match value.get_ref() {
            DeValue::Array(values) if values.is_empty() => {
                return Err(at(value.span().start, "endpoint names no scheduler; leave it out, or name one"));
            }
            DeValue::Array(values) => values.iter().map(one).collect::<Result<_, _>>()?,
            _ => vec![one(value)?],
        });
    }
    Ok(endpoint)
}

fn unknown_key(key: &str) -> String {
    let near =
        KEYS.into_iter().find(|known| strsim::damerau_levenshtein(&key.to_ascii_lowercase(), known) <= 3);
    match near {
        Some(known) => format!("unknown key {key:?}; did you mean {known:?}?"),
        None => format!("unknown key {key:?}; known is {:?}", KEYS[0]),
    }
}

/// `HOST:PORT` of `HOST`, `HOST:PORT` or `http://HOST:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn address(text: &str) -> Result<String, String> {
    let rest = match text.split_once("://") {
        Some(("http", rest)) => rest.trim_end_matches('/'),
        Some(("unix" | "file", _)) => {
            return Err(
                "the scheduler is reached by TCP, not by a socket file; write its HOST:PORT".to_owned()
            );
        }
        Some(("https", _)) => return Err("Muster has no encryption yet; write HOST:PORT".to_owned()),
        Some((scheme, _)) => return Err(format!("{scheme}:// is not known here; write HOST:PORT")),
        None => text,
    };
    let (host, port) = match rest.rsplit_once(':') {
        // Of an IPv6 address in brackets, the last colon may be its own.
        Some((host, port)) if !port.ends_with(']') && (!host.contains(':') || host.ends_with(']')) => {
            (host, Some(port))
        }
        _ => (rest, None),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_one = match in_brackets {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    if !host_is_one {
        return Err(if host.contains(':') && in_brackets.is_none() {
            "write an IPv6 address in brackets: [::1]:7400".to_owned()
        } else {
            "write HOST:PORT".to_owned()
        });
    }
    let port = match port {
        Some(port) => {
            port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(format!("{port:?} is no port"))?
        }
        None => DEFAULT_PORT,
    };
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(address: &str, source: Source) -> Endpoints {
        Endpoints { addresses: vec![address.to_owned()], source }
    }

    fn message(result: Result<Endpoints, Failure>) -> String {
        let failure = result.expect_err("refused");
        assert_eq!(failure.exit, Exit::Usage);
        failure.message
    }

    #[test]
    fn addresses() {
        assert_eq!(address("10.0.0.1:7401").as_deref(), Ok("10.0.0.1:7401"));
        assert_eq!(address("scheduler.example").as_deref(), Ok("scheduler.example:7400"));
        assert_eq!(address("http://h:1/").as_deref(), Ok("h:1"));
        assert_eq!(address("[::1]").as_deref(), Ok("[::1]:7400"));
        assert_eq!(address("[fe80::2]:99").as_deref(), Ok("[fe80::2]:99"));
        assert_eq!(address("::1"), Err("write an IPv6 address in brackets: [::1]:7400".to_owned()));
        assert_eq!(address("h:0"), Err("\"0\" is no port".to_owned()));
        assert_eq!(address("h:99999"), Err("\"99999\" is no port".to_owned()));
        assert_eq!(address("https://h:1"), Err("Muster has no encryption yet; write HOST:PORT".to_owned()));
        assert_eq!(address("tcp://h:1"), Err("tcp:// is not known here; write HOST:PORT".to_owned()));
        for bad in ["", ":7400", "a b:1", "[x]:1", "http://"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flag_then_environment_then_files_then_default() {
        let directory = tempfile::tempdir().expect("a directory");
        let user = directory.path().join("user.toml");
        let system = directory.path().join("system.toml");
        std::fs::write(&system, "# all users\nendpoint = \"10.0.0.9\"\n").expect("written");
        let files = [user.clone(), system.clone()];
        let found = |flag, variable: Option<&str>| {
            let variable = |name: &str| variable.filter(|_| name == ENDPOINT_VARIABLE).map(str::to_owned);
            endpoints(flag, &variable, &files).map_err(|failure| failure.message)
        };

        assert_eq!(found(Some("f:1"), Some("e:1")), Ok(one("f:1", Source::Flag)));
        assert_eq!(found(None, Some("e:1")), Ok(one("e:1", Source::Environment)));
        let from_system = one("10.0.0.9:7400", Source::File(system));
        assert_eq!(found(None, Some("")), Ok(from_system.clone()));
        std::fs::write(&user, "").expect("written");
        assert_eq!(found(None, None), Ok(from_system));
        std::fs::write(&user, "endpoint = 'u:2'").expect("written");
        assert_eq!(found(None, None), Ok(one("u:2", Source::File(user))));
        let default = one(DEFAULT_ENDPOINT, Source::Default);
        assert_eq!(endpoints(None, &|_| None, &[]).map_err(|failure| failure.message), Ok(default));
    }

    #[test]
    fn several_schedulers() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("ctl.toml");
        let found = |flag| {
            let found = endpoints(flag, &|_| None, std::slice::from_ref(&file));
            found.map(|endpoints| endpoints.addresses).map_err(|failure| failure.message)
        };
        let three = Ok(["a:7400", "b:1", "[::1]:7400"].map(str::to_owned).to_vec());
        assert_eq!(found(Some("a, b:1,[::1],a:7400")), three);
        std::fs::write(&file, "endpoint = [\"a\", \"b:1\", \"[::1]\"]\n").expect("written");
        assert_eq!(found(None), three);
        std::fs::write(&file, "endpoint = \"a,b:1,[::1]\"\n").expect("written");
        assert_eq!(found(None), three);
        assert_eq!(
            found(Some("a,,b")),
            Err("\"\" is no scheduler's address (from --endpoint): write HOST:PORT".to_owned())
        );
    }

    #[test]
    fn a_file_with_a_mistake_names_the_line() {
        let path = Path::new("/etc/muster/ctl.toml");
        let wrong = |text| endpoint_in(path, text).expect_err("refused");
        assert_eq!(
            wrong("# where\n\nendpiont = \"h:1\"\n"),
            "/etc/muster/ctl.toml:3: unknown key \"endpiont\"; did you mean \"endpoint\"?"
        );
        assert_eq!(
            wrong("colour = true\n"),
            "/etc/muster/ctl.toml:1: unknown key \"colour\"; known is \"endpoint\""
        );
        assert_eq!(
            wrong("endpoint = 7400\n"),
            "/etc/muster/ctl.toml:1: endpoint must be a text such as \"127.0.0.1:7400\", or a list of such texts; \
             found: integer"
        );
        assert_eq!(
            wrong("endpoint = [\n\"h:1\",\n7400]\n"),
            "/etc/muster/ctl.toml:3: endpoint must be a text such as \"127.0.0.1:7400\", or a list of such texts; \
             found: integer"
        );
        assert_eq!(
            wrong("endpoint = []\n"),
            "/etc/muster/ctl.toml:1: endpoint names no scheduler; leave it out, or name one"
        );
        assert!(
            wrong("\nendpoint = \"h:1").starts_with("/etc/muster/ctl.toml:2: "),
            "{}",
            wrong("\nendpoint = \"h:1")
        );
    }

    #[test]
    fn a_bad_address_names_its_source() {
        assert_eq!(
            message(endpoints(Some("::1"), &|_| None, &[])),
            "\"::1\" is no scheduler's address (from --endpoint): write an IPv6 address in brackets: [::1]:7400"
        );
        assert_eq!(
            message(endpoints(None, &|_| Some("unix:///x".to_owned()), &[])),
            "\"unix:///x\" is no scheduler's address (from MUSTERCTL_ENDPOINT in the environment): \
             the scheduler is reached by TCP, not by a socket file; write its HOST:PORT"
        );
        let fleets = |name: &str| (name == "FLEETCTL_ENDPOINT").then(|| "http://10.0.0.1:7400,b".to_owned());
        let found = endpoints(None, &fleets, &[]).expect("understood");
        assert_eq!(found.addresses, ["10.0.0.1:7400", "b:7400"]);
        assert_eq!(found.source, Source::Fleetctl);
        let fleets =
            |name: &str| (name == "FLEETCTL_ENDPOINT").then(|| "file:///var/run/fleet.sock".to_owned());
        assert_eq!(
            message(endpoints(None, &fleets, &[])),
            "\"file:///var/run/fleet.sock\" is no scheduler's address (from FLEETCTL_ENDPOINT in the environment): \
             the scheduler is reached by TCP, not by a socket file; write its HOST:PORT\n  \
             MUSTERCTL_ENDPOINT counts more, and fleetctl does not read it"
        );
    }
}
