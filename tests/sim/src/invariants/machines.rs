//! What agents and PID 1 do.

use muster_core::ids::{Epoch, Term};
use muster_core::state::{Observation, Phase};
use muster_core::unit::UnitName;

use crate::machine::Machine;
use crate::world::World;

impl World {
    /// Invariant 2: Exclusive means one. An exclusive unit is never active on two machines at one moment (but for the two cases
    /// under Leases).
    ///
    /// Here: a machine that stood still as a whole is one of them.
    pub(crate) fn exclusive_means_one(&mut self) {
        let now = self.queue.now();
        let excepted = |machine: &Machine| machine.frozen > 0 || now < machine.excepted_until;
        let machines = || self.machines.iter().filter(|machine| machine.on);
        for name in &self.palette.names {
            let versions: Vec<_> = machines().filter_map(|m| Some((m, m.systemd.lives(name)?))).collect();
            // What takes its place after a restore of the store may be another unit, of other files.
            let latest = versions.iter().map(|(_, version)| version).max_by_key(|version| version.epoch);
            let stop = latest.and_then(|version| version.exclusive);
            let alike = versions.iter().all(|(_, version)| version.exclusive == stop);
            let exclusive = stop.is_some() && (alike || !self.book.restored);
            let certain = versions.iter().filter(|(machine, _)| !excepted(machine)).count();
            if certain > 1 && exclusive {
                let on: Vec<String> = versions
                    .iter()
                    .map(|(m, version)| format!("{} ({})", m.id.short(), version.epoch))
                    .collect();
                let text = format!("{name} runs on {}", on.join(" and "));
                return self.violate("exclusive_means_one", text);
            }
        }
    }

    /// An agent obeys no term older than the newest it has seen, and writes that down before
    /// it obeys. / It applies nothing with a lower epoch than it holds or has stopped.
    pub(super) fn writes_what_it_was_told(&mut self, number: usize, name: &UnitName, epoch: Epoch) {
        let machine = &self.machines[number];
        let book = &self.book.machines[number];
        let told = book.told_to_hold.get(name).and_then(|told| told.get(&epoch));
        let has = machine.files.get(name).map(|file| file.version.epoch);
        let problem = match told {
            None => "nobody told it to",
            Some(told) if told.term > machine.membership.term => "its term is not written down",
            Some(_) if has.is_some_and(|has| has > epoch) => "it has a later copy",
            Some(_) if book.stopped.get(name).is_some_and(|stopped| epoch <= *stopped) => "it has stopped it",
            Some(_) if book.over.get(name).is_some_and(|over| epoch <= *over) => {
                "its end is recorded, and that nothing is left of it"
            }
            Some(_) => return,
        };
        let text = format!("m{number} writes {name} as {epoch}: {problem}");
        self.violate("old_leaders_are_harmless", text);
    }

    /// An agent goes back to no older term.
    pub(super) fn terms_never_go_back(&mut self, number: usize, term: Term) {
        if term < self.machines[number].membership.term {
            let text = format!("m{number} goes back to term {term}");
            self.violate("old_leaders_are_harmless", text);
        }
    }

    /// What the machine starts, it was told to start.
    pub(super) fn starts_what_it_was_told(&mut self, number: usize, name: &UnitName) {
        let machine = &self.machines[number];
        let files = machine.files.get(name).map(|file| file.version.epoch);
        let told = self.book.machines[number].told_to_hold.get(name);
        if !files
            .is_some_and(|epoch| told.and_then(|told| told.get(&epoch)).is_some_and(|told| told.launched))
        {
            let text = format!("m{number} starts {name} from files of {files:?}, which nobody told it to");
            self.violate("old_leaders_are_harmless", text);
        }
    }

