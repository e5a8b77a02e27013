//! The cells of the fault matrix: what is broken, on which part, and in the middle of what.

use std::fmt;
use std::time::Duration;

use muster_cluster::Backend;

use crate::world::{Kind, Layout};

/// `lease_ttl` by default.
const LEASE: Duration = Duration::from_secs(5);
/// `ExclusiveStopSec=` of the exclusive units here.
const EXCLUSIVE_STOP: Duration = Duration::from_secs(2);

/// What is done to a part of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT later; of a whole machine from outside.
    Stop,
    PowerOff,
    /// Neither heard nor hearing.
    Cut,
    /// It hears, but is not heard.
    Mute,
    /// It is heard, but does not hear.
    Deaf,
    /// Whatever it sends or hears is 200 ms late, and every twentieth frame is lost.
    Slow,
    FullDisk,
    OutOfMemory,
    /// The wall clock jumps an hour ahead, and back later.
    Clock,
    /// An orderly one.
    Reboot,
    /// Of PID 1.
    Hang,
    /// A machine stands still, and so do its clocks.
    Pause,
    /// The same, and it is written to a file and goes on from that, as if on another host.
    Move,
}

impl Fault {
    /// Those of the matrix.
    pub(crate) const ALL: [Self; 10] = [
        Self::Kill,
        Self::Stop,
        Self::PowerOff,
        Self::Cut,
        Self::Mute,
        Self::Deaf,
        Self::Slow,
        Self::FullDisk,
        Self::OutOfMemory,
        Self::Clock,
    ];
    /// What else there is.
    pub(crate) const MORE: [Self; 4] = [Self::Reboot, Self::Hang, Self::Pause, Self::Move];

    /// How long it is left so.
    pub(crate) fn lasts(self) -> Duration {
        Duration::from_secs(match self {
            Self::Kill | Self::OutOfMemory | Self::Reboot => 0,
            Self::Stop => 30,
            Self::PowerOff | Self::Clock => 10,
            Self::Cut | Self::Mute | Self::Deaf | Self::FullDisk | Self::Hang | Self::Pause | Self::Move => {
                15
            }
            Self::Slow => 20,
        })
    }

    /// Whether a machine that has it stands still as a whole, and goes on later.
    pub(crate) fn stands_still(self) -> bool {
        matches!(self, Self::Stop | Self::Pause | Self::Move)
    }

    /// How long an exclusive unit of a machine that stood still may run twice at most.
    pub(crate) fn overlap(self) -> Duration {
        let stop = EXCLUSIVE_STOP + Duration::from_secs(1);
        if matches!(self, Self::Pause | Self::Move) { LEASE + stop } else { stop }
    }

    /// Whether the lease of a machine ends by it, if it lasts for longer than that. Where only PID 1 hangs it does not before
    /// `systemd_timeout`.
    pub(crate) fn outlasts_lease(self) -> bool {
        matches!(
            self,
            Self::Stop
                | Self::PowerOff
                | Self::Cut
                | Self::Mute
                | Self::Deaf
                | Self::Reboot
                | Self::Pause
                | Self::Move
        )
    }

    /// Whether such machines can have it. What containers share with the host they cannot: its clock and its memory; and its
    /// kernel may be unable to delay frames.
    pub(crate) fn is_possible(self, backend: Backend) -> bool {
        let of_vms = matches!(self, Self::Slow | Self::OutOfMemory | Self::Clock | Self::Pause | Self::Move);
        backend == Backend::Vm || !of_vms
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::PowerOff => "power-off",
            Self::Cut => "cut",
            Self::Mute => "mute",
            Self::Deaf => "deaf",
            Self::Slow => "slow",
            Self::FullDisk => "full-disk",
            Self::OutOfMemory => "out-of-memory",
            Self::Clock => "clock",
            Self::Reboot => "reboot",
            Self::Hang => "hang",
            Self::Pause => "pause",
            Self::Move => "move",
        })
    }
}

/// The part that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A machine that runs units, the exclusive one among them.
    Worker,
    /// The agent's process there.
    Agent,
    /// The scheduler's process; where the fault is one of machines, that machine.
    Scheduler,
    /// A machine that runs the scheduler and units, the exclusive one among them.
    Both,
}

