//! How a part of the cluster is broken, and mended again.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use muster_cluster::{Backend, Impairment, Machine, Output};

use crate::cell::{Fault, Target};
use crate::world::World;

/// What takes up room on a full disk is on the file system of this directory: of the scheduler's store, and of what an agent
/// keeps through boots.
const DISK: &str = "/var/lib";
const HOUR: i64 = 3600;
/// What lasts for less ends no lease: that has 4 s left after any heartbeat that was answered in time.
const SHORT: Duration = Duration::from_secs(3);
/// What a machine has stays its own while its PID 1 hangs, until `systemd_timeout`, 30 s. That counts from when PID 1 was heard
/// last, a few seconds before.
const HANGS: Duration = Duration::from_secs(25);
const AGENT: &str = "muster-agent.service";
const SCHEDULER: &str = "muster-scheduler.service";

/// A fault of one part of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Blow {
    pub(crate) fault: Fault,
    pub(crate) machine: String,
    /// The processes that are meant; none: the machine as a whole.
    services: Vec<&'static str>,
    /// From its beginning to its end.
    pub(crate) lasts: Duration,
    /// By how much more what is slow may be late: what comes later may overtake it.
    jitter_ms: u32,
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, machine, services, lasts, jitter_ms: _ } = self;
        write!(f, "{fault} {machine}")?;
        for service in services {
            write!(f, " {}", service.trim_end_matches(".service"))?;
        }
        if lasts.is_zero() { Ok(()) } else { write!(f, " for {:.1} s", lasts.as_secs_f64()) }
    }
}

impl Blow {
    /// That of a cell. Workers are broken where the exclusive unit is: on the first one.
    pub(crate) fn of(world: &World, fault: Fault, target: Target) -> Result<Self> {
        let machine = match target {
            Target::Worker | Target::Agent | Target::Both => world.cluster.machine("m1")?,
            Target::Scheduler => world.scheduler()?,
        };
        let services = match (target, fault) {
            (Target::Agent, _) => vec![AGENT],
            (Target::Scheduler, Fault::Kill | Fault::Stop | Fault::OutOfMemory) => vec![SCHEDULER],
            (Target::Both, Fault::Kill) => vec![AGENT, SCHEDULER],
            _ => Vec::new(),
        };
        Ok(Self { fault, machine: machine.name().to_owned(), services, lasts: fault.lasts(), jitter_ms: 0 })
    }

    /// Any, for some time.
    pub(crate) fn draw(rng: &mut Rng, machine: &Machine<'_>, backend: Backend) -> Self {
        let possible: Vec<Fault> =
            Fault::ALL.into_iter().chain(Fault::MORE).filter(|fault| fault.is_possible(backend)).collect();
        let fault = possible[rng.usize(..possible.len())];
        let service = if machine.role().works() { AGENT } else { SCHEDULER };
        let services = match fault {
            Fault::Kill => vec![service],
            Fault::Stop | Fault::OutOfMemory if rng.bool() => vec![service],
            _ => Vec::new(),
        };
        let lasts = if fault.lasts().is_zero() { 0 } else { rng.u64(500..20_000) };
        Self {
            fault,
            machine: machine.name().to_owned(),
            services,
            lasts: Duration::from_millis(lasts),
            jitter_ms: rng.u32(0..=100),
        }
    }

    /// All that there are, of one machine.
    #[cfg(test)]
    pub(crate) fn each_of(machine: &str) -> Vec<Self> {
        let mut blows = Vec::new();
        for fault in Fault::ALL.into_iter().chain(Fault::MORE) {
            let of = |services: &[&'static str]| Self {
                fault,
                machine: machine.to_owned(),
                services: services.to_vec(),
                lasts: fault.lasts(),
                jitter_ms: 50,
            };
            match fault {
                Fault::Kill => blows.push(of(&[AGENT, SCHEDULER])),
                Fault::Stop | Fault::OutOfMemory => blows.extend([of(&[]), of(&[AGENT])]),
                _ => blows.push(of(&[])),
            }
        }
        blows
    }

    fn impairment(&self) -> Impairment {
        Impairment { delay_ms: 200, jitter_ms: self.jitter_ms, loss_percent: 5 }
    }

