//! Waits until units are where a command wants them, and shows what they wait for.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use muster_core::command::{UnitStatus, Waiting};
use muster_core::unit::UnitName;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::client::{Client, Wanted};
use crate::failure::{Exit, Failure};
use crate::output::Machines;
use crate::style::{Role, harmless};
use crate::wait::{Goal, Progress, judge};

/// How often the machines' states, and the reasons of units without a machine, are asked for while waiting.
const REFRESH: Duration = Duration::from_secs(2);
/// When to say what units wait for to a reader that sees no progress bar.
const SAY_AFTER: Duration = Duration::from_secs(5);
/// How long the scheduler has to say once more what units wait for when time is up.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// How many waiting units are shown.
const SHOWN_UNITS: usize = 5;
/// How many machines' reasons are shown for each.
const SHOWN_MACHINES: usize = 4;

/// What is waited for, and how far it is. Pure: it is told what is seen and says what there is to print.
#[derive(Debug, Default)]
pub struct Pending {
    goals: BTreeMap<UnitName, Goal>,
    statuses: BTreeMap<UnitName, Option<UnitStatus>>,
    waiting: BTreeMap<UnitName, String>,
    reasons: BTreeMap<UnitName, Waiting>,
    machines: Machines,
}

/// How it ended for one unit: what says so.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was asked for: a line.
    Well(String),
    /// Not so: lines.
    Badly(String),
}

impl Pending {
    /// Nothing is seen yet.
    pub fn new(goals: BTreeMap<UnitName, Goal>, machines: Machines) -> Self {
        Self { goals, machines, ..Self::default() }
    }

    /// The units that are not there yet.
    fn names(&self) -> Vec<UnitName> {
        self.goals.keys().cloned().collect()
    }

    /// Takes a unit as it is now.
    fn see(&mut self, name: &UnitName, status: Option<UnitStatus>) -> Option<Ended> {
        if !self.goals.contains_key(name) {
            return None;
        }
        self.statuses.insert(name.clone(), status);
        self.judge(name)
    }

    /// Takes the machines as they are now.
    fn see_machines(&mut self, machines: Machines) -> Vec<Ended> {
        self.machines = machines;
        let names: Vec<UnitName> = self.statuses.keys().cloned().collect();
        names.iter().filter_map(|name| self.judge(name)).collect()
    }

    fn judge(&mut self, name: &UnitName) -> Option<Ended> {
        let (goal, status) = (self.goals.get(name)?, self.statuses.get(name)?);
        let ended = match judge(goal, name, status.as_ref(), &self.machines) {
            Progress::Waiting(reason) => {
                self.waiting.insert(name.clone(), reason);
                return None;
            }
            Progress::Done(line) => Ended::Well(line),
            Progress::Failed(line) => Ended::Badly(line),
        };
        self.goals.remove(name);
        self.statuses.remove(name);
        self.waiting.remove(name);
        self.reasons.remove(name);
        Some(ended)
    }

    /// Whether it depends on the machines' states who is there: no watch tells of these.
    fn depends_on_machines(&self) -> bool {
        let global = |status: &Option<UnitStatus>| status.as_ref().is_some_and(|status| status.global);
        self.goals.values().any(Goal::wants_copies_gone) || self.statuses.values().any(global)
    }

    /// Whether a unit is on a machine whose name is not known here.
    fn machines_are_old(&self, status: &UnitStatus) -> bool {
        status.copies.iter().any(|copy| !self.machines.knows(copy.machine))
    }

    /// The first units that no machine takes: of these it is worth asking why.
    fn without_machine(&self) -> Vec<UnitName> {
        let placeless =
            |status: &Option<UnitStatus>| status.as_ref().is_some_and(|status| status.waiting.is_some());
        let names =
            self.statuses.iter().filter(|(_, status)| placeless(status)).map(|(name, _)| name.clone());
        names.take(SHOWN_UNITS).collect()
    }

    /// One line for each of the first units that are not there yet: what it waits for.
    fn lines(&self) -> Vec<String> {
        let line = |name: &UnitName| {
            let reason = match (self.reasons.get(name), self.waiting.get(name)) {
                (Some(waiting), _) => format!("waits: {}", self.explain(waiting)),
                (None, Some(reason)) => harmless(reason).into_owned(),
                (None, None) => "waits for the scheduler's answer".to_owned(),
            };
            format!("{name}: {reason}")
        };
        let mut lines: Vec<String> = self.goals.keys().take(SHOWN_UNITS).map(line).collect();
        if self.goals.len() > SHOWN_UNITS {
            lines.push(format!("and {} more", self.goals.len() - SHOWN_UNITS));
        }
        lines
    }

