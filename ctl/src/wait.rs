//! When a unit is where a command wants it: a pure function of what is known of it.

use std::collections::BTreeSet;

use muster_core::command::{CopyRole, CopyStatus, UnitStatus, Verb};
use muster_core::ids::Epoch;
use muster_core::state::{DesiredState, Observation, Phase};
use muster_core::unit::UnitName;

use crate::output::Machines;
use crate::style::harmless;

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// On a machine.
    Loaded,
    /// On a machine and started.
    Launched,
    /// Started anew: a copy that is none of these.
    Restarted(BTreeSet<Epoch>),
    /// Nothing of it runs.
    Stopped,
    /// On no machine.
    Unloaded,
    /// Forgotten, and on no machine.
    Destroyed,
}

impl Goal {
    /// What a command with this verb waits for; `before` is the unit as it was. `None` where there is nothing to wait
    /// for.
    pub fn of(verb: Verb, before: Option<&UnitStatus>) -> Option<Self> {
        Some(match verb {
            Verb::Submit => return None,
            Verb::Load => Self::Loaded,
            Verb::Start => Self::Launched,
            Verb::Restart => Self::Restarted(
                before.map(|status| status.copies.iter().map(|c| c.epoch).collect()).unwrap_or_default(),
            ),
            Verb::Stop => Self::Stopped,
            Verb::Unload => Self::Unloaded,
            Verb::Destroy => Self::Destroyed,
        })
    }

    fn desired(&self) -> DesiredState {
        match self {
            Self::Launched | Self::Restarted(_) => DesiredState::Launched,
            Self::Loaded | Self::Stopped => DesiredState::Loaded,
            Self::Unloaded | Self::Destroyed => DesiredState::Inactive,
        }
    }

    /// Whether it is reached by machines letting go of copies.
    pub fn wants_copies_gone(&self) -> bool {
        matches!(self, Self::Stopped | Self::Unloaded | Self::Destroyed)
    }
}

/// How far a unit is on the way to a goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not there, for this reason.
    Waiting(String),
    /// There: the line that says so.
    Done(String),
    /// It will not get there by itself, for this reason: one line for each machine.
    Failed(String),
}

/// Of how many machines it is shown how a global unit failed there.
const SHOWN_FAILURES: usize = 10;

/// How far the unit is. `status` is `None` when the cluster knows nothing of it.
pub fn judge(goal: &Goal, name: &UnitName, status: Option<&UnitStatus>, machines: &Machines) -> Progress {
    let Some(status) = status else {
        return match goal {
            Goal::Destroyed => Progress::Done(format!("Destroyed {name}")),
            _ => Progress::Failed(format!("{name} was destroyed by another command")),
        };
    };
    if *goal == Goal::Destroyed {
        // Known again: somebody has submitted it anew since.
        return match held(status, machines).filter(|_| !status.known) {
            Some(waiting) => Progress::Waiting(waiting),
            None => Progress::Done(format!("Destroyed {name}")),
        };
    }
    if !status.known {
        return Progress::Failed(format!("{name} was destroyed by another command"));
    }
    if status.desired != goal.desired() {
        return Progress::Failed(format!("another command wants {name} {} by now", status.desired));
    }
    if *goal == Goal::Unloaded {
        return match held(status, machines) {
            Some(waiting) => Progress::Waiting(waiting),
            None => Progress::Done(format!("Unit {name} inactive")),
        };
    }
    if *goal == Goal::Stopped
        && let Some(waiting) = older(status, machines)
    {
        return Progress::Waiting(waiting);
    }
    if status.global {
        return everywhere(goal, name, status, machines);
    }
    match (status.current_copy(), &status.waiting) {
        // It has no place, so nothing of it runs.
        (None, _) if *goal == Goal::Stopped => Progress::Done(format!("Unit {name} loaded")),
        // Even if it has a machine: that one is lost, and no other takes it.
        (_, Some(waiting)) if *goal != Goal::Stopped => {
            Progress::Waiting(format!("waits: {}", waiting.reason))
        }
        (None, _) => Progress::Waiting("waits for a machine".to_owned()),
        (Some(copy), _) => match (on_machine(goal, name, copy, machines), &status.trouble) {
            (Progress::Failed(line), Some(trouble)) => {
                Progress::Failed(format!("{line}; {}", harmless(trouble)))
            }
            (progress, _) => progress,
        },
    }
}

