//! What heartbeats say, and when.

use std::time::Duration;

use super::*;
use crate::machine::Pressure;

/// The heartbeats among the effects: their numbers and what they say.
fn heartbeats(effects: &[Effect]) -> Vec<(u64, Duration, Pressure)> {
    let heartbeat = |effect: &Effect| match effect {
        Effect::Send(FromAgent::Heartbeat { number, pid1_age, pressure }) => {
            Some((*number, *pid1_age, *pressure))
        }
        _ => None,
    };
    effects.iter().filter_map(heartbeat).collect()
}

/// Lets time pass as the agent's own loop does until the next heartbeat, and gives the age of PID 1's last sign of life as that
/// says it.
fn next_age(bench: &mut Bench) -> Duration {
    loop {
        let due = bench.agent.next_timer().expect("a heartbeat is due");
        bench.now = bench.now.max(due);
        let effects = bench.agent.step(bench.now, [Input::Tick]);
        if let Some((number, age, _)) = heartbeats(&effects).pop() {
            // The leader answers: the session lasts.
            bench.hear(LeaderMessage::HeartbeatAck { number });
            return age;
        }
    }
}

#[test]
fn heartbeats_tell_how_old_the_last_word_of_pid_1_is_and_wait_for_none() {
    let mut bench = Bench::new();
    for age in 1..=3 {
        bench.now = bench.now + Duration::from_secs(1);
        let effects = bench.agent.step(bench.now, [Input::Tick]);
        let pid1_age = Duration::from_secs(age);
        let heartbeat =
            Effect::Send(FromAgent::Heartbeat { number: age + 1, pid1_age, pressure: Pressure::default() });
        assert!(effects.contains(&heartbeat), "{effects:?}");
        // One question at a time.
        assert_eq!(effects.contains(&Effect::Ping), age == 1, "{effects:?}");
    }
    bench.step(Input::Pong(true));
    let effects = bench.later(Duration::from_secs(1));
    assert_eq!(effects, [Effect::Ping]);
}

#[test]
fn a_probe_is_answered_at_once_whatever_the_rhythm() {
    let mut bench = Bench::new();
    bench.now = bench.now + Duration::from_millis(300);
    let probe = |bench: &Bench| {
        let session = bench.agent.session.number();
        Input::Leader(ToAgent { term: Term(5), session, body: LeaderMessage::Probe })
    };
    let effects = bench.agent.step(bench.now, [probe(&bench)]);
    assert_eq!(heartbeats(&effects).len(), 1, "{effects:?}");
    // From then on the rhythm goes on.
    bench.now = bench.now + Duration::from_millis(900);
    assert_eq!(heartbeats(&bench.agent.step(bench.now, [Input::Tick])), []);
    bench.now = bench.now + Duration::from_millis(100);
    assert_eq!(heartbeats(&bench.agent.step(bench.now, [Input::Tick])).len(), 1);
}

#[test]
fn a_machine_whose_id_is_in_use_comes_again_seldom() {
    let mut bench = Bench::new();
    let refused = Refused::IdInUse { address: "198.18.0.1".into() };
    assert_eq!(bench.hear(LeaderMessage::Refused(refused)), [Effect::Disconnect(1)]);
    assert_eq!(bench.later(Duration::from_secs(14)), []);
    let effects = bench.later(Duration::from_secs(1));
    assert!(effects.contains(&connect(2)), "{effects:?}");
}

#[test]
fn a_heartbeat_carries_the_pressure_that_was_read_last_unless_that_is_long_ago() {
    let mut bench = Bench::new();
    let pressure = Pressure { cpu: Some(512), memory: None, io: Some(0) };
    bench.step(Input::Pressure(pressure));
    let mut said = Vec::new();
    for _ in 0..12 {
        bench.now = bench.now + Duration::from_secs(1);
        let effects = bench.agent.step(bench.now, [Input::Tick]);
        bench.hear(LeaderMessage::HeartbeatAck { number: bench.agent.session.last_number() });
        said.push(heartbeats(&effects)[0].2);
    }
    assert_eq!(said[..10], [pressure; 10]);
    assert_eq!(said[10..], [Pressure::default(); 2]);
}

#[test]
fn a_reload_explains_the_silence_of_pid_1_and_not_for_ever() {
    let mut bench = Bench::new();
    bench.step(Input::Reloading(true));
    for _ in 0..60 {
        assert!(next_age(&mut bench) <= Duration::from_secs(1));
    }
    // It is frozen. Another reload that is asked for explains nothing.
    assert_eq!(next_age(&mut bench), Duration::from_secs(1));
    for age in 2..20 {
        assert_eq!(next_age(&mut bench), Duration::from_secs(age));
    }
    bench.step(Input::Reloading(false));
    assert_eq!(next_age(&mut bench), Duration::from_secs(1));
    bench.step(Input::Pong(true));
    // The next reload is another one.
    bench.step(Input::Reloading(true));
    for _ in 0..8 {
        assert!(next_age(&mut bench) <= Duration::from_secs(1));
    }
}