    /// What the agent stops. It was told to hold a later placement, or this one loaded only, or to remove it; or
    /// what runs is not what the files say.
    pub(super) fn stops_nothing_healthy(&mut self, number: usize, name: &UnitName) {
        let machine = &self.machines[number];
        let book = &mut self.book.machines[number];
        let obeyed = machine.membership.term;
        let held = machine.files.get(name).map(|file| file.version.epoch);
        let Some(held) = held else {
            // What was begun is carried to its end.
            if !book.stops.iter().any(|(stopped, _)| stopped == name) && machine.systemd.is_running(name) {
                self.violate(
                    "control_plane_is_not_the_workload",
                    format!("m{number} stops {name}, which is not its own"),
                );
            }
            return;
        };
        let told = book.told_to_hold.get(name);
        let later = told.is_some_and(|told| {
            told.iter()
                .any(|(epoch, told)| told.term <= obeyed && (*epoch > held || *epoch == held && told.loaded))
        });
        let removed =
            book.told_to_remove.get(name).is_some_and(|(epoch, term)| *epoch >= held && *term <= obeyed);
        let other = machine.systemd.runs(name).is_none_or(|version| version.epoch != held)
            || machine.systemd.units.get(name).is_some_and(|unit| unit.foreign);
        // Exclusive units end with the guard.
        let file = machine.files.get(name).map(|file| file.version);
        let unguarded = (book.guard_ended || machine.guard.is_none())
            && file.is_some_and(|version| version.exclusive.is_some());
        let other = other || unguarded;
        let begun = book.stops.contains(&(name.clone(), held));
        if !(later || removed || other || begun) {
            let text = format!("m{number} stops {name} ({held}), which is wanted as it is");
            return self.violate("control_plane_is_not_the_workload", text);
        }
        book.stops.insert((name.clone(), held));
    }

    /// Exclusive units end with the lease of their machine, and not before.
    pub(super) fn guard_ends_with_the_lease(&mut self, number: usize) {
        let machine = &self.machines[number];
        let time = machine.clock.time(self.queue.now());
        let book = &mut self.book.machines[number];
        (book.guard_ended, book.guard_kept) = (true, false);
        let lease = machine.agent.as_ref().and_then(|agent| agent.agent.lease_end());
        let stood_still = self.queue.now() < machine.excepted_until;
        let lasts = machine.guard.is_some() && self.queue.now() < machine.guard_until;
        if lasts && !stood_still && lease.is_some_and(|end| time < end) {
            let text = format!("m{number} ends its exclusive units while its lease and its guard last");
            self.violate("control_plane_is_not_the_workload", text);
        }
    }

    /// PID 1 ends exclusive units when the lease is over, and not before.
    pub(super) fn the_guard_lasts_as_long_as_the_lease(&mut self, number: usize) {
        let machine = &self.machines[number];
        let time = machine.clock.time(self.queue.now());
        let lease = machine.agent.as_ref().and_then(|agent| agent.agent.lease_end());
        if self.book.machines[number].guard_kept && lease.is_some_and(|end| time < end) {
            let text = format!("the guard of m{number} ends at {time:?}, and its lease at {lease:?}");
            self.violate("control_plane_is_not_the_workload", text);
        }
    }

    /// What is exclusive and ended with the guard is not done with.
    pub(super) fn what_the_guard_ends_has_not_run_to_its_end<'a>(
        &mut self,
        number: usize,
        said: impl Iterator<Item = (&'a UnitName, Epoch, &'a Observation)>,
    ) {
        let ended = |observation: &Observation| {
            matches!(observation, Observation::Held { phase: Phase::Launched, state: Some(state) }
                if state.active == "inactive")
        };
        for (name, epoch, _) in said.filter(|(_, _, observation)| ended(observation)) {
            let Machine { files, systemd, .. } = &self.machines[number];
            let version = files.get(name).map(|file| file.version);
            // Of an earlier copy, whose files are replaced already, the leader knows that it is over.
            let exclusive = version.filter(|version| version.exclusive.is_some() && version.epoch <= epoch);
            // What the leader wanted stopped may have been so by an agent that had no time to write that down; the leader
            // does not take that copy for the current one any more.
            let stops = &self.book.machines[number].stops;
            let by_itself = |epoch| systemd.exited.contains(name) || stops.contains(&(name.clone(), epoch));
            if exclusive.is_some_and(|version| !by_itself(version.epoch)) {
                let text = format!("m{number} says that {name} has run to its end");
                return self.violate("control_plane_is_not_the_workload", text);
            }
        }
    }

    /// The agent counts its lease from the moment it sent the heartbeat that was answered.
    pub(crate) fn judge_lease(&mut self, number: usize) {
        let Some(agent) = &self.machines[number].agent else { return };
        let end = agent.agent.lease_end();
        let granted = self.book.machines[number].granted;
        if end > granted {
            let text = format!("m{number} takes its lease to end at {end:?}, and was granted {granted:?}");
            self.violate("the_agent_knows_first", text);
        }
    }
}
