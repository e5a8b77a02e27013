//! The eight invariants of the design, each a function of its name. Those that are looked at in several moments are here,
//! with what is looked at in each.
//!
//! | invariant | function | where |
//! | --- | --- | --- |
//! | 1. Nothing acknowledged is lost | `nothing_acknowledged_is_lost` | here |
//! | 2. Exclusive means one | `exclusive_means_one` | `machines` |
//! | 3. One current copy | `one_current_copy` | here |
//! | 4. Everything converges | `everything_converges` | `healing` |
//! | 5. Old leaders are harmless | `old_leaders_are_harmless` | here |
//! | 6. The control plane is not the workload | `control_plane_is_not_the_workload` | here |
//! | 7. Constraints hold | `constraints_hold` | `decisions` |
//! | 8. No storm | `no_storm` | `storm` |

use std::collections::BTreeSet;

use muster_core::command::{CommandResult, QueryAnswer};
use muster_core::ids::{Epoch, MachineId, Term};
use muster_core::leader::{Effect, RequestId};
use muster_core::message::Assignment;
use muster_core::state::Observation;
use muster_core::unit::UnitName;

use super::Before;
use crate::book::Cause;
use crate::world::World;

/// When something may be lost, or be acknowledged that is.
pub(crate) enum Acknowledged<'a> {
    /// The leader has made a step for this reason, and this is to come of it.
    Step(&'a Cause, &'a [Effect]),
    /// It has decided this of the units that were so before, and of those that have other files.
    Batch(&'a Cause, &'a Before, &'a BTreeSet<UnitName>),
    Command(RequestId, &'a CommandResult),
    Machines(RequestId),
    Query(RequestId, &'a QueryAnswer),
}

/// What may be done for a leader that was overtaken.
pub(crate) enum Done<'a> {
    /// Something is said in this term.
    Says(Term),
    /// A leader that was deposed does this.
    Deposed(&'a Effect),
    /// A machine takes this term for the latest.
    Obeys(usize, Term),
    Writes(usize, &'a UnitName, Epoch),
    Starts(usize, &'a UnitName),
}

/// What may touch a healthy unit.
pub(crate) enum Touches<'a> {
    /// The leader has decided on units that were so before.
    Decides(&'a Cause, &'a Before),
    /// A machine is told to have this loaded only.
    Loads(usize, &'a Assignment),
    Stops(usize, &'a UnitName),
    /// The agent has seen the guard end, and PID 1 ends what is bound to it.
    GuardSeenToEnd(usize),
    GuardEnds(usize),
    /// A machine says this of the units that it holds.
    Reports(usize, Vec<(&'a UnitName, Epoch, &'a Observation)>),
}

impl World {
    /// Invariant 1: Nothing acknowledged is lost. What a client was told is done survives every crash.
    pub(crate) fn nothing_acknowledged_is_lost(&mut self, moment: &Acknowledged<'_>) {
        match *moment {
            Acknowledged::Step(cause, effects) => self.commands_are_carried_out_once(cause, effects),
            Acknowledged::Batch(cause, before, refiled) => {
                self.intent_is_what_clients_asked_for(cause, before, refiled);
            }
            Acknowledged::Command(request, result) => self.is_answered(request, result),
            Acknowledged::Machines(request) => self.judge_machines(request),
            Acknowledged::Query(request, answer) => self.judge_query(request, answer),
        }
    }

    /// Invariant 3: One current copy. Any other unit has at most one current placement; older copies stop once their machine is
    /// heard from.
    pub(super) fn one_current_copy(&mut self, before: &Before, ended: &[(MachineId, UnitName, Epoch)]) {
        self.each_is_placed_once(before);
        self.epochs_never_repeat(before);
        self.what_is_over_is_gone(ended);
    }

    /// Invariant 5: Old leaders are harmless. Nothing is written or done in a term that has been overtaken.
    pub(crate) fn old_leaders_are_harmless(&mut self, done: &Done<'_>) {
        match *done {
            Done::Says(term) => self.is_said_by_the_leader(term),
            Done::Deposed(effect) => self.the_deposed_say_nothing(effect),
            Done::Obeys(number, term) => self.terms_never_go_back(number, term),
            Done::Writes(number, name, epoch) => self.writes_what_it_was_told(number, name, epoch),
            Done::Starts(number, name) => self.starts_what_it_was_told(number, name),
        }
    }

    /// Invariant 6: The control plane is not the workload. Crash, restart, upgrade or failover of schedulers and agents never
    /// stops, restarts or moves a healthy unit on a machine whose lease is valid.
    pub(crate) fn control_plane_is_not_the_workload(&mut self, touches: Touches<'_>) {
        match touches {
            Touches::Decides(cause, before) => self.placements_end_for_a_reason(cause, before),
            Touches::Loads(number, hold) => self.what_runs_is_to_run_on(number, hold),
            Touches::Stops(number, name) => self.stops_nothing_healthy(number, name),
            Touches::GuardSeenToEnd(number) => self.guard_ends_with_the_lease(number),
            Touches::GuardEnds(number) => self.the_guard_lasts_as_long_as_the_lease(number),
            Touches::Reports(number, said) => {
                self.what_the_guard_ends_has_not_run_to_its_end(number, said.into_iter());
            }
        }
    }
}
