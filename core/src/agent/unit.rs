//! One unit on this machine: what the leader wants of it, what is here, what is seen, and what is to be done next.

use std::sync::Arc;
use std::time::Duration;

use super::io::{Held, Verb};
use crate::ids::Epoch;
use crate::planted::{self, Fault};
use crate::state::{Failure, Observation, Phase, Target, UnitState};
use crate::time::Time;
use crate::unit::ContentHash;

/// What the leader said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Hold it.
    Hold(Wanted),
    /// Remove any copy of this epoch or an older one.
    Remove(Epoch),
}

/// The copy that the leader wants here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub epoch: Epoch,
    pub hash: ContentHash,
    /// Dropped once it is written.
    pub content: Option<Arc<str>>,
    pub target: Target,
    pub exclusive: Option<Duration>,
    /// Whether it is to be taken over from the machine as it runs.
    pub adopt: bool,
}

/// What PID 1 knows of the files that were written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// There was no unit of that name before: PID 1 can have no older content.
    Fresh,
    /// There was one, and PID 1 may have its content still.
    Replaced,
    /// PID 1 has older content: a reload is needed.
    Outdated,
    /// PID 1 was reloaded. What runs may still have been started from older content, if there was any.
    Reloaded,
    /// PID 1 has this content, or will have it when it next loads the unit.
    Current,
}

/// The copy whose files are being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writing {
    pub epoch: Epoch,
    pub hash: ContentHash,
    pub target: Target,
    pub exclusive: Option<Duration>,
}

impl Writing {
    /// The copy once its files are there.
    pub fn held(self) -> Held {
        let Self { epoch, hash, target, exclusive } = self;
        Held { target, ..Held::found(epoch, hash, exclusive) }
    }
}

/// What is under way. One thing at a time, so that every answer has one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Nothing,
    Writing(Writing),
    /// It is taken over from the machine.
    Adopting(Writing),
    /// It is handed back to the machine.
    Releasing,
    Removing,
    /// The files are removed; is it really inactive?
    Confirming,
    /// Does PID 1 have older content?
    Checking,
    /// Does PID 1 accept the file?
    Verifying,
    /// A job was asked for and the answer is not there yet. The job may end before: then its number and result.
    Calling(Verb, Option<(u32, String)>),
    /// A job is pending. Its number is not known after a restart of the agent.
    Job(Verb, Option<u32>),
    /// The start job ended with this result, or (none) systemd gave the unit up; why?
    Explaining(Option<String>),
    /// A start was asked for and the call came to no answer: what is read next tells whether it had any effect.
    UnsureStart,
    /// Something came to nothing. The unit is read after a while, and then looked at again.
    Pausing,
}

/// A read that is under way, and whether a signal has come since: then the answer may be older than the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    No,
    Yes,
    Overtaken,
}

/// What is to be done with a unit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Write,
    /// Take it over from the machine, or see how far that is.
    Adopt,
    /// Hand it back to the machine, or see how far that is.
    Release,
    Check,
    Verify,
    Start,
    Stop,
    /// systemd gave it up: find out why.
    Explain,
    /// It was to be stopped, and was.
    Settle,
    Remove,
    /// Its files are removed: see whether it is really inactive.
    Confirm,
    /// The guard has ended, and so has the unit: it is as if it had not been started.
    Ended,
    /// Nothing is left of it.
    Forget,
}

