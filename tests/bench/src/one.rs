//! Figures on one machine: what Muster adds to what the machine's systemd needs anyway.

use anyhow::{Context, Result, ensure};
use muster_cluster::{Cluster, Machine};

use crate::figure::{Bar, Figure, median, say};
use crate::machines::{Daemon, INSIDE, LIMIT, SERVICE, Units, install};

const UNITS: usize = 500;
/// One pair says little here: it may be half or twice the next one.
const PAIRS: usize = 9;

pub fn measure() -> Result<Vec<Figure>> {
    let cluster = Cluster::builder().machines(1).up()?;
    let machine = cluster.machine("m1")?;
    install(&machine)?;
    let agent = Daemon::find(machine, "muster-agent.service")?;
    let (mut ratios, mut muster, mut dbus, mut rss) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut reloads = 0;
    for pair in 1..=PAIRS {
        let mut by_muster = || {
            let before = count_reloads(&machine)?;
            let units = Units::new(&format!("muster{pair}"), UNITS)?;
            let (seconds, _) = units.start(&cluster)?;
            rss.push(agent.rss_mib()?);
            reloads += count_reloads(&machine)? - before;
            units.destroy(&cluster)?;
            anyhow::Ok(seconds)
        };
        let by_dbus = || start_over_dbus(&machine, &format!("dbus{pair}"), UNITS);
        let (ours, theirs) = if pair % 2 == 0 {
            let ours = by_muster()?;
            (ours, by_dbus()?)
        } else {
            let theirs = by_dbus()?;
            (by_muster()?, theirs)
        };
        say(&format!("pair {pair} of {PAIRS}: musterctl {ours:.2} s, D-Bus {theirs:.2} s"));
        ratios.push(ours / theirs);
        muster.push(ours);
        dbus.push(theirs);
    }
    // A count that cannot rise would say nothing.
    let before = count_reloads(&machine)?;
    machine.exec(&["systemctl", "daemon-reload"])?.ok()?;
    let counted = count_reloads(&machine)? - before;
    ensure!(counted == 1, "one reload was made, and {counted} were counted");

    let spread = format!("{:.2} to {:.2}", least(&ratios), most(&ratios));
    Ok(vec![
        Figure {
            name: "start_ratio",
            value: median(&mut ratios),
            unit: "",
            bar: Some(Bar::AtMost(1.15)),
            method: format!(
                "{UNITS} new services (Type=exec, sleep) on one machine with one `musterctl start`, from its start to its end, \
                 all active/running in list-units ({:.2} s), over the same files in place, started by a D-Bus client on that \
                 machine with 64 calls in flight until every job is done ({:.2} s); median of {PAIRS} pairs in turns (they are \
                 {spread})",
                median(&mut muster),
                median(&mut dbus),
            ),
        },
        Figure {
            name: "reloads_for_new_units",
            value: f64::from(reloads),
            unit: "",
            bar: Some(Bar::AtMost(0.0)),
            method: format!(
                "times that PID 1 of that machine says \"Reloading.\" in the journal during these {PAIRS} starts of {UNITS} \
                 (checked with one daemon-reload, which counts as one)"
            ),
        },
        Figure {
            name: "agent_rss_mib",
            value: most(&rss),
            unit: "MiB",
            bar: Some(Bar::AtMost(10.0)),
            method: format!(
                "VmRSS of that machine's agent with {UNITS} units active, the most of {PAIRS} times (units are destroyed and \
                 others started in between)"
            ),
        },
    ])
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MIN, f64::max)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MAX, f64::min)
}

/// The seconds that a client on the machine takes to start services whose files are in place; they are removed again.
pub fn start_over_dbus(machine: &Machine<'_>, prefix: &str, count: usize) -> Result<f64> {
    const WRITE: &str = "cd /run/systemd/system && content=$(cat) && for unit; do printf '%s\\n' \"$content\" >\"$unit\"; done";
    const REMOVE: &str = "systemctl stop \"$@\" && cd /run/systemd/system && rm \"$@\"";
    let names: Vec<String> = (1..=count).map(|number| format!("{prefix}-{number:03}.service")).collect();
    let names = || names.iter().map(String::as_str);
    let script = |script, input: &str| {
        let command: Vec<&str> = ["sh", "-c", script, "sh"].into_iter().chain(names()).collect();
        machine.exec_within(LIMIT, &command, input.as_bytes())?.ok()
    };
    script(WRITE, SERVICE)?;
    let command: Vec<&str> = [INSIDE, "dbus-start"].into_iter().chain(names()).collect();
    let printed = machine.exec_within(LIMIT, &command, &[])?.ok()?;
    script(REMOVE, "")?;
    printed.trim().parse().with_context(|| format!("dbus-start printed {printed:?}"))
}

/// How often PID 1 has read all unit files again since the machine booted.
fn count_reloads(machine: &Machine<'_>) -> Result<u32> {
    machine.exec(&["journalctl", "--sync"])?.ok()?;
    let said = machine.exec(&["journalctl", "--boot", "--quiet", "--output=cat", "_PID=1"])?.ok()?;
    Ok(u32::try_from(said.lines().filter(|line| *line == "Reloading.").count())?)
}
