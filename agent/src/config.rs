//! The configuration: a TOML file.
//!
//! Every option is described in `packaging/agent.toml`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use muster_core::machine::Labels;
use muster_core::unit::{Bytes, MilliCpu};
use muster_daemon::config;
pub use muster_daemon::config::ConfigError;
use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

/// Where the configuration is, unless the command line names another file.
pub const DEFAULT_PATH: &str = "/etc/muster/agent.toml";

/// All options, sorted.
const OPTIONS: [&str; 8] =
    ["address", "capacity", "insecure", "labels", "log", "run_dir", "schedulers", "state_dir"];
/// The options of `capacity`, sorted.
const CAPACITY_OPTIONS: [&str; 2] = ["cpu", "memory"];

/// What the agent runs by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The schedulers, which are tried in turn.
    #[serde(deserialize_with = "schedulers")]
    pub schedulers: Vec<Scheduler>,
    /// Whether schedulers may be on the test network, and not only on this machine.
    #[serde(default)]
    pub insecure: bool,
    /// The address that other machines reach this one by; may be empty.
    #[serde(default)]
    pub address: String,
    /// The machine's labels.
    #[serde(default)]
    pub labels: Labels,
    /// What the machine has to give, where it is not all of it.
    #[serde(default)]
    pub capacity: CapacityConfig,
    /// Where is kept what must survive a reboot.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// Where units and what is known of this boot are kept. A reboot must empty it.
    #[serde(default = "run_dir")]
    pub run_dir: PathBuf,
    /// What is logged, at least of this importance.
    #[serde(default = "log", deserialize_with = "level")]
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
    /// When it cannot be read or makes no sense. Whether the options go together is for [`Config::check`] to say.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        Self::parse(path, &std::fs::read_to_string(path).map_err(read)?)
    }

    /// Reads the text of a file; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        config::parse(path, text, &OPTIONS, &[("capacity", &CAPACITY_OPTIONS)])
    }

    /// Checks that the options go together.
    ///
    /// # Errors
    /// What contradicts what, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        let contradiction = |text| Err(ConfigError::Contradiction(text));
        if self.schedulers.is_empty() {
            return contradiction("schedulers is empty: at least one \"HOST:PORT\" is needed".to_owned());
        }
        self.schedulers.iter().try_for_each(|scheduler| self.check_scheduler(scheduler))?;
        for (name, directory) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if !directory.is_absolute() {
                return contradiction(format!(
                    "{name} = \"{}\" is refused: an absolute path is needed",
                    directory.display()
                ));
            }
        }
        Ok(())
    }

    fn check_scheduler(&self, scheduler: &Scheduler) -> Result<(), ConfigError> {
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
            return Err(ConfigError::Contradiction(format!(
                "scheduler \"{scheduler}\" is refused: {reason}; a loopback address is allowed, and with insecure = true \
                 one in 198.18.0.0/15, the network set aside for tests by RFC 2544"
            )));
        }
        if !self.insecure {
            return Err(ConfigError::Contradiction(format!(
                "scheduler \"{scheduler}\" is refused: {reason}; on a test network of your own, insecure = true allows it"
            )));
        }
        Ok(())
    }
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

fn schedulers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Scheduler>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

/// Reads an amount that stands as text in the file.
fn amount<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LevelFilter, D::Error> {
    let level = String::deserialize(deserializer)?;
    match level.as_str() {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(serde::de::Error::custom(format!(
            "{level:?} is not a log level: \"error\", \"warn\", \"info\", \"debug\" or \"trace\" is expected"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let config = Config::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
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
    }

    #[test]
    fn everything_can_be_set() {
        let config = read(
            r#"
            schedulers = ["127.0.0.1:7400", "[::1]:7400", "198.19.0.2:1", "localhost:2"]
            insecure = true
            address = "198.19.0.3"
            labels = { disk = "ssd" }
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
            ("address = \"\"\n", "agent.toml:1: missing field `schedulers`"),
            ("schedulers = []\n", "schedulers is empty: at least one \"HOST:PORT\" is needed"),
            (
                "schedulers = [\"127.0.0.1\"]\n",
                "agent.toml:1: \"127.0.0.1\" is no scheduler: HOST:PORT is expected, such as \"127.0.0.1:7400\" or \
                 \"[::1]:7400\"",
            ),
            (
                "schedulers = [\"127.0.0.1:1\"]\nrun_dir = \"run\"\n",
                "run_dir = \"run\" is refused: an absolute path is needed",
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