#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// `None`: no leader has said anything of it (in this session's snapshot): it is left alone.
    pub want: Option<Want>,
    /// The wanted copy cannot be held, for this reason.
    pub refused: Option<(Epoch, String)>,
    pub held: Option<Held>,
    /// The copy whose files may be there in part, as far as is known of any: nobody has said what became of them. What is held
    /// is then no more than that, or an older such copy.
    pub tried: Option<Writing>,
    pub state: Option<UnitState>,
    /// Whether systemd has a job for it.
    pub job: bool,
    pub files: Files,

    /// Whether it is to be handed back to the machine.
    pub release: bool,
    /// Whether systemd was seen to accept the file.
    pub verified: bool,
    /// Whether a stop of ours has ended since the unit was last written or started: another one would do no more.
    pub stopped: bool,
    /// Whether PID 1 still had it in memory when it was first asked after the removal of its files.
    pub remembered: bool,
    /// Whether it changed while it was asked for, and was asked for again soon.
    pub hurried: bool,
    /// Whether PID 1 was reloaded since the unit was last written.
    pub reloaded: bool,
    /// Whether its files are removed already: then it must go before anything else comes in its place.
    pub removed: bool,
    /// Whether the guard of exclusive units has ended and this one has not been seen to end since.
    pub ending: bool,
    /// Why it could not be stopped or removed, when that was last tried.
    pub hindrance: Option<String>,
    /// Whether a snapshot was asked for because the content of the wanted copy is missing.
    pub asked_for_content: bool,
    pub doing: Doing,
    pub reading: Reading,
    /// When to read its state if nothing else comes, and how long to wait the next time.
    pub deadline: Option<Time>,
    pub backoff: Duration,
}

impl Unit {
    pub fn new(held: Option<Held>) -> Self {
        // A start that was accepted before the agent was restarted may still be under way.
        let doing = match &held {
            Some(Held { phase: Phase::Starting, removed: false, .. }) => Doing::Job(Verb::Start, None),
            // One may have been asked for before what came of it was written down.
            Some(Held {
                phase: Phase::Loaded,
                target: Target::Launched,
                settled: true,
                removed: false,
                ..
            }) => Doing::UnsureStart,
            _ => Doing::Nothing,
        };
        Self {
            want: None,
            refused: None,
            state: None,
            job: false,
            files: match &held {
                Some(held) if held.settled => Files::Current,
                _ => Files::Replaced,
            },
            removed: held.as_ref().is_some_and(|held| held.removed),
            release: held.as_ref().is_some_and(|held| held.releasing),
            held,
            tried: None,

            verified: false,
            stopped: false,
            remembered: false,
            hurried: false,
            reloaded: false,
            ending: false,
            hindrance: None,
            asked_for_content: false,
            doing,
            reading: Reading::No,
            deadline: None,
            backoff: super::units::FIRST_READ,
        }
    }

    /// What is to be done now, when nothing is under way.
    pub fn next(&self) -> Action {
        match self.doing {
            Doing::Nothing => self.next_in_peace(),
            // A start that takes its time can be stopped.
            Doing::Job(Verb::Start, _) if self.next_in_peace() == Action::Stop => Action::Stop,
            _ => Action::Nothing,
        }
    }

    fn next_in_peace(&self) -> Action {
        match (&self.want, &self.held) {
            // Both wait for a reload that covers many units. It runs on meanwhile, and whatever else is wanted.
            (_, Some(_)) if self.release && self.files == Files::Outdated => Action::Nothing,
            (_, Some(_)) if self.release => Action::Release,
            // PID 1 forgets what something else refers to only in a reload.
            (_, Some(_)) if self.removed && self.files == Files::Outdated => self.once_gone(Action::Nothing),
            (_, Some(_)) if self.removed => self.once_gone(Action::Confirm),
            (_, Some(_)) if self.ending => self.once_gone(Action::Ended),
            (None, Some(_)) => Action::Nothing,
            (None | Some(Want::Remove(_)), None) => Action::Forget,
            // A copy of a later epoch than the removal names never gets here.
            (Some(Want::Remove(_)), Some(_)) => self.once_gone(Action::Remove),
            (Some(Want::Hold(wanted)), held) => {
                if self.refused.as_ref().is_some_and(|(epoch, _)| *epoch == wanted.epoch) {
                    return Action::Nothing;
                }
                match held {
                    Some(held) if held.adopting && (wanted.adopt || held.epoch == wanted.epoch) => {
                        if self.files == Files::Outdated { Action::Nothing } else { Action::Adopt }
                    }
                    None if wanted.adopt => Action::Adopt,
                    None => Action::Write,
                    // Whatever it does after the stop: what is activated again and again by a socket must not keep
                    // its old content for ever.
                    Some(held) if held.epoch < wanted.epoch || self.tried.is_some() => {
                        self.once_stopped(Action::Write)
                    }
                    Some(held) if held.epoch > wanted.epoch && planted::is(Fault::EpochNotCompared) => {
                        Action::Write
                    }
                    Some(held) => self.next_of_current(wanted.target, &held.phase),
                }
            }
        }
    }

