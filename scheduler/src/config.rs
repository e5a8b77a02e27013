//! The configuration: a TOML file, and what of it the command line overrides.
//!
//! Every option is described in `packaging/scheduler.toml`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_core::leader::Settings;
pub use muster_daemon::config::ConfigError;
use muster_daemon::config::{self, Contradiction};
use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

/// Where the configuration is, unless the command line names another file.
pub const DEFAULT_PATH: &str = "/etc/muster/scheduler.toml";

/// All options, sorted.
const OPTIONS: [&str; 12] = [
    "advertise",
    "brake_hold",
    "etcd",
    "fleet_api",
    "heartbeat_interval",
    "insecure_listen",
    "lease_ttl",
    "listen",
    "log",
    "restart_grace",
    "state_dir",
    "systemd_timeout",
];

/// The options of `etcd`, sorted.
const ETCD_OPTIONS: [&str; 7] = ["ca", "cert", "endpoints", "key", "password_file", "prefix", "user"];

/// The options of `fleet_api`, sorted.
const FLEET_OPTIONS: [&str; 2] = ["listen", "socket"];

/// How many heartbeats fit into a lease, at least: two in a row may be lost without harm.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// The shortest heartbeat interval.
const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(50);

/// The shortest lease. The guard of exclusive units is started with 2 s of it left at least, and when an answer to a
/// heartbeat has come up to a third may have passed.
const MIN_LEASE_TTL: Duration = Duration::from_secs(4);

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
    /// How agents and clients reach this scheduler, for the others to tell: `HOST:PORT`. Left out: `listen`.
    pub advertise: Option<String>,
    /// Where the store is.
    pub state_dir: PathBuf,
    /// Where the state is instead, if there are several schedulers.
    pub etcd: Option<Etcd>,
    /// Where fleet's HTTP API is served, if it is.
    pub fleet_api: Option<FleetApi>,
    /// Where it is written down how far the store is written: the service manager's directory, and no option.
    #[serde(skip)]
    pub runtime_dir: Option<PathBuf>,
    /// How often agents send a heartbeat.
    #[serde(deserialize_with = "duration")]
    pub heartbeat_interval: Duration,
    /// How long a lease runs.
    #[serde(deserialize_with = "duration")]
    pub lease_ttl: Duration,
    /// How long a machine's PID 1 may be silent.
    #[serde(deserialize_with = "duration")]
    pub systemd_timeout: Duration,
    /// How long nothing is moved when many machines seem to die at once.
    #[serde(deserialize_with = "duration")]
    pub brake_hold: Duration,
    /// How long a lease lasts when an agent says that it is restarted.
    #[serde(deserialize_with = "duration")]
    pub restart_grace: Duration,
    /// What is logged, at least of this importance.
    #[serde(deserialize_with = "config::level")]
    pub log: LevelFilter,
}

/// Where fleet's HTTP API is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FleetApi {
    /// At this loopback address.
    #[serde(deserialize_with = "some_address")]
    pub listen: Option<SocketAddr>,
    /// At this unix socket.
    pub socket: Option<PathBuf>,
}

impl FleetApi {
    fn check(&self) -> Result<(), String> {
        match self.listen.map(|listen| (listen, reach(listen))) {
            Some((_, Reach::Loopback)) => {}
            Some((listen, _)) => {
                return Err(format!(
                    "fleet_api.listen = \"{listen}\" is refused: fleet's API knows of no certificates and no passwords, so \
                     that everybody who reaches the address commands the cluster; a loopback address is allowed, such as \
                     \"127.0.0.1:7402\""
                ));
            }
            None if self.socket.is_none() => {
                return Err(
                    "fleet_api says nowhere to serve fleet's API: give socket, listen, or both".to_owned()
                );
            }
            None => {}
        }
        match &self.socket {
            Some(socket) if !socket.is_absolute() => Err(format!(
                "fleet_api.socket = \"{}\": a whole path is expected, such as \"/run/muster-scheduler/fleet.sock\"",
                socket.display()
            )),
            _ => Ok(()),
        }
    }
}

