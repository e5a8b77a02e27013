//! The agent against tables of inputs and effects; `world` plays it against a systemd and a leader that misbehave.

mod gone;
mod guard;
mod heartbeats;
mod schedulers;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::ids::{ClusterId, Epoch, MachineId, Revision, SessionNumber, StreamKey, Term};
use crate::machine::Capacity;
use crate::message::{
    Assignment, Assignments, Goodbye, LeaderMessage, Refused, Removal, ReportedChange, ToAgent, UnitReport,
    Welcome,
};
use crate::state::{Failure, Observation, Phase, Target, UnitState};
use crate::stream::StreamKinds;
use crate::unit::{Bytes, ContentHash, MilliCpu, UnitName};

const CLUSTER: ClusterId = ClusterId::new(7);
const FILE: &str = "[Service]\nExecStart=/bin/true\n";

const DONE: Written = Written::Done { known: false };

fn unit(name: &str) -> UnitName {
    name.parse().unwrap()
}

fn epoch(term: u64, counter: u64) -> Epoch {
    Epoch { term: Term(term), counter }
}

fn seconds(seconds: u64) -> Time {
    Time::from_boot(Duration::from_secs(seconds))
}

fn identity() -> Identity {
    Identity {
        machine: MachineId::new(1),
        address: String::new(),
        labels: BTreeMap::new(),
        // As many as systemd bears may start at once.
        capacity: Capacity { cpu: MilliCpu(12_000), memory: Bytes(1 << 30) },
        version: "test".into(),
        streams: StreamKinds::default(),
    }
}

fn ledger() -> Ledger {
    Ledger::new(BootId::new(2), AgentKey::new(3))
}

fn hold(name: &str, epoch: Epoch, file: &str, target: Target) -> Assignment {
    let content = Some(file.into());
    Assignment {
        name: unit(name),
        epoch,
        hash: ContentHash::of(file.as_bytes()),
        content,
        target,
        exclusive: None,
    }
}

fn exit_code(reason: &str) -> Failure {
    Failure { result: "exit-code".into(), reason: reason.into() }
}

fn state(active: &str, sub: &str) -> UnitState {
    UnitState { load: "loaded".into(), active: active.into(), sub: sub.into() }
}

fn changed(name: &str, active: &str, sub: &str) -> Input {
    Input::Changed { unit: unit(name), active: active.into(), sub: sub.into(), job: false }
}

fn schedulers(addresses: &[&str]) -> Vec<String> {
    addresses.iter().map(|address| (*address).to_owned()).collect()
}

/// Another attempt to reach the only scheduler.
fn connect(connection: u64) -> Effect {
    Effect::Connect(connection, "one:1".to_owned())
}

/// What is written down of a leader of this term.
fn membership(term: u64) -> Membership {
    Membership { cluster: Some(CLUSTER), term: Term(term), machine: Some(identity().machine) }
}

/// An agent with a leader of term 5, whose messages it builds.
struct Bench {
    agent: Agent,
    now: Time,
    term: Term,
    revision: u64,
}

impl Bench {
    /// An agent that was just started, with systemd up.
    fn unconnected(membership: Membership, ledger: Ledger) -> Self {
        let now = seconds(100);
        let mut agent = Agent::new(identity(), schedulers(&["one:1"]), membership, ledger, 0, now);
        agent.step(now, [Input::SystemdUp]);
        Self { agent, now, term: Term(5), revision: 0 }
    }

    /// An agent that was welcomed and has an empty snapshot.
    fn new() -> Self {
        let mut bench = Self::with_ledger(ledger());
        assert_eq!(bench.assign(true, vec![], vec![]), []);
        bench
    }

    /// The same before the snapshot.
    fn with_ledger(ledger: Ledger) -> Self {
        let membership = membership(5);
        let mut bench = Self::unconnected(membership, ledger);
        bench.step(Input::Connected(1));
        bench.hear(welcome(CLUSTER));
        // The first heartbeat goes out with the welcome and is of no interest here.
        bench
    }

    fn step(&mut self, input: Input) -> Vec<Effect> {
        let mut effects = self.agent.step(self.now, [input]);
        // Reports keep a distance in time.
        if self.agent.to_report {
            self.now = self.agent.report_at;
            effects.extend(self.agent.step(self.now, [Input::Tick]));
        }
        let of_interest = |effect: &Effect| {
            !matches!(
                effect,
                Effect::SaveLedger(_) | Effect::Event(_) | Effect::Send(FromAgent::Heartbeat { .. })
            )
        };
        effects.into_iter().filter(of_interest).collect()
    }

    fn hear(&mut self, body: LeaderMessage) -> Vec<Effect> {
        let message = ToAgent { term: self.term, session: self.agent.session.number(), body };
        self.step(Input::Leader(message))
    }

