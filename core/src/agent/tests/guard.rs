//! Exclusive units and their guard.

use super::*;

const STOP: Duration = Duration::from_secs(10);

fn exclusive(name: &str, epoch: Epoch, target: Target) -> Assignment {
    Assignment { exclusive: Some(STOP), ..hold(name, epoch, FILE, target) }
}

fn held() -> Held {
    Held {
        epoch: epoch(5, 1),
        hash: ContentHash::of(FILE.as_bytes()),
        target: Target::Launched,
        phase: Phase::Launched,
        settled: true,
        ended: false,
        removed: false,
        adopting: false,
        releasing: false,
        exclusive: Some(STOP),
    }
}

fn lease() -> UnitName {
    unit(LEASE)
}

/// What systemd says of the guard when it is asked.
fn guard(active: &str) -> Input {
    guard_with_job(active, false)
}

fn guard_with_job(active: &str, job: bool) -> Input {
    let state = state(active, "");
    Input::Read(vec![(lease(), Some(Seen { state, job, load_error: None }))])
}

/// What systemd signals of the guard.
fn signalled(active: &str) -> Input {
    Input::Changed { unit: lease(), active: active.into(), sub: String::new(), job: false }
}

fn start() -> Effect {
    Effect::Start(unit("a.service"))
}

fn stop() -> Effect {
    Effect::Stop(unit("a.service"))
}

fn until(effects: &[Effect]) -> Option<Time> {
    effects.iter().find_map(|effect| match effect {
        Effect::ArmGuard { until } | Effect::PetGuard { until } => Some(*until),
        _ => None,
    })
}

impl Bench {
    /// The leader answers heartbeat `number`.
    fn ack(&mut self, number: u64) -> Vec<Effect> {
        self.hear(LeaderMessage::HeartbeatAck { number })
    }

    /// Has `a.service` started, exclusive, in epoch 5.1, under a lease that is just granted.
    fn exclusive() -> Self {
        let mut bench = Self::new();
        bench.ack(1);
        bench.assign(false, vec![exclusive("a.service", epoch(5, 1), Target::Launched)], vec![]);
        bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
        assert!(bench.step(Input::GuardArmed(Ok(()))).contains(&start()));
        bench.step(guard("active"));
        bench.step(Input::Answered(unit("a.service"), Verb::Start, Ok(11)));
        bench.step(changed("a.service", "active", "running"));
        bench.step(Input::JobRemoved(unit("a.service"), 11, "done".into()));
        bench
    }

    /// Lets `a.service` be stopped.
    fn stopped(&mut self) -> Vec<Effect> {
        self.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
        self.step(changed("a.service", "inactive", "dead"));
        self.step(Input::JobRemoved(unit("a.service"), 12, "done".into()))
    }

    /// The next session with the same leader, before it has said anything but welcome.
    fn reconnect(&mut self) {
        self.later(Duration::from_secs(1));
        self.step(Input::Connected(2));
        self.revision = 0;
        self.hear(welcome(CLUSTER));
    }
}

#[test]
fn an_exclusive_unit_starts_once_the_guard_does_under_a_lease() {
    let mut bench = Bench::new();
    let sent = bench.now;
    let hold = exclusive("a.service", epoch(5, 1), Target::Launched);
    let effects = bench.assign(false, vec![hold], vec![]);
    assert!(
        matches!(&effects[..], [Effect::Write(writes)] if writes[0].exclusive == Some(STOP)),
        "{effects:?}"
    );
    let effects = bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    assert!(!effects.contains(&start()) && until(&effects).is_none(), "no lease: {effects:?}");
    let lease_end = sent + Duration::from_secs(5);
    assert_eq!(bench.ack(1), [Effect::ArmGuard { until: lease_end }]);
    // What cannot be armed is tried again.
    assert_eq!(bench.step(Input::GuardArmed(Err("too late".into()))), []);
    assert_eq!(bench.later(Duration::from_millis(900)), []);
    let armed = [Effect::ArmGuard { until: lease_end }];
    let mut effects = bench.later(Duration::from_millis(200));
    effects.retain(|effect| *effect != Effect::Ping);
    assert_eq!(effects, armed);
    let effects = bench.step(Input::GuardArmed(Ok(())));
    assert_eq!(effects, [start(), Effect::Read(vec![lease()])]);
}

