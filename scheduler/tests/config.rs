//! What the configuration accepts, and what it says of the rest.

use std::path::Path;

use insta::assert_snapshot;
use muster_scheduler::config::{Config, ConfigError, FleetApi, insecure_address};

const SAMPLE: &str = include_str!("../../packaging/scheduler.toml");

fn read(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("scheduler.toml"), text, None)
}

fn error(text: &str) -> String {
    read(text).expect_err("an error").to_string()
}

#[test]
fn the_sample_lists_every_option_with_its_default() {
    // The one thing that is on in the sample, and off without it.
    let socket = Some("/run/muster-scheduler/fleet.sock".into());
    let fleet_api = Some(FleetApi { listen: None, socket });
    assert_eq!(read(SAMPLE).expect("the sample is right"), Config { fleet_api, ..Config::default() });
    let (own, tables) = SAMPLE.split_once("[fleet_api]").expect("a table");
    for line in own.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let option = line.split(' ').next().expect("a word");
        assert_snapshot_of_removal(option, line);
    }
    // What has no default is commented out, and is right when it is not.
    let in_full = |text: &str| {
        let lines =
            text.lines().map(|line| line.strip_prefix('#').filter(|rest| is_option(rest)).unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n").replace("http://", "https://")
    };
    let config = read(&in_full(SAMPLE)).expect("the sample in full is right");
    assert_eq!(config.etcd.expect("etcd").prefix, "/muster/", "the default");
    assert!(config.fleet_api.expect("fleet_api").listen.is_some());
    let options =
        |text: &str| in_full(text).lines().filter(|line| is_option(line) && !line.starts_with('[')).count();
    let (of_fleet, of_etcd) = tables.split_once("#[etcd]").expect("a table");
    let known = |text| error(text).split(',').count();
    // "etcd" and "fleet_api" themselves are two.
    assert_eq!(options(own) + 2, known("x = 1"), "{}", error("x = 1"));
    assert_eq!(options(of_fleet), known("[fleet_api]\nx = 1"), "{}", error("[fleet_api]\nx = 1"));
    assert_eq!(options(of_etcd), known("[etcd]\nx = 1"), "{}", error("[etcd]\nx = 1"));
}