    fn assign(&mut self, snapshot: bool, hold: Vec<Assignment>, remove: Vec<Removal>) -> Vec<Effect> {
        self.revision += 1;
        let revision = Revision(self.revision);
        self.hear(LeaderMessage::Assignments(Assignments { snapshot, revision, hold, remove }))
    }

    fn later(&mut self, wait: Duration) -> Vec<Effect> {
        self.now = self.now + wait;
        self.step(Input::Tick)
    }

    /// Lets time pass as the agent's own loop does: with a step whenever one is due.
    fn passes(&mut self, wait: Duration) -> Vec<Effect> {
        let until = self.now + wait;
        let mut effects = Vec::new();
        while let Some(due) = self.agent.next_timer().filter(|due| *due < until) {
            self.now = due.max(self.now);
            effects.extend(self.step(Input::Tick));
        }
        self.now = until;
        effects.extend(self.step(Input::Tick));
        effects
    }

    /// Has `a.service` started, in epoch 5.1.
    fn started() -> Self {
        let mut bench = Self::new();
        let written = Input::Written(vec![(unit("a.service"), DONE)]);
        bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
        bench.step(written);
        bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
        bench.step(changed("a.service", "active", "running"));
        let effects = bench.step(Input::JobRemoved(unit("a.service"), 11, "done".into()));
        assert_eq!(
            effects,
            [report("a.service", epoch(5, 1), Phase::Launched, Some(state("active", "running")))]
        );
        bench
    }
}

fn welcome(cluster: ClusterId) -> LeaderMessage {
    LeaderMessage::Welcome(Welcome {
        cluster,
        heartbeat_interval: Duration::from_secs(1),
        lease_ttl: Duration::from_secs(5),
    })
}

fn observed(name: &str, epoch: Epoch, observation: Observation) -> UnitReport {
    UnitReport { name: unit(name), epoch, change: ReportedChange::Observed(observation) }
}

fn report(name: &str, epoch: Epoch, phase: Phase, state: Option<UnitState>) -> Effect {
    Effect::Send(FromAgent::Report(vec![observed(name, epoch, Observation::Held { phase, state })]))
}

fn refused(name: &str, epoch: Epoch, reason: &str) -> Effect {
    Effect::Send(FromAgent::Report(vec![observed(name, epoch, Observation::Refused(reason.into()))]))
}

fn gone(name: &str, epoch: Epoch) -> Effect {
    let report = UnitReport { name: unit(name), epoch, change: ReportedChange::Gone };
    Effect::Send(FromAgent::Report(vec![report]))
}

fn stale(name: &str, epoch: Epoch, newest: Epoch) -> Effect {
    let report = UnitReport { name: unit(name), epoch, change: ReportedChange::Stale(newest) };
    Effect::Send(FromAgent::Report(vec![report]))
}

fn write(name: &str, epoch: Epoch, file: Option<&str>, fresh: bool) -> Effect {
    let hash = ContentHash::of(file.unwrap_or(FILE).as_bytes());
    Effect::Write(vec![Write {
        name: unit(name),
        epoch,
        hash,
        exclusive: None,
        content: file.map(Into::into),
        fresh,
    }])
}

fn read(name: &str) -> Effect {
    Effect::Read(vec![unit(name)])
}

fn seen(name: &str, state: UnitState) -> Input {
    Input::Read(vec![(unit(name), Some(Seen { state, job: false, load_error: None }))])
}

/// PID 1 knows nothing of it any more.
fn forgotten(name: &str) -> Input {
    seen(name, UnitState { load: "not-found".into(), active: "inactive".into(), sub: "dead".into() })
}

fn checked(name: UnitName, outdated: bool) -> Input {
    Input::Checked(name, Some(Checked { outdated, active: false }))
}

#[test]
fn a_stream_is_dialled_for_in_a_session_of_the_newest_term() {
    let mut bench = Bench::new();
    let key = StreamKey::new(9);
    assert_eq!(bench.hear(LeaderMessage::OpenStream(key)), [Effect::OpenStream(1, key)]);
    bench.term = Term(4);
    assert_eq!(bench.hear(LeaderMessage::OpenStream(key)), [], "a leader that was overtaken orders nothing");
}

#[test]
fn a_new_unit_is_written_and_started_without_a_reload_or_a_read() {
    let mut bench = Bench::new();
    let effects = bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    assert_eq!(effects, [write("a.service", epoch(5, 1), Some(FILE), true)]);
    let effects = bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    assert_eq!(
        effects,
        [Effect::Start(unit("a.service")), report("a.service", epoch(5, 1), Phase::Starting, None)]
    );
    let effects = bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    assert_eq!(effects, [report("a.service", epoch(5, 1), Phase::Starting, None)]);
}

