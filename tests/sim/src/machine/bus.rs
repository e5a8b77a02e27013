//! What a simulated agent asks of systemd and of the disk, and what comes back.

use muster_core::agent::{CallError, Effect, Input, Verb, Written};

use crate::queue::{MILLI, Micros, SECOND};
use crate::systemd::{self, Later, Out};
use crate::world::{Event, World};

impl World {
    /// A call reaches PID 1.
    pub(crate) fn call(&mut self, number: usize, boot: u64, process: u64, id: u64, call: Effect) {
        let now = self.queue.now();
        let machine = &mut self.machines[number];
        if machine.boot != boot || !machine.on {
            return;
        }
        if machine.pid1_busy > 0 {
            machine.pid1_waiting.push(Event::Call(number, boot, process, id, call));
            return;
        }
        let asked = machine.agent_if(process).is_some_and(|agent| agent.calls.contains_key(&id));
        if !asked && (matches!(call, Effect::Write(_)) || machine.random.chance(500)) {
            return;
        }
        let lost = machine.bus_flaky > 0 && machine.random.chance(400);
        if lost && machine.random.chance(500) {
            let wait = machine.random.between(SECOND, 3 * SECOND);
            return self.answer_later(number, process, id, wait, unanswered(&call));
        }
        let mut out = Out::default();
        let answer = if let Effect::Write(writes) = &call {
            let mut outcomes = Vec::with_capacity(writes.len());
            if machine.disk_full > 0 {
                // Each is refused, and asked for anew.
                self.work.touched += 2 * writes.len() as u64;
            }
            for write in writes {
                let outcome = if machine.disk_full > 0 {
                    Written::Failed("no space left on device".to_owned())
                } else {
                    systemd::write(&mut machine.files, &machine.systemd, now, write)
                };
                outcomes.push((write.name.clone(), outcome));
            }
            if let Some(agent) = machine.agent_if(process) {
                agent.written.insert(id);
            }
            Some(Input::Written(outcomes))
        } else if let Effect::ArmGuard { until } = call {
            Some(Input::GuardArmed(self.arm_guard(number, until, &mut out)))
        } else if call == Effect::DisarmGuard {
            if machine.guard.take().is_some() {
                machine.systemd.guard_ends(&mut out);
            }
            Some(Input::GuardDisarmed)
        } else {
            machine.systemd.call(&machine.files, now, &call, &mut out)
        };
        let machine = &mut self.machines[number];
        let (wait, answer) = if lost {
            // It had its effect.
            (
                machine.random.between(SECOND, 3 * SECOND),
                if matches!(call, Effect::Write(_)) { answer } else { unanswered(&call) },
            )
        } else if matches!(call, Effect::Write(_)) && machine.disk_slow > 0 {
            (machine.random.spread(50 * MILLI, 3 * SECOND), answer)
        } else {
            (out.busy + machine.random.spread(100, 3 * MILLI), answer)
        };
        self.answer_later(number, process, id, wait, answer);
        self.pid1_did(number, out);
    }

    fn answer_later(&mut self, number: usize, process: u64, id: u64, wait: Micros, answer: Option<Input>) {
        match answer {
            Some(answer) => self.queue.after(wait, Event::Answer(number, process, id, answer)),
            None => {
                if let Some(agent) = self.machines[number].agent_if(process) {
                    agent.calls.remove(&id);
                }
            }
        }
    }

    pub(crate) fn answered(&mut self, number: usize, process: u64, id: u64, answer: Input) {
        let Some(agent) = self.machines[number].agent_if(process) else { return };
        agent.written.remove(&id);
        if agent.calls.remove(&id).is_some() {
            if !is_unanswered(&answer) {
                self.pid1_is_heard(number);
            }
            self.tell_agent(number, answer);
        }
    }

    /// PID 1 does something by itself.
    pub(crate) fn later(&mut self, number: usize, boot: u64, later: Later) {
        let machine = &mut self.machines[number];
        if machine.boot != boot || !machine.on {
            return;
        }
        if machine.pid1_busy > 0 {
            machine.pid1_waiting.push(Event::Later(number, boot, later));
            return;
        }
        let mut out = Out::default();
        machine.systemd.happens(&machine.files, self.queue.now(), later, &mut out);
        self.pid1_did(number, out);
    }

