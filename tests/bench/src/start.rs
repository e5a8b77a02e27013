//! How long it takes until a stack of units runs, and how much of that the machines' systemd needs anyway.

use std::thread;

use anyhow::{Result, anyhow};
use muster_cluster::{Cluster, Machine, Role};

use crate::figure::{Figure, median, say};
use crate::machines::{Units, install};
use crate::one::start_over_dbus;

const UNITS: usize = 200;
const MACHINES: usize = 3;
const PAIRS: usize = 7;

pub fn measure() -> Result<Vec<Figure>> {
    let cluster = Cluster::builder().machines(MACHINES).up()?;
    let workers: Vec<Machine<'_>> =
        cluster.machines().filter(|machine| machine.role() != Role::Scheduler).collect();
    for worker in &workers {
        install(worker)?;
    }
    let (mut muster, mut systemd, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        let by_muster = || {
            let units = Units::new(&format!("stack{pair}"), UNITS)?;
            let (_, listed) = units.start(&cluster)?;
            units.destroy(&cluster)?;
            anyhow::Ok(listed)
        };
        let by_dbus = || on_all(&workers, &format!("plain{pair}"));
        let (ours, theirs) = if pair % 2 == 0 {
            let ours = by_muster()?;
            (ours, by_dbus()?)
        } else {
            let theirs = by_dbus()?;
            (by_muster()?, theirs)
        };
        say(&format!("pair {pair} of {PAIRS}: musterctl {ours:.2} s, systemd alone {theirs:.2} s"));
        muster.push(ours);
        systemd.push(theirs);
        shares.push(theirs / ours * 100.0);
    }
    let (seconds, alone) = (median(&mut muster), median(&mut systemd));
    // In order now.
    let (least, most) = (muster[0], muster[PAIRS - 1]);
    Ok(vec![
        Figure {
            name: "start_200_s",
            value: seconds,
            unit: "s",
            bar: None,
            method: format!(
                "{UNITS} new services (Type=exec, sleep) with one `musterctl start` over {MACHINES} machines, from its start until \
                 list-units has shown all as active/running; median of {PAIRS} runs ({least:.2} to {most:.2})"
            ),
        },
        Figure {
            name: "start_200_systemd_percent",
            value: median(&mut shares),
            unit: "%",
            bar: None,
            method: format!(
                "what D-Bus clients on the {MACHINES} machines, all at once, take to start the same services, as many on each \
                 and with their files in place, until every job is done ({alone:.2} s), in turns with start_200_s, of that"
            ),
        },
    ])
}

/// The seconds that the machines' own systemd takes to start the units, shared out among them: those of the last one.
fn on_all(workers: &[Machine<'_>], prefix: &str) -> Result<f64> {
    let shares =
        (0..workers.len()).map(|index| UNITS / workers.len() + usize::from(index < UNITS % workers.len()));
    thread::scope(|scope| {
        let started: Vec<_> = workers
            .iter()
            .zip(shares)
            .map(|(worker, share)| scope.spawn(move || start_over_dbus(worker, prefix, share)))
            .collect();
        let mut longest = 0.0_f64;
        for started in started {
            longest = longest.max(started.join().map_err(|_| anyhow!("a thread has panicked"))??);
        }
        Ok(longest)
    })
}