#[test]
fn systemd_is_not_asked_for_more_jobs_than_its_bus_bears() {
    let mut bench = Bench::new();
    let name = |number: u32| unit(&format!("u{number:03}.service"));
    let holds = |target| {
        let all = (0..500).map(|number| hold(name(number).as_str(), epoch(5, 1), FILE, target));
        all.collect::<Vec<_>>()
    };
    let starts = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Start(_))).count();
    let stops = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Stop(_))).count();
    bench.assign(false, holds(Target::Launched), vec![]);
    let effects = bench.step(Input::Written((0..500).map(|number| (name(number), DONE)).collect()));
    assert_eq!(starts(&effects), 384);
    for number in 0..384 {
        assert_eq!(starts(&bench.step(Input::Answered(name(number), Verb::Start, Ok(number)))), 0);
    }
    // Each one that has ended lets another one in.
    let effects = bench.step(Input::JobRemoved(name(7), 7, "done".into()));
    assert!(effects.contains(&Effect::Start(name(384))), "{effects:?}");
    assert_eq!(starts(&effects), 1);
    // What is slow to start can be stopped, and what waited for its start need not be.
    let effects = bench.assign(false, holds(Target::Loaded), vec![]);
    assert_eq!((starts(&effects), stops(&effects)), (0, 64));
    let stopped = (0..64).map(|number| Input::Answered(name(number), Verb::Stop, Err(CallError::NotLoaded)));
    assert_eq!(stops(&bench.agent.step(bench.now, stopped)), 64);
}

#[test]
fn goodbye_is_said_in_every_session_and_needs_no_leader() {
    let said = |goodbye| Effect::Send(FromAgent::Goodbye(goodbye));
    let mut bench = Bench::new();
    assert_eq!(bench.step(Input::Goodbye(Goodbye::Shutdown)), [said(Goodbye::Shutdown)]);
    assert_eq!(bench.later(Duration::from_millis(10)), []);
    assert_eq!(bench.hear(LeaderMessage::Farewell { lease: None }), [Effect::Farewell]);
    // The agent's own end adds nothing to that.
    assert_eq!(bench.step(Input::Goodbye(Goodbye::Restart)), [Effect::Farewell]);
    // Another leader has to be told too. While there is none, nobody waits.
    assert_eq!(bench.step(Input::Disconnected(1)), [Effect::Farewell]);
    let effects = bench.later(Duration::from_secs(5));
    assert!(effects.contains(&connect(2)), "{effects:?}");
    bench.step(Input::Connected(2));
    assert!(bench.hear(welcome(CLUSTER)).contains(&said(Goodbye::Shutdown)));
    let mut bench = Bench::unconnected(Membership::default(), ledger());
    assert!(bench.step(Input::Goodbye(Goodbye::Restart)).contains(&Effect::Farewell));
}

#[test]
fn a_machine_whose_shutdown_is_cancelled_presents_itself_anew() {
    let mut bench = Bench::new();
    assert_eq!(bench.step(Input::ShutdownCancelled), []);
    bench.step(Input::Goodbye(Goodbye::Shutdown));
    let effects = bench.step(Input::ShutdownCancelled);
    assert_eq!(effects, [Effect::Farewell, Effect::Disconnect(1), connect(2)]);
    assert!(matches!(bench.step(Input::Connected(2))[..], [.., Effect::Send(FromAgent::Hello(_))]));
    let effects = bench.hear(welcome(CLUSTER));
    assert!(!effects.iter().any(|e| matches!(e, Effect::Send(FromAgent::Goodbye(_)))), "{effects:?}");
    // The agent's own end is another matter.
    bench.step(Input::Goodbye(Goodbye::Restart));
    assert_eq!(bench.step(Input::ShutdownCancelled), []);
}

#[test]
fn a_job_may_end_before_its_number_is_known() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    assert_eq!(bench.step(Input::JobRemoved(unit("a.service"), 11, "done".into())), []);
    let effects = bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    assert_eq!(effects, [report("a.service", epoch(5, 1), Phase::Launched, None)]);
}

#[test]
fn sockets_are_started_before_services() {
    let mut bench = Bench::new();
    let names = ["web.service", "web.socket"];
    let holds = names.map(|name| hold(name, epoch(5, 1), FILE, Target::Launched));
    bench.assign(false, holds.into(), vec![]);
    let effects = bench.step(Input::Written(names.map(|name| (unit(name), DONE)).into()));
    assert_eq!(effects[..2], [Effect::Start(unit("web.socket")), Effect::Start(unit("web.service"))]);
}