#[test]
fn every_renewal_of_the_lease_is_the_guards_too() {
    let mut bench = Bench::exclusive();
    let effects = bench.later(Duration::from_secs(1));
    assert_eq!(until(&effects), None);
    let sent = bench.now;
    assert_eq!(bench.ack(2), [Effect::PetGuard { until: sent + Duration::from_secs(5) }]);
    // The answer to a goodbye counts from when that was said.
    bench.step(Input::Goodbye(Goodbye::Restart));
    let said = bench.now;
    bench.now = bench.now + Duration::from_millis(300);
    let effects = bench.hear(LeaderMessage::Farewell { lease: Some(Duration::from_secs(30)) });
    assert_eq!(effects, [Effect::Farewell, Effect::PetGuard { until: said + Duration::from_secs(30) }]);
}

#[test]
fn a_renewal_that_comes_just_before_the_stream_ends_is_the_guards_too() {
    let mut bench = Bench::exclusive();
    bench.later(Duration::from_secs(1));
    let sent = bench.now;
    let (session, body) = (bench.agent.session.number(), LeaderMessage::HeartbeatAck { number: 2 });
    let ack = Input::Leader(ToAgent { term: bench.term, session, body });
    let effects = bench.agent.step(bench.now, [ack, Input::Disconnected(1)]);
    assert_eq!(until(&effects), Some(sent + Duration::from_secs(5)));
}

#[test]
fn exclusive_units_end_with_the_lease_and_come_back_with_a_snapshot_only() {
    let mut bench = Bench::exclusive();
    bench.step(Input::Disconnected(1));
    let end = bench.agent.lease_end().unwrap();
    bench.now = end - Duration::from_millis(1);
    assert!(!bench.step(Input::Tick).contains(&stop()));
    bench.now = end;
    assert!(bench.step(Input::Tick).contains(&stop()));
    bench.stopped();
    bench.reconnect();
    let effects = bench.ack(1);
    assert_eq!(until(&effects), None, "{effects:?}");
    // Another leader's snapshot, without the unit, says nothing of it: it is left as it is.
    let effects = bench.assign(true, vec![], vec![]);
    assert!(until(&effects).is_none() && !effects.contains(&start()), "{effects:?}");
    let effects = bench.assign(true, vec![exclusive("a.service", epoch(5, 1), Target::Launched)], vec![]);
    assert!(until(&effects).is_some(), "{effects:?}");
    assert!(bench.step(Input::GuardArmed(Ok(()))).contains(&start()));
}

#[test]
fn the_guard_waits_for_the_removal_of_what_may_run_elsewhere() {
    let mut bench = Bench::exclusive();
    bench.step(Input::Disconnected(1));
    bench.now = bench.agent.lease_end().unwrap();
    bench.step(Input::Tick);
    bench.stopped();
    bench.reconnect();
    bench.ack(1);
    let removal = Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false };
    let effects =
        bench.assign(true, vec![exclusive("b.service", epoch(5, 2), Target::Launched)], vec![removal]);
    assert!(until(&effects).is_none(), "{effects:?}");
    assert!(effects.contains(&stop()));
    bench.step(Input::Written(vec![(unit("b.service"), DONE)]));
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));
    let effects = bench.step(forgotten("a.service"));
    assert!(until(&effects).is_some(), "{effects:?}");
}

#[test]
fn where_systemd_is_silent_the_agent_kills_them_itself() {
    let mut bench = Bench::exclusive();
    bench.step(Input::Disconnected(1));
    let end = bench.agent.lease_end().unwrap();
    bench.now = end;
    bench.step(Input::Tick);
    bench.now = end + STOP - Duration::from_millis(1);
    assert!(!bench.step(Input::Tick).contains(&Effect::Fence));
    bench.now = end + STOP;
    assert!(bench.step(Input::Tick).contains(&Effect::Fence));
    assert!(!bench.later(Duration::from_secs(1)).contains(&Effect::Fence), "once is enough");
}

