//! Clients' questions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Effect, Held, Leader, Machine, Unit};
use crate::command::{
    BrakeStatus, ClusterStatus, CopyRole, CopyStatus, MachineStatus, Page, Query, QueryAnswer, Rows,
    UnitStatus, Waiting,
};
use crate::ids::{Epoch, MachineId};
use crate::leader::groups::Group;
use crate::leader::io::RequestId;
use crate::machine::{Availability, MachineRecord, MachineState};
use crate::planted::{self, Fault};
use crate::state::DesiredState;
use crate::unit::{ContentHash, UnitName};

/// For how many units that wait one answer says why each machine refuses them: that costs as much as trying to place
/// them everywhere, and heartbeats wait meanwhile.
const EXPLAINED: usize = 20;

/// Why the machine takes no new units at all.
fn why_closed(machine: &Machine) -> Option<&'static str> {
    Some(match (machine.state, machine.availability) {
        (MachineState::Unreachable, _) if machine.host_answers == Some(true) => {
            "is unreachable, though its host answers: see to its agent"
        }
        (MachineState::Unreachable, _) => "is unreachable",
        (MachineState::Awaited, _) => "has not reported yet",
        _ if machine.record.leaving => "shuts down",
        (_, Availability::Cordoned) => "is cordoned",
        (_, Availability::Draining(_)) => "is being drained",
        (MachineState::Degraded, _) => "has a systemd that does not answer",
        (MachineState::Up, Availability::Open) if machine.session.is_none() => "is not connected at present",
        (MachineState::Up, Availability::Open) => return None,
    })
}

impl Leader {
    /// Answers once all that the answer may rest on is durable.
    pub(super) fn answer(&mut self, request: RequestId, query: Query) {
        let answer = match &query {
            Query::Units { names, content, reasons } => {
                let mut explained = if *reasons { EXPLAINED } else { 0 };
                let unit = |name: &UnitName| {
                    let status = self.unit_status(name, *content, explained > 0)?;
                    explained -= usize::from(explained > 0 && status.waiting.is_some());
                    Some(status)
                };
                QueryAnswer::Units(match names {
                    Some(names) => {
                        names.iter().collect::<BTreeSet<_>>().into_iter().filter_map(unit).collect()
                    }
                    None => self.all_names().into_iter().filter_map(unit).collect(),
                })
            }
            Query::Page(page) => QueryAnswer::Units(self.page(page)),
            Query::Machines { left_on } => QueryAnswer::Machines(self.cluster_status(left_on)),
            Query::Rto(name) => QueryAnswer::Rto(self.rto(name)),
            Query::Backup => return self.turn.backups.push(request),
        };
        if planted::is(Fault::QueryBeforeCommit) {
            return self.outbox.now(Effect::AnswerQuery(request, answer));
        }
        self.turn.effects.push(Held::Answer(request, query, Effect::AnswerQuery(request, answer)));
    }

    /// The units that the cluster knows, and those of which copies are left.
    fn all_names(&self) -> BTreeSet<&UnitName> {
        self.units.keys().chain(self.placer.forgotten()).chain(self.strays.keys()).collect()
    }

    fn page(&self, page: &Page) -> Vec<UnitStatus> {
        match &page.rows {
            Rows::Units => {
                let names = self.units.keys().skip(page.skip).take(page.most);
                names.filter_map(|name| self.unit_status(name, true, false)).collect()
            }
            Rows::States { unit, machine } => self.page_of_states(page, unit.as_ref(), *machine),
        }
    }

    fn page_of_states(
        &self,
        page: &Page,
        unit: Option<&UnitName>,
        machine: Option<MachineId>,
    ) -> Vec<UnitStatus> {
        let names = match unit {
            Some(unit) => BTreeSet::from([unit]),
            None => self.all_names(),
        };
        let (mut skip, mut most) = (page.skip, page.most);
        let mut units = Vec::new();
        for name in names {
            if most == 0 {
                break;
            }
            let mut rows = self.copies(name);
            rows.retain(|copy| copy.unit_state().is_some() && machine.is_none_or(|id| id == copy.machine));
            // Of one machine there is one state, whatever else was decided there.
            let mut seen = BTreeSet::new();
            rows.retain(|copy| seen.insert(copy.machine));
            let left_out = skip.min(rows.len());
            skip -= left_out;
            let copies: Vec<CopyStatus> = rows.into_iter().skip(left_out).take(most).collect();
            most -= copies.len();
            if !copies.is_empty() {
                units.extend(
                    self.unit_status(name, true, false).map(|status| UnitStatus { copies, ..status }),
                );
            }
        }
        units
    }

