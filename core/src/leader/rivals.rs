//! Machines that claim an id which another machine has: clones of one disk, most often.
//!
//! A Hello of another boot or another agent than the machine's session has may come from the machine itself, whose old
//! stream has not ended yet, or from another one. The leader asks on the old stream. Who answers there keeps the id.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{ConnectionId, Effect, Event, Leader, Machine};
use crate::command::RivalStatus;
use crate::ids::{AgentKey, BootId, MachineId};
use crate::message::{Hello, LeaderMessage, Refused};
use crate::time::Time;
use crate::unit::UnitName;

/// How long the old stream may be silent, in the leader's own time.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// How long a machine that was refused is remembered. It comes again and again.
const REMEMBERED: Duration = Duration::from_secs(3 * 60);

/// Those who claim an id that is in use.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    /// The Hellos that wait for a sign of life on the old stream.
    newcomers: BTreeMap<MachineId, Newcomer>,
    /// Those that were refused last.
    refused: BTreeMap<MachineId, Rival>,
}

#[derive(Debug)]
struct Newcomer {
    connection: ConnectionId,
    hello: Hello,
    /// In the leader's own time.
    until: Time,
}

#[derive(Debug)]
struct Rival {
    address: String,
    boot: BootId,
    key: AgentKey,
    heard: Time,
}

impl Rivals {
    /// When the next Hello has waited for long enough, in the leader's own time.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.newcomers.values().map(|newcomer| newcomer.until).min()
    }

    /// This stream has ended: a Hello that came on it needs no answer.
    pub(super) fn disconnected(&mut self, connection: ConnectionId) {
        self.newcomers.retain(|_, newcomer| newcomer.connection != connection);
    }

    /// This Hello is accepted: whoever says it is no rival, or has an id of its own now.
    pub(super) fn welcomed(&mut self, hello: &Hello) {
        self.refused.retain(|id, rival| {
            let moved = *id != hello.machine && rival.address == hello.address && !rival.address.is_empty();
            rival.key != hello.key && !moved
        });
    }

    pub(super) fn status(&self, id: MachineId, now: Time) -> Option<RivalStatus> {
        let rival = self.refused.get(&id).filter(|rival| rival.is_remembered(now))?;
        let heard = now.since(rival.heard).as_millis();
        Some(RivalStatus {
            address: rival.address.clone(),
            boot: rival.boot,
            last_heard_ms: u64::try_from(heard).unwrap_or(u64::MAX),
        })
    }
}

impl Rival {
    fn is_remembered(&self, now: Time) -> bool {
        now.since(self.heard) < REMEMBERED
    }
}

impl Leader {
    /// Gives the Hello back if it is to be accepted. If it comes from elsewhere than the machine's session, it waits.
    pub(super) fn challenge(&mut self, connection: ConnectionId, hello: Hello) -> Option<Hello> {
        let id = hello.machine;
        let Some(machine) = self.machines.get(&id) else { return Some(hello) };
        if machine.record.key == hello.key && machine.record.boot == hello.boot {
            // The other one is alive, and has only opened another stream.
            self.refuse_newcomer(id);
            return Some(hello);
        }
        // A stream that has ended, or is silent for a moment, is no death, where it is known that there are two.
        let rival = self.rivals.refused.get(&id);
        let rival = rival.filter(|rival| rival.key == hello.key && rival.is_remembered(self.now));
        if machine.deadline.is_some() && rival.is_some() {
            self.refuse_rival(connection, hello);
            return None;
        }
        let Some(session) = machine.session.as_ref().filter(|session| session.connection != connection)
        else {
            if self.exclusive_units_may_run(&hello) {
                self.refuse_rival(connection, hello);
                return None;
            }
            return Some(hello);
        };
        let (old, number) = (session.connection, session.number);
        let until = self.awake() + PROBE_WAIT;
        match self.rivals.newcomers.insert(id, Newcomer { connection, hello, until }) {
            None => self.say(old, number, LeaderMessage::Probe),
            Some(before) => {
                // The question is asked already, and is not asked for longer.
                if let Some(newcomer) = self.rivals.newcomers.get_mut(&id) {
                    newcomer.until = before.until;
                }
                if before.connection != connection {
                    self.refuse(before.connection, &before.hello, Refused::Replaced);
                }
            }
        }
        None
    }