    fn explain(&self, waiting: &Waiting) -> String {
        let reason = harmless(&waiting.reason);
        if waiting.machines.is_empty() {
            return reason.into_owned();
        }
        let machine =
            |(id, why): &(_, String)| format!("{}: {}", self.machines.legend(*id, false), harmless(why));
        let mut machines: Vec<String> = waiting.machines.iter().take(SHOWN_MACHINES).map(machine).collect();
        if waiting.machines.len() > SHOWN_MACHINES {
            machines.push(format!("and {} more", waiting.machines.len() - SHOWN_MACHINES));
        }
        format!("{reason} ({})", machines.join("; "))
    }

    /// `web.service`, or `web.service and 3 others`.
    fn summary(&self) -> String {
        match (self.goals.keys().next(), self.goals.len()) {
            (None, _) => "nothing".to_owned(),
            (Some(first), 1) => first.to_string(),
            (Some(first), 2) => format!("{first} and 1 other"),
            (Some(first), many) => format!("{first} and {} others", many - 1),
        }
    }
}

/// Waits until every unit is there or has failed, and prints each as it ends.
///
/// # Errors
/// When one has failed, time is up, Ctrl-C was pressed, or the scheduler does not answer any more.
pub async fn wait(
    client: &mut Client,
    mut pending: Pending,
    timeout: Option<Duration>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let start = Instant::now();
    let bar = bar(pending.goals.len());
    let mut failed = false;
    let mut said = bar.is_hidden().then_some(start + SAY_AFTER);
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    refresh.reset(); // what is known is new
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut watch = client.watch(&pending.names()).await?;
    let mut over = false;
    while !pending.goals.is_empty() {
        if over {
            return Err(out_of_time(&bar, &pending, timeout));
        }
        let mut ended = Vec::new();
        tokio::select! {
            seen = watch.next(client) => match seen {
                Ok(seen) => {
                    if seen.iter().filter_map(|(_, status)| status.as_ref()).any(|s| pending.machines_are_old(s)) {
                        ended.extend(pending.see_machines(Machines::of(&client.cluster().await?)));
                    }
                    ended.extend(seen.into_iter().filter_map(|(name, status)| pending.see(&name, status)));
                }
                Err(ended) => watch = client.watch_again(&pending.names(), ended).await?,
            },
            _ = refresh.tick() => ended.extend(look_again(client, &mut pending).await?),
            () = at(said) => {
                said = None;
                ended.extend(look_again(client, &mut pending).await?);
                pending.lines().iter().for_each(|line| anstream::eprintln!("{line}"));
            }
            () = at(timeout.map(|timeout| start + timeout)) => {
                over = true;
                // What is said last should be what is so now, and why.
                let look = tokio::time::timeout(LAST_LOOK, look_again(client, &mut pending));
                ended.extend(look.await.into_iter().flatten().flatten());
            }
            _ = &mut interrupted => return Err(interrupt(&bar, &pending)),
        }
        for ended in ended {
            bar.inc(1);
            match ended {
                Ended::Well(line) => bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()))?,
                Ended::Badly(lines) => {
                    failed = true;
                    let error = Role::Bad.paint("error:");
                    let say = |line| anstream::eprintln!("{error} {}", harmless(line));
                    bar.suspend(|| lines.lines().for_each(say));
                }
            }
        }
        if !bar.is_hidden() {
            bar.set_message(pending.lines().join("\n"));
        }
    }
    bar.finish_and_clear();
    if failed {
        anstream::eprintln!("`musterctl status UNIT` says more about a unit.");
        return Err(Failure::silent(Exit::Failed));
    }
    Ok(())
}

/// Asks for what no watch tells.
async fn look_again(client: &mut Client, pending: &mut Pending) -> Result<Vec<Ended>, Failure> {
    let names = pending.without_machine();
    pending.reasons.clear();
    if !names.is_empty() {
        let wanted = Wanted { names: Some(&names), reasons: true, content: false };
        let units = client.units(wanted).await?;
        pending.reasons =
            units.into_iter().filter_map(|status| Some((status.name, status.waiting?))).collect();
    }
    if pending.depends_on_machines() {
        return Ok(pending.see_machines(Machines::of(&client.cluster().await?)));
    }
    Ok(Vec::new())
}