#[test]
fn a_guard_that_ends_before_the_lease_is_started_again() {
    let mut bench = Bench::exclusive();
    // A signal alone may be an old one.
    let effects = bench.step(signalled("failed"));
    assert!(matches!(effects[..], [Effect::PetGuard { .. }, Effect::Read(_)]), "{effects:?}");
    assert_eq!(bench.step(guard("active")), []);
    bench.step(signalled("failed"));
    assert_eq!(bench.step(guard("inactive"))[0], stop());
    let effects = bench.stopped();
    assert!(until(&effects).is_some(), "{effects:?}");

    let mut bench = Bench::exclusive();
    assert_eq!(bench.step(Input::GuardDown)[0], stop());
}

#[test]
fn what_ended_with_the_guard_is_started_again_where_somebody_else_was_quicker_to_start_that() {
    let mut bench = Bench::exclusive();
    bench.step(changed("a.service", "inactive", "dead"));
    let effects = bench.step(signalled("failed"));
    assert!(until(&effects).is_some(), "{effects:?}");
    bench.step(signalled("active"));
    // Its process is not the one that was told to last.
    assert_eq!(bench.step(Input::GuardDown)[0], stop());
    bench.step(guard("active"));
    let effects = bench.stopped();
    assert!(until(&effects).is_some(), "{effects:?}");
    assert!(bench.step(Input::GuardArmed(Ok(()))).contains(&start()));
}

#[test]
fn what_ended_by_itself_is_not_started_again() {
    let mut bench = Bench::exclusive();
    bench.step(changed("a.service", "inactive", "dead"));
    bench.step(guard("active"));
    let effects = bench.step(Input::GuardDown);
    assert!(!effects.contains(&stop()), "{effects:?}");
    assert!(until(&effects).is_some(), "{effects:?}");
    assert!(!bench.step(Input::GuardArmed(Ok(()))).contains(&start()));

    // Nor by the next agent.
    let ledger = bench.agent.ledger();
    let mut bench = Bench::with_ledger(ledger);
    bench.step(seen("a.service", state("inactive", "dead")));
    let effects = bench.step(guard("failed"));
    assert!(!effects.contains(&stop()), "{effects:?}");
    bench.ack(1);
    let effects = bench.assign(true, vec![exclusive("a.service", epoch(5, 1), Target::Launched)], vec![]);
    assert!(until(&effects).is_some(), "{effects:?}");
    assert!(!bench.step(Input::GuardArmed(Ok(()))).contains(&start()));
}

#[test]
fn what_ended_is_told_to_have_run_to_its_end_once_its_guard_was_seen_since() {
    let inactive = || Some(state("inactive", "dead"));
    let told = |phase| report("a.service", epoch(5, 1), phase, inactive());
    let ends = || {
        let mut bench = Bench::exclusive();
        // Asked just before: the answer may be older than the unit's end.
        let resumed = bench.step(Input::Reloading(false));
        assert!(resumed.contains(&Effect::Read(vec![lease()])), "{resumed:?}");
        bench.step(seen("a.service", state("active", "running")));
        assert_eq!(bench.step(changed("a.service", "inactive", "dead")), [told(Phase::Stopping)]);
        assert_eq!(bench.step(guard("active")), [Effect::Read(vec![lease()])]);
        bench
    };
    assert_eq!(ends().step(guard("active")), [told(Phase::Launched)]);
    let mut bench = ends();
    assert_eq!(bench.step(guard("failed"))[0], stop());
    let effects = bench.stopped();
    assert!(!effects.contains(&told(Phase::Launched)), "{effects:?}");
    assert!(until(&effects).is_some(), "{effects:?}");
    assert!(bench.step(Input::GuardArmed(Ok(()))).contains(&start()));

    // An agent that starts does not know better.
    let ledger = Ledger { units: BTreeMap::from([(unit("a.service"), held())]), ..ledger() };
    let mut bench = Bench::with_ledger(ledger);
    assert_eq!(bench.step(seen("a.service", state("inactive", "dead"))), [told(Phase::Stopping)]);
    let hello = bench.agent.hello(bench.now).units;
    let observation = Observation::Held { phase: Phase::Stopping, state: inactive() };
    assert_eq!(hello[0].observation, observation);
}

