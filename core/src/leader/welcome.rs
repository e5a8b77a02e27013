//! How long the leases are that machines are told of. The leader after this one may have shorter ones, and goes by the
//! machine's record: a longer lease than that one's is granted once it is there.
//!
//! Until then a machine has leases as long as the store knows of; they are longer once that is so.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Change, Leader};
use crate::ids::{CommitId, MachineId};
use crate::message::{LeaderMessage, Welcome};
use crate::planted::{self, Fault};

/// A lease has time for that many heartbeats at least.
const HEARTBEATS: u32 = 3;

/// Longer leases than the store knows of.
#[derive(Debug, Default)]
pub(super) struct Longer {
    /// Machines that have shorter leases than the settings say.
    waiting: BTreeSet<MachineId>,
    /// The leases that commits bring into records.
    commits: VecDeque<(CommitId, MachineId, Duration)>,
}

impl Leader {
    /// The machine is welcome, or has longer leases from now on, if it may.
    pub(super) fn tell_lease(&mut self, id: MachineId) {
        let wanted = self.settings.lease_ttl;
        let machine = self.machines.get_mut(&id);
        let Some((kept, session)) = machine.and_then(|m| Some((m.kept, m.session.as_mut()?))) else {
            self.longer.waiting.remove(&id);
            return;
        };
        let kept = kept.filter(|_| !planted::is(Fault::LongerLeaseBeforeCommit));
        let lease_ttl = kept.map_or(wanted, |kept| kept.min(wanted));
        if lease_ttl < wanted {
            self.longer.waiting.insert(id);
        } else {
            self.longer.waiting.remove(&id);
        }
        if lease_ttl > session.lease {
            session.lease = lease_ttl;
            let (connection, number) = (session.connection, session.number);
            let welcome = Welcome {
                cluster: self.cluster,
                heartbeat_interval: self.settings.heartbeat_interval.min(lease_ttl / HEARTBEATS),
                lease_ttl,
            };
            self.say(connection, number, LeaderMessage::Welcome(welcome));
        }
    }

    /// Some may have longer leases now.
    pub(super) fn tell_longer_leases(&mut self) {
        if self.leads() {
            for id in self.longer.waiting.clone() {
                self.tell_lease(id);
            }
        }
    }

    /// The records of this batch are on their way to the store.
    pub(super) fn leases_are_written(&mut self, commit: CommitId, changes: &[Change]) {
        for change in changes {
            if let Change::PutMachine(id, record) = change
                && let Some(machine) = self.machines.get_mut(id)
                && machine.kept != Some(record.lease)
            {
                // Whether it is shorter there already is not known until then.
                machine.kept = machine.kept.map(|kept| kept.min(record.lease));
                self.longer.commits.push_back((commit, *id, record.lease));
            }
        }
    }

    /// This commit and all before it are durable.
    pub(super) fn leases_are_durable(&mut self, upto: CommitId) {
        let durable = self.longer.commits.partition_point(|(commit, ..)| *commit <= upto);
        for (_, id, lease) in self.longer.commits.drain(..durable) {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.kept = Some(lease);
            }
        }
        self.tell_longer_leases();
    }

    /// Nothing is on its way to the store any more.
    pub(super) fn leases_are_lost(&mut self) {
        self.longer.commits.clear();
        self.machines.values_mut().for_each(|machine| machine.kept = None);
    }
}
