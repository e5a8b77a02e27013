//! Holds effects back until what they tell of is durable.

use std::collections::VecDeque;

use crate::command::{CommandError, MachineCommandError, Query};
use crate::ids::CommitId;
use crate::leader::io::{Effect, RequestId};

/// Effects that wait for commits, and those that wait no more.
///
/// An effect waits for every commit that was issued before it, also one that it does not tell of: what it says may
/// rest on any of them. Commits end in the order in which they were issued.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    issued: CommitId,
    durable: CommitId,
    waiting: VecDeque<(CommitId, Held)>,
    ready: Vec<Effect>,
}

/// An effect that waits.
#[derive(Debug)]
pub(super) enum Held {
    /// Carried out as it is.
    Effect(Effect),
    /// An answer to a question: kept with the question, since the answer is another one if the commit fails.
    Answer(RequestId, Query, Effect),
}

impl Outbox {
    /// The number of the next batch to persist.
    pub(super) fn issue(&mut self) -> CommitId {
        self.issued = CommitId(self.issued.0 + 1);
        self.issued
    }

    /// Carries the effect out once all that was issued until now is durable.
    pub(super) fn hold(&mut self, effect: Held) {
        if self.durable < self.issued {
            self.waiting.push_back((self.issued, effect));
        } else {
            self.ready.push(effect.into_effect());
        }
    }

    /// Carries the effect out now: it tells of nothing that could be lost.
    pub(super) fn now(&mut self, effect: Effect) {
        self.ready.push(effect);
    }

    /// This commit and all before it are durable.
    pub(super) fn committed(&mut self, upto: CommitId) {
        self.durable = self.durable.max(upto.min(self.issued));
        while self.waiting.front().is_some_and(|(commit, _)| *commit <= self.durable) {
            if let Some((_, effect)) = self.waiting.pop_front() {
                self.ready.push(effect.into_effect());
            }
        }
    }

    /// Whether all that was issued is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.durable >= self.issued
    }

    /// All that was issued and is not yet durable failed. Clients that wait for a change are told so at once; returned
    /// is what else waited.
    pub(super) fn failed(&mut self, reason: &str) -> Vec<Held> {
        self.durable = self.issued;
        let mut others = Vec::new();
        for (_, held) in std::mem::take(&mut self.waiting) {
            match held {
                Held::Effect(Effect::AnswerCommand(request, Ok(_))) => {
                    let error = CommandError::Store(reason.to_owned());
                    self.ready.push(Effect::AnswerCommand(request, Err(error)));
                }
                Held::Effect(Effect::AnswerMachines(request, Ok(()))) => {
                    let error = MachineCommandError::Store(reason.to_owned());
                    self.ready.push(Effect::AnswerMachines(request, Err(error)));
                }
                other => others.push(other),
            }
        }
        others
    }

    /// What may be carried out now.
    pub(super) fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.ready)
    }
}

impl Held {
    fn into_effect(self) -> Effect {
        match self {
            Self::Effect(effect) | Self::Answer(_, _, effect) => effect,
        }
    }
}