    /// What is to be done when the files of the wanted copy are in place.
    fn next_of_current(&self, target: Target, phase: &Phase) -> Action {
        match (phase, target) {
            (Phase::Stopping | Phase::StopFailed(_), _)
            | (
                Phase::Starting | Phase::Launched | Phase::StartFailed(_) | Phase::Failed(_),
                Target::Loaded,
            ) => self.once_stopped(Action::Settle),
            (Phase::Launched, Target::Launched) if self.is_failed() && !self.job => Action::Explain,
            (
                Phase::Starting | Phase::Launched | Phase::StartFailed(_) | Phase::Failed(_),
                Target::Launched,
            ) => Action::Nothing,
            (Phase::Loaded, target) => match (self.files, target) {
                (Files::Replaced, _) => Action::Check,
                // The reload covers many units and is not this one's own.
                (Files::Outdated, _) => Action::Nothing,
                (Files::Reloaded, _) if !self.stopped && !planted::is(Fault::NoStopAfterReload) => {
                    Action::Stop
                }
                (_, Target::Launched) => Action::Start,
                (_, Target::Loaded) if !self.verified => Action::Verify,
                (_, Target::Loaded) => Action::Nothing,
            },
        }
    }

    /// Whether it is to be stopped until it is inactive.
    pub fn must_go(&self) -> bool {
        self.removed || self.ending || matches!(self.want, Some(Want::Remove(_)))
    }

    /// Stops it first, even if it was seen to be inactive: a signal may be late or lost, and a stop too many does no
    /// harm.
    fn once_stopped(&self, after: Action) -> Action {
        if self.stopped { after } else { Action::Stop }
    }

    /// Stops it first, and again if something has started it since, once it was read again.
    fn once_gone(&self, after: Action) -> Action {
        match (self.stopped, self.is_inactive()) {
            (false, _) => Action::Stop,
            (true, false) => Action::Nothing,
            (true, true) => after,
        }
    }

    /// Whether a job of this kind was asked for and may be pending.
    pub fn has_job(&self, verb: Verb) -> bool {
        matches!(self.doing, Doing::Calling(asked, _) | Doing::Job(asked, _) if asked == verb)
    }

    /// Whether a start was asked for of which it is not known whether it had any effect.
    pub fn may_have_begun(&self) -> bool {
        matches!(self.doing, Doing::UnsureStart | Doing::Calling(Verb::Start, _))
    }

    /// Whether, as it was seen last, nothing of it runs or is about to.
    pub fn is_inactive(&self) -> bool {
        !self.job && self.state.as_ref().is_some_and(|state| matches!(&*state.active, "inactive" | "failed"))
    }

    /// Whether it has ended, and it is not known yet whether that was its guard's doing.
    pub fn is_doubtful(&self) -> bool {
        let started =
            |held: &&Held| matches!(held.phase, Phase::Launched | Phase::StartFailed(_) | Phase::Failed(_));
        let held = self.held.as_ref().filter(started);
        held.is_some_and(|held| held.exclusive.is_some() && !held.ended) && self.is_inactive()
    }

    /// Whether a copy that is here, or is to come, is exclusive.
    pub fn is_exclusive(&self) -> bool {
        let wanted = matches!(&self.want, Some(Want::Hold(Wanted { exclusive: Some(_), .. })));
        wanted || self.held_exclusive().is_some()
    }