    /// Whether a lease may end by it.
    pub(crate) fn outlasts_lease(&self) -> bool {
        match self.fault {
            Fault::PowerOff | Fault::Reboot => true,
            Fault::Hang => self.lasts >= HANGS,
            fault => fault.outlasts_lease() && self.lasts >= SHORT,
        }
    }

    /// Whether the scheduler may be away for so long by it that exclusive units end: also where its machine is out of memory,
    /// which does little else for seconds.
    pub(crate) fn keeps_scheduler_away(&self) -> bool {
        let starved = self.fault == Fault::OutOfMemory && self.services.is_empty() && self.lasts >= SHORT;
        self.machine.starts_with('s') && (self.outlasts_lease() || starved)
    }

    /// Whether no lease covers it: a machine stands still as a whole, and goes on.
    pub(crate) fn stands_still(&self) -> bool {
        self.lasts >= SHORT && self.fault.stands_still() && self.services.is_empty()
    }

    fn signal(&self, machine: &Machine<'_>, signal: &str) -> Result<Output> {
        let mut command = vec!["systemctl", "kill", "--kill-whom=main", "--signal", signal];
        command.extend(&self.services);
        machine.exec(&command)
    }

    pub(crate) fn strike(&self, world: &World) -> Result<()> {
        let machine = world.cluster.machine(&self.machine)?;
        let others = || world.cluster.machines().filter(|other| other.name() != self.machine);
        match self.fault {
            Fault::Kill => self.signal(&machine, "KILL")?.ok().map(drop),
            Fault::Stop if self.services.is_empty() => machine.freeze(),
            Fault::Stop => self.signal(&machine, "STOP")?.ok().map(drop),
            Fault::PowerOff => machine.kill(),
            Fault::Cut => machine.cut(),
            Fault::Mute => others().try_for_each(|other| machine.lose(&other)),
            Fault::Deaf => others().try_for_each(|other| other.lose(&machine)),
            Fault::Slow => machine.impair(self.impairment()),
            Fault::FullDisk => machine.fill(DISK),
            Fault::OutOfMemory if self.services.is_empty() => machine.starve().map(drop),
            Fault::OutOfMemory => {
                self.services.iter().try_for_each(|service| machine.starve_unit(service).map(drop))
            }
            Fault::Clock => machine.jump_clock(HOUR),
            Fault::Reboot => machine.reboot(),
            Fault::Hang => machine.stop_pid1(),
            Fault::Pause => machine.pause(),
            Fault::Move => machine.save(),
        }
    }

    pub(crate) fn mend(&self, world: &World) -> Result<()> {
        let machine = world.cluster.machine(&self.machine)?;
        match self.fault {
            Fault::Kill | Fault::OutOfMemory | Fault::Reboot => Ok(()),
            Fault::Stop if self.services.is_empty() => machine.thaw(),
            Fault::Stop => gone_on(self.signal(&machine, "CONT")?),
            Fault::PowerOff => machine.boot(),
            Fault::Cut | Fault::Mute | Fault::Deaf | Fault::Slow => machine.heal(),
            Fault::FullDisk => machine.clear(),
            Fault::Clock => machine.jump_clock(-HOUR),
            Fault::Hang => machine.continue_pid1(),
            Fault::Pause => machine.resume(),
            Fault::Move => machine.restore(),
        }
    }

    fn signal_command(&self, signal: &str) -> String {
        let (machine, services) = (&self.machine, self.services.join(" "));
        format!("muster-cluster exec {machine} systemctl kill --kill-whom=main --signal {signal} {services}")
    }

