//! What must go, and is started again by something else, or whose agent ends meanwhile.

use super::*;

impl Bench {
    /// Has `a.service` held in epoch 5.1 under this target: gives what is saved before that is done which follows.
    fn saved_before(&mut self, follows: impl Fn(&Effect) -> bool, target: Target) -> Ledger {
        self.revision += 1;
        let hold = vec![hold("a.service", epoch(5, 1), FILE, target)];
        let assignments =
            Assignments { snapshot: false, revision: Revision(self.revision), hold, remove: vec![] };
        let (session, body) = (self.agent.session.number(), LeaderMessage::Assignments(assignments));
        let effects = self.agent.step(self.now, [Input::Leader(ToAgent { term: self.term, session, body })]);
        assert!(effects.iter().any(follows), "{effects:?}");
        let Some(Effect::SaveLedger(ledger)) = effects.first() else { panic!("{effects:?}") };
        Ledger::clone(ledger)
    }
}

fn removal() -> Vec<Removal> {
    vec![Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false }]
}

#[test]
fn what_is_started_again_before_its_files_are_removed_is_stopped_again() {
    let mut bench = Bench::started();
    bench.assign(false, vec![], removal());
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    // All of it comes at once.
    let inputs = [
        changed("a.service", "inactive", "dead"),
        Input::JobRemoved(unit("a.service"), 12, "done".into()),
        changed("a.service", "activating", "start"),
        changed("a.service", "active", "running"),
    ];
    let now = bench.now;
    let effects = bench.agent.step(now, inputs);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Remove(_))), "{effects:?}");
    let effects = bench.later(Duration::from_secs(6));
    assert!(effects.contains(&read("a.service")), "{effects:?}");
    let effects = bench.step(seen("a.service", state("active", "running")));
    assert!(effects.contains(&Effect::Stop(unit("a.service"))), "{effects:?}");
}

#[test]
fn an_agent_that_ends_after_removing_files_sees_that_nothing_is_left() {
    let mut bench = Bench::started();
    bench.assign(false, vec![], removal());
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "inactive", "dead"));
    let effects = bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()));
    assert!(effects.contains(&Effect::Remove(vec![unit("a.service")])), "{effects:?}");
    let before = bench.agent.ledger();
    bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));

    // Whether that was written down or not.
    for mut ledger in [before, bench.agent.ledger()] {
        ledger.units.values_mut().for_each(|held| held.removed = true);
        let mut bench = Bench::with_ledger(ledger);
        bench.step(seen("a.service", state("active", "running")));
        let effects = bench.assign(true, vec![], removal());
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Send(_))), "{effects:?}");
        bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(13)));
        bench.step(changed("a.service", "inactive", "dead"));
        let effects = bench.step(Input::JobRemoved(unit("a.service"), 13, "done".into()));
        assert_eq!(effects, [read("a.service")]);
        let gone = UnitReport { name: unit("a.service"), epoch: epoch(5, 1), change: ReportedChange::Gone };
        assert_eq!(bench.step(forgotten("a.service")), [Effect::Send(FromAgent::Report(vec![gone]))]);
    }
}

#[test]
fn what_was_being_written_when_the_agent_ended_is_held_if_it_is_there() {
    let mut bench = Bench::new();
    let ledger = bench.saved_before(|effect| matches!(effect, Effect::Write(_)), Target::Launched);
    for there in [true, false] {
        let mut ledger = ledger.clone();
        ledger.look(|_| there);
        let mut bench = Bench::with_ledger(ledger);
        bench.step(seen("a.service", state("active", "running")));
        let effects = bench.assign(true, vec![], removal());
        let gone = UnitReport { name: unit("a.service"), epoch: epoch(5, 1), change: ReportedChange::Gone };
        let expected =
            if there { Effect::Stop(unit("a.service")) } else { Effect::Send(FromAgent::Report(vec![gone])) };
        // A unit of the machine's own is left alone.
        assert!(effects.contains(&expected), "{effects:?}");
        assert_eq!(effects.contains(&Effect::Stop(unit("a.service"))), there);
    }
}

#[test]
fn a_start_under_the_same_epoch_is_known_to_the_next_agent() {
    let loaded = || vec![hold("a.service", epoch(5, 1), FILE, Target::Loaded)];
    let mut bench = Bench::started();
    bench.assign(false, loaded(), vec![]);
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "inactive", "dead"));
    bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()));
    // A store that was restored says so.
    let ledger = bench.saved_before(|effect| matches!(effect, Effect::Start(_)), Target::Launched);
    let mut bench = Bench::with_ledger(ledger);
    bench.step(seen("a.service", state("active", "running")));
    let effects = bench.assign(true, loaded(), vec![]);
    assert!(effects.contains(&Effect::Stop(unit("a.service"))), "{effects:?}");
}