#[test]
fn fleets_api_is_served_on_loopback_alone() {
    let listen = |address: &str| error(&format!("[fleet_api]\nlisten = '{address}'\n"));
    for address in ["0.0.0.0:7402", "198.18.0.1:7402", "[::]:7402", "10.0.0.1:7402"] {
        assert_eq!(
            listen(address),
            format!(
                "scheduler.toml:1: fleet_api.listen = \"{address}\" is refused: fleet's API knows of no certificates and no \
                 passwords, so that everybody who reaches the address commands the cluster; a loopback address is allowed, \
                 such as \"127.0.0.1:7402\""
            )
        );
    }
    for address in ["127.0.0.1:7402", "[::1]:0"] {
        let config = read(&format!("[fleet_api]\nlisten = '{address}'\n")).expect("loopback");
        assert_eq!(config.fleet_api.expect("there").listen, Some(address.parse().expect("an address")));
    }
    assert_snapshot!(listen("localhost:1"), @r#"scheduler.toml:2: "localhost:1" is not an IP address with a port, such as "127.0.0.1:7400": invalid socket address syntax"#);
    assert_snapshot!(error("[fleet_api]\n"), @"scheduler.toml:1: fleet_api says nowhere to serve fleet's API: give socket, listen, or both");
    assert_snapshot!(error("[fleet_api]\nsocket = 'fleet.sock'\n"), @r#"scheduler.toml:1: fleet_api.socket = "fleet.sock": a whole path is expected, such as "/run/muster-scheduler/fleet.sock""#);
    assert_snapshot!(error("[fleet_api]\nsockets = '/x'\n"), @r#"scheduler.toml:2: unknown option "sockets"; did you mean "socket"?"#);
}

/// Whether this line of the sample gives an option or a table, and is no comment.
fn is_option(line: &str) -> bool {
    let name = line.split(" = ").next().unwrap_or_default();
    let names_one = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    (names_one(name) && name != line) || matches!(line, "[etcd]" | "[fleet_api]")
}

/// Each line of the sample is one option: spelled otherwise it is refused.
fn assert_snapshot_of_removal(option: &str, line: &str) {
    let error = error(&line.replacen(option, &format!("{option}s"), 1));
    assert_eq!(error, format!("scheduler.toml:1: unknown option \"{option}s\"; did you mean {option:?}?"));
}

#[test]
fn nothing_is_a_configuration() {
    assert_eq!(read("").expect("defaults"), Config::default());
}

#[test]
fn every_option_is_read() {
    let config = read(
        "listen = '198.19.3.4:7000'\ninsecure_listen = true\nstate_dir = '/tmp/state'\n\
         heartbeat_interval = '250ms'\nlease_ttl = '4s 500ms'\nsystemd_timeout = '1m 30s'\nlog = 'debug'\n",
    )
    .expect("it is right");
    assert_snapshot!(format!("{config:?}"), @r#"Config { listen: 198.19.3.4:7000, insecure_listen: true, advertise: None, state_dir: "/tmp/state", etcd: None, fleet_api: None, runtime_dir: None, heartbeat_interval: 250ms, lease_ttl: 4.5s, systemd_timeout: 90s, brake_hold: 60s, restart_grace: 30s, log: LevelFilter::DEBUG }"#);
    assert_eq!(config.settings().lease_ttl, config.lease_ttl);
}

#[test]
fn mistakes_are_shown_with_their_line() {
    assert_snapshot!(error("# leases\n\nlease_tll = \"5s\"\n"), @r#"scheduler.toml:3: unknown option "lease_tll"; did you mean "lease_ttl"?"#);
    assert_snapshot!(error("tls = true\n"), @r#"scheduler.toml:1: unknown option "tls"; the options are advertise, brake_hold, etcd, fleet_api, heartbeat_interval, insecure_listen, lease_ttl, listen, log, restart_grace, state_dir, systemd_timeout"#);
    assert_snapshot!(error("[leases]\nlease_ttl = \"5s\"\n"), @r#"scheduler.toml:1: unknown option "leases"; the options are advertise, brake_hold, etcd, fleet_api, heartbeat_interval, insecure_listen, lease_ttl, listen, log, restart_grace, state_dir, systemd_timeout"#);
    assert_snapshot!(error("\nlease_ttl = 5\n"), @r#"scheduler.toml:2: a duration such as "5s", "500ms" or "1m 30s" is expected, in quotes"#);
    assert_snapshot!(error("lease_ttl = \"5 parsecs\"\n"), @r#"scheduler.toml:1: "5 parsecs" is not a duration such as "5s", "500ms" or "1m 30s": unknown time unit "parsecs", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations)"#);
    assert_snapshot!(error("lease_ttl = \"25h\"\n"), @r#"scheduler.toml:1: a duration is at most "24h""#);
    assert_snapshot!(error("log = \"info\"\nlog = \"debug\"\n"), @"scheduler.toml:2: duplicate key");
    assert_snapshot!(error("log = \"verbose\"\n"), @r#"scheduler.toml:1: "verbose" is no log level: "error", "warn", "info", "debug" or "trace" is expected"#);
    assert_snapshot!(error("listen = \"localhost:7400\"\n"), @r#"scheduler.toml:1: "localhost:7400" is not an IP address with a port, such as "127.0.0.1:7400": invalid socket address syntax"#);
    assert_snapshot!(error("listen = \n"), @"scheduler.toml:1: string values must be quoted, expected literal string");
    assert_snapshot!(error("listen"), @"scheduler.toml:1: key with no value, expected `=`");
}

#[test]
fn leases_that_contradict_are_refused_with_the_reason() {
    assert_snapshot!(error("heartbeat_interval = \"2s\""), @"scheduler.toml:1: heartbeat_interval is 2s and lease_ttl is 5s: an interval must be at most a third of the lease, so that two lost heartbeats in a row do not cost a machine its units");
    assert_snapshot!(error("lease_ttl = \"2s 999ms\""), @"scheduler.toml:1: heartbeat_interval is 1s and lease_ttl is 2s 999ms: an interval must be at most a third of the lease, so that two lost heartbeats in a row do not cost a machine its units");
    assert_snapshot!(error("heartbeat_interval = \"10ms\""), @"scheduler.toml:1: heartbeat_interval is 10ms: it must be at least 50ms");
    assert_snapshot!(error("lease_ttl = \"30s\""), @"scheduler.toml:1: systemd_timeout is 30s and lease_ttl is 30s: the time-out must be longer, since a machine whose systemd is silent for a lease is only spared new units, and is given up after the time-out");
    assert_snapshot!(error("\nlease_ttl = \"1s\"\nheartbeat_interval = \"1s\"\n"), @"scheduler.toml:3: heartbeat_interval is 1s and lease_ttl is 1s: an interval must be at most a third of the lease, so that two lost heartbeats in a row do not cost a machine its units");
    assert_snapshot!(error("lease_ttl = \"3s\""), @"scheduler.toml:1: lease_ttl is 3s: it must be at least 4s, since the guard of exclusive units takes up to 2s to start on a machine, and would not be started at all with less of a lease left");
    assert_snapshot!(error("brake_hold = \"0s\""), @"scheduler.toml:1: brake_hold is 0s and lease_ttl is 5s: it must be at least as long, since machines that were only cut off need a lease's time to be back; without it a scheduler that is cut off itself moves all units");
    assert_snapshot!(error("restart_grace = \"4s\""), @"scheduler.toml:1: restart_grace is 4s and lease_ttl is 5s: what an agent that is restarted asks for must be at least what it has");
    read("lease_ttl = \"4s\"").expect("three heartbeats fit, and the guard's start");
}

#[test]
fn what_is_said_of_etcd_must_make_sense() {
    let etcd = |text: &str| error(&format!("[etcd]\n{text}\n"));
    let elsewhere =
        "[etcd]\nendpoints = ['http://127.0.0.1:2379', 'http://[::1]:2379', 'http://198.18.0.1:1']";
    let by_name = "[etcd]\nendpoints = ['https://etcd1.example:2379']\nca = '/ca.pem'";
    for others_reach_it in [
        "listen = '198.18.0.2:7400'\ninsecure_listen = true\n",
        "advertise = 'scheduler1:7400'\n",
        "advertise = '127.0.0.1:7401'\n",
    ] {
        read(&format!("{others_reach_it}{elsewhere}")).expect("right");
        read(&format!("{others_reach_it}{by_name}")).expect("right");
    }
    read("[etcd]\nendpoints = ['http://127.0.0.1:2379', 'https://localhost:2379']\nca = '/ca.pem'")
        .expect("right");
    assert_snapshot!(error(elsewhere), @r#"scheduler.toml:1: listen = "127.0.0.1:7400" is what this scheduler would have the other schedulers, agents and clients connect to, and on each machine that is the machine itself, while etcd is at http://198.18.0.1:1: give advertise, the HOST:PORT that they reach this scheduler at, or an address of this machine as listen"#);
    let text = error(&format!("\nlisten = '[::1]:7400'\n{by_name}"));
    assert!(text.contains(":2: listen = \"[::1]:7400\"") && text.contains("etcd1.example"), "{text}");
    assert_snapshot!(etcd(""), @"scheduler.toml:1: missing field `endpoints`");
    assert_snapshot!(etcd("endpoints = []"), @r#"scheduler.toml:1: etcd.endpoints is empty: name the members, such as ["http://127.0.0.1:2379"]"#);
    assert_snapshot!(etcd("endpoint = 'http://127.0.0.1:2379'"), @r#"scheduler.toml:2: unknown option "endpoint"; did you mean "endpoints"?"#);
    assert_snapshot!(etcd("endpoints = ['127.0.0.1:2379']"), @r#"scheduler.toml:1: "127.0.0.1:2379" in etcd.endpoints is no URL such as "http://127.0.0.1:2379" or "https://etcd1:2379""#);
    assert_snapshot!(etcd("endpoints = ['http://127.0.0.1']"), @r#"scheduler.toml:1: "http://127.0.0.1" in etcd.endpoints is no URL such as "http://127.0.0.1:2379" or "https://etcd1:2379""#);
    assert_snapshot!(etcd("endpoints = ['http://10.0.0.1:2379']"), @"scheduler.toml:1: http://10.0.0.1:2379 in etcd.endpoints is refused: who reads or changes what passes there commands the cluster; use https (a loopback address is allowed without, and one in 198.18.0.0/15, the network set aside for tests by RFC 2544)");
    assert_snapshot!(etcd("endpoints = ['https://10.0.0.1:2379']"), @"scheduler.toml:1: https://10.0.0.1:2379 in etcd.endpoints needs etcd.ca: the authority that signs its certificate");
    assert_snapshot!(etcd("endpoints = ['http://127.0.0.1:2379']\nprefix = '/muster'"), @r#"scheduler.toml:1: etcd.prefix is "/muster": it must end in a slash, as "/muster/" does"#);
    assert_snapshot!(etcd("endpoints = ['https://h:1']\nca = '/ca'\ncert = '/c'"), @"scheduler.toml:1: etcd.cert and etcd.key go together: one is given without the other");
    assert_snapshot!(etcd("endpoints = ['http://127.0.0.1:2379']\nuser = 'muster'"), @"scheduler.toml:1: etcd.user and etcd.password_file go together: one is given without the other");
    assert_snapshot!(error("advertise = \"198.18.0.1\""), @r#"scheduler.toml:1: advertise = "198.18.0.1": HOST:PORT is expected, such as "scheduler1:7400""#);
}

#[test]
fn only_loopback_and_the_test_network() {
    for address in ["127.0.0.1:7400", "127.1.2.3:1", "[::1]:7400", "[::ffff:127.0.0.1]:7400"] {
        read(&format!("listen = \"{address}\"")).expect(address);
    }
    for address in ["198.18.0.1:7400", "198.19.255.254:7400"] {
        read(&format!("listen = \"{address}\"\ninsecure_listen = true")).expect(address);
        read(&format!("listen = \"{address}\"")).expect_err(address);
    }
    for address in
        ["0.0.0.0:7400", "[::]:7400", "198.17.0.1:1", "198.20.0.1:1", "10.0.0.1:1", "[2001:db8::1]:1"]
    {
        read(&format!("listen = \"{address}\"\ninsecure_listen = true")).expect_err(address);
    }
    assert_snapshot!(error("listen = \"198.18.0.1:7400\""), @r#"scheduler.toml:1: listen = "198.18.0.1:7400" is refused: every agent and client that reaches the address could command the cluster, since mutual TLS does not exist yet; on a test network of your own, insecure_listen = true (or --insecure-listen 198.18.0.1:7400) allows it"#);
    assert_snapshot!(error("listen = \"0.0.0.0:7400\"\ninsecure_listen = true"), @r#"scheduler.toml:1: listen = "0.0.0.0:7400" is refused: every agent and client that reaches the address could command the cluster, since mutual TLS does not exist yet; a loopback address is allowed, and with insecure_listen = true one in 198.18.0.0/15, the network set aside for tests by RFC 2544"#);
}

#[test]
fn what_the_command_line_says_of_the_address_counts_more() {
    let address = insecure_address("198.18.0.1:7400").expect("of the test network");
    let path = Path::new("scheduler.toml");
    let config = Config::parse(path, "listen = \"10.0.0.1:1\"", Some(address)).expect("it is right");
    assert_eq!((config.listen, config.insecure_listen), (address, true));
    assert_snapshot!(insecure_address("localhost:1").expect_err("a name"), @r#"an IP address with a port, such as "127.0.0.1:7400" is expected"#);
    assert_snapshot!(insecure_address("10.0.0.1:1").expect_err("of no test network"), @"every agent and client that reaches the address could command the cluster, since mutual TLS does not exist yet; a loopback address is allowed, and one in 198.18.0.0/15, the network set aside for tests by RFC 2544");
}