/// Sleeps until that moment, or for ever.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// On stderr; hidden when that is no terminal.
fn bar(units: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(units as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} of {len} units, {elapsed}\n{msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn out_of_time(bar: &ProgressBar, pending: &Pending, timeout: Option<Duration>) -> Failure {
    bar.finish_and_clear();
    Failure::failed(format_args!(
        "not done after {} s:\n  {}\nThe cluster goes on with it.",
        timeout.unwrap_or_default().as_secs(),
        pending.lines().join("\n  "),
    ))
}

fn interrupt(bar: &ProgressBar, pending: &Pending) -> Failure {
    bar.finish_and_clear();
    Failure::new(
        Exit::Interrupted,
        format_args!(
            "interrupted while waiting for {}. The command stands, and the cluster goes on with it; \
             `musterctl status UNIT` shows how far it is.",
            pending.summary()
        ),
    )
}

#[cfg(test)]
mod tests {
    use muster_core::command::CopyRole;
    use muster_core::state::{DesiredState, Phase};

    use super::*;
    use crate::fixtures::{cluster, held, machines, running, unit, unit_name, with_copy, with_waiting};

    fn pending(names: &[&str], goal: &Goal) -> Pending {
        Pending::new(names.iter().map(|name| (unit_name(name), goal.clone())).collect(), machines())
    }

    #[test]
    fn units_end_one_by_one() {
        let mut pending = pending(&["a.service", "b.service"], &Goal::Launched);
        assert_eq!(
            pending.see(&unit_name("b.service"), Some(unit("b.service", DesiredState::Launched))),
            None
        );
        let ended = pending.see(&unit_name("a.service"), Some(running("a.service")));
        assert_eq!(
            ended,
            Some(Ended::Well("Unit a.service launched on 11111111.../198.18.0.101".to_owned()))
        );
        // What ended is not looked at again.
        assert_eq!(pending.see(&unit_name("a.service"), None), None);
        assert_eq!(pending.lines(), ["b.service: waits for a machine"]);
        assert!(matches!(pending.see(&unit_name("b.service"), None), Some(Ended::Badly(_))));
        assert!(pending.goals.is_empty());
    }

    #[test]
    fn a_machine_that_is_lost_meanwhile_ends_the_wait_for_its_copies() {
        let mut pending = pending(&["a.service"], &Goal::Unloaded);
        let stopping = with_copy(
            unit("a.service", DesiredState::Inactive),
            1,
            CopyRole::Stopping,
            held(Phase::Stopping, "deactivating", "stop-sigterm"),
        );
        assert_eq!(pending.see(&unit_name("a.service"), Some(stopping)), None);
        let mut cluster = cluster();
        cluster.machines[0].state = muster_core::machine::MachineState::Unreachable;
        assert_eq!(
            pending.see_machines(Machines::of(&cluster)),
            [Ended::Well("Unit a.service inactive".to_owned())]
        );
    }

    #[test]
    fn what_units_wait_for() {
        let names: Vec<String> = (1..=7).map(|n| format!("web@{n}.service")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut pending = pending(&names, &Goal::Launched);
        let why = "no machine takes the unit";
        let waits = with_waiting(unit("web@1.service", DesiredState::Launched), why, &[]);
        pending.see(&waits.name, Some(waits.clone()));
        let starting = held(Phase::Starting, "activating", "start");
        let placed = with_copy(unit("web@2.service", DesiredState::Launched), 2, CopyRole::Current, starting);
        pending.see(&unit_name("web@2.service"), Some(placed));
        assert_eq!(pending.without_machine(), std::slice::from_ref(&waits.name));
        insta::assert_snapshot!(pending.lines().join("\n"), @r"
        web@1.service: waits: no machine takes the unit
        web@2.service: starting on 22222222...
        web@3.service: waits for the scheduler's answer
        web@4.service: waits for the scheduler's answer
        web@5.service: waits for the scheduler's answer
        and 2 more
        ");
        let reasons = with_waiting(waits, why, &[(1, "conflicts with db.service"), (3, "is unreachable")]);
        pending.reasons.extend(reasons.waiting.map(|waiting| (reasons.name, waiting)));
        assert_eq!(
            pending.lines()[0],
            "web@1.service: waits: no machine takes the unit (11111111.../198.18.0.101: conflicts with db.service; \
             33333333.../198.18.0.103: is unreachable)"
        );
        assert_eq!(pending.summary(), "web@1.service and 6 others");
    }
}