    /// The machine has given a sign of life: whoever waits to take its place is another one.
    pub(super) fn refuse_newcomer(&mut self, id: MachineId) {
        if let Some(newcomer) = self.rivals.newcomers.remove(&id) {
            self.refuse_rival(newcomer.connection, newcomer.hello);
        }
    }

    fn refuse_rival(&mut self, connection: ConnectionId, hello: Hello) {
        let id = hello.machine;
        let address =
            self.machines.get(&id).map(|machine| machine.record.address.clone()).unwrap_or_default();
        self.refuse(connection, &hello, Refused::IdInUse { address: address.clone() });
        let Hello { address: rival, boot, key, .. } = hello;
        let known = self.rivals.refused.get(&id);
        // It comes again and again, and is news once.
        if known.is_none_or(|known| known.key != key || !known.is_remembered(self.now)) {
            self.event(Event::IdInUse { machine: id, address: address.into(), rival: rival.as_str().into() });
        }
        self.rivals.refused.insert(id, Rival { address: rival, boot, key, heard: self.now });
    }

    /// The machine's session is over: whoever waits takes its place.
    pub(super) fn admit_newcomer(&mut self, id: MachineId) {
        let Some(Newcomer { connection, hello, .. }) = self.rivals.newcomers.remove(&id) else { return };
        if !self.leads() {
            // Nothing could be said to it.
            return self.outbox.now(Effect::Close(connection));
        }
        if self.exclusive_units_may_run(&hello) {
            return self.refuse_rival(connection, hello);
        }
        self.welcome(connection, hello);
    }

    /// Whether exclusive units may still run on the machine that is known by this id, if the Hello is not its own. A Hello
    /// of a new boot is no proof that the old one has ended where it comes from another address: two machines may have
    /// one id, of which the first is only not heard. Its lease is proof, whoever is who.
    fn exclusive_units_may_run(&self, hello: &Hello) -> bool {
        let Some(machine) = self.machines.get(&hello.machine) else { return false };
        let is_known = machine.record.key == hello.key || self.is_at_address_of(machine, hello);
        // One that has said that it shuts down was to come back.
        if is_known || machine.record.leaving {
            return false;
        }
        let stop = |name: &UnitName| {
            let retired = self.retired.get(&(hello.machine, name.clone()));
            let placed = self.units.get(name).and_then(|unit| unit.options.exclusive);
            placed.max(retired.and_then(|retired| retired.exclusive))
        };
        let longest = self.placer.units_on(hello.machine).filter_map(stop).max();
        longest.is_some_and(|stop| self.awake() < machine.lease_until + self.settings.exclusive_end(stop))
    }

    /// Whether the Hello comes from the address of the machine that is known by its id, and only that one can have it.
    fn is_at_address_of(&self, machine: &Machine, hello: &Hello) -> bool {
        let is_local = || hello.address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let has = |(other, machine): (&MachineId, &Machine)| {
            *other != hello.machine && machine.record.address == hello.address
        };
        machine.record.address == hello.address && !is_local() && !self.machines.iter().any(has)
    }

    /// Accepts the Hellos for which there was no sign of life on the old stream.
    pub(super) fn end_probes(&mut self) {
        let awake = self.awake();
        let over = |(id, newcomer): (&MachineId, &Newcomer)| (newcomer.until <= awake).then_some(*id);
        for id in self.rivals.newcomers.iter().filter_map(over).collect::<Vec<_>>() {
            self.admit_newcomer(id);
        }
    }
}