impl Target {
    pub(crate) const ALL: [Self; 4] = [Self::Worker, Self::Agent, Self::Scheduler, Self::Both];
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "worker",
            Self::Agent => "agent",
            Self::Scheduler => "scheduler",
            Self::Both => "scheduler+worker",
        })
    }
}

/// What is going on meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Situation {
    Idle,
    /// A hundred units are being started.
    Starting,
    /// A worker is being drained: the broken one, if it is a worker.
    Draining,
    /// Units that take 3 s to stop are being stopped.
    Stopping,
}

impl Situation {
    pub(crate) const ALL: [Self; 4] = [Self::Idle, Self::Starting, Self::Draining, Self::Stopping];
}

impl fmt::Display for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Starting => "start",
            Self::Draining => "drain",
            Self::Stopping => "stop",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) backend: Backend,
    pub(crate) fault: Fault,
    pub(crate) target: Target,
    pub(crate) situation: Situation,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backend = match self.backend {
            Backend::Nspawn => "nspawn",
            Backend::Vm => "vm",
        };
        write!(f, "{backend}/{}/{}/{}", self.fault, self.target, self.situation)
    }
}

/// Why a fault of such a part means nothing, or nothing of its own.
pub(crate) fn meaningless(fault: Fault, target: Target) -> Option<&'static str> {
    match (fault, target) {
        (Fault::Kill, Target::Worker) => {
            Some("a machine whose processes are all killed has lost its power: see power-off")
        }
        (Fault::PowerOff, Target::Agent) => {
            Some("a process has no power of its own: see kill, and power-off of the worker")
        }
        (Fault::Cut | Fault::Mute | Fault::Deaf | Fault::Slow, Target::Agent) => {
            Some("a process has no cable of its own: see the worker")
        }
        (Fault::FullDisk, Target::Agent) => Some("a process has no disk of its own: see the worker"),
        (Fault::Clock, Target::Agent) => Some("a process has no clock of its own: see the worker"),
        _ => None,
    }
}