#[test]
fn what_a_shutdown_stops_has_not_run_to_its_end_though_its_guard_waits_for_others() {
    let mut bench = Bench::exclusive();
    bench.step(changed("a.service", "inactive", "dead"));
    // Its stop waits for a unit that takes longer.
    assert_eq!(bench.step(guard_with_job("active", true))[0], stop());
    let mut effects = bench.stopped();
    effects.append(&mut bench.later(Duration::from_millis(100)));
    let told = |phase| report("a.service", epoch(5, 1), phase, Some(state("inactive", "dead")));
    assert!(effects.contains(&told(Phase::Loaded)), "{effects:?}");
    assert!(!effects.contains(&told(Phase::Launched)), "{effects:?}");
}

#[test]
fn what_waits_for_a_guard_that_cannot_be_started_fails_in_the_end() {
    let mut bench = Bench::new();
    let wants = |counter| vec![exclusive("a.service", epoch(5, counter), Target::Launched)];
    bench.assign(false, wants(1), vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    let why = "guard: /proc/uptime is not the kernel's";
    let failed = |counter, state| {
        let failure = Failure::without_result(why);
        report("a.service", epoch(5, counter), Phase::StartFailed(failure), state)
    };
    let begun = bench.now;
    let attempt = |bench: &mut Bench| {
        bench.later(Duration::from_secs(1));
        let number = bench.agent.session.last_number();
        bench.ack(number);
        bench.step(Input::GuardArmed(Err("/proc/uptime is not the kernel's".into())))
    };
    while bench.now < begun + Duration::from_secs(20) {
        let effects = attempt(&mut bench);
        assert!(!effects.contains(&failed(1, None)), "{:?}: {effects:?}", bench.now);
    }
    let effects = attempt(&mut bench);
    assert!(effects.contains(&failed(1, None)), "{effects:?}");
    // The next placement does not wait for as long again.
    bench.assign(false, wants(2), vec![]);
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    bench.step(checked(unit("a.service"), false));
    let effects = attempt(&mut bench);
    assert!(effects.contains(&failed(2, Some(state("inactive", "dead")))), "{effects:?}");
}

#[test]
fn what_waits_behind_another_unit_that_does_not_end_fails_in_the_end() {
    let held = |name, counter| exclusive(name, epoch(5, counter), Target::Launched);
    let removal = Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false };
    // The guard has ended, and this one takes its time; or its files cannot be removed.
    for removed in [false, true] {
        let mut bench = Bench::exclusive();
        bench.step(Input::Disconnected(1));
        bench.now = bench.agent.lease_end().unwrap();
        bench.step(Input::Tick);
        bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
        bench.reconnect();
        bench.ack(1);
        let (a, b) = (held("a.service", 1), held("b.service", 2));
        let (hold, remove) = if removed { (vec![b], vec![removal.clone()]) } else { (vec![a, b], vec![]) };
        bench.assign(true, hold, remove);
        bench.step(Input::Written(vec![(unit("b.service"), DONE)]));
        if removed {
            bench.step(changed("a.service", "inactive", "dead"));
            bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()));
        }
        let begun = bench.now;
        let why = if removed { ": its files cannot be removed: busy" } else { "" };
        let failure = Failure::without_result(format!("guard: a.service is still being ended here{why}"));
        let failed = report("b.service", epoch(5, 2), Phase::StartFailed(failure), None);
        let next = |bench: &mut Bench| {
            let mut effects = bench.later(Duration::from_secs(1));
            let number = bench.agent.session.last_number();
            effects.extend(bench.ack(number));
            if removed {
                let denied = Err("busy".to_owned());
                effects.extend(bench.step(Input::Removed(vec![(unit("a.service"), denied)])));
                effects.extend(bench.step(seen("a.service", state("inactive", "dead"))));
            }
            effects
        };
        while bench.now + Duration::from_secs(1) < begun + Duration::from_secs(20) {
            let effects = next(&mut bench);
            assert!(!effects.contains(&failed), "{:?}: {effects:?}", bench.now);
        }
        let timer = bench.agent.next_timer().unwrap();
        assert!(timer <= begun + Duration::from_secs(20), "{timer:?}");
        let effects = next(&mut bench);
        assert!(effects.contains(&failed), "{effects:?}");
        // The guard starts as soon as nothing is in its way.
        assert_eq!(until(&effects), None);
        let effects = if removed {
            bench.later(Duration::from_secs(1));
            bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));
            bench.step(forgotten("a.service"))
        } else {
            bench.step(changed("a.service", "inactive", "dead"));
            bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()))
        };
        assert!(until(&effects).is_some(), "{effects:?}");
    }
}

