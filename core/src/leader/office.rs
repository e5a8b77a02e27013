//! Whether this leader is still the one that leads. A store that several schedulers share has elected it for a while, and
//! again and again; when that ends it may be overtaken at any moment, and learn of it late.
//!
//! Until then it grants no lease, assigns nothing, answers no client and decides nothing. Its own time stands still, so
//! that a store that was away for a while costs no machine its lease. What it would write is refused by the store.

use super::{Effect, Leader, RequestId};
use crate::planted::{self, Fault};
use crate::stream::StreamWanted;
use crate::time::Time;

/// How long the leader leads, and what it has not said since it does not.
#[derive(Debug, Default)]
pub(super) struct Office {
    /// Until then, by its own clock; for good where the store is its own.
    pub(super) until: Option<Time>,
    /// What its clock said when it last took something in, which may have come long before.
    pub(super) clock: Time,
    /// Whether something was not said to machines.
    silent: bool,
    /// The answers that clients wait for.
    answers: Vec<Effect>,
    /// The streams that clients wait for: the agent is asked to dial when they are answered.
    pub(super) streams: Vec<(RequestId, StreamWanted)>,
    /// Whose backup is to take the place of all that this leader knows: it decides nothing more.
    pub(super) restoring: Option<RequestId>,
}

impl Leader {
    /// Whether the leader may grant leases and give orders at this moment.
    pub(super) fn leads(&self) -> bool {
        let now = if planted::is(Fault::LeadsByWhatCame) { self.now } else { self.office.clock };
        let elected = planted::is(Fault::DeposedAnswers) || self.office.until.is_none_or(|until| now < until);
        elected && self.office.restoring.is_none()
    }

    /// It leads until then at least, by its own clock.
    pub(super) fn goes_on_leading(&mut self, until: Time) {
        self.office.until = self.office.until.max(Some(until));
        self.make_good();
    }

    /// Says what was not said while it did not lead, if it does.
    pub(super) fn make_good(&mut self) {
        if self.leads() {
            for answer in std::mem::take(&mut self.office.answers) {
                self.outbox.now(answer);
            }
            for (request, wanted) in std::mem::take(&mut self.office.streams) {
                self.open_stream(request, wanted);
            }
            self.tell_longer_leases();
            if std::mem::take(&mut self.office.silent) {
                self.turn.snapshots.extend(self.machines.keys());
                self.farewells
                    .extend(self.machines.iter().filter(|(_, m)| m.record.leaving).map(|(id, _)| *id));
            }
        }
    }

    /// What of this may be done by a leader that may have been overtaken.
    pub(super) fn only_what_is_harmless(&mut self, effects: Vec<Effect>) -> Vec<Effect> {
        if self.leads() {
            return effects;
        }
        let mut harmless = Vec::with_capacity(effects.len());
        for effect in effects {
            match effect {
                Effect::Send(..) => self.office.silent = true,
                Effect::AnswerCommand(..)
                | Effect::AnswerMachines(..)
                | Effect::AnswerQuery(..)
                | Effect::AnswerRelease(..)
                | Effect::AnswerStream(..)
                | Effect::RefuseRestore(..) => self.office.answers.push(effect),
                Effect::Persist(..)
                | Effect::TakeTerm { .. }
                | Effect::Restore { .. }
                | Effect::Close(_)
                | Effect::Knock(..)
                | Effect::UnitsChanged(_)
                | Effect::Event(_) => harmless.push(effect),
            }
        }
        harmless
    }
}