impl Cell {
    /// All that mean something, those that share a cluster next to each other.
    pub(crate) fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for backend in [Backend::Nspawn, Backend::Vm] {
            for target in Target::ALL {
                for fault in Fault::ALL {
                    if fault.is_possible(backend) && meaningless(fault, target).is_none() {
                        cells.extend(Situation::ALL.map(|situation| Self {
                            backend,
                            fault,
                            target,
                            situation,
                        }));
                    }
                }
            }
        }
        // Where no lease covers what happens: with its clocks behind, beside `stop`, through which they go on.
        cells.extend([Fault::Pause, Fault::Move].map(|fault| Self {
            backend: Backend::Vm,
            fault,
            target: Target::Worker,
            situation: Situation::Idle,
        }));
        cells
    }

    /// Whether it is tried by `make test` also: each fault and each part at least once, on one kind of machine or the other.
    pub(crate) fn is_quick(self) -> bool {
        use {Fault as F, Situation as S, Target as T};
        match self.backend {
            Backend::Nspawn => matches!(
                (self.fault, self.target, self.situation),
                (F::Kill, T::Agent, S::Starting)
                    | (F::Kill, T::Scheduler, S::Draining)
                    | (F::PowerOff, T::Worker, S::Starting)
                    | (F::Cut, T::Worker, S::Stopping)
                    | (F::Mute, T::Worker, S::Idle)
                    | (F::Deaf, T::Scheduler, S::Idle)
                    | (F::Stop, T::Agent, S::Idle)
                    | (F::FullDisk, T::Scheduler, S::Starting)
                    | (F::PowerOff, T::Both, S::Idle)
            ),
            Backend::Vm => matches!(
                (self.fault, self.target, self.situation),
                (F::Slow | F::Clock | F::Stop, T::Worker, S::Idle) | (F::OutOfMemory, T::Agent, S::Idle)
            ),
        }
    }

    pub(crate) fn kind(self) -> Kind {
        let layout = if self.target == Target::Both { Layout::Together } else { Layout::Apart };
        Kind { backend: self.backend, layout, workers: 3 }
    }

    /// Within which time after the fault's end all is to be as it should. Below what is promised in any case, 120 s: longest
    /// where the scheduler's machine has to boot, after which exclusive units wait for `restart_grace`, the time that they
    /// may take to stop, and 1 s. Emulated machines take several times as long for what they do themselves.
    pub(crate) fn bound(self) -> Duration {
        let seconds = match self.fault {
            Fault::Kill | Fault::OutOfMemory | Fault::Slow | Fault::FullDisk | Fault::Clock => 30,
            _ => 45,
        };
        Duration::from_secs(match self.backend {
            Backend::Nspawn => seconds,
            Backend::Vm => 120,
        })
    }

    /// Whether units of the broken machine itself may be stopped, restarted or moved, the others' never: its lease ends in the
    /// scheduler's eyes, or they have ended with it. Where the scheduler is on that machine, no network parts the two, and when both
    /// have stood still, neither counts that.
    pub(crate) fn moves_its_units(self) -> bool {
        match self.target {
            Target::Worker | Target::Agent => self.fault.outlasts_lease(),
            Target::Scheduler => false,
            Target::Both => matches!(self.fault, Fault::PowerOff),
        }
    }

    /// Whether the exclusive unit may be ended and started anew: its machine's lease ends in that machine's own eyes, if only
    /// since the scheduler is away. A machine that is out of memory does little else for seconds, and the kernel may kill the
    /// scheduler in the end.
    pub(crate) fn ends_exclusive(self) -> bool {
        match self.target {
            Target::Worker | Target::Agent | Target::Scheduler => self.fault.outlasts_lease(),
            Target::Both => matches!(self.fault, Fault::Stop | Fault::PowerOff | Fault::OutOfMemory),
        }
    }

    /// Whether it is one of those that no lease covers: a machine stands still as a whole, and goes on later. Then the exclusive
    /// unit runs twice for so long at most: once it goes on, until its PID 1 has looked at its timers and stopped the unit,
    /// which may take `ExclusiveStopSec=`; where its clocks stood still, too, what was left of a lease besides.
    pub(crate) fn may_overlap(self) -> Option<Duration> {
        self.is_excepted().then(|| self.fault.overlap())
    }

    /// Whether it is one of those.
    pub(crate) fn is_excepted(self) -> bool {
        self.fault.stands_still() && matches!(self.target, Target::Worker | Target::Both)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        let cells = Cell::all();
        let names: BTreeSet<String> = cells.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), cells.len());
    }

    #[test]
    fn what_is_healthy_is_excepted_only_where_its_lease_ends() {
        let of = |fault, target| {
            let cell = Cell { backend: Backend::Vm, fault, target, situation: Situation::Idle };
            (cell.moves_its_units(), cell.ends_exclusive())
        };
        for fault in [Fault::Cut, Fault::Mute, Fault::Deaf] {
            assert_eq!(of(fault, Target::Worker), (true, true), "{fault}");
            assert_eq!(of(fault, Target::Scheduler), (false, true), "{fault}");
            assert_eq!(
                of(fault, Target::Both),
                (false, false),
                "{fault}: the agent reaches its own scheduler"
            );
        }
        assert_eq!(of(Fault::PowerOff, Target::Both), (true, true));
        assert_eq!(of(Fault::Stop, Target::Both), (false, true), "both stood still");
        assert_eq!(of(Fault::OutOfMemory, Target::Both), (false, true));
        for target in Target::ALL {
            for fault in [Fault::Kill, Fault::Slow, Fault::FullDisk, Fault::Clock, Fault::Hang] {
                assert_eq!(of(fault, target), (false, false), "{fault} of {target}");
            }
        }
    }

    #[test]
    fn what_is_tried_quickly_has_every_fault_part_and_situation() {
        let quick: Vec<Cell> = Cell::all().into_iter().filter(|cell| cell.is_quick()).collect();
        for fault in Fault::ALL {
            assert!(quick.iter().any(|cell| cell.fault == fault), "{fault}");
        }
        for target in Target::ALL {
            assert!(quick.iter().any(|cell| cell.target == target), "{target}");
        }
        for situation in Situation::ALL {
            assert!(quick.iter().any(|cell| cell.situation == situation), "{situation}");
        }
    }
}