/// A global unit is there when each of its copies is. A machine that is lost is not waited for.
fn everywhere(goal: &Goal, name: &UnitName, status: &UnitStatus, machines: &Machines) -> Progress {
    let decided = status.copies.iter().filter(|copy| copy.role == CopyRole::Current);
    let (lost, copies): (Vec<_>, Vec<_>) = decided.partition(|copy| machines.lost(copy.machine));
    let (mut done, mut waiting, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for copy in &copies {
        match on_machine(goal, name, copy, machines) {
            Progress::Done(line) => done.push(line),
            Progress::Waiting(reason) => waiting.push(reason),
            Progress::Failed(line) => failed.push(line),
        }
    }
    if let Some(first) = waiting.first() {
        let settled = copies.len() - waiting.len();
        return Progress::Waiting(format!("settled on {settled} of {} machines; {first}", copies.len()));
    }
    if !failed.is_empty() {
        let more = failed.len().saturating_sub(SHOWN_FAILURES);
        failed.truncate(SHOWN_FAILURES);
        if more > 0 {
            failed.push(format!("{name} failed on {more} more machines"));
        }
        return Progress::Failed(failed.join("\n"));
    }
    let desired = goal.desired();
    let unreachable = match (lost.len(), copies.len()) {
        (0, _) => String::new(),
        (lost, 0) => format!(" ({lost} unreachable)"),
        (lost, _) => format!(" ({lost} more unreachable)"),
    };
    match (copies.len(), done.pop()) {
        (_, None) if machines.awaited() => Progress::Waiting("waits for the machines to report".to_owned()),
        (_, None) => Progress::Done(format!(
            "Unit {name} {desired} on no machine: none takes it at present{unreachable}"
        )),
        (1, Some(line)) => Progress::Done(format!("{line}{unreachable}")),
        (many, Some(_)) => Progress::Done(format!("Unit {name} {desired} on {many} machines{unreachable}")),
    }
}

/// Which machine still has to let go of the unit. One that is lost is not waited for: it lets go when it is heard from.
fn held(status: &UnitStatus, machines: &Machines) -> Option<String> {
    let copy =
        status.copies.iter().find(|copy| copy.role != CopyRole::Orphaned && !machines.lost(copy.machine))?;
    Some(format!("being stopped on {}{}", machines.legend(copy.machine, false), hindrance(copy)))
}

/// Which older copy still runs.
fn older(status: &UnitStatus, machines: &Machines) -> Option<String> {
    let older = |copy: &&CopyStatus| copy.role == CopyRole::Stopping && !machines.lost(copy.machine);
    let copy = status.copies.iter().find(older)?;
    let on = machines.legend(copy.machine, false);
    Some(format!("an older copy is being stopped on {on}{}", hindrance(copy)))
}

/// Why a copy could not be ended so far, if that was tried, to be added to a sentence.
fn hindrance(copy: &CopyStatus) -> String {
    match &copy.observation {
        Some(Observation::Held { phase: Phase::StopFailed(failure), .. }) => {
            format!(": {}", harmless(&failure.reason))
        }
        _ => String::new(),
    }
}

/// How far the copy that was decided is on its machine.
fn on_machine(goal: &Goal, name: &UnitName, copy: &CopyStatus, machines: &Machines) -> Progress {
    let on = machines.legend(copy.machine, false);
    if let Goal::Restarted(before) = goal
        && before.contains(&copy.epoch)
    {
        return Progress::Waiting(format!("being stopped on {on}"));
    }
    let phase = match &copy.observation {
        None => return Progress::Waiting(format!("on {on}, which has not answered yet")),
        Some(Observation::Refused(_)) if *goal == Goal::Stopped => &Phase::Loaded,
        Some(Observation::Refused(reason)) => {
            return Progress::Failed(format!("{on} refuses {name}: {}", harmless(reason)));
        }
        Some(Observation::Held { phase, .. }) => phase,
    };
    match (goal.desired(), phase) {
        (DesiredState::Launched, Phase::Launched) => Progress::Done(format!("Unit {name} launched on {on}")),
        (DesiredState::Launched, Phase::StartFailed(failure)) => {
            Progress::Failed(format!("{name} did not start on {on}: {}", harmless(&failure.reason)))
        }
        (DesiredState::Launched, Phase::Failed(failure)) => {
            Progress::Failed(format!("{name} was started on {on} and failed: {}", harmless(&failure.reason)))
        }
        (DesiredState::Launched, Phase::Loaded | Phase::Starting) => {
            Progress::Waiting(format!("starting on {on}"))
        }
        (DesiredState::Loaded, Phase::Loaded) => Progress::Done(format!("Unit {name} loaded on {on}")),
        _ => Progress::Waiting(format!("being stopped on {on}{}", hindrance(copy))),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::fixtures::{
        cluster, failure, held, machines, running, unit, unit_name, with_copy, with_waiting, zoo,
    };

    fn judged(goal: &Goal, status: &UnitStatus) -> Progress {
        judge(goal, &status.name, Some(status), &machines())
    }

    fn restarted(status: &UnitStatus) -> Goal {
        Goal::of(Verb::Restart, Some(status)).expect("waited for")
    }

    /// Each sort of unit under each goal.
    #[test]
    fn everything_judged() {
        let goals = [Goal::Loaded, Goal::Launched, Goal::Stopped, Goal::Unloaded, Goal::Destroyed];
        let mut shown = String::new();
        for goal in &goals {
            let _ = writeln!(shown, "{goal:?}");
            for mut status in zoo() {
                // As right after the command.
                status.known &= *goal != Goal::Destroyed;
                status.desired = goal.desired();
                let _ = writeln!(shown, "  {}: {:?}", status.name, judged(goal, &status));
            }
        }
        insta::assert_snapshot!(shown);
    }

    fn global(desired: DesiredState, phases: &[(u128, Option<Phase>)]) -> UnitStatus {
        let mut status = unit("all.service", desired);
        status.global = true;
        for (machine, phase) in phases {
            status = with_copy(
                status,
                *machine,
                CopyRole::Current,
                phase.clone().map(|phase| held(phase, "", "")),
            );
        }
        status
    }

    #[test]
    fn a_global_unit_is_waited_for_on_each_machine() {
        let failed = || Some(Phase::StartFailed(failure("exit-code")));
        let launched = || Some(Phase::Launched);
        let cases = [
            vec![],
            vec![(1, launched())],
            vec![(1, launched()), (2, launched())],
            vec![(1, launched()), (2, Some(Phase::Starting))],
            vec![(1, failed()), (2, None)],
            vec![(1, failed()), (2, launched())],
            vec![(1, failed()), (2, failed())],
            // Machine 3 is lost.
            vec![(1, launched()), (3, Some(Phase::Starting))],
            vec![(3, None)],
        ];
        let mut shown = String::new();
        for phases in cases {
            let progress = judged(&Goal::Launched, &global(DesiredState::Launched, &phases));
            let _ = writeln!(shown, "{progress:?}");
        }
        insta::assert_snapshot!(shown, @r#"
        Done("Unit all.service launched on no machine: none takes it at present")
        Done("Unit all.service launched on 11111111.../198.18.0.101")
        Done("Unit all.service launched on 2 machines")
        Waiting("settled on 1 of 2 machines; starting on 22222222...")
        Waiting("settled on 1 of 2 machines; on 22222222..., which has not answered yet")
        Failed("all.service did not start on 11111111.../198.18.0.101: exit-code")
        Failed("all.service did not start on 11111111.../198.18.0.101: exit-code\nall.service did not start on 22222222...: exit-code")
        Done("Unit all.service launched on 11111111.../198.18.0.101 (1 more unreachable)")
        Done("Unit all.service launched on no machine: none takes it at present (1 unreachable)")
        "#);

        let stopping = global(DesiredState::Loaded, &[(1, Some(Phase::Loaded)), (2, Some(Phase::Stopping))]);
        let waiting = "settled on 1 of 2 machines; being stopped on 22222222...";
        assert_eq!(judged(&Goal::Stopped, &stopping), Progress::Waiting(waiting.to_owned()));
        let stopped = global(DesiredState::Loaded, &[(1, Some(Phase::Loaded)), (2, Some(Phase::Loaded))]);
        let done = "Unit all.service loaded on 2 machines";
        assert_eq!(judged(&Goal::Stopped, &stopped), Progress::Done(done.to_owned()));
        let before = global(DesiredState::Launched, &[(1, launched()), (2, launched())]);
        let mut half = before.clone();
        half.copies[0].epoch.counter += 10;
        assert!(matches!(judged(&restarted(&before), &half), Progress::Waiting(_)));

        // A scheduler that has just started has decided nothing yet.
        let mut cluster = cluster();
        cluster.machines[0].state = muster_core::machine::MachineState::Awaited;
        let nowhere = global(DesiredState::Launched, &[]);
        let progress = judge(&Goal::Launched, &nowhere.name, Some(&nowhere), &Machines::of(&cluster));
        assert_eq!(progress, Progress::Waiting("waits for the machines to report".to_owned()));
    }

    #[test]
    fn a_restart_is_over_when_another_copy_runs() {
        let before = running("web.service");
        let goal = restarted(&before);
        assert_eq!(
            judged(&goal, &before),
            Progress::Waiting("being stopped on 11111111.../198.18.0.101".to_owned())
        );
        let mut after = before;
        after.copies[0].epoch.counter += 1;
        assert_eq!(
            judged(&goal, &after),
            Progress::Done("Unit web.service launched on 11111111.../198.18.0.101".to_owned())
        );
        after.copies[0].observation = None;
        assert!(matches!(judged(&goal, &after), Progress::Waiting(_)));
    }

    #[test]
    fn a_lost_machine_is_not_waited_for_when_copies_should_go() {
        let on_lost = with_copy(unit("web.service", DesiredState::Inactive), 3, CopyRole::Stopping, None);
        assert_eq!(judged(&Goal::Unloaded, &on_lost), Progress::Done("Unit web.service inactive".to_owned()));
        let mut forgotten = on_lost;
        forgotten.known = false;
        assert_eq!(judged(&Goal::Destroyed, &forgotten), Progress::Done("Destroyed web.service".to_owned()));
        let on_live =
            with_copy(forgotten, 1, CopyRole::Stopping, held(Phase::Stopping, "deactivating", "stop"));
        assert!(matches!(judged(&Goal::Destroyed, &on_live), Progress::Waiting(_)));
        assert_eq!(
            judge(&Goal::Destroyed, &unit_name("web.service"), None, &machines()),
            Progress::Done("Destroyed web.service".to_owned())
        );
    }

    #[test]
    fn a_copy_on_a_lost_machine_does_not_count_as_started() {
        let stuck = with_copy(
            unit("web.service", DesiredState::Launched),
            3,
            CopyRole::Current,
            held(Phase::Launched, "active", "running"),
        );
        let stuck = with_waiting(
            stuck,
            "its machine 33333333 is unreachable, and no other machine takes the unit",
            &[],
        );
        assert!(matches!(judged(&Goal::Launched, &stuck), Progress::Waiting(_)));
    }

    #[test]
    fn what_another_command_changed_is_not_waited_for() {
        let mut stopped = running("web.service");
        stopped.desired = DesiredState::Loaded;
        assert_eq!(
            judged(&Goal::Launched, &stopped),
            Progress::Failed("another command wants web.service loaded by now".to_owned())
        );
        assert_eq!(
            judge(&Goal::Launched, &unit_name("web.service"), None, &machines()),
            Progress::Failed("web.service was destroyed by another command".to_owned())
        );
        // Destroyed, and submitted anew before anybody looked.
        let anew = running("web.service");
        assert_eq!(judged(&Goal::Destroyed, &anew), Progress::Done("Destroyed web.service".to_owned()));
    }
}