    /// How long the copy that is here may take to stop after the lease, if it is exclusive.
    pub fn held_exclusive(&self) -> Option<Duration> {
        self.held.as_ref()?.exclusive
    }

    /// Whether PID 1 has in memory what was removed: it keeps what another unit refers to, its socket for one. What it has
    /// after a reload is none of our files.
    pub fn is_loaded_still(&self) -> bool {
        let loaded = self.state.as_ref().is_some_and(|state| &*state.load == "loaded");
        loaded && self.files != Files::Reloaded && !planted::is(Fault::GoneIsLoaded)
    }

    pub fn is_failed(&self) -> bool {
        self.state.as_ref().is_some_and(|state| state.active == "failed")
    }

    /// The highest epoch that this unit stands for: no lower one is applied any more.
    pub fn epoch(&self) -> Option<Epoch> {
        let wanted = match &self.want {
            Some(Want::Hold(wanted)) => Some(wanted.epoch),
            Some(Want::Remove(epoch)) => Some(*epoch),
            None => None,
        };
        let writing = match self.doing {
            Doing::Writing(Writing { epoch, .. }) | Doing::Adopting(Writing { epoch, .. }) => Some(epoch),
            _ => None,
        };
        wanted.max(writing).max(self.held.as_ref().map(|held| held.epoch))
    }

    /// Whether nothing here speaks against this hash for this epoch: one epoch has one content.
    pub fn may_be(&self, epoch: Epoch, hash: ContentHash) -> bool {
        let other = |e: Epoch, h: ContentHash| e == epoch && h != hash;
        let held = self.held.as_ref().is_some_and(|held| other(held.epoch, held.hash));
        let writing = matches!(self.doing, Doing::Writing(w) | Doing::Adopting(w) if other(w.epoch, w.hash));
        let wanted = matches!(&self.want, Some(Want::Hold(wanted)) if other(wanted.epoch, wanted.hash));
        !(held || writing || wanted)
    }

    /// What is seen of which copy; none while there is nothing to see.
    pub fn observation(&self) -> Option<(Epoch, Observation)> {
        if let Some((epoch, reason)) = &self.refused {
            return Some((*epoch, Observation::Refused(reason.clone())));
        }
        // Of what is removed there is only its end to tell, or why that does not come. The leader may know of the end already.
        // Of what may be there in part, too: the leader would leave out its content.
        let tells = !self.removed && self.tried.is_none() || self.hindrance.is_some() && self.want.is_some();
        let held = self.held.as_ref().filter(|_| tells)?;
        // That it is loaded is told once systemd was seen to accept it.
        let wanted_loaded = matches!(&self.want, Some(Want::Hold(wanted))
            if wanted.epoch == held.epoch && wanted.target == Target::Loaded);
        if wanted_loaded && held.phase == Phase::Loaded && !self.verified && self.hindrance.is_none() {
            return None;
        }
        Some((held.epoch, self.observed(held)))
    }

    /// What is told of the copy that is here.
    pub fn observed(&self, held: &Held) -> Observation {
        // What its guard has ended has neither run to its end nor failed; and what it ends does not run, whatever PID 1 said
        // last.
        let ends = (self.ending || self.is_doubtful()) && !planted::is(Fault::GuardEndsForGood);
        let phase = match (&self.hindrance, held.phase.clone()) {
            // It is the cluster's once PID 1 says so.
            (None, _) if held.adopting && !ends => Phase::Starting,
            (Some(reason), _) => Phase::StopFailed(Failure::without_result(reason.as_str())),
            _ if ends => Phase::Stopping,
            // It was asked for, and may have begun.
            (None, Phase::Loaded) if self.may_have_begun() => Phase::Starting,
            (None, phase) => phase,
        };
        Observation::Held { phase, state: self.state.clone() }
    }
}
