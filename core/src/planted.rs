//! Faults that are planted in the code, to see that the simulation finds them: each a bug as somebody might write it one
//! day. They exist only with the feature `planted-faults`, which only the simulation ever asks for, and of which neither
//! daemon can be built; and then only the one that `plant` chose for this thread.

/// Whether this build has them.
pub const HAS_PLANTED_FAULTS: bool = cfg!(feature = "planted-faults");

macro_rules! faults {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// A planted fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fault {
            $($(#[doc = $text])+ $name,)+
        }

        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// What is wrong with it, in words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($text),+).trim_ascii(),)+
                }
            }
        }
    };
}

faults! {
    // The leader.
    /// the leader counts a lease without the margin
    NoMargin,
    /// a longer lease is granted before it is on record
    LongerLeaseBeforeCommit,
    /// what makes room for another unit is stopped before it is active elsewhere
    ReplacedStopsFirst,
    /// a unit is placed beside what it replaces
    ReplacerDoesNotWait,
    /// what is replaced is moved although it fits nowhere
    ReplacedGoesNowhere,
    /// a client is answered before the commit
    AnswerBeforeCommit,
    /// a question is answered from what is not committed
    QueryBeforeCommit,
    /// a drain is acknowledged before the commit
    AvailabilityBeforeCommit,
    /// a change of labels is acknowledged before the commit
    LabelsBeforeCommit,
    /// a new leader knows nothing of the labels that were changed
    LabelsForgotten,
    /// a machine that says Hello has the labels that its agent names
    HelloTakesLabelsBack,
    /// all that is on a machine whose labels are changed is placed anew
    RelabelledAllMove,
    /// an assignment is sent before its commit
    AssignmentBeforeCommit,
    /// what was to be sent with a commit is sent although it failed
    FailedCommitIsTold,
    /// after a failed commit the leader goes on from its memory
    FailedCommitIsKept,
    /// the ids of commands are not read from the store
    CommandsForgotten,
    /// a change of machines that comes again is made again
    MachinesChangedAgain,
    /// a heartbeat that was on its way when the lease ended revives it
    LateHeartbeatRevives,
    /// a machine that only ever says Hello stays up
    HelloIsALease,
    /// the session of a lost machine goes on
    LostKeepsSession,
    /// a new leader gives machines no lease's time to report
    NewLeaderCountsShort,
    /// a new leader places units before all machines have reported
    NewLeaderPlacesAtOnce,
    /// a leader that may have been overtaken answers heartbeats
    DeposedAnswers,
    /// whether a leader was overtaken is judged by when a message came
    LeadsByWhatCame,
    /// a leader works on under a term that an agent knows to be overtaken
    HigherTermIgnored,
    /// a restored backup goes on in the term after its own
    RestoreDoesNotLeap,
    /// the Hello of an older session is taken for the present one
    OldHelloTaken,
    /// a restart leaves the unit its epoch
    RestartKeepsEpoch,
    /// what is said to be gone is taken for later copies too
    GoneOfAnyEpoch,
    /// what an agent does not list counts as gone without a reboot
    EveryHelloIsAReboot,
    /// what the leader has no record of is removed
    OrphansRemoved,
    /// conflicts are looked at one way only
    ConflictOneWay,
    /// what has ended goes on counting against its machine
    CapacityKept,
    /// copies that are being stopped do not count
    EndingCopiesNotCounted,
    /// of a group only the largest need counts
    GroupNotSummed,
    /// units that are tied to each other are placed one by one
    GroupSplit,
    /// units stay when the one that they are tied to goes
    FollowersStay,
    /// what waits is not tried again when something ends
    RoomNotNoticed,
    /// a cordoned or drained machine gets new units
    DrainedIsOpen,
    /// a machine that shuts down gets new units
    LeavingIsOpen,
    /// a machine whose PID 1 is silent gets new units
    DegradedIsOpen,
    /// many deaths at once put no brake on
    NoBrake,
    /// the brake is released after a quarter of its time
    BrakeEndsEarly,
    /// a leader that sees no machine but its own releases the brake
    OwnMachineCounts,
    /// the brake is put on for one machine alone
    BrakeForOne,
    /// the brake is put on for machines that are heard
    BrakeNamesTheLiving,
    /// whether so many machines do not die at once goes by all that ever were
    BrakeCountsTheDead,
    /// the leader's own stalls count against machines
    StallsCount,
    /// what is drained is stopped before it runs elsewhere
    DrainStopsFirst,
    /// the deadline of a drain is not kept
    DrainNeverEnds,
    /// the deadline of a drain is counted anew when the same command comes again
    DrainAgainIsLonger,
    /// the deadline of a drain is counted anew for each unit
    DrainEndsUnitByUnit,
    /// the deadline of a drain stops also what has failed elsewhere
    DrainStopsTheLast,
    /// a drain starts a one-shot unit elsewhere that runs here
    DrainRunsAgain,
    /// an agent that is restarted gets no longer lease
    NoRestartGrace,
    /// an exclusive unit is placed without waiting for older copies
    ExclusiveNotAwaited,
    /// an exclusive unit does not wait for the time that an older copy has to stop
    StopNotAwaited,
    /// a new leader lets exclusive units wait for nobody that it does not know of
    ExclusiveFromStart,
    /// an exclusive copy that has ended is told to start again as soon as its machine is back
    EndedCopyTakenUp,
    /// a unit that fails is started anew without an end
    AttemptsNotCounted,
    /// a unit that fails is started anew after the same delay each time
    DelayNotDoubled,
    /// a unit that was given up is started anew for an earlier failure
    GivenUpMovesOn,
    /// what failed is not started anew after the store has failed
    RetryForgotten,
    /// a machine is told everything with each heartbeat
    HeartbeatTellsAll,
    /// all machines are told everything when one presents itself
    HelloTellsAll,
    /// a new leader forgets which machines have said goodbye
    GoodbyeForgotten,
    /// a new leader forgets that a one-shot unit is done
    DoneForgotten,
    /// what ran out of memory goes to any machine
    MemoryNotLookedAt,
    /// a unit comes back to the machine on which it failed
    FailedMachineTaken,
    /// a new leader counts leases from before its election
    LeasesFromBeforeElection,
    // The store, as the simulation has it.
    /// what is asked of the store again is applied again, also late
    AskedAgainAppliedAgain,
    /// the store takes what a deposed leader has asked of it
    DeposedCommitTaken,
    /// half a batch is taken
    HalfBatchTaken,
    /// a renewal counts although another one leads
    RenewedWithoutKey,
    /// leadership is counted from the answer to a renewal, not from its asking
    LeadsFromAnswer,
    // The agent.
    /// the guard of exclusive units is told to last longer than the lease
    GuardOutlastsLease,
    /// a lease is the guard's only once it is known what the leader wants
    GuardNeedsSnapshot,
    /// exclusive units that PID 1 does not stop are not killed
    NoFence,
    /// an exclusive unit that ended with its guard is told to have ended by itself
    GuardEndsForGood,
    /// the agent counts its lease from the answer, not from its heartbeat
    LeaseFromAnswer,
    /// the agent obeys old terms
    TermNotCompared,
    /// the agent obeys a term before that is written down
    TermNotWritten,
    /// the agent obeys what is said in an older session
    OldSessionObeyed,
    /// the agent applies a delta that does not follow
    DeltaOutOfOrder,
    /// the agent removes what a snapshot does not name
    UnnamedRemoved,
    /// the agent goes back to an older epoch
    EpochNotCompared,
    /// the agent takes up again what it has stopped
    StoppedForgotten,
    /// a unit's files are replaced without asking whether PID 1 has the old ones
    ReplacedTakenForNew,
    /// after a reload, what runs from old files is left
    NoStopAfterReload,
    /// the end of a job is waited for although its signal may be lost
    SignalAwaited,
    /// a stop that came to no answer counts as done
    UnansweredStopCounts,
    /// that nothing is left is said without looking
    GoneUnconfirmed,
    /// what PID 1 has in memory still, and may start from there, is said to be gone
    GoneIsLoaded,
    /// files are written down in the ledger when there is time
    LedgerLate,
    /// a call without an answer counts as a sign of life of PID 1
    Pid1AgeTooYoung,
    /// the agent takes its own standstill for PID 1's silence
    StandstillIsPid1s,
    /// PID 1 is not asked for a sign of life
    Pid1NotAsked,
}

#[cfg(feature = "planted-faults")]
mod chosen {
    use std::cell::Cell;

    use super::Fault;

    thread_local! {
        static CHOSEN: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    /// From now on all that runs in this thread has this fault, or none.
    pub fn plant(fault: Option<Fault>) {
        CHOSEN.set(fault);
    }

    /// Whether what runs in this thread has this fault.
    pub fn is(fault: Fault) -> bool {
        CHOSEN.get() == Some(fault)
    }
}

#[cfg(feature = "planted-faults")]
pub use chosen::{is, plant};

/// Whether the code has this fault: never, without the feature.
#[cfg(not(feature = "planted-faults"))]
#[inline]
pub const fn is(_: Fault) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_the_feature_has_no_faults() {
        assert_eq!(HAS_PLANTED_FAULTS, cfg!(feature = "planted-faults"));
        assert!(Fault::ALL.len() >= 20);
        assert!(Fault::ALL.iter().all(|fault| !is(*fault)), "none was chosen");
    }
}