#[test]
fn sockets_are_started_first_also_where_there_are_more_units_than_may_start_at_once() {
    let mut bench = Bench::new();
    let name = |number: usize, kind| format!("a{number:03}.{kind}");
    let names: Vec<String> =
        (0..450).flat_map(|number| [name(number, "service"), name(number, "socket")]).collect();
    let holds = names.iter().map(|name| hold(name, epoch(5, 1), FILE, Target::Launched)).collect();
    bench.assign(false, holds, vec![]);
    let mut effects = bench.step(Input::Written(names.iter().map(|name| (unit(name), DONE)).collect()));
    let mut order = Vec::new();
    loop {
        let starts = effects.iter().filter_map(|effect| match effect {
            Effect::Start(name) => Some(name.clone()),
            _ => None,
        });
        let starts: Vec<UnitName> = starts.collect();
        if starts.is_empty() {
            break;
        }
        order.extend(starts.iter().map(ToString::to_string));
        let mut inputs = Vec::new();
        for (name, job) in starts.into_iter().zip(1..) {
            inputs.push(Input::Answered(name.clone(), Verb::Start, Ok(job)));
            inputs.push(changed(name.as_str(), "active", "running"));
            inputs.push(Input::JobRemoved(name, job, "done".into()));
        }
        effects = bench.agent.step(bench.now, inputs);
    }
    let expected: Vec<String> =
        ["socket", "service"].iter().flat_map(|kind| (0..450).map(|number| name(number, kind))).collect();
    assert_eq!(order, expected);
}

#[test]
fn a_failed_start_says_why() {
    let answer = |error| Input::Answered(unit("a.service"), Verb::Start, Err(error));
    let start = || {
        let mut bench = Bench::new();
        bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
        bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
        bench
    };
    let failed = |result: &str, why: &str| {
        let failure = Failure { result: result.into(), reason: why.into() };
        [report("a.service", epoch(5, 1), Phase::StartFailed(failure), None)]
    };

    let why = "Unit a.service has a bad unit file setting.";
    assert_eq!(start().step(answer(CallError::Refused(why.into()))), failed("", why));

    let mut bench = start();
    bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    let effects = bench.step(Input::JobRemoved(unit("a.service"), 11, "failed".into()));
    assert_eq!(effects, [Effect::Explain(unit("a.service"))]);
    let effects = bench.step(Input::Explained(unit("a.service"), Some(exit_code("exit-code, status 203"))));
    assert_eq!(effects, failed("exit-code", "start job failed: exit-code, status 203"));

    let mut bench = start();
    bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    let effects = bench.step(Input::JobRemoved(unit("a.service"), 11, "dependency".into()));
    let why = "start job failed: a unit that it requires could not be started (dependency)";
    assert_eq!(effects, failed("dependency", why));
}

#[test]
fn an_unanswered_start_is_no_failure() {
    for (active, starts_again) in [("active", false), ("inactive", true)] {
        let mut bench = Bench::new();
        bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
        bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
        let unanswered = Err(CallError::Unanswered("timed out".into()));
        assert_eq!(bench.step(Input::Answered(unit("a.service"), Verb::Start, unanswered)), []);
        assert_eq!(bench.later(Duration::from_secs(1)), [Effect::Ping, read("a.service")]);
        let effects = bench.step(seen("a.service", state(active, "")));
        assert_eq!(effects.contains(&Effect::Start(unit("a.service"))), starts_again, "{effects:?}");
    }
}

#[test]
fn a_lost_job_result_is_made_up_for_by_reading_the_unit() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    assert_eq!(bench.passes(Duration::from_secs(4)), [Effect::Ping]);
    assert_eq!(bench.later(Duration::from_secs(1)), [read("a.service")]);
    let effects = bench.step(seen("a.service", state("active", "running")));
    assert_eq!(
        effects,
        [report("a.service", epoch(5, 1), Phase::Launched, Some(state("active", "running")))]
    );
}

#[test]
fn an_answer_older_than_a_signal_is_not_believed() {
    let mut bench = Bench::started();
    assert_eq!(bench.step(Input::Reloading(false)), [read("a.service")]);
    bench.step(changed("a.service", "failed", "failed"));
    assert_eq!(bench.step(seen("a.service", state("active", "running"))), []);
}

#[test]
fn signals_during_a_reload_are_noise() {
    let mut bench = Bench::started();
    assert_eq!(bench.step(Input::Reloading(true)), []);
    assert_eq!(bench.step(changed("a.service", "inactive", "dead")), []);
    assert_eq!(bench.step(Input::Reloading(false)), [read("a.service")]);
}

#[test]
fn a_later_epoch_is_stopped_written_checked_and_started() {
    let mut bench = Bench::started();
    let name = || unit("a.service");
    // The same content under a later epoch is how a unit is restarted.
    let again = Assignment { content: None, ..hold("a.service", epoch(5, 2), FILE, Target::Launched) };
    let effects = bench.assign(false, vec![again], vec![]);
    let running = Some(state("active", "running"));
    assert_eq!(effects, [Effect::Stop(name()), report("a.service", epoch(5, 1), Phase::Stopping, running)]);
    assert_eq!(bench.step(Input::Answered(name(), Verb::Stop, Ok(12))), []);
    bench.step(changed("a.service", "inactive", "dead"));
    let effects = bench.step(Input::JobRemoved(name(), 12, "done".into()));
    assert_eq!(effects[0], write("a.service", epoch(5, 2), None, false));
    let effects = bench.step(Input::Written(vec![(name(), DONE)]));
    assert_eq!(effects[0], Effect::Check(name()));
    let effects = bench.step(checked(name(), false));
    assert_eq!(effects, [Effect::Start(name())]);
}