#[test]
fn a_lease_is_the_guards_before_it_is_known_what_the_leader_wants() {
    let mut bench = Bench::exclusive();
    bench.step(Input::Disconnected(1));
    bench.reconnect();
    let sent = bench.now;
    let effects = bench.ack(1);
    assert_eq!(effects, [Effect::PetGuard { until: sent + Duration::from_secs(5) }]);
    // What is new must be in a snapshot.
    let hold = exclusive("b.service", epoch(5, 2), Target::Launched);
    bench.assign(false, vec![hold.clone()], vec![]);
    assert_eq!(bench.agent.lease_end(), Some(sent + Duration::from_secs(5)));
    let effects = bench.assign(true, vec![hold], vec![]);
    assert!(!effects.contains(&Effect::Start(unit("b.service"))), "{effects:?}");
    let effects = bench.step(Input::Written(vec![(unit("b.service"), DONE)]));
    assert!(effects.contains(&Effect::Start(unit("b.service"))), "{effects:?}");
}

#[test]
fn what_was_removed_leaves_nothing_behind_for_the_next_copy() {
    let mut bench = Bench::exclusive();
    let removal = Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false };
    bench.assign(false, vec![], vec![removal]);
    bench.stopped();
    bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));
    // The guard ends before the unit was seen to be inactive.
    bench.step(Input::GuardDown);
    bench.assign(false, vec![exclusive("a.service", epoch(5, 2), Target::Launched)], vec![]);
    let mut effects = bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    effects.extend(bench.step(forgotten("a.service")));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Write(_))), "{effects:?}");
    let effects = bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    assert!(!effects.contains(&stop()), "nothing of it runs: {effects:?}");
}

#[test]
fn a_restarted_agent_takes_the_guard_up_or_finds_it_ended() {
    let ledger = || Ledger { units: BTreeMap::from([(unit("a.service"), held())]), ..ledger() };
    let snapshot = || vec![exclusive("a.service", epoch(5, 1), Target::Launched)];

    // Whether PID 1 has answered or not.
    for answers_first in [true, false] {
        let mut bench = Bench::with_ledger(ledger());
        let sent = bench.now;
        if answers_first {
            assert_eq!(bench.step(guard("active")), []);
        }
        let effects = bench.ack(1);
        assert_eq!(effects[0], Effect::PetGuard { until: sent + Duration::from_secs(5) });
        let new = exclusive("b.service", epoch(5, 2), Target::Launched);
        bench.assign(true, [snapshot(), vec![new]].concat(), vec![]);
        bench.step(seen("a.service", state("active", "running")));
        // Nothing new before the guard was seen since.
        let effects = bench.step(Input::Written(vec![(unit("b.service"), DONE)]));
        assert!(!effects.contains(&Effect::Start(unit("b.service"))), "{effects:?}");
        if !answers_first {
            assert_eq!(bench.step(guard("active")), [Effect::Read(vec![lease()])], "an old answer");
        }
        let effects = bench.step(guard("active"));
        assert_eq!(effects, [Effect::Start(unit("b.service"))]);
    }

    // Its process is gone.
    let mut bench = Bench::with_ledger(ledger());
    assert!(until(&bench.ack(1)).is_some());
    assert_eq!(bench.step(Input::GuardDown)[0], stop());

    let mut bench = Bench::with_ledger(ledger());
    assert_eq!(bench.step(guard("failed"))[0], stop());
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    bench.ack(1);
    let effects = bench.assign(true, snapshot(), vec![]);
    assert!(matches!(effects[..], [Effect::ArmGuard { .. }]), "{effects:?}");
    assert!(bench.step(Input::GuardArmed(Ok(()))).contains(&start()));
}

