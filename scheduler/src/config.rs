//! The configuration: a TOML file, and what of it the command line overrides.
//!
//! Every option is described in `packaging/scheduler.toml`.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use muster_core::leader::Settings;
use muster_daemon::config;
pub use muster_daemon::config::ConfigError;
use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

/// Where the configuration is, unless the command line names another file.
pub const DEFAULT_PATH: &str = "/etc/muster/scheduler.toml";

/// All options, sorted.
const OPTIONS: [&str; 7] =
    ["heartbeat_interval", "insecure_listen", "lease_ttl", "listen", "log", "state_dir", "systemd_timeout"];

/// How many heartbeats fit into a lease, at least: two in a row may be lost without harm.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// The shortest heartbeat interval.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(50);

/// The longest duration of any setting.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// What the scheduler runs by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where agents and clients connect to.
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    /// Whether `listen` may be an address of the test network.
    pub insecure_listen: bool,
    /// Where the store is.
    pub state_dir: PathBuf,
    /// How often agents send a heartbeat.
    #[serde(deserialize_with = "duration")]
    pub heartbeat_interval: Duration,
    /// How long a lease runs.
    #[serde(deserialize_with = "duration")]
    pub lease_ttl: Duration,
    /// How long a machine's PID 1 may be silent.
    #[serde(deserialize_with = "duration")]
    pub systemd_timeout: Duration,
    /// What is logged, at least of this importance.
    #[serde(deserialize_with = "level")]
    pub log: LevelFilter,
}

impl Default for Config {
    fn default() -> Self {
        let Settings { heartbeat_interval, lease_ttl, systemd_timeout, .. } = Settings::default();
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7400)),
            insecure_listen: false,
            state_dir: PathBuf::from("/var/lib/muster-scheduler"),
            heartbeat_interval,
            lease_ttl,
            systemd_timeout,
            log: LevelFilter::INFO,
        }
    }
}

impl Config {
    /// Reads a file. One at [`DEFAULT_PATH`] need not exist.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense. Whether the options go together is for [`Config::check`] to say.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads the text of a file; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        config::parse(path, text, &OPTIONS, &[])
    }

    /// Checks that the options go together.
    ///
    /// # Errors
    /// What contradicts what, and why.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.check_listen()?;
        let contradiction = |text| Err(ConfigError::Contradiction(text));
        let shown = |duration: Duration| humantime::format_duration(duration).to_string();
        let (heartbeat, lease, systemd) = (self.heartbeat_interval, self.lease_ttl, self.systemd_timeout);
        if heartbeat < MIN_HEARTBEAT_INTERVAL {
            return contradiction(format!(
                "heartbeat_interval is {}: it must be at least {}",
                shown(heartbeat),
                shown(MIN_HEARTBEAT_INTERVAL)
            ));
        }
        if heartbeat.saturating_mul(HEARTBEATS_PER_LEASE) > lease {
            return contradiction(format!(
                "heartbeat_interval is {} and lease_ttl is {}: an interval must be at most a third of the lease, so that \
                 two lost heartbeats in a row do not cost a machine its units",
                shown(heartbeat),
                shown(lease)
            ));
        }
        if systemd <= lease {
            return contradiction(format!(
                "systemd_timeout is {} and lease_ttl is {}: the time-out must be longer, since a machine whose systemd \
                 is silent for a lease is only spared new units, and is given up after the time-out",
                shown(systemd),
                shown(lease)
            ));
        }
        Ok(())
    }

    fn check_listen(&self) -> Result<(), ConfigError> {
        let address = self.listen.ip().to_canonical();
        if address.is_loopback() {
            return Ok(());
        }
        let reason = "every agent and client that reaches the address could command the cluster, since mutual TLS does \
                      not exist yet";
        if !config::is_test_network(address) {
            return Err(ConfigError::Contradiction(format!(
                "listen = \"{}\" is refused: {reason}; a loopback address is allowed, and with insecure_listen = true one \
                 in 198.18.0.0/15, the network set aside for tests by RFC 2544",
                self.listen
            )));
        }
        if !self.insecure_listen {
            return Err(ConfigError::Contradiction(format!(
                "listen = \"{}\" is refused: {reason}; on a test network of your own, insecure_listen = true (or \
                 --insecure-listen {}) allows it",
                self.listen, self.listen
            )));
        }
        Ok(())
    }

    /// What the leader decides by.
    pub fn settings(&self) -> Settings {
        Settings {
            heartbeat_interval: self.heartbeat_interval,
            lease_ttl: self.lease_ttl,
            systemd_timeout: self.systemd_timeout,
            ..Settings::default()
        }
    }
}

/// Reads a value that stands as text in the file.
fn text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
    expected: &str,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)
        .map_err(|_| serde::de::Error::custom(format!("{expected} is expected, in quotes")))?;
    text.parse().map_err(|error| serde::de::Error::custom(format!("{text:?} is not {expected}: {error}")))
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    text(deserializer, "an IP address with a port, such as \"127.0.0.1:7400\"")
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration: humantime::Duration =
        text(deserializer, "a duration such as \"5s\", \"500ms\" or \"1m 30s\"")?;
    let duration = Duration::from(duration);
    if duration > MAX_DURATION {
        return Err(serde::de::Error::custom("a duration is at most \"24h\""));
    }
    Ok(duration)
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LevelFilter, D::Error> {
    let level: String = text(deserializer, "a log level")?;
    match level.as_str() {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(serde::de::Error::custom(format!(
            "{level:?} is no log level: \"error\", \"warn\", \"info\", \"debug\" or \"trace\" is expected"
        ))),
    }
}