#[test]
fn what_is_gone_is_said_to_be_so_again_to_who_does_not_know() {
    let mut bench = Bench::started();
    bench.assign(false, vec![], removal());
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "inactive", "dead"));
    bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()));
    bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));
    bench.step(forgotten("a.service"));
    // A later one is refused; then comes a leader whose store knows of neither.
    bench.assign(false, vec![hold("a.service", epoch(5, 2), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), Written::Failed("no space left on device".into()))]));
    let mut effects = bench.assign(true, vec![], removal());
    effects.append(&mut bench.later(Duration::from_millis(500)));
    let gone = |report: &UnitReport| report.change == ReportedChange::Gone && report.epoch == epoch(5, 1);
    let said = effects
        .iter()
        .any(|effect| matches!(effect, Effect::Send(FromAgent::Report(reports)) if reports.iter().any(gone)));
    assert!(said, "{effects:?}");
}

#[test]
fn what_pid_1_keeps_in_memory_is_gone_after_a_reload() {
    let mut bench = Bench::started();
    bench.assign(
        false,
        vec![],
        vec![Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false }],
    );
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "inactive", "dead"));
    bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()));
    assert_eq!(bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))])), [read("a.service")]);
    // Its socket refers to it, and would start it.
    for wait in [Duration::from_millis(20), Duration::from_secs(1)] {
        assert_eq!(bench.step(seen("a.service", state("inactive", "dead"))), []);
        let effects = bench.later(wait);
        assert!(effects.contains(&read("a.service")), "{effects:?}");
    }
    assert_eq!(bench.step(seen("a.service", state("inactive", "dead"))), [Effect::Reload]);
    assert_eq!(bench.step(Input::Reloaded(Ok(()))), [read("a.service")]);
    let effects = bench.step(forgotten("a.service"));
    let gone = UnitReport { name: unit("a.service"), epoch: epoch(5, 1), change: ReportedChange::Gone };
    assert_eq!(effects, [Effect::Send(FromAgent::Report(vec![gone]))]);
}

#[test]
fn what_changes_while_it_is_asked_for_is_asked_for_again_soon() {
    let mut bench = Bench::started();
    bench.assign(
        false,
        vec![],
        vec![Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false }],
    );
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into()));
    // The signal of what was stopped may come after the end of its job.
    bench.step(seen("a.service", state("inactive", "dead")));
    bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))]));
    bench.step(changed("a.service", "inactive", "dead"));
    assert_eq!(bench.step(forgotten("a.service")), []);
    let effects = bench.later(Duration::from_millis(20));
    assert!(effects.contains(&read("a.service")), "{effects:?}");
    let gone = UnitReport { name: unit("a.service"), epoch: epoch(5, 1), change: ReportedChange::Gone };
    assert_eq!(bench.step(forgotten("a.service")), [Effect::Send(FromAgent::Report(vec![gone]))]);
}

#[test]
fn what_may_be_there_in_part_is_removed() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    // The connection to systemd was lost meanwhile.
    bench.step(Input::Written(vec![(unit("a.service"), Written::Unanswered)]));
    bench.assign(
        false,
        vec![],
        vec![Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false }],
    );
    let mut effects = bench.later(Duration::from_secs(1));
    effects.extend(bench.step(seen("a.service", state("inactive", "dead"))));
    assert!(effects.contains(&Effect::Stop(unit("a.service"))), "{effects:?}");
    let mut effects = bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    effects.extend(bench.step(forgotten("a.service")));
    assert!(effects.contains(&Effect::Remove(vec![unit("a.service")])), "{effects:?}");
}

#[test]
fn what_may_be_there_in_part_is_not_started_from_what_is_there() {
    let mut bench = Bench::new();
    let held = |content| Assignment { content, ..hold("a.service", epoch(5, 1), FILE, Target::Launched) };
    bench.assign(false, vec![held(Some(FILE.into()))], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), Written::Unanswered)]));
    // Leaders that wait for others to report say nothing of it.
    bench.assign(true, vec![], vec![]);
    let mut effects = bench.later(Duration::from_secs(1));
    effects.extend(bench.step(forgotten("a.service")));
    assert!(effects.contains(&Effect::Stop(unit("a.service"))), "{effects:?}");
    bench.assign(true, vec![], vec![]);
    let said = bench.later(Duration::from_millis(20));
    assert!(!said.iter().any(|effect| matches!(effect, Effect::Send(FromAgent::Report(_)))), "{said:?}");
    bench.step(Input::Disconnected(1));
    assert_eq!(bench.agent.hello(bench.now).units, [], "it would be taken for the whole");
    bench.assign(true, vec![held(Some(FILE.into()))], vec![]);
    let mut effects = bench.step(Input::Answered(unit("a.service"), Verb::Stop, Err(CallError::NotLoaded)));
    effects.extend(bench.later(Duration::from_secs(1)));
    assert!(!effects.contains(&Effect::Start(unit("a.service"))), "{effects:?}");
}