#[test]
fn one_reload_serves_all_units_that_stay_loaded_with_old_content() {
    let mut bench = Bench::new();
    let names = ["a.service", "b.service"];
    bench.assign(false, names.map(|name| hold(name, epoch(5, 1), FILE, Target::Loaded)).into(), vec![]);
    bench.step(Input::Written(names.map(|name| (unit(name), DONE)).into()));
    bench.step(Input::Read(
        names
            .map(|name| {
                (unit(name), Some(Seen { state: state("inactive", "dead"), job: false, load_error: None }))
            })
            .into(),
    ));
    let effects =
        bench.assign(false, names.map(|name| hold(name, epoch(5, 2), FILE, Target::Launched)).into(), vec![]);
    assert_eq!(effects[..2], names.map(|name| Effect::Stop(unit(name))));
    let stopped = names.map(|name| Input::Answered(unit(name), Verb::Stop, Err(CallError::NotLoaded)));
    let effects = bench.agent.step(bench.now, stopped);
    let effects = effects.into_iter().filter(|effect| matches!(effect, Effect::Write(_))).collect::<Vec<_>>();
    assert!(matches!(&effects[..], [Effect::Write(writes)] if writes.len() == 2), "{effects:?}");
    bench.step(Input::Written(names.map(|name| (unit(name), DONE)).into()));
    assert_eq!(bench.step(checked(unit("a.service"), true)), []);
    assert_eq!(bench.step(checked(unit("b.service"), true)), [Effect::Reload]);
    let effects = bench.step(Input::Reloaded(Ok(())));
    // What runs may have been activated after the stop, from the old content.
    assert_eq!(effects[..2], names.map(|name| Effect::Stop(unit(name))));
    let effects = bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    assert_eq!(effects[0], Effect::Start(unit("a.service")));
}

#[test]
fn a_new_unit_that_systemd_does_not_find_is_found_after_a_reload() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    let not_found = |verb| Input::Answered(unit("a.service"), verb, Err(CallError::NotLoaded));
    assert_eq!(bench.step(not_found(Verb::Start)), [Effect::Reload]);
    assert_eq!(bench.step(Input::Reloaded(Ok(())))[0], Effect::Stop(unit("a.service")));
    assert_eq!(bench.step(not_found(Verb::Stop))[0], Effect::Start(unit("a.service")));
    // But not for ever.
    let why = Failure::without_result("systemd finds no file for the unit");
    let state = Some(state("inactive", "dead"));
    let failed = report("a.service", epoch(5, 1), Phase::StartFailed(why), state);
    assert_eq!(bench.step(not_found(Verb::Start)), [failed]);
}

#[test]
fn lower_epochs_are_refused() {
    let mut bench = Bench::started();
    let effects = bench.assign(false, vec![hold("a.service", epoch(4, 9), FILE, Target::Launched)], vec![]);
    assert_eq!(effects, [stale("a.service", epoch(4, 9), epoch(5, 1))]);
    // What was removed does not come back under the same epoch.
    let effects = bench.assign(false, vec![], vec![Removal { name: unit("b.service"), epoch: epoch(5, 3) }]);
    assert_eq!(effects, [gone("b.service", epoch(5, 3))]);
    let effects = bench.assign(false, vec![hold("b.service", epoch(5, 3), FILE, Target::Launched)], vec![]);
    assert_eq!(effects, [stale("b.service", epoch(5, 3), epoch(5, 3))]);
}

#[test]
fn removal_stops_removes_confirms_and_remembers() {
    let mut bench = Bench::started();
    let name = || unit("a.service");
    let removal = || vec![Removal { name: name(), epoch: epoch(5, 1) }];
    assert_eq!(bench.assign(false, vec![], removal())[0], Effect::Stop(name()));
    bench.step(Input::Answered(name(), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "failed", "failed"));
    let effects = bench.step(Input::JobRemoved(name(), 12, "done".into()));
    assert_eq!(effects[..2], [Effect::Remove(vec![name()]), Effect::ResetFailed(name())]);
    assert_eq!(bench.step(Input::Removed(vec![(name(), Ok(()))])), [read("a.service")]);
    assert_eq!(bench.step(forgotten("a.service")), [gone("a.service", epoch(5, 1))]);
    assert_eq!(bench.agent.ledger().units, BTreeMap::new());
    assert_eq!(bench.agent.ledger().stopped, BTreeMap::from([(name(), epoch(5, 1))]));
    // Said again, since the report may have been lost.
    assert_eq!(bench.assign(false, vec![], removal()), [gone("a.service", epoch(5, 1))]);
}

#[test]
fn a_unit_that_nobody_names_is_left_alone() {
    let mut bench = Bench::started();
    assert_eq!(bench.assign(true, vec![], vec![]), []);
    // A removal of an older copy does not mean this one.
    let effects = bench.assign(false, vec![], vec![Removal { name: unit("a.service"), epoch: epoch(4, 1) }]);
    assert_eq!(effects, [gone("a.service", epoch(4, 1))]);
    assert_eq!(bench.agent.ledger().units.len(), 1);
}