/// The etcd cluster that several schedulers have their state in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Etcd {
    /// The members' URLs for clients.
    pub endpoints: Vec<String>,
    /// What all keys begin with. It ends in a slash.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// The certificate of the authority that signs the members' certificates, in PEM.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// This scheduler's own certificate, in PEM.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// The key of that.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The name that etcd knows this scheduler by, where it asks for one.
    #[serde(default)]
    pub user: Option<String>,
    /// The file with the password of that; white space at its end does not count.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

fn prefix() -> String {
    "/muster/".to_owned()
}

impl Etcd {
    /// What a client of it needs, with the files that are named.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn client(&self) -> Result<muster_etcd::Config, ConfigError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.clone(), source })
        };
        let identity = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let tls = match &self.ca {
            Some(ca) => Some(muster_etcd::Tls { ca: read(ca)?, identity }),
            None => None,
        };
        let user = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => {
                let password = String::from_utf8_lossy(&read(file)?).trim_end().to_owned();
                Some((user.clone(), password))
            }
            _ => None,
        };
        Ok(muster_etcd::Config { endpoints: self.endpoints.clone(), tls, user })
    }

    fn check(&self) -> Result<(), String> {
        if self.endpoints.is_empty() {
            return Err(
                "etcd.endpoints is empty: name the members, such as [\"http://127.0.0.1:2379\"]".to_owned()
            );
        }
        for endpoint in &self.endpoints {
            self.check_endpoint(endpoint)?;
        }
        if !self.prefix.ends_with('/') || self.prefix.len() < 2 {
            return Err(format!(
                "etcd.prefix is \"{}\": it must end in a slash, as \"/muster/\" does",
                self.prefix
            ));
        }
        for (one, other, names) in [
            (&self.cert, &self.key, ["cert", "key"]),
            (&self.user.as_ref().map(PathBuf::from), &self.password_file, ["user", "password_file"]),
        ] {
            if one.is_some() != other.is_some() {
                let [first, second] = names;
                return Err(format!(
                    "etcd.{first} and etcd.{second} go together: one is given without the other"
                ));
            }
        }
        if self.cert.is_some() && self.ca.is_none() {
            return Err(
                "etcd.cert is given without etcd.ca: the members' certificates must be known, too".to_owned()
            );
        }
        Ok(())
    }

    fn check_endpoint(&self, endpoint: &str) -> Result<(), String> {
        let no_url = || {
            format!(
                "\"{endpoint}\" in etcd.endpoints is no URL such as \"http://127.0.0.1:2379\" or \"https://etcd1:2379\""
            )
        };
        let (scheme, _) = endpoint.split_once("://").ok_or_else(no_url)?;
        let address = endpoint_address(endpoint);
        if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return Err(no_url());
        }
        match scheme {
            "https" if self.ca.is_none() => Err(format!(
                "{endpoint} in etcd.endpoints needs etcd.ca: the authority that signs its certificate"
            )),
            "https" => Ok(()),
            "http" if address.parse().is_ok_and(|address| !matches!(reach(address), Reach::Other)) => Ok(()),
            "http" => Err(format!(
                "{endpoint} in etcd.endpoints is refused: who reads or changes what passes there commands the cluster; use \
                 https (a loopback address is allowed without, and {ON_TEST_NETWORK})"
            )),
            _ => Err(no_url()),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let Settings { heartbeat_interval, lease_ttl, systemd_timeout, brake_hold, restart_grace, .. } =
            Settings::default();
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7400)),
            insecure_listen: false,
            advertise: None,
            state_dir: PathBuf::from("/var/lib/muster-scheduler"),
            etcd: None,
            fleet_api: None,
            runtime_dir: None,
            heartbeat_interval,
            lease_ttl,
            systemd_timeout,
            brake_hold,
            restart_grace,
            log: LevelFilter::INFO,
        }
    }
}

