//! When a unit is where a command wants it: a pure function of what is known of it.

use std::collections::BTreeSet;

use muster_core::command::{CopyRole, CopyStatus, UnitStatus, Verb};
use muster_core::ids::Epoch;
use muster_core::state::{DesiredState, Observation, Phase};
use muster_core::unit::UnitName;

use crate::output::{Machines, current_copy};

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

    fn verb(&self) -> &'static str {
        match self {
            Self::Loaded => "load",
            Self::Launched => "start",
            Self::Restarted(_) => "restart",
            Self::Stopped => "stop",
            Self::Unloaded => "unload",
            Self::Destroyed => "destroy",
        }
    }
}

/// How far a unit is on the way to a goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not there, for this reason.
    Waiting(String),
    /// There: the line that says so.
    Done(String),
    /// It will not get there by itself, for this reason.
    Failed(String),
}

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
    if status.global {
        return Progress::Done(format!("Triggered global unit {name} {}", goal.verb()));
    }
    match goal {
        Goal::Unloaded => match held(status, machines) {
            Some(waiting) => Progress::Waiting(waiting),
            None => Progress::Done(format!("Unit {name} inactive")),
        },
        Goal::Stopped => stopped(name, status, machines),
        _ => placed(goal, name, status, machines),
    }
}

/// Which machine still has to let go of the unit. One that is lost is not waited for: it lets go when it is heard from.
fn held(status: &UnitStatus, machines: &Machines) -> Option<String> {
    let copy =
        status.copies.iter().find(|copy| copy.role != CopyRole::Orphaned && !machines.lost(copy.machine))?;
    Some(format!("being stopped on {}", machines.legend(copy.machine, false)))
}

fn stopped(name: &UnitName, status: &UnitStatus, machines: &Machines) -> Progress {
    let older =
        status.copies.iter().find(|copy| copy.role == CopyRole::Stopping && !machines.lost(copy.machine));
    if let Some(copy) = older {
        return Progress::Waiting(format!(
            "an older copy is being stopped on {}",
            machines.legend(copy.machine, false)
        ));
    }
    let Some(copy) = current_copy(status) else {
        // It has no place, so nothing of it runs.
        return Progress::Done(format!("Unit {name} loaded"));
    };
    let on = machines.legend(copy.machine, false);
    match &copy.observation {
        Some(Observation::Held { phase: Phase::Loaded, .. } | Observation::Refused(_)) => {
            Progress::Done(format!("Unit {name} loaded on {on}"))
        }
        None => Progress::Waiting(format!("on {on}, which has not answered yet")),
        Some(Observation::Held { .. }) => Progress::Waiting(format!("being stopped on {on}")),
    }
}

fn placed(goal: &Goal, name: &UnitName, status: &UnitStatus, machines: &Machines) -> Progress {
    if let Some(waiting) = &status.waiting {
        // Even if it has a machine: that one is lost, and no other takes it.
        return Progress::Waiting(format!("waits: {}", waiting.reason));
    }
    let Some(copy) = current_copy(status) else {
        return Progress::Waiting("waits for a machine".to_owned());
    };
    let on = machines.legend(copy.machine, false);
    if let Goal::Restarted(before) = goal
        && before.contains(&copy.epoch)
    {
        return Progress::Waiting(format!("being stopped on {on}"));
    }
    let CopyStatus { observation: Some(observation), .. } = copy else {
        return Progress::Waiting(format!("on {on}, which has not answered yet"));
    };
    match observation {
        Observation::Refused(reason) => Progress::Failed(format!("{on} refuses {name}: {reason}")),
        Observation::Held { phase, .. } => match (goal, phase) {
            (Goal::Loaded, Phase::Loaded) => Progress::Done(format!("Unit {name} loaded on {on}")),
            (Goal::Loaded, _) | (_, Phase::Stopping) => Progress::Waiting(format!("being stopped on {on}")),
            (_, Phase::Launched) => Progress::Done(format!("Unit {name} launched on {on}")),
            (_, Phase::StartFailed(reason)) => {
                Progress::Failed(format!("{name} did not start on {on}: {reason}"))
            }
            (_, Phase::Loaded | Phase::Starting) => Progress::Waiting(format!("starting on {on}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::fixtures::{held, machines, running, unit, unit_name, with_copy, with_waiting, zoo};

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