#[test]
fn a_unit_whose_target_becomes_loaded_is_stopped_once() {
    let mut bench = Bench::started();
    let name = || unit("a.service");
    let loaded =
        || vec![Assignment { content: None, ..hold("a.service", epoch(5, 1), FILE, Target::Loaded) }];
    assert_eq!(bench.assign(false, loaded(), vec![])[0], Effect::Stop(name()));
    bench.step(Input::Answered(name(), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "inactive", "dead"));
    let effects = bench.step(Input::JobRemoved(name(), 12, "done".into()));
    assert_eq!(effects, [report("a.service", epoch(5, 1), Phase::Loaded, Some(state("inactive", "dead")))]);
    // Its socket may start it; that is not ours to stop.
    let effects = bench.step(changed("a.service", "active", "running"));
    assert_eq!(effects, [report("a.service", epoch(5, 1), Phase::Loaded, Some(state("active", "running")))]);
    assert_eq!(bench.assign(false, loaded(), vec![]), []);
}

#[test]
fn a_start_that_takes_its_time_can_be_stopped() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    let removal = Removal { name: unit("a.service"), epoch: epoch(5, 1) };
    assert_eq!(bench.assign(false, vec![], vec![removal])[0], Effect::Stop(unit("a.service")));
}

#[test]
fn what_the_machine_has_of_its_own_is_refused() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    let taken = Written::NameTaken("/etc/systemd/system/a.service".into());
    let effects = bench.step(Input::Written(vec![(unit("a.service"), taken)]));
    let why = "the machine's own configuration already has a.service (/etc/systemd/system/a.service); rename the \
               unit or remove that file";
    assert_eq!(effects, [refused("a.service", epoch(5, 1), why)]);
    let removal = Removal { name: unit("a.service"), epoch: epoch(5, 1) };
    assert_eq!(bench.assign(false, vec![], vec![removal]), [gone("a.service", epoch(5, 1))]);
}

#[test]
fn a_file_that_systemd_refuses_is_refused_in_its_words() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Loaded)], vec![]);
    let effects = bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    assert_eq!(effects[0], read("a.service"));
    let state = UnitState { load: "bad-setting".into(), ..state("inactive", "dead") };
    let why = "Unit a.service has a bad unit file setting.";
    let seen = Seen { state, job: false, load_error: Some(why.into()) };
    let effects = bench.step(Input::Read(vec![(unit("a.service"), Some(seen))]));
    assert_eq!(effects, [refused("a.service", epoch(5, 1), why)]);
}

#[test]
fn nothing_of_a_new_term_is_obeyed_before_it_is_written_down() {
    let mut bench = Bench::new();
    bench.term = Term(6);
    let saved = membership(6);
    let holds = vec![hold("a.service", epoch(6, 1), FILE, Target::Launched)];
    assert_eq!(bench.assign(true, holds, vec![]), [Effect::SaveMembership(saved)]);
    assert_eq!(bench.hear(LeaderMessage::HeartbeatAck { number: 1 }), []);
    assert_eq!(bench.agent.lease_end(), None);
    let effects = bench.step(Input::MembershipSaved(Ok(())));
    assert_eq!(effects, [write("a.service", epoch(6, 1), Some(FILE), true)]);
    assert_eq!(bench.agent.lease_end(), Some(seconds(105)));
    // And nothing of an older one any more.
    bench.term = Term(5);
    let holds = vec![hold("b.service", epoch(6, 2), FILE, Target::Launched)];
    assert_eq!(bench.assign(true, holds, vec![]), []);
}

#[test]
fn a_term_that_cannot_be_written_down_is_not_obeyed() {
    let mut bench = Bench::new();
    bench.term = Term(6);
    bench.assign(true, vec![hold("a.service", epoch(6, 1), FILE, Target::Launched)], vec![]);
    let effects = bench.step(Input::MembershipSaved(Err("no space left on device".into())));
    assert_eq!(effects, [Effect::Disconnect(1)]);
}

#[test]
fn a_delta_that_does_not_follow_asks_for_a_snapshot_once() {
    let mut bench = Bench::new();
    bench.revision += 1;
    let holds = || vec![hold("a.service", epoch(5, 1), FILE, Target::Loaded)];
    assert_eq!(bench.assign(false, holds(), vec![]), [Effect::Send(FromAgent::SnapshotWanted)]);
    assert_eq!(bench.assign(false, holds(), vec![]), []);
    assert_eq!(bench.assign(true, holds(), vec![]), [write("a.service", epoch(5, 1), Some(FILE), true)]);
}