    fn unit_status(&self, name: &UnitName, content: bool, explain: bool) -> Option<UnitStatus> {
        let copies = self.copies(name);
        let Some(unit) = self.units.get(name) else {
            let held = copies
                .iter()
                .find_map(|copy| Some(self.machines.get(&copy.machine)?.observed.get(name)?.hash));
            return (!copies.is_empty()).then(|| UnitStatus {
                name: name.clone(),
                known: false,
                hash: held.unwrap_or_else(|| ContentHash::of(b"")),
                content: None,
                description: String::new(),
                desired: DesiredState::Inactive,
                global: false,
                copies,
                waiting: None,
                trouble: None,
                done: false,
            });
        };
        Some(UnitStatus {
            name: name.clone(),
            known: true,
            hash: unit.hash,
            content: content.then(|| Arc::clone(&unit.content)),
            description: unit.description.to_string(),
            desired: unit.desired,
            global: unit.options.global,
            copies,
            waiting: self.waiting(name, explain),
            trouble: self.trouble(name).or_else(|| self.adoption(name)),
            done: unit.done,
        })
    }

    /// All copies of a unit that were decided or are seen, current ones first.
    fn copies(&self, name: &UnitName) -> Vec<CopyStatus> {
        let mut found: BTreeMap<(CopyRole, MachineId), Epoch> = BTreeMap::new();
        let placements = self.units.get(name).map(|unit| &unit.placements);
        for (machine, epoch) in placements.into_iter().flatten() {
            found.insert((CopyRole::Current, *machine), *epoch);
        }
        for machine in self.placer.copies(name) {
            if let Some(retired) = self.retired.get(&(machine, name.clone())) {
                found.insert((CopyRole::Stopping, machine), retired.epoch);
            }
        }
        for (machine, epoch) in self.strays.get(name).into_iter().flatten() {
            if self.is_orphan(*machine, name, *epoch) {
                found.insert((CopyRole::Orphaned, *machine), *epoch);
            }
        }
        let status = |((role, machine), epoch): ((CopyRole, MachineId), Epoch)| {
            let seen = self.machines.get(&machine).and_then(|machine| machine.observed.get(name));
            let seen = seen.filter(|copy| role != CopyRole::Current || copy.epoch == epoch);
            CopyStatus { machine, epoch, role, observation: seen.map(|copy| copy.observation.clone()) }
        };
        found.into_iter().map(status).collect()
    }

    /// Whether the leader has no record of this copy.
    pub(super) fn is_orphan(&self, machine: MachineId, name: &UnitName, epoch: Epoch) -> bool {
        self.latest_known(machine, name).is_none_or(|known| known < epoch)
    }

