//! The configuration: a TOML file.
//!
//! Every option is described in `packaging/agent.toml`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use muster_core::machine::{Labels, check_label_key, check_label_value};
use muster_core::stream::{StreamKind, StreamKinds};
use muster_core::unit::{Bytes, MilliCpu};
pub use muster_daemon::config::ConfigError;
use muster_daemon::config::{self, Contradiction};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

/// Where the configuration is, unless the command line names another file.
pub const DEFAULT_PATH: &str = "/etc/muster/agent.toml";

/// All options, sorted.
const OPTIONS: [&str; 9] =
    ["address", "capacity", "insecure", "labels", "log", "run_dir", "schedulers", "state_dir", "streams"];
/// The options of `capacity`, sorted.
const CAPACITY_OPTIONS: [&str; 2] = ["cpu", "memory"];

/// What the agent runs by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The schedulers, which are tried in turn.
    #[serde(default, deserialize_with = "schedulers")]
    pub schedulers: Vec<Scheduler>,
    /// Whether schedulers may be on the test network, and not only on this machine.
    #[serde(default)]
    pub insecure: bool,
    /// The address that other machines reach this one by; may be empty.
    #[serde(default, deserialize_with = "address")]
    pub address: String,
    /// The machine's labels.
    #[serde(default, deserialize_with = "labels")]
    pub labels: Labels,
    /// What the machine has to give, where it is not all of it.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// What clients may want of the machine itself.
    #[serde(default = "streams", deserialize_with = "some_streams")]
    pub streams: StreamKinds,
    /// Where is kept what must survive a reboot.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// Where units and what is known of this boot are kept. A reboot must empty it.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
    /// What is logged, at least of this importance.
    #[serde(default = "log", deserialize_with = "config::level")]
    pub log: LevelFilter,
}

/// What the machine has to give to units that reserve something; what is left out is read from the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CapacityConfig {
    /// Processor time.
    #[serde(deserialize_with = "amount")]
    pub cpu: Option<MilliCpu>,
    /// Main memory.
    #[serde(deserialize_with = "amount")]
    pub memory: Option<Bytes>,
}

/// Where a scheduler listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduler {
    /// A name or an address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// Why a text names no scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scheduler: HOST:PORT is expected, such as \"127.0.0.1:7400\" or \"[::1]:7400\"")]
pub struct SchedulerError(String);

impl FromStr for Scheduler {
    type Err = SchedulerError;

    fn from_str(text: &str) -> Result<Self, SchedulerError> {
        let error = || SchedulerError(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if host.is_empty() || !host.chars().all(is_name) {
            return Err(error());
        }
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| error())? })
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// Reads the text of a file; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = config::parse(path, text, &OPTIONS, &[("capacity", &CAPACITY_OPTIONS)])?;
        config.check().map_err(|contradiction| contradiction.in_file(path, text))?;
        Ok(config)
    }

    /// Checks what no option says by itself.
    fn check(&self) -> Result<(), Contradiction> {
        let contradiction = |options, message| Err(Contradiction { options, message });
        if self.schedulers.is_empty() {
            let message =
                "no scheduler is given: write where one listens, such as schedulers = [\"127.0.0.1:7400\"]";
            return contradiction(&["schedulers"], message.to_owned());
        }
        for scheduler in &self.schedulers {
            if let Err(message) = check_scheduler(scheduler, self.insecure) {
                return contradiction(&["schedulers"], message);
            }
        }
        let not_absolute =
            |directory: &Path| format!("\"{}\" is refused: an absolute path is needed", directory.display());
        if !self.state_dir.is_absolute() {
            return contradiction(&["state_dir"], format!("state_dir = {}", not_absolute(&self.state_dir)));
        }
        if !self.run_dir.is_absolute() {
            return contradiction(&["run_dir"], format!("run_dir = {}", not_absolute(&self.run_dir)));
        }
        Ok(())
    }
}

/// Whether the agent may obey who answers there; `insecure`: also on the test network.
///
/// # Errors
/// Why not.
pub(crate) fn check_scheduler(scheduler: &Scheduler, insecure: bool) -> Result<(), String> {
    let address = match scheduler.host.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => (scheduler.host == "localhost").then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
    };
    if address.is_some_and(|address| address.is_loopback()) {
        return Ok(());
    }
    let reason = "whoever answers there could run anything on this machine as root, since mutual TLS does not \
                  exist yet";
    if !address.is_some_and(config::is_test_network) {
        return Err(format!(
            "scheduler \"{scheduler}\" is refused: {reason}; a loopback address is allowed, and with insecure = true \
             one in 198.18.0.0/15, the network set aside for tests by RFC 2544"
        ));
    }
    if !insecure {
        return Err(format!(
            "scheduler \"{scheduler}\" is refused: {reason}; on a test network of your own, insecure = true allows it"
        ));
    }
    Ok(())
}