#[test]
fn an_agent_that_pid_1_has_never_answered_ends_exclusive_units_with_the_lease() {
    let ledger = Ledger { units: BTreeMap::from([(unit("a.service"), held())]), ..ledger() };
    let mut bench = Bench::with_ledger(ledger);
    bench.ack(1);
    // It hangs until long after the lease.
    let mut effects = bench.later(Duration::from_secs(6));
    effects.extend(bench.later(STOP));
    assert!(effects.contains(&stop()) && effects.contains(&Effect::Fence), "{effects:?}");
}

#[test]
fn a_guard_that_is_off_without_a_lease_needs_no_timer() {
    let mut bench = Bench::exclusive();
    bench.step(Input::Disconnected(1));
    bench.later(Duration::from_secs(6));
    bench.stopped();
    for _ in 0..20 {
        // Connecting, and nothing else, is what there is to do.
        let Some(next) = bench.agent.next_timer() else { return };
        let effects = bench.agent.step(next, [Input::Tick]);
        assert!(next > bench.now || !effects.is_empty(), "{next:?} comes again and again");
        bench.now = bench.now.max(next);
    }
}

#[test]
fn the_guard_ends_with_the_last_exclusive_unit() {
    let mut bench = Bench::exclusive();
    let removal = Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false };
    assert!(bench.assign(false, vec![], vec![removal]).contains(&stop()));
    bench.stopped();
    bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));
    let effects = bench.step(forgotten("a.service"));
    assert!(effects.contains(&Effect::DisarmGuard), "{effects:?}");
    assert_eq!(bench.step(Input::GuardDisarmed), []);
}

#[test]
fn drop_ins_bind_exclusive_units_to_the_guard() {
    let text = |name: &str, file: &str| drop_in(&unit(name), epoch(5, 1), file, Some(STOP)).unwrap();
    let service = text("a.service", "[Service]\nSlice=db.slice\n");
    for line in [
        "BindsTo=muster-lease.service",
        "After=muster-lease.service",
        "Slice=muster-exclusive-10.slice",
        "TimeoutStopSec=9s",
        "KillMode=control-group",
        "SendSIGKILL=yes",
        "Environment=MUSTER_EPOCH=5.1",
    ] {
        assert_eq!(service.lines().filter(|found| *found == line).count(), 1, "{line}: {service}");
    }
    // The goodbye waits for its end: were it ordered before that, its stop would wait for the goodbye.
    assert!(!service.contains("muster-goodbye.service"), "{service}");
    assert_eq!(
        text("a.timer", ""),
        "# MUSTER_EPOCH=5.1\n[Unit]\nBindsTo=muster-lease.service\nAfter=muster-lease.service\nRefuseManualStop=no\n"
    );
    assert!(text("a.socket", "").contains("[Socket]\n"));
    let shortest = drop_in(&unit("a.service"), epoch(5, 1), "", Some(Duration::from_secs(1))).unwrap();
    assert!(shortest.contains("\nSlice=muster-exclusive-1.slice\nTimeoutStopSec=1s\n"));
}

#[test]
fn the_leader_hears_what_becomes_of_a_unit_that_ends_with_the_guard() {
    let mut bench = Bench::exclusive();
    bench.assign(false, vec![exclusive("a.service", epoch(5, 1), Target::Loaded)], vec![]);
    bench.stopped();
    let phases = |effects: &[Effect]| -> Vec<Phase> {
        let reports = effects.iter().filter_map(|effect| match effect {
            Effect::Send(FromAgent::Report(reports)) => Some(reports),
            _ => None,
        });
        let observed = reports.flatten().filter_map(|report| match &report.change {
            ReportedChange::Observed(Observation::Held { phase, .. }) => Some(phase.clone()),
            _ => None,
        });
        observed.collect()
    };
    bench.later(Duration::from_millis(500));
    let mut effects = bench.step(Input::GuardDown);
    effects.append(&mut bench.later(Duration::from_millis(100)));
    assert_eq!(phases(&effects), [Phase::Stopping], "{effects:?}");
    let mut effects = bench.stopped();
    effects.append(&mut bench.later(Duration::from_millis(100)));
    assert_eq!(phases(&effects).last(), Some(&Phase::Loaded), "{effects:?}");
}
