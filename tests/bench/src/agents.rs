//! Agents without machines: core and streams are the real ones, and what systemd is asked for is so at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_agent::session::Sessions;
use muster_core::agent::{
    Agent, Checked, Effect, Identity, Input, Ledger, Membership, Seen, Verb, Write, Written,
};
use muster_core::ids::{AgentKey, BootId, MachineId};
use muster_core::machine::Capacity;
use muster_core::state::UnitState;
use muster_core::stream::StreamKinds;
use muster_core::unit::{Bytes, MilliCpu, UnitName};
use muster_daemon::clock::now;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::sleep;

const INPUTS_MAX: usize = 1024;

/// Agents of so many machines, in a thread of their own. They end with this.
#[derive(Debug)]
pub struct Agents {
    runtime: Option<Runtime>,
    lapses: Arc<AtomicUsize>,
}

impl Agents {
    /// Starts them; they know these schedulers.
    pub fn start(count: u32, schedulers: &[String]) -> Self {
        let lapses = Arc::new(AtomicUsize::new(0));
        let runtime = muster_test_etcd::runtime();
        for number in 1..=count {
            runtime.spawn(run(number, schedulers.to_vec(), Arc::clone(&lapses)));
        }
        Self { runtime: Some(runtime), lapses }
    }

    /// How often a machine's lease has ended before it was renewed.
    pub fn lapses(&self) -> usize {
        self.lapses.load(Ordering::Relaxed)
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        // It is waited for nowhere: that is not allowed in another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn run(number: u32, schedulers: Vec<String>, lapses: Arc<AtomicUsize>) {
    let identity = Identity {
        streams: StreamKinds::default(),
        machine: MachineId::new(u128::from(number) << 96),
        address: "127.0.0.1".to_owned(),
        labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        capacity: Capacity { cpu: MilliCpu(16_000), memory: Bytes(64 << 30) },
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let ledger = Ledger::new(BootId::new(1), AgentKey::new(number.into()));
    // What is random in it stands at the end.
    #[expect(clippy::cast_possible_truncation, reason = "the end of it is wanted")]
    let seed = uuid::Uuid::now_v7().as_u128() as u64;
    let mut agent = Agent::new(identity, schedulers, Membership::default(), ledger, seed, now());
    let (inputs, mut queue) = mpsc::channel(INPUTS_MAX);
    let mut sessions = Sessions::new(false, inputs, None);
    let mut systemd = Systemd::default();
    let mut turn = vec![Input::SystemdUp];
    let mut lapsed = None;
    loop {
        let lease = agent.lease_end().filter(|end| *end <= now());
        if lease.is_some() && lease != lapsed {
            lapsed = lease;
            lapses.fetch_add(1, Ordering::Relaxed);
        }
        let mut answers = Vec::new();
        for effect in agent.step(now(), turn.drain(..)) {
            match effect {
                Effect::Connect(connection, scheduler) => sessions.connect(connection, scheduler),
                Effect::Disconnect(_) => sessions.disconnect(),
                Effect::Send(message) => sessions.send(message),
                effect => systemd.carry_out(effect, &mut answers),
            }
        }
        turn = answers;
        if turn.is_empty() {
            let timer = agent.next_timer().map_or(Duration::MAX, |at| at.since(now()));
            tokio::select! {
                _ = queue.recv_many(&mut turn, INPUTS_MAX) => {}
                () = sleep(timer) => turn.push(Input::Tick),
            }
        }
    }
}

/// A systemd, and a disk, on which all goes well at once.
#[derive(Debug, Default)]
struct Systemd {
    active: BTreeSet<UnitName>,
    last_job: u32,
}

impl Systemd {
    fn carry_out(&mut self, effect: Effect, answers: &mut Vec<Input>) {
        match effect {
            Effect::SaveMembership(_) => answers.push(Input::MembershipSaved(Ok(()))),
            Effect::Write(writes) => {
                let written = |write: Write| (write.name, Written::Done { known: !write.fresh });
                answers.push(Input::Written(writes.into_iter().map(written).collect()));
            }
            Effect::Remove(names) => {
                answers.push(Input::Removed(names.into_iter().map(|name| (name, Ok(()))).collect()));
            }
            Effect::Start(name) => {
                self.active.insert(name.clone());
                self.job(name, Verb::Start, answers);
            }
            Effect::Stop(name) => {
                self.active.remove(&name);
                self.job(name, Verb::Stop, answers);
            }
            Effect::Check(name) => {
                let active = self.active.contains(&name);
                answers.push(Input::Checked(name, Some(Checked { outdated: false, active })));
            }
            Effect::Read(names) => {
                let seen = names.into_iter().map(|name| {
                    let seen = Seen { state: self.state(&name), job: false, load_error: None };
                    (name, Some(seen))
                });
                answers.push(Input::Read(seen.collect()));
            }
            Effect::Ping => answers.push(Input::Pong(true)),
            // Nothing that is measured fails, is exclusive or reloads; and the ledger is needed by the next agent only.
            _ => {}
        }
    }

    fn state(&self, name: &UnitName) -> UnitState {
        let (active, sub) =
            if self.active.contains(name) { ("active", "running") } else { ("inactive", "dead") };
        UnitState { load: "loaded".to_owned(), active: active.to_owned(), sub: sub.to_owned() }
    }

    fn job(&mut self, name: UnitName, verb: Verb, answers: &mut Vec<Input>) {
        self.last_job += 1;
        let UnitState { active, sub, .. } = self.state(&name);
        answers.push(Input::Answered(name.clone(), verb, Ok(self.last_job)));
        answers.push(Input::Changed { unit: name.clone(), active, sub, job: false });
        answers.push(Input::JobRemoved(name, self.last_job, "done".to_owned()));
    }
}