impl Config {
    /// Reads a file. One at [`DEFAULT_PATH`] need not exist. An [`insecure_address`] counts more than what the file says
    /// of `listen` and `insecure_listen`.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub fn read(path: &Path, insecure_listen: Option<SocketAddr>) -> Result<Self, ConfigError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                String::new()
            }
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        Self::parse(path, &text, insecure_listen)
    }

    /// Reads the text of a file; `path` is for the errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, text: &str, insecure_listen: Option<SocketAddr>) -> Result<Self, ConfigError> {
        let mut config: Self =
            config::parse(path, text, &OPTIONS, &[("etcd", &ETCD_OPTIONS), ("fleet_api", &FLEET_OPTIONS)])?;
        if let Some(address) = insecure_listen {
            (config.listen, config.insecure_listen) = (address, true);
        }
        config.check().map_err(|contradiction| contradiction.in_file(path, text))?;
        Ok(config)
    }

    /// Checks that the options go together, as [`Config::parse`] does already.
    ///
    /// # Errors
    /// What contradicts what, and why.
    pub fn check(&self) -> Result<(), Contradiction> {
        self.check_listen()?;
        if let Some(advertise) = &self.advertise
            && advertise
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            let message =
                format!("advertise = \"{advertise}\": HOST:PORT is expected, such as \"scheduler1:7400\"");
            return Err(Contradiction { options: &["advertise"], message });
        }
        if let Some(Err(message)) = self.etcd.as_ref().map(Etcd::check) {
            return Err(Contradiction { options: &["etcd"], message });
        }
        self.check_others_reach_it()?;
        if let Some(Err(message)) = self.fleet_api.as_ref().map(FleetApi::check) {
            return Err(Contradiction { options: &["fleet_api"], message });
        }
        let contradiction = |options, message| Err(Contradiction { options, message });
        let shown = |duration: Duration| humantime::format_duration(duration).to_string();
        let (heartbeat, lease, systemd) = (self.heartbeat_interval, self.lease_ttl, self.systemd_timeout);
        if heartbeat < MIN_HEARTBEAT_INTERVAL {
            let message = format!(
                "heartbeat_interval is {}: it must be at least {}",
                shown(heartbeat),
                shown(MIN_HEARTBEAT_INTERVAL)
            );
            return contradiction(&["heartbeat_interval"], message);
        }
        if heartbeat.saturating_mul(HEARTBEATS_PER_LEASE) > lease {
            let message = format!(
                "heartbeat_interval is {} and lease_ttl is {}: an interval must be at most a third of the lease, so that \
                 two lost heartbeats in a row do not cost a machine its units",
                shown(heartbeat),
                shown(lease)
            );
            return contradiction(&["heartbeat_interval", "lease_ttl"], message);
        }
        if lease < MIN_LEASE_TTL {
            let message = format!(
                "lease_ttl is {}: it must be at least {}, since the guard of exclusive units takes up to 2s to start on a \
                 machine, and would not be started at all with less of a lease left",
                shown(lease),
                shown(MIN_LEASE_TTL)
            );
            return contradiction(&["lease_ttl"], message);
        }
        if self.restart_grace < lease {
            let message = format!(
                "restart_grace is {} and lease_ttl is {}: what an agent that is restarted asks for must be at least what it has",
                shown(self.restart_grace),
                shown(lease)
            );
            return contradiction(&["restart_grace", "lease_ttl"], message);
        }
        if self.brake_hold < lease {
            let message = format!(
                "brake_hold is {} and lease_ttl is {}: it must be at least as long, since machines that were only cut off \
                 need a lease's time to be back; without it a scheduler that is cut off itself moves all units",
                shown(self.brake_hold),
                shown(lease)
            );
            return contradiction(&["brake_hold", "lease_ttl"], message);
        }
        if systemd <= lease {
            let message = format!(
                "systemd_timeout is {} and lease_ttl is {}: the time-out must be longer, since a machine whose systemd \
                 is silent for a lease is only spared new units, and is given up after the time-out",
                shown(systemd),
                shown(lease)
            );
            return contradiction(&["systemd_timeout", "lease_ttl"], message);
        }
        Ok(())
    }

    fn check_listen(&self) -> Result<(), Contradiction> {
        let listen = self.listen;
        let refused = |remedy: String| {
            let message = format!("listen = \"{listen}\" is refused: {OPEN_TO_ALL}; {remedy}");
            Err(Contradiction { options: &["listen"], message })
        };
        match reach(listen) {
            Reach::Loopback => Ok(()),
            Reach::TestNetwork if self.insecure_listen => Ok(()),
            Reach::TestNetwork => refused(format!(
                "on a test network of your own, insecure_listen = true (or --insecure-listen {listen}) allows it"
            )),
            Reach::Other => refused(format!(
                "a loopback address is allowed, and with insecure_listen = true {ON_TEST_NETWORK}"
            )),
        }
    }

    /// Where etcd is on other machines, schedulers are as well: to each of them a loopback address is its own. (One that is given
    /// as `advertise` is meant so: tunnels may begin there.)
    fn check_others_reach_it(&self) -> Result<(), Contradiction> {
        let Some(etcd) = self.etcd.as_ref().filter(|_| self.advertise.is_none()) else { return Ok(()) };
        let elsewhere = etcd.endpoints.iter().find(|endpoint| !is_loopback(endpoint_address(endpoint)));
        let Some(elsewhere) = elsewhere.filter(|_| matches!(reach(self.listen), Reach::Loopback)) else {
            return Ok(());
        };
        let message = format!(
            "listen = \"{}\" is what this scheduler would have the other schedulers, agents and clients connect to, and on each \
             machine that is the machine itself, while etcd is at {elsewhere}: give advertise, the HOST:PORT that they \
             reach this scheduler at, or an address of this machine as listen",
            self.listen
        );
        Err(Contradiction { options: &["listen", "etcd"], message })
    }

    /// What the leader decides by.
    pub fn settings(&self) -> Settings {
        Settings {
            heartbeat_interval: self.heartbeat_interval,
            lease_ttl: self.lease_ttl,
            systemd_timeout: self.systemd_timeout,
            brake_hold: self.brake_hold,
            restart_grace: self.restart_grace,
            ..Settings::default()
        }
    }
}