fn state_dir() -> PathBuf {
    PathBuf::from("/var/lib/muster")
}

fn run_dir() -> PathBuf {
    PathBuf::from("/run/muster")
}

fn log() -> LevelFilter {
    LevelFilter::INFO
}

fn streams() -> StreamKinds {
    StreamKinds::from_iter(StreamKind::ALL)
}

fn some_streams<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StreamKinds, D::Error> {
    let error = || {
        let all: Vec<String> = StreamKind::ALL.iter().map(|kind| format!("\"{kind}\"")).collect();
        D::Error::custom(format!("a list is expected, of some of {}; [] forbids them all", all.join(", ")))
    };
    let words = Vec::<String>::deserialize(deserializer).map_err(|_| error())?;
    let kind = |word: &String| StreamKind::ALL.into_iter().find(|kind| kind.to_string() == *word);
    words.iter().map(|word| kind(word).ok_or_else(error)).collect()
}

fn schedulers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Scheduler>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)
        .map_err(|_| D::Error::custom("a list is expected, such as [\"127.0.0.1:7400\"]"))?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let expected = "an IP address such as \"198.18.0.11\"";
    let address = config::quoted(deserializer, expected)?;
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        let hint = "other machines reach this one by it; it may be left out";
        return Err(D::Error::custom(format!("{address:?} is not {expected}: {hint}")));
    }
    Ok(address)
}

/// Reads an amount that stands as text in the file.
fn amount<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display> + Default + PartialEq>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = config::quoted(deserializer, "an amount")?;
    let amount: T = text.parse().map_err(D::Error::custom)?;
    if amount == T::default() {
        let hint = "leave the option out, and what the machine has counts";
        return Err(D::Error::custom(format!("{text:?} would leave nothing for units; {hint}")));
    }
    Ok(Some(amount))
}

fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    let labels = BTreeMap::<LabelKey, LabelValue>::deserialize(deserializer)?;
    Ok(labels.into_iter().map(|(LabelKey(key), LabelValue(value))| (key, value)).collect())
}

/// A label's key that `MachineMetadata=` can ask for.
#[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct LabelKey(String);

/// A label's value that `MachineMetadata=` can ask for.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct LabelValue(String);

impl TryFrom<String> for LabelKey {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        check_label_key(&key).map(|()| Self(key))
    }
}

impl TryFrom<String> for LabelValue {
    type Error = String;

