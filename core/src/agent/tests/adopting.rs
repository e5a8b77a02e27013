//! Units that are taken over from the machine, and handed back.

use super::*;

fn adopted() -> Assignment {
    Assignment { adopt: true, ..hold("a.service", epoch(5, 1), FILE, Target::Launched) }
}

fn released() -> Vec<Removal> {
    vec![Removal { name: unit("a.service"), epoch: epoch(5, 1), release: true }]
}

fn answers(outcome: Adopted) -> Input {
    Input::Adopted(unit("a.service"), outcome)
}

fn is_adopt(effect: &Effect) -> bool {
    matches!(effect, Effect::Adopt(_))
}

/// What the next agent is started with, once what has files and what has none is seen.
fn next(bench: &Bench, has: bool) -> Bench {
    let mut ledger = bench.agent.ledger();
    ledger.look(|_| has);
    Bench::with_ledger(ledger)
}

fn never(effects: &[Effect]) {
    let acts = |effect: &&Effect| matches!(effect, Effect::Stop(_) | Effect::Start(_) | Effect::Remove(_));
    assert_eq!(effects.iter().find(acts), None, "{effects:?}");
}

#[test]
fn a_unit_is_adopted_with_one_reload_and_neither_stopped_nor_started() {
    let mut bench = Bench::new();
    let effects = bench.assign(false, vec![adopted()], vec![]);
    assert!(effects.iter().any(is_adopt), "{effects:?}");
    let effects = bench.step(answers(Adopted::Moved));
    assert!(effects.contains(&Effect::Reload), "{effects:?}");
    never(&effects);
    // Nobody takes it for the cluster's before systemd shows that it is.
    assert_eq!(
        bench.agent.hello(bench.now).units[0].observation,
        Observation::Held { phase: Phase::Starting, state: None }
    );
    let effects = bench.step(Input::Reloaded(Ok(())));
    assert!(effects.iter().any(is_adopt), "{effects:?}");
    let mut effects = bench.step(answers(Adopted::Done { active: true }));
    effects.extend(bench.step(seen("a.service", state("active", "running"))));
    effects.extend(bench.passes(Duration::from_secs(3)));
    never(&effects);
    let launched = report("a.service", epoch(5, 1), Phase::Launched, Some(state("active", "running")));
    assert!(effects.contains(&launched), "{effects:?}");
}

#[test]
fn an_agent_that_is_killed_at_any_step_of_an_adoption_goes_on_with_it() {
    for steps in 0..3 {
        let mut bench = Bench::new();
        bench.assign(false, vec![adopted()], vec![]);
        let all = [answers(Adopted::Moved), Input::Reloaded(Ok(()))];
        all.into_iter().take(steps).for_each(|input| drop(bench.step(input)));
        for has in [false, true] {
            // Without its files nothing was moved.
            if !has && steps > 0 {
                continue;
            }
            let mut bench = next(&bench, has);
            let content = (!has).then(|| FILE.into());
            let effects = bench.assign(true, vec![Assignment { content, ..adopted() }], vec![]);
            never(&effects);
            assert!(effects.iter().any(is_adopt), "{steps}, {has}: {effects:?}");
            let mut effects = bench.step(answers(Adopted::Done { active: true }));
            effects.extend(bench.step(seen("a.service", state("active", "running"))));
            effects.extend(bench.passes(Duration::from_secs(3)));
            never(&effects);
        }
    }
}

#[test]
fn what_cannot_be_adopted_is_refused_and_left_alone() {
    let mut bench = Bench::new();
    bench.assign(false, vec![adopted()], vec![]);
    let effects = bench.step(answers(Adopted::Refused("it has ended".into())));
    assert_eq!(effects, [refused("a.service", epoch(5, 1), "it has ended")]);
    let removal = vec![Removal { name: unit("a.service"), epoch: epoch(5, 1), release: false }];
    let effects = bench.assign(false, vec![], removal);
    never(&effects);
    assert_eq!(effects, [gone("a.service", epoch(5, 1))]);
}

#[test]
fn an_exclusive_unit_is_adopted_under_a_guard_that_runs() {
    let mut bench = Bench::new();
    let exclusive = Assignment { exclusive: Some(Duration::from_secs(10)), ..adopted() };
    let effects = bench.assign(false, vec![exclusive], vec![]);
    assert!(!effects.iter().any(is_adopt), "{effects:?}");
}

#[test]
fn a_unit_is_handed_back_without_being_stopped_also_by_the_next_agent() {
    for (steps, has) in [(0, true), (0, false), (1, false), (2, false)] {
        let mut bench = Bench::started();
        let effects = bench.assign(false, vec![], released());
        assert!(effects.contains(&Effect::Release(unit("a.service"))), "{effects:?}");
        never(&effects);
        let moved = Input::Released(unit("a.service"), Released::Moved);
        let all = [moved, Input::Reloaded(Ok(()))];
        all.into_iter().take(steps).for_each(|input| never(&bench.step(input)));
        let mut bench = next(&bench, has);
        let mut effects = bench.assign(true, vec![], released());
        effects.extend(bench.step(seen("a.service", state("active", "running"))));
        never(&effects);
        let effects = bench.step(Input::Released(unit("a.service"), Released::Done));
        never(&effects);
        assert!(effects.contains(&gone("a.service", epoch(5, 1))), "{effects:?}");
    }
}

#[test]
fn a_unit_is_handed_back_and_started_where_a_reboot_came_in_between() {
    let mut bench = Bench::new();
    let effects = bench.assign(false, vec![], released());
    assert!(effects.contains(&Effect::Release(unit("a.service"))), "{effects:?}");
    let effects = bench.step(Input::Released(unit("a.service"), Released::Done));
    assert!(effects.contains(&Effect::Start(unit("a.service"))), "{effects:?}");
    assert!(effects.contains(&gone("a.service", epoch(5, 1))), "{effects:?}");
}