/// Why only few addresses are allowed.
const OPEN_TO_ALL: &str = "every agent and client that reaches the address could command the cluster, since mutual TLS \
                           does not exist yet";
/// Which ones are, besides loopback.
const ON_TEST_NETWORK: &str = "one in 198.18.0.0/15, the network set aside for tests by RFC 2544";

/// Who reaches an address.
enum Reach {
    Loopback,
    TestNetwork,
    Other,
}

fn reach(address: SocketAddr) -> Reach {
    match address.ip().to_canonical() {
        ip if ip.is_loopback() => Reach::Loopback,
        ip if config::is_test_network(ip) => Reach::TestNetwork,
        _ => Reach::Other,
    }
}

/// `HOST:PORT` of a URL.
fn endpoint_address(endpoint: &str) -> &str {
    endpoint.split_once("://").map_or(endpoint, |(_, address)| address).trim_end_matches('/')
}

/// Whether `HOST:PORT` leads to the machine itself.
fn is_loopback(address: &str) -> bool {
    match address.parse() {
        Ok(address) => matches!(reach(address), Reach::Loopback),
        Err(_) => address.rsplit_once(':').is_some_and(|(host, _)| host == "localhost"),
    }
}

/// Reads the address of `--insecure-listen`.
///
/// # Errors
/// When it is none, or one that is not allowed even so.
pub fn insecure_address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map_err(|_| format!("{ADDRESS} is expected"))?;
    match reach(address) {
        Reach::Loopback | Reach::TestNetwork => Ok(address),
        Reach::Other => Err(format!("{OPEN_TO_ALL}; a loopback address is allowed, and {ON_TEST_NETWORK}")),
    }
}

const ADDRESS: &str = "an IP address with a port, such as \"127.0.0.1:7400\"";

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    config::text(deserializer, ADDRESS)
}

fn some_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let duration: humantime::Duration =
        config::text(deserializer, "a duration such as \"5s\", \"500ms\" or \"1m 30s\"")?;
    let duration = Duration::from(duration);
    if duration > MAX_DURATION {
        return Err(serde::de::Error::custom("a duration is at most \"24h\""));
    }
    Ok(duration)
}