    /// Why a unit is on no machine that is reachable.
    fn waiting(&self, name: &UnitName, explain: bool) -> Option<Waiting> {
        let unit = self.units.get(name)?;
        // It is where it fits, but that is nowhere.
        let nowhere = unit.options.global
            && unit.desired != DesiredState::Inactive
            && unit.placements.is_empty()
            && !name.is_template();
        if !self.waits(name, unit) && !nowhere {
            let reason = self.away_with(unit).or_else(|| self.withheld(name, unit).map(str::to_owned))?;
            return Some(Waiting { reason, machines: Vec::new() });
        }
        let reason = |reason: &str| Some(Waiting { reason: reason.to_owned(), machines: Vec::new() });
        if !self.settled {
            return reason("the scheduler has just started and waits for the machines to report");
        }
        if self.machines.is_empty() {
            return reason("no machine has joined the cluster");
        }
        let on = unit.placements.keys().next().and_then(|id| Some((id, self.machines.get(id)?)));
        let emptied = on.filter(|(_, machine)| machine.state != MachineState::Unreachable);
        let braked = unit.placements.keys().find(|machine| self.is_braked(**machine));
        if let Some(machine) = braked
            && let Some(BrakeStatus { machines, held_ms, left_ms }) = self.braked()
        {
            let most = match left_ms {
                0 => String::new(),
                ms => format!(", for {} s more at most", ms.div_ceil(1000)),
            };
            return reason(&format!(
                "its machine {} is unreachable, and the brake has been on for {} s: {} machines seem to have died at \
                 once, and nothing is moved until they are back{most}; if they are really dead: `musterctl brake release`",
                machine.short(),
                held_ms / 1000,
                machines.len(),
            ));
        }
        if !explain {
            // It runs where it is.
            if emptied.is_some() {
                return None;
            }
            return reason(&format!("no machine takes it; `musterctl status {name}` says why"));
        }
        let group = match self.group(name) {
            // No machine takes it together with others.
            _ if nowhere => Group::of_one(name),
            Ok(group) => group,
            Err(why) => return reason(&why.to_string()),
        };
        if let Some((leaving, from, to)) = self.room_being_made(&group.units) {
            return reason(&format!(
                "it waits for {leaving}, which it replaces and which is leaving {} for {}",
                from.short(),
                to.short()
            ));
        }
        let refusals = self.refusals(&group);
        let subject = match group.units.len() {
            1 => "the unit".to_owned(),
            n => format!("the {n} units that are tied together"),
        };
        Some(Waiting {
            reason: match on {
                Some((id, machine)) => {
                    let why = why_closed(machine).unwrap_or("is left");
                    if refusals.len() < self.machines.len() {
                        return reason(&format!(
                            "its machine {} {why}, and it {}",
                            id.short(),
                            self.why_not_yet(&group.units, *id)
                        ));
                    }
                    format!("its machine {} {why}, and no other machine takes {subject}", id.short())
                }
                None => format!("no machine takes {subject}"),
            },
            machines: refusals,
        })
    }

    /// Why nothing of a unit runs that stays with its machine, if that one is away.
    fn away_with(&self, unit: &Unit) -> Option<String> {
        let id = self.live_machine(unit).filter(|_| !unit.options.global && !unit.done)?;
        let machine = self.machines.get(&id).filter(|machine| machine.state == MachineState::Unreachable)?;
        Some(format!(
            "it stays with its machine {} (OnReboot=keep), which {}",
            id.short(),
            machine.why_idle()?
        ))
    }

    /// What each machine has against these units, if anything.
    pub(super) fn refusals(&self, group: &Group) -> Vec<(MachineId, String)> {
        let refusal = |(id, machine): (&MachineId, &Machine)| {
            if let Some(why) = why_closed(machine) {
                return Some((*id, why.to_owned()));
            }
            let tied = self.group_may_be_on(group, *id);
            match tied.and_then(|()| self.placer.check(&group.units, *id)) {
                Err(refusal) => Some((*id, refusal.to_string())),
                Ok(()) if self.old_copies_allow(&group.units, *id) => None,
                Ok(()) => {
                    Some((*id, "still has an older copy, whose end no lease would bring about".to_owned()))
                }
            }
        };
        self.machines.iter().filter_map(refusal).collect()
    }

    fn cluster_status(&self, left_on: &[MachineId]) -> ClusterStatus {
        let mut explained = EXPLAINED;
        let mut orphans: BTreeMap<MachineId, usize> = BTreeMap::new();
        for (name, on) in &self.strays {
            for (id, epoch) in on {
                let counted = self.placer.copies(name).any(|machine| machine == *id);
                *orphans.entry(*id).or_default() +=
                    usize::from(!counted && self.is_orphan(*id, name, *epoch));
            }
        }
        let machine = |(id, machine): (&MachineId, &super::Machine)| {
            let (units, reserved) = self.placer.usage(*id);
            let heard = machine.last_heard.map(|heard| self.now.since(heard).as_millis());
            MachineStatus {
                id: *id,
                record: MachineRecord { labels: self.labels_of(*id), ..machine.record.clone() },
                state: machine.state,
                availability: machine.availability,
                last_heard_ms: heard.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
                units,
                orphans: orphans.get(id).copied().unwrap_or_default(),
                left: if left_on.contains(id) { self.left(*id, &mut explained) } else { Vec::new() },
                reserved,
                pressure: machine.pressure,
                rival: self.rivals.status(*id, self.now),
                host_answers: machine.host_answers,
            }
        };
        let machines = self.machines.iter().map(machine).collect();
        ClusterStatus { cluster: self.cluster, term: self.term, machines, brake: self.braked() }
    }
}