#[test]
fn the_leader_hears_why_a_copy_does_not_end() {
    let why = |reason: &str, active: &str, sub: &str| {
        let phase = Phase::StopFailed(Failure::without_result(reason));
        report("a.service", epoch(5, 1), phase, Some(state(active, sub)))
    };
    let wait = |bench: &mut Bench| {
        let mut effects = Vec::new();
        for _ in 0..5 {
            effects.extend(bench.later(Duration::from_secs(1)));
            let number = bench.agent.session.last_number();
            effects.extend(bench.hear(LeaderMessage::HeartbeatAck { number }));
        }
        effects
    };
    let mut bench = Bench::started();
    bench.assign(false, vec![], removal());
    let refused = || Err(CallError::Refused("Operation refused".into()));
    let told = why("systemd refuses to stop it: Operation refused", "active", "running");
    assert_eq!(bench.step(Input::Answered(unit("a.service"), Verb::Stop, refused())), [told]);
    wait(&mut bench);
    bench.step(seen("a.service", state("active", "running")));
    let again = bench.step(Input::Answered(unit("a.service"), Verb::Stop, refused()));
    assert_eq!(again, [], "the same is told once");
    // As of a mount that is in use.
    wait(&mut bench);
    bench.step(seen("a.service", state("active", "running")));
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    let effects = bench.step(Input::JobRemoved(unit("a.service"), 12, "failed".into()));
    assert_eq!(effects, [why("its stop job failed (failed)", "active", "running")]);
    wait(&mut bench);
    bench.step(seen("a.service", state("active", "running")));
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(13)));
    bench.step(changed("a.service", "inactive", "dead"));
    let effects = bench.step(Input::JobRemoved(unit("a.service"), 13, "done".into()));
    let ended = report("a.service", epoch(5, 1), Phase::Loaded, Some(state("inactive", "dead")));
    assert_eq!(effects, [Effect::Remove(vec![unit("a.service")]), ended]);
    // Its files.
    let effects = bench.step(Input::Removed(vec![(unit("a.service"), Err("busy".into()))]));
    assert_eq!(effects, [why("its files cannot be removed: busy", "inactive", "dead")]);
    bench.later(Duration::from_secs(1));
    bench.step(seen("a.service", state("inactive", "dead")));
    assert_eq!(bench.step(Input::Removed(vec![(unit("a.service"), Ok(()))])), [read("a.service")]);
    // What PID 1 keeps in memory of it.
    for wait in [Duration::from_millis(20), Duration::from_secs(1)] {
        bench.step(seen("a.service", state("inactive", "dead")));
        bench.later(wait);
    }
    assert_eq!(bench.step(seen("a.service", state("inactive", "dead"))), [Effect::Reload]);
    let reason = "systemd cannot forget it without a reload: no space";
    let told = why(reason, "inactive", "dead");
    assert_eq!(bench.step(Input::Reloaded(Err("no space".into()))), std::slice::from_ref(&told));
    // The next session's Hello does not name it.
    assert_eq!(bench.agent.hello(bench.now).units, []);
    let mut effects = bench.assign(true, vec![], removal());
    effects.retain(|effect| matches!(effect, Effect::Send(_)));
    assert_eq!(effects, [told]);
    let effects = wait(&mut bench);
    assert!(effects.contains(&Effect::Reload), "{effects:?}");
    assert_eq!(bench.step(Input::Reloaded(Ok(()))), [read("a.service")]);
    assert_eq!(bench.step(forgotten("a.service")), [gone("a.service", epoch(5, 1))]);
}

#[test]
fn what_somebody_else_has_removed_comes_back_once_and_under_a_later_epoch() {
    let mut ledger = Bench::started().agent.ledger();
    ledger.look(|_| false);
    let mut bench = Bench::with_ledger(ledger);
    let wanted = |counter| vec![hold("a.service", epoch(5, counter), FILE, Target::Launched)];
    bench.step(seen("a.service", state("active", "running")));
    // It is being stopped already.
    bench.assign(true, wanted(1), vec![]);
    bench.step(Input::Answered(unit("a.service"), Verb::Stop, Ok(12)));
    bench.step(changed("a.service", "inactive", "dead"));
    assert_eq!(bench.step(Input::JobRemoved(unit("a.service"), 12, "done".into())), [read("a.service")]);
    // The leader is asked for another epoch at once, and not after the unit was started again.
    let report = |change| UnitReport { name: unit("a.service"), epoch: epoch(5, 1), change };
    let told = vec![report(ReportedChange::Gone), report(ReportedChange::Stale(epoch(5, 1)))];
    assert_eq!(bench.step(forgotten("a.service")), [Effect::Send(FromAgent::Report(told))]);
    let effects = bench.assign(false, wanted(2), vec![]);
    assert_eq!(effects, [write("a.service", epoch(5, 2), Some(FILE), true)]);
    let effects = bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    assert!(effects.contains(&Effect::Start(unit("a.service"))), "{effects:?}");
    // A snapshot says nothing else.
    assert_eq!(bench.assign(true, wanted(2), vec![]), []);
}