    /// The command that does it, for a person.
    pub(crate) fn begins(&self) -> String {
        let (machine, services) = (&self.machine, self.services.join(" "));
        match self.fault {
            Fault::Kill => self.signal_command("KILL"),
            Fault::Stop if services.is_empty() => format!("muster-cluster freeze {machine}"),
            Fault::Stop => self.signal_command("STOP"),
            Fault::PowerOff => format!("muster-cluster kill {machine}"),
            Fault::Cut => format!("muster-cluster cut {machine}"),
            Fault::Mute => format!(
                "for other in $machines; do [ $other = {machine} ] || muster-cluster lose {machine} $other; done"
            ),
            Fault::Deaf => format!(
                "for other in $machines; do [ $other = {machine} ] || muster-cluster lose $other {machine}; done"
            ),
            Fault::Slow => {
                let Impairment { delay_ms, jitter_ms, loss_percent } = self.impairment();
                format!(
                    "muster-cluster impair {machine} --delay {delay_ms} --jitter {jitter_ms} --loss {loss_percent}"
                )
            }
            Fault::FullDisk => format!("muster-cluster fill {machine} {DISK}"),
            Fault::OutOfMemory if services.is_empty() => format!("muster-cluster starve {machine}"),
            Fault::OutOfMemory => format!("muster-cluster starve {machine} --unit {services}"),
            Fault::Clock => format!("muster-cluster clock {machine} {HOUR}"),
            Fault::Reboot => format!("muster-cluster reboot {machine}"),
            Fault::Hang => format!("muster-cluster hang {machine}"),
            Fault::Pause => format!("muster-cluster pause {machine}"),
            Fault::Move => format!("muster-cluster save {machine}"),
        }
    }

    /// The command that ends it, if it takes one.
    pub(crate) fn ends(&self) -> Option<String> {
        let machine = &self.machine;
        Some(match self.fault {
            Fault::Kill | Fault::OutOfMemory | Fault::Reboot => return None,
            Fault::Stop if self.services.is_empty() => format!("muster-cluster thaw {machine}"),
            // As in `gone_on`.
            Fault::Stop => format!("{{ {} || :; }}", self.signal_command("CONT")),
            Fault::PowerOff => format!("muster-cluster boot {machine}"),
            Fault::Cut | Fault::Mute | Fault::Deaf | Fault::Slow => format!("muster-cluster heal {machine}"),
            Fault::FullDisk => format!("muster-cluster clear {machine}"),
            Fault::Clock => format!("muster-cluster clock {machine} -{HOUR}"),
            Fault::Hang => format!("muster-cluster unhang {machine}"),
            Fault::Pause => format!("muster-cluster resume {machine}"),
            Fault::Move => format!("muster-cluster restore {machine}"),
        })
    }
}

/// Whether what was stopped goes on, by what `systemctl kill` answered. Its watchdog may have ended it meanwhile: no fault of the
/// trial's.
fn gone_on(output: Output) -> Result<()> {
    if output.stderr.contains("No main process to kill") { Ok(()) } else { output.ok().map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32, stderr: &str) -> Output {
        Output {
            command: "systemctl kill".to_owned(),
            code: Some(code),
            stdout: String::new(),
            stderr: stderr.to_owned(),
        }
    }

    #[test]
    fn what_has_ended_when_it_is_to_go_on_is_no_error() {
        gone_on(answer(0, "")).unwrap();
        let gone = "Failed to kill unit muster-scheduler.service: No main process to kill\n";
        gone_on(answer(1, gone)).unwrap();
        gone_on(answer(1, "Failed to connect to bus: Connection refused\n")).unwrap_err();
    }

    #[test]
    fn what_really_lasted_decides_whether_a_lease_may_end() {
        let blow = |fault, seconds| Blow {
            fault,
            machine: "m1".to_owned(),
            services: Vec::new(),
            lasts: Duration::from_secs(seconds),
            jitter_ms: 0,
        };
        assert!(!blow(Fault::Cut, 2).outlasts_lease());
        assert!(blow(Fault::Cut, 4).outlasts_lease());
        assert!(blow(Fault::Reboot, 1).outlasts_lease());
        // What a machine has stays until `systemd_timeout`.
        assert!(!blow(Fault::Hang, 19).outlasts_lease());
        assert!(blow(Fault::Hang, 31).outlasts_lease());

        let of_scheduler = |fault, seconds| Blow { machine: "s1".to_owned(), ..blow(fault, seconds) };
        assert!(of_scheduler(Fault::Cut, 4).keeps_scheduler_away());
        assert!(of_scheduler(Fault::OutOfMemory, 4).keeps_scheduler_away());
        for other in [
            of_scheduler(Fault::OutOfMemory, 1),
            Blow { services: vec![SCHEDULER], ..of_scheduler(Fault::OutOfMemory, 4) },
            of_scheduler(Fault::Hang, 19),
            blow(Fault::Cut, 4),
            blow(Fault::OutOfMemory, 4),
        ] {
            assert!(!other.keeps_scheduler_away(), "{other}");
        }
    }
}