#[test]
fn what_the_agent_is_late_itself_is_no_silence_of_pid_1() {
    let mut bench = Bench::new();
    assert_eq!(next_age(&mut bench), Duration::from_secs(1));
    // The whole machine stands still. It goes on, and PID 1 has had no time to answer.
    bench.now = bench.now + Duration::from_secs(30);
    assert_eq!(next_age(&mut bench), Duration::from_secs(2));
    bench.step(Input::Pong(true));
    assert_eq!(next_age(&mut bench), Duration::from_secs(1));

    // PID 1 hangs: a standstill takes off only itself, and the rest counts.
    for age in 2..10 {
        assert_eq!(next_age(&mut bench), Duration::from_secs(age));
    }
    bench.now = bench.now + Duration::from_secs(20);
    let first = next_age(&mut bench);
    assert_eq!(first, Duration::from_secs(10));
    for later in 1..30 {
        assert_eq!(next_age(&mut bench), first + Duration::from_secs(later));
    }
}

#[test]
fn a_reload_that_the_agent_stood_still_through_explains_no_more_silence() {
    let mut bench = Bench::new();
    bench.step(Input::Reloading(true));
    assert!(next_age(&mut bench) <= Duration::from_secs(1));
    bench.now = bench.now + Duration::from_secs(30);
    let ages: Vec<Duration> = (0..120).map(|_| next_age(&mut bench)).collect();
    let most = ages.iter().max().expect("heartbeats");
    assert!((Duration::from_secs(58)..Duration::from_secs(64)).contains(most), "{ages:?}");
    assert!(ages.is_sorted_by_key(Duration::as_secs), "{ages:?}");
}

#[test]
fn a_reload_that_is_tried_again_explains_no_more_silence() {
    let mut bench = Bench::new();
    bench.assign(false, vec![hold("a.service", epoch(5, 1), FILE, Target::Launched)], vec![]);
    bench.step(Input::Written(vec![(unit("a.service"), DONE)]));
    let not_found = Input::Answered(unit("a.service"), Verb::Start, Err(CallError::NotLoaded));
    assert_eq!(bench.step(not_found), [Effect::Reload]);
    for _ in 0..60 {
        assert!(next_age(&mut bench) <= Duration::from_secs(1));
    }
    let effects = bench.step(Input::Reloaded(Err("no answer".into())));
    assert!(!effects.contains(&Effect::Reload), "{effects:?}");
    let effects = bench.passes(Duration::from_secs(5));
    assert!(effects.contains(&Effect::Reload), "{effects:?}");
    let first = next_age(&mut bench);
    assert!(first >= Duration::from_secs(6), "{first:?}");
    for later in 1..20 {
        assert_eq!(next_age(&mut bench), first + Duration::from_secs(later));
    }
    // It was only busy.
    bench.step(Input::Reloaded(Ok(())));
    assert_eq!(next_age(&mut bench), Duration::from_secs(1));
}

#[test]
fn starts_and_stops_under_way_explain_a_little_each() {
    let mut bench = Bench::new();
    let names: Vec<UnitName> = (0..40).map(|number| unit(&format!("u{number:02}.service"))).collect();
    let holds = names.iter().map(|name| hold(name.as_str(), epoch(5, 1), FILE, Target::Launched));
    bench.assign(false, holds.collect(), vec![]);
    bench.step(Input::Written(names.iter().map(|name| (name.clone(), DONE)).collect()));
    // 40 starts: two seconds.
    let begun = bench.now;
    for _ in 0..10 {
        let age = next_age(&mut bench);
        let silent = bench.now.since(bench.agent.pid1.heard);
        assert!(bench.agent.pid1.heard <= begun);
        let explained =
            if silent <= Duration::from_secs(1) { Duration::ZERO } else { Duration::from_secs(2) };
        assert_eq!(age, silent.saturating_sub(explained));
    }
    // What has started explains nothing.
    for (job, name) in (0..).zip(&names) {
        bench.step(Input::Answered(name.clone(), Verb::Start, Ok(job)));
        bench.step(Input::JobRemoved(name.clone(), job, "done".into()));
    }
    let ages: Vec<Duration> = (0..3).map(|_| next_age(&mut bench)).collect();
    assert_eq!(ages[2], ages[1] + Duration::from_secs(1));
    assert_eq!(ages[2], bench.now.since(bench.agent.pid1.heard));
}
