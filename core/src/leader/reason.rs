//! Why the leader does what it does: the reasons that its events carry.

use std::time::Duration;

/// Where a machine that is up comes from: what is said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Arrival {
    /// It is new.
    #[error("joined the cluster")]
    Joined,
    /// It is the first time that this leader hears of it.
    #[error("reported to this leader")]
    Reported,
    /// It had been lost.
    #[error("is back")]
    Returned,
    /// It has booted since it was last heard.
    #[error("has booted anew: nothing of what it ran before counts any more")]
    Rebooted,
}

/// Why a unit is placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub enum PlaceReason {
    /// A client asked for it.
    #[error("a client asked for it")]
    Asked,
    /// It waited, and this machine takes it now.
    #[default]
    #[error("it waited for a machine that takes it")]
    Waited,
    /// The machine that it was on is lost.
    #[error("its machine was lost")]
    MachineLost,
    /// The machine that it was on is drained.
    #[error("its machine is drained")]
    MachineDrained,
    /// The machine that it was on shuts down.
    #[error("its machine shuts down")]
    MachineLeaves,
    /// It is global, and this machine takes it.
    #[error("it is global, and this machine takes it")]
    Global,
    /// A client restarted it.
    #[error("a client restarted it")]
    Restarted,
    /// A client gave it another file.
    #[error("a client replaced its file")]
    Replaced,
    /// A unit that replaces it is to be where it was.
    #[error("it makes room for a unit that replaces it (Replaces=)")]
    MakesRoom,
    /// A unit that it is tied to is not where it was.
    #[error("a unit that it is tied to (MachineOf=, or what it activates) has moved")]
    TargetMoved,
    /// The machine holds a later copy than any that the store knows of.
    #[error("this machine runs a later copy than the store knows of, so the store is old")]
    Found,
    /// The machine that it was on was rebooted.
    #[error("its machine was rebooted")]
    Rebooted,
    /// The labels of the machine that it was on were changed.
    #[error("the metadata of its machine was changed")]
    Relabelled,
    /// It failed where it was; this is the so-manieth time within its interval.
    #[error("it failed, for the {0}. time")]
    Failed(usize),
    /// The machine has stopped this placement before.
    #[error("this machine had stopped an equal or later placement")]
    Stale,
}

/// Why a unit is taken off a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnplaceReason {
    /// A unit that it is tied to is not there any more.
    #[error("a unit that it is tied to (MachineOf=, or what it activates) is not there any more")]
    TargetLeft,
    /// It does not fit there with its new file.
    #[error("it does not fit there with its new file")]
    NoLongerFits,
    /// The machine's labels were changed, and are not those that it asks for any more.
    #[error("the machine's metadata was changed, and is not what it asks for any more")]
    Relabelled,
    /// It is global, and the machine is drained.
    #[error("the machine is drained, and nothing else is left there")]
    Drained,
}

/// Why an old copy of a unit that was moved ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LingerEnd {
    /// The new copy is active.
    #[error("the new one is active")]
    Active,
    /// The time that it had has passed.
    #[error("the time that the new one had to become active has passed")]
    TimePassed,
    /// The unit was stopped, replaced or taken elsewhere meanwhile.
    #[error("something else was decided of the unit")]
    Overtaken,
}

/// Why the brake is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseReason {
    /// The machines are back, or so many of them that the rest may well be dead.
    #[error("the machines are back")]
    MachinesBack,
    /// It was held for long enough.
    #[error("it was held for brake_hold")]
    HoldPassed,
    /// An operator said so.
    #[error("an operator released it")]
    Operator,
}

/// Why a machine counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossReason {
    /// Nothing was heard from it for the time of a lease.
    #[error("its lease ended")]
    LeaseEnded,
    /// Its agent is alive, and has had no answer from PID 1 for so long.
    #[error("its systemd has not answered for {} s", .0.as_secs())]
    SystemdSilent(Duration),
}