#[test]
fn messages_of_another_session_are_ignored() {
    let mut bench = Bench::new();
    let body = LeaderMessage::Refused(Refused::LeaseEnded);
    let message = ToAgent { term: Term(9), session: SessionNumber(7), body };
    assert_eq!(bench.step(Input::Leader(message)), []);
}

#[test]
fn a_leader_of_another_cluster_is_left_and_its_term_forgotten() {
    let membership = membership(5);
    let mut bench = Bench::unconnected(membership, ledger());
    bench.step(Input::Connected(1));
    bench.term = Term(99);
    assert_eq!(bench.hear(welcome(ClusterId::new(8))), [Effect::Disconnect(1)]);
    assert_eq!(bench.agent.session.membership(), membership);
    assert_eq!(bench.later(Duration::from_secs(2)), []);
    // PID 1 is asked for a sign of life, so that the first heartbeat does not tell of a long silence that was none.
    assert_eq!(bench.later(Duration::from_secs(1)), [connect(2), Effect::Ping]);
}

#[test]
fn the_first_cluster_is_joined_once_that_is_written_down() {
    let mut bench = Bench::unconnected(Membership::default(), ledger());
    let effects = bench.step(Input::Connected(1));
    assert!(matches!(&effects[..], [Effect::Send(FromAgent::Hello(hello))] if hello.cluster.is_none()));
    let joined = membership(5);
    assert_eq!(bench.hear(welcome(CLUSTER)), [Effect::SaveMembership(joined)]);
    let effects = bench.agent.step(bench.now, [Input::MembershipSaved(Ok(()))]);
    let pid1_age = Duration::ZERO;
    assert!(
        effects.contains(&Effect::Send(FromAgent::Heartbeat {
            number: 1,
            pid1_age,
            pressure: Pressure::default()
        })),
        "{effects:?}"
    );
}

#[test]
fn the_disk_of_another_machine_brings_no_term() {
    let other = Some(MachineId::new(77));
    for (machine, told) in [(other, Term(0)), (None, Term(5)), (membership(5).machine, Term(5))] {
        let mut bench = Bench::unconnected(Membership { machine, ..membership(5) }, ledger());
        let effects = bench.step(Input::Connected(1));
        let [Effect::Send(FromAgent::Hello(hello))] = &effects[..] else { panic!("{effects:?}") };
        assert_eq!((hello.cluster, hello.term), (Some(CLUSTER), told));
        // From now on it is this machine's own.
        let saved = bench.hear(welcome(CLUSTER)).contains(&Effect::SaveMembership(membership(5)));
        assert_eq!(saved, machine != membership(5).machine);
    }
}

#[test]
fn attempts_to_connect_become_rarer_and_never_stop() {
    let mut agent =
        Agent::new(identity(), schedulers(&["one:1"]), Membership::default(), ledger(), 42, seconds(0));
    let mut now = seconds(0);
    let mut waits = Vec::new();
    for attempt in 1..=20 {
        let due = agent.next_timer().unwrap();
        waits.push(due.since(now));
        now = due;
        assert_eq!(agent.step(now, [Input::Tick]), [connect(attempt)]);
        agent.step(now, [Input::Disconnected(attempt)]);
    }
    assert_eq!(waits[0], Duration::ZERO);
    assert!(waits[1] <= Duration::from_millis(100));
    assert!(waits[10..].iter().all(|wait| (1500..=3000).contains(&wait.as_millis())), "{waits:?}");
}

#[test]
fn a_leader_that_answers_no_heartbeats_is_given_up() {
    let mut bench = Bench::new();
    for second in 1..10 {
        bench.later(Duration::from_secs(1));
        assert!(bench.agent.session.is_welcome(), "after {second} s");
    }
    assert_eq!(bench.later(Duration::from_secs(1)), [Effect::Disconnect(1)]);
    // The agent was started 100 s after the boot.
    assert_eq!(bench.agent.session.number(), SessionNumber(100_001));
}

#[test]
fn the_lease_counts_from_the_sending_of_the_heartbeat() {
    let mut bench = Bench::new();
    bench.later(Duration::from_secs(1));
    bench.later(Duration::from_millis(900));
    bench.hear(LeaderMessage::HeartbeatAck { number: 2 });
    assert_eq!(bench.agent.lease_end(), Some(seconds(106)));
    // A number that was never sent renews nothing.
    bench.hear(LeaderMessage::HeartbeatAck { number: 77 });
    assert_eq!(bench.agent.lease_end(), Some(seconds(106)));
}