    /// What comes of something that PID 1 did.
    pub(crate) fn pid1_did(&mut self, number: usize, out: Out) {
        let machine = &mut self.machines[number];
        let boot = machine.boot;
        for (wait, later) in out.later {
            self.queue.after(wait, Event::Later(number, boot, later));
        }
        if out.busy > 0 {
            machine.pid1_busy += 1;
            self.queue.after(out.busy, Event::Pid1Free(number, boot));
        }
        let process = machine.agents;
        self.work.touched += out.signals.len() as u64;
        if let Some(bus) = machine.agent.as_ref().and_then(|agent| agent.bus)
            && !out.signals.is_empty()
        {
            let wait = machine.random.spread(100, 5 * MILLI);
            machine.signalled = machine.signalled.max(self.queue.now() + wait);
            let at = machine.signalled;
            // The end of a reload is signalled when it has ended.
            let mut after = 0;
            for signal in out.signals {
                if matches!(signal, Input::Reloading(false)) {
                    after = out.busy;
                }
                self.queue.at(at + after, Event::Signal(number, process, bus, signal));
            }
            self.machines[number].signalled += after;
        }
        self.exclusive_means_one();
    }

    pub(crate) fn signal(&mut self, number: usize, process: u64, bus: u64, signal: Input) {
        if self.machines[number].agent_if(process).is_some_and(|agent| agent.bus == Some(bus)) {
            self.pid1_is_heard(number);
            self.tell_agent(number, signal);
        }
    }
}

/// What the agent is told when there is no answer.
pub(super) fn unanswered(call: &Effect) -> Option<Input> {
    let error = || CallError::Unanswered("no answer".to_owned());
    Some(match call {
        Effect::Start(name) => Input::Answered(name.clone(), Verb::Start, Err(error())),
        Effect::Stop(name) => Input::Answered(name.clone(), Verb::Stop, Err(error())),
        Effect::Check(name) => Input::Checked(name.clone(), None),
        Effect::Explain(name) => Input::Explained(name.clone(), None),
        Effect::Read(names) => Input::Read(names.iter().map(|name| (name.clone(), None)).collect()),
        Effect::Reload => Input::Reloaded(Err("no answer".to_owned())),
        Effect::Ping => Input::Pong(false),
        Effect::ArmGuard { .. } => Input::GuardArmed(Err("no answer".to_owned())),
        Effect::DisarmGuard => Input::GuardDisarmed,
        Effect::Write(writes) => {
            Input::Written(writes.iter().map(|write| (write.name.clone(), Written::Unanswered)).collect())
        }
        _ => return None,
    })
}

/// Whether this is no sign of life of PID 1.
fn is_unanswered(input: &Input) -> bool {
    match input {
        Input::Answered(_, _, answer) => {
            matches!(answer, Err(CallError::Unanswered(_) | CallError::NotAsked(_)))
        }
        Input::Checked(_, answer) => answer.is_none(),
        Input::Explained(_, answer) => answer.is_none(),
        Input::Read(units) => units.iter().all(|(_, seen)| seen.is_none()),
        Input::Reloaded(outcome) | Input::GuardArmed(outcome) => outcome.is_err(),
        Input::Pong(answered) => !answered,
        Input::Written(_) | Input::GuardDisarmed => true,
        _ => false,
    }
}

/// Whether this is a sign of life of PID 1.
pub(crate) fn is_from_pid1(input: &Input) -> bool {
    match input {
        Input::Answered(..)
        | Input::Checked(..)
        | Input::Explained(..)
        | Input::Read(_)
        | Input::Reloaded(_)
        | Input::GuardArmed(_)
        | Input::Pong(_) => !is_unanswered(input),
        Input::SystemdUp | Input::Reloading(_) | Input::JobRemoved(..) | Input::Changed { .. } => true,
        _ => false,
    }
}
