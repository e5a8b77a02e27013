//! Backups: what is durable, at one moment; and when one may take the place of what there is.

use std::sync::Arc;

use super::{Effect, Held, Leader, RequestId};
use crate::command::{Query, QueryAnswer, RestoreError};
use crate::ids::Term;
use crate::leader::durable::Durable;
use crate::machine::Availability;

impl Leader {
    /// Answers those who want all that is durable, after everything of this turn was decided: each batch is in the copy as
    /// a whole. It leaves when all of that is durable.
    pub(super) fn answer_backups(&mut self, requests: Vec<RequestId>) {
        for request in requests {
            let answer = QueryAnswer::Backup { term: self.term, durable: Box::new(self.durable()) };
            let effect = Effect::AnswerQuery(request, answer);
            self.outbox.hold(Held::Answer(request, Query::Backup, effect));
        }
    }

    /// What the store holds once all batches are durable.
    fn durable(&self) -> Durable {
        let availability = self.machines.iter().map(|(id, machine)| (*id, machine.availability));
        // Each unit is looked up once, and both maps are made of lists that are in order: heartbeats wait for this.
        let mut units = Vec::with_capacity(self.units.len());
        let mut files = Vec::with_capacity(self.units.len());
        for (name, unit) in self.units.iter() {
            units.push((name.clone(), unit.stored()));
            files.push((name.clone(), Arc::clone(&unit.content)));
        }
        Durable {
            cluster: self.cluster,
            units: units.into_iter().collect(),
            files: files.into_iter().map(|(name, text)| (name, text.into())).collect(),
            machines: self.machines.iter().map(|(id, machine)| (*id, machine.record.clone())).collect(),
            availability: availability.filter(|(_, decided)| *decided != Availability::Open).collect(),
            labels: self.labels.clone(),
            retired: self.retired.clone(),
            commands: self.commands.all().clone(),
        }
    }

    /// A backup of a leader in this term takes the place of a cluster that has nothing. Commands that came to nothing do not
    /// count.
    pub(super) fn restore(&mut self, request: RequestId, term: Term) {
        let (units, machines) = (self.units.len(), self.machines.len());
        let refused = if !self.leads() {
            RestoreError::NotLeader
        } else if units + machines > 0 {
            RestoreError::NotEmpty { units, machines }
        } else {
            // A machine that joins now would join the cluster that there was.
            self.office.restoring = Some(request);
            return self.outbox.now(Effect::Restore { request, above: self.term.max(term).leap() });
        };
        self.hold(Effect::RefuseRestore(request, refused));
    }

    /// The store is as it was, and this leader goes on.
    pub(super) fn not_restored(&mut self, reason: String) {
        if let Some(request) = self.office.restoring.take() {
            self.hold(Effect::RefuseRestore(request, RestoreError::Store(reason)));
            self.make_good();
        }
    }
}