#[test]
fn a_restarted_agent_knows_what_is_its_own_and_starts_nothing_before_it_is_told() {
    let ledger = Bench::started().agent.ledger();
    assert_eq!(ledger.session, SessionNumber(100_001));
    let text = serde_json::to_string(&ledger).unwrap();
    let ledger: Ledger = serde_json::from_str(&text).unwrap();

    let membership = membership(5);
    let mut bench = Bench::unconnected(membership, ledger);
    let effects = bench.step(Input::Connected(1));
    let [Effect::Send(FromAgent::Hello(hello))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(hello.session, SessionNumber(100_002));
    assert_eq!(hello.units.len(), 1);
    let expected = Observation::Held { phase: Phase::Launched, state: None };
    assert_eq!((hello.units[0].epoch, &hello.units[0].observation), (epoch(5, 1), &expected));
    bench.hear(welcome(CLUSTER));
    let same = Assignment { content: None, ..hold("a.service", epoch(5, 1), FILE, Target::Launched) };
    assert_eq!(bench.assign(true, vec![same], vec![]), []);
}

#[test]
fn a_restarted_agent_stops_what_it_was_told_to_before_its_start_was_answered() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    let loaded = || Assignment { content: None, ..hold("a.service", epoch(5, 1), FILE, Target::Loaded) };
    bench.assign(false, vec![loaded()], vec![]);
    let mut bench = Bench::with_ledger(bench.agent.ledger());
    bench.assign(true, vec![loaded()], vec![]);
    let effects = bench.step(seen("a.service", state("active", "running")));
    assert!(effects.contains(&Effect::Stop(unit("a.service"))), "{effects:?}");
}

#[test]
fn drop_ins_carry_the_epoch_and_a_slice_where_the_file_names_none() {
    let text = drop_in(&unit("a.service"), epoch(5, 1), FILE, None).unwrap();
    let begins =
        "[Unit]\nBefore=muster-goodbye.service\n[Service]\nEnvironment=MUSTER_EPOCH=5.1\nSlice=muster-";
    assert!(text.starts_with(begins), "{text}");
    let own = drop_in(&unit("a.service"), epoch(5, 1), "[Service]\nSlice=db.slice\n", None).unwrap();
    assert_eq!(own, "[Unit]\nBefore=muster-goodbye.service\n[Service]\nEnvironment=MUSTER_EPOCH=5.1\n");
    assert!(drop_in(&unit("a.socket"), epoch(5, 1), FILE, None).unwrap().contains("\n[Socket]\n"));
    assert_eq!(drop_in(&unit("a.timer"), epoch(5, 1), FILE, None), None);
}

#[test]
fn slices_are_used_evenly() {
    let mut used = BTreeMap::new();
    for n in 0..3000 {
        *used.entry(drop_in(&unit(&format!("web@{n}.service")), epoch(1, 1), FILE, None)).or_insert(0_u32) +=
            1;
    }
    assert_eq!(used.len(), usize::try_from(SLICES).unwrap());
    assert!(used.values().all(|units| (50..200).contains(units)), "{used:?}");
}

#[test]
fn what_systemd_gives_up_is_told_with_its_reason() {
    let changed = |active: &str, sub: &str, job| Input::Changed {
        unit: unit("a.service"),
        active: active.into(),
        sub: sub.into(),
        job,
    };
    let started = || {
        let mut bench = Bench::new();
        bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
        bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
        bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
        bench.step(changed("active", "running", false));
        bench.step(Input::JobRemoved(unit("a.service"), 11, "done".into()));
        bench
    };
    let explained = || Input::Explained(unit("a.service"), Some(exit_code("exit-code, status 3")));

    let mut bench = started();
    let effects = bench.step(changed("failed", "failed", false));
    assert!(effects.contains(&Effect::Explain(unit("a.service"))), "{effects:?}");
    let effects = bench.step(explained());
    let phase = Phase::Failed(exit_code("exit-code, status 3"));
    assert_eq!(effects, [report("a.service", epoch(5, 1), phase, Some(state("failed", "failed")))]);
    // Somebody has mended it.
    let effects = bench.step(changed("active", "running", false));
    let state_now = Some(state("active", "running"));
    assert_eq!(effects, [report("a.service", epoch(5, 1), Phase::Launched, state_now)]);

    // What systemd starts again by itself was not given up.
    let mut bench = started();
    let effects = bench.step(changed("activating", "auto-restart", true));
    assert!(!effects.contains(&Effect::Explain(unit("a.service"))), "{effects:?}");
    let mut bench = started();
    bench.step(changed("failed", "failed", false));
    bench.step(changed("activating", "start", true));
    let effects = bench.step(explained());
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send(_))), "{effects:?}");
}

#[test]
fn a_state_that_was_asked_for_before_the_start_says_nothing_of_it() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    assert!(
        bench
            .step(Input::Written(vec![(unit("a.service"), DONE)]))
            .contains(&Effect::Start(unit("a.service")))
    );
    // All units are read after a reload; PID 1 was asked before it began with the start.
    let effects = bench.step(Input::Reloading(false));
    assert!(effects.contains(&Effect::Read(vec![unit("a.service")])), "{effects:?}");
    bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
    let seen = Seen { state: state("inactive", "dead"), job: false, load_error: None };
    bench.step(Input::Read(vec![(unit("a.service"), Some(seen))]));
    assert_eq!(bench.agent.ledger().units[&unit("a.service")].phase, Phase::Starting);
}