    fn try_from(value: String) -> Result<Self, String> {
        check_label_value(&value).map(|()| Self(value))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use muster_core::unit::{Options, UnitFile, UnitName};

    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_sample_describes_every_option_and_shows_its_default() {
        let sample = include_str!("../../packaging/agent.toml");
        // What is commented out is what holds without it.
        let uncommented: String = sample
            .lines()
            .filter_map(|line| line.strip_prefix('#').or(Some(line)))
            .fold(String::new(), |mut text, line| {
                let is_option = line.contains('=') && !line.starts_with(' ') || line.starts_with('[');
                if is_option {
                    text.push_str(line);
                }
                text.push('\n');
                text
            });
        for option in OPTIONS.iter().chain(&CAPACITY_OPTIONS) {
            assert!(uncommented.contains(option), "{option} is not described");
        }
        let shown = read(&uncommented).unwrap();
        let default = read(sample).unwrap();
        assert_eq!(
            (shown.insecure, &shown.state_dir, &shown.run_dir, shown.log),
            (default.insecure, &default.state_dir, &default.run_dir, default.log)
        );
        assert_eq!((&shown.streams, &default.streams), (&streams(), &streams()));
    }

    #[test]
    fn everything_can_be_set() {
        let config = read(
            r#"
            schedulers = ["127.0.0.1:7400", "[::1]:7400", "198.19.0.2:1", "localhost:2"]
            insecure = true
            address = "198.19.0.3"
            labels = { disk = "ssd" }
            streams = ["status"]
            capacity = { cpu = "1500m", memory = "2G" }
            state_dir = "/a"
            run_dir = "/b"
            log = "debug"
            "#,
        )
        .unwrap();
        let schedulers: Vec<String> = config.schedulers.iter().map(ToString::to_string).collect();
        assert_eq!(schedulers, ["127.0.0.1:7400", "[::1]:7400", "198.19.0.2:1", "localhost:2"]);
        assert_eq!(config.capacity.cpu, Some(MilliCpu(1500)));
        assert_eq!(config.labels["disk"], "ssd");
        assert_eq!(config.streams, StreamKinds::from_iter([StreamKind::Status]));
    }

    #[test]
    fn errors_name_the_line_and_what_was_likely_meant() {
        let cases = [
            (
                "schedulers = [\"127.0.0.1:1\"]\nlables = {}\n",
                "agent.toml:2: unknown option \"lables\"; did you mean \"labels\"?",
            ),
            (
                "\nschedulers = []\n[capacity]\nmemry = \"1G\"\n",
                "agent.toml:4: unknown option \"memry\"; did you mean \"memory\"?",
            ),
            (
                "insecure = true\n",
                "agent.toml: no scheduler is given: write where one listens, such as schedulers = [\"127.0.0.1:7400\"]",
            ),
            (
                "\nschedulers = []\n",
                "agent.toml:2: no scheduler is given: write where one listens, such as schedulers = [\"127.0.0.1:7400\"]",
            ),
            (
                "schedulers = \"127.0.0.1:7400\"\n",
                "agent.toml:1: a list is expected, such as [\"127.0.0.1:7400\"]",
            ),
            (
                "schedulers = [\"127.0.0.1\"]\n",
                "agent.toml:1: \"127.0.0.1\" is no scheduler: HOST:PORT is expected, such as \"127.0.0.1:7400\" or \
                 \"[::1]:7400\"",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\nrun_dir = \"run\"\n",
                "agent.toml:2: run_dir = \"run\" is refused: an absolute path is needed",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\naddress = \"not an address\"\n",
                "agent.toml:2: \"not an address\" is not an IP address such as \"198.18.0.11\": other machines reach this \
                 one by it; it may be left out",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\ncapacity = { cpu = \"0\" }\n",
                "agent.toml:2: \"0\" would leave nothing for units; leave the option out, and what the machine has counts",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\n[capacity]\nmemory = \"0G\"\n",
                "agent.toml:3: \"0G\" would leave nothing for units; leave the option out, and what the machine has counts",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\n[capacity]\ncpu = 2\n",
                "agent.toml:3: an amount is expected, in quotes",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\nstreams = [\"status\", \"ssh\"]\n",
                "agent.toml:2: a list is expected, of some of \"journal\", \"status\", \"forward\", \"files\"; [] forbids \
                 them all",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\nlog = \"loud\"\n",
                "agent.toml:2: \"loud\" is no log level: \"error\", \"warn\", \"info\", \"debug\" or \"trace\" is expected",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\n[labels]\nzone = \"a\"\n\"a b\" = \"x=y\"\n",
                "agent.toml:4: MachineMetadata= cannot ask for a label's value \"x=y\": it has a \"=\"",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\n[labels]\nzone = \"a\"\n\" b\" = \"x\"\n",
                "agent.toml:4: MachineMetadata= cannot ask for a label \" b\": it has a blank at an end",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(read(text).unwrap_err(), error, "{text}");
        }
        assert!(
            read("schedulers = [\"127.0.0.1:1\"]\ncapacity = { cpu = \"many\" }\n")
                .unwrap_err()
                .contains("agent.toml:2: ")
        );
    }

    /// The core's own reading of units is the judge.
    #[test]
    fn labels_are_those_that_a_unit_can_ask_for() {
        let name = UnitName::parse("a.service").unwrap();
        let can_ask = |key: &str, value: &str| {
            let [written_key, written_value] = [key, value].map(|side| side.replace('%', "%%"));
            let text = format!("[X-Fleet]\nMachineMetadata=\"{written_key}={written_value}\"\n");
            let wanted = BTreeMap::from([(key.to_owned(), BTreeSet::from([value.to_owned()]))]);
            UnitFile::parse(text.as_bytes())
                .is_ok_and(|file| Options::parse(&name, &file).is_ok_and(|p| p.options.metadata == wanted))
        };
        let sides = [
            "a", "a b", "%", "%i", "ä", "a\\", "#", ";", "'", "a!b", "[a]", "-", "", "=", "a=", "\"", "a\"b",
            " a", "a ", "\ta", "a\nb", "a\r", "\0",
        ];
        for side in sides {
            assert_eq!(LabelValue::try_from(side.to_owned()).is_ok(), can_ask("a", side), "value {side:?}");
        }
        for side in sides.into_iter().chain(["a!", "a<", "a>", "a~"]) {
            assert_eq!(LabelKey::try_from(side.to_owned()).is_ok(), can_ask(side, "a"), "key {side:?}");
        }
    }

    #[test]
    fn only_loopback_and_the_test_network_are_dialled() {
        let dial = |scheduler: &str, insecure: bool| {
            read(&format!("schedulers = [\"{scheduler}\"]\ninsecure = {insecure}\n"))
        };
        for scheduler in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
            assert!(dial(scheduler, false).is_ok(), "{scheduler}");
        }
        for scheduler in ["198.18.0.1:1", "198.19.255.255:1"] {
            assert!(dial(scheduler, false).unwrap_err().contains("insecure = true allows it"), "{scheduler}");
            assert!(dial(scheduler, true).is_ok(), "{scheduler}");
        }
        for scheduler in ["198.20.0.1:1", "10.0.0.1:1", "0.0.0.0:1", "[fe80::1]:1", "scheduler.example:1"] {
            assert!(
                dial(scheduler, true).unwrap_err().contains("mutual TLS does not exist yet"),
                "{scheduler}"
            );
        }
    }
}
