//! Which scheduler an agent asks, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

const LEASE: Duration = Duration::from_secs(5);

/// A scheduler in the eyes of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheduler {
    Leads,
    /// It says that this one leads.
    Follows(&'static str),
    /// It knows of none that leads, or nobody listens there.
    Refuses,
    /// Its host is off, or its process is stopped.
    Silent,
    /// It leads no more, and does not know it.
    Deposed,
}

use Scheduler::{Deposed, Follows, Leads, Refuses, Silent};

/// One agent among schedulers that answer at once or not at all.
struct Cluster {
    agent: Agent,
    now: Time,
    schedulers: BTreeMap<&'static str, Scheduler>,
    /// The stream, and to whom.
    open: Option<(u64, String)>,
    /// Who was asked, and when.
    asked: Vec<(String, Time)>,
}

impl Cluster {
    fn new(seed: u64, schedulers: &[(&'static str, Scheduler)]) -> Self {
        let addresses: Vec<&str> = schedulers.iter().map(|(address, _)| *address).collect();
        let now = seconds(100);
        let agent = Agent::new(identity(), super::schedulers(&addresses), membership(5), ledger(), seed, now);
        let schedulers = schedulers.iter().copied().collect();
        Self { agent, now, schedulers, open: None, asked: Vec::new() }
    }

    fn are(&mut self, schedulers: &[(&'static str, Scheduler)]) {
        self.schedulers.extend(schedulers.iter().copied());
    }

    fn step(&mut self, inputs: Vec<Input>) {
        let mut inputs = inputs;
        while !inputs.is_empty() {
            let effects = self.agent.step(self.now, std::mem::take(&mut inputs));
            for effect in effects {
                match effect {
                    Effect::Connect(connection, address) => {
                        self.asked.push((address.clone(), self.now));
                        match self.schedulers[address.as_str()] {
                            Leads | Deposed => {
                                self.open = Some((connection, address));
                                inputs.push(Input::Connected(connection));
                            }
                            Follows(leader) => inputs.push(Input::Redirected(connection, leader.to_owned())),
                            Refuses => inputs.push(Input::Disconnected(connection)),
                            Silent => {}
                        }
                    }
                    Effect::Disconnect(_) => self.open = None,
                    Effect::Send(said) => inputs.extend(self.answer(&said)),
                    Effect::SaveMembership(_) => inputs.push(Input::MembershipSaved(Ok(()))),
                    _ => {}
                }
            }
        }
    }

    fn answer(&self, said: &FromAgent) -> Option<Input> {
        let (_, address) = self.open.as_ref()?;
        if self.schedulers[address.as_str()] != Leads {
            return None;
        }
        let session = self.agent.session.number();
        let body = match said {
            FromAgent::Hello(_) => welcome(CLUSTER),
            FromAgent::Heartbeat { number, .. } => LeaderMessage::HeartbeatAck { number: *number },
            _ => return None,
        };
        Some(Input::Leader(ToAgent { term: Term(5), session, body }))
    }

    /// Lets time pass until that moment.
    fn until(&mut self, until: Time) {
        while let Some(due) = self.agent.next_timer().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.step(vec![Input::Tick]);
        }
        self.now = until;
    }

    fn later(&mut self, span: Duration) {
        self.until(self.now + span);
    }

    /// The stream of the leader ends, with this answer.
    fn ends(&mut self, leader: Option<&str>) {
        let (connection, _) = self.open.take().expect("a stream");
        self.step(vec![match leader {
            Some(leader) => Input::Redirected(connection, leader.to_owned()),
            None => Input::Disconnected(connection),
        }]);
    }

    /// Whether it is welcome there.
    fn is_with(&self, address: &str) -> bool {
        self.agent.session.is_welcome() && self.open.as_ref().is_some_and(|(_, open)| open == address)
    }

    /// How long it takes from now until it is welcome there.
    fn finds(&mut self, address: &str) -> Duration {
        let start = self.now;
        while !self.is_with(address) {
            assert!(self.now.since(start) < 4 * LEASE, "{:?}", self.asked);
            self.later(Duration::from_millis(10));
        }
        self.now.since(start)
    }
}

/// The largest of these.
fn longest(spans: impl Iterator<Item = Duration>) -> Duration {
    spans.max().unwrap_or_default()
}

#[test]
fn who_is_said_to_lead_is_asked_next_also_where_it_is_not_configured() {
    for seed in 0..100 {
        let mut cluster = Cluster::new(seed, &[("a", Follows("d")), ("b", Follows("d")), ("c", Silent)]);
        cluster.are(&[("d", Leads)]);
        let found = cluster.finds("d");
        let asked: Vec<&str> = cluster.asked.iter().map(|(address, _)| address.as_str()).collect();
        assert!(matches!(asked[..], ["a" | "b", "d"] | ["c", "a", "d"]), "{asked:?}");
        assert!(found <= Duration::from_millis(1200), "{found:?}");
    }
}

#[test]
fn two_that_name_each_other_are_not_asked_again_and_again() {
    let mut cluster = Cluster::new(1, &[("a", Follows("b")), ("b", Follows("a"))]);
    cluster.later(Duration::from_secs(60));
    // Two in each round, and a round in 0.5 s to 1.1 s once they have become rare.
    assert!((100..250).contains(&cluster.asked.len()), "{:?}", cluster.asked);
    cluster.are(&[("a", Leads)]);
    cluster.finds("a");
}

#[test]
fn whoever_leads_after_any_time_is_found_within_a_lease() {
    // The budget in session.rs, but for what the network and the schedulers take.
    let most = LEASE * 62 / 100 + Duration::from_millis(10);
    for others in [[Silent, Silent], [Silent, Refuses], [Refuses, Refuses], [Follows("a"), Silent]] {
        let took = (0..300).map(|seed| {
            let all = [("a", Refuses), ("b", others[0]), ("c", others[1]), ("d", Refuses), ("e", Refuses)];
            let mut cluster = Cluster::new(seed, &all);
            cluster.later(Duration::from_millis(20_000 + 37 * seed));
            cluster.are(&[("d", Leads), ("a", Follows("d")), ("e", Follows("d"))]);
            cluster.finds("d")
        });
        let took = longest(took);
        assert!(took <= most, "{others:?}: {took:?}");
    }
}

#[test]
fn a_leader_that_falls_silent_is_left_in_time() {
    for seed in 0..300 {
        // It is stopped: the next is elected when its time in office is over.
        let mut cluster = Cluster::new(seed, &[("a", Leads), ("b", Follows("a")), ("c", Follows("a"))]);
        cluster.finds("a");
        cluster.later(Duration::from_millis(3_000 + 7 * seed));
        cluster.are(&[("a", Silent)]);
        cluster.later(LEASE);
        cluster.are(&[("b", Leads), ("c", Follows("b"))]);
        let found = cluster.finds("b");
        assert!(found <= LEASE * 72 / 100, "{found:?}");

        // It may be overtaken, and is at once.
        cluster.later(Duration::from_secs(3));
        cluster.are(&[("b", Deposed), ("a", Follows("c")), ("c", Leads)]);
        let lease_end = cluster.agent.lease_end().expect("a lease");
        let found = cluster.finds("c");
        assert!(found <= LEASE * 72 / 100 && cluster.now < lease_end, "{found:?}");
    }
}

/// The leader's election lasts two fifths of a lease, and half a second may pass until that is seen. Meanwhile the others say
/// that it leads still.
fn the_next_is_found_within_the_lease(dies: impl Fn(&mut Cluster)) {
    for seed in 0..1000 {
        let mut cluster = Cluster::new(seed, &[("a", Leads), ("b", Follows("a")), ("c", Follows("a"))]);
        cluster.finds("a");
        cluster.later(Duration::from_millis(3_000 + seed));
        dies(&mut cluster);
        cluster.later(Duration::from_millis(2_600));
        let lease_end = cluster.agent.lease_end().expect("a lease");
        cluster.are(&[("b", Leads), ("c", Follows("b"))]);
        cluster.finds("b");
        let left = lease_end.since(cluster.now);
        assert!(left >= LEASE / 20, "{left:?} are left: {:?}", cluster.asked);
    }
}

#[test]
fn a_leader_that_is_dead_costs_no_machine_its_lease() {
    the_next_is_found_within_the_lease(|cluster| cluster.are(&[("a", Silent)]));
}

/// Its machine lives: streams end at once, and it refuses new ones.
#[test]
fn a_leader_that_was_killed_costs_no_machine_its_lease() {
    the_next_is_found_within_the_lease(|cluster| {
        cluster.are(&[("a", Refuses)]);
        cluster.ends(None);
    });
}

#[test]
fn what_the_agent_is_late_itself_is_no_silence_of_the_leader() {
    let mut cluster = Cluster::new(1, &[("a", Leads), ("b", Follows("a"))]);
    cluster.finds("a");
    cluster.later(Duration::from_millis(3_500));
    let asked = cluster.asked.len();
    // It is stopped for that long; what is to be read then is read after it has looked at its clock.
    cluster.now = cluster.now + Duration::from_secs(4);
    cluster.step(vec![Input::Tick]);
    cluster.later(Duration::from_secs(10));
    assert_eq!(cluster.asked.len(), asked, "{:?}", cluster.asked);
    assert!(cluster.is_with("a"));
}

#[test]
fn a_leader_alone_has_twice_a_lease() {
    let mut cluster = Cluster::new(1, &[("a", Leads)]);
    cluster.finds("a");
    cluster.are(&[("a", Deposed)]);
    cluster.later(LEASE * 9 / 5);
    assert!(cluster.is_with("a"));
    cluster.later(LEASE / 5);
    assert!(!cluster.is_with("a"));
}

#[test]
fn a_thousand_agents_do_not_come_together() {
    let all = [("a", Leads), ("b", Follows("a")), ("c", Follows("a"))];
    let mut cluster: Vec<Cluster> = (0..1000).map(|seed| Cluster::new(seed, &all)).collect();
    for hint in [Some("b"), None] {
        let mut came: BTreeMap<u128, usize> = BTreeMap::new();
        for agent in &mut cluster {
            agent.are(&all);
            agent.finds("a");
            agent.until(seconds(200));
            agent.are(&[("a", Refuses), ("b", Leads), ("c", Follows("b"))]);
            agent.ends(hint);
            let found = agent.finds("b");
            assert!(found <= Duration::from_millis(1150), "{found:?}");
            *came.entry(found.as_millis() / 100).or_default() += 1;
            // Back to where it was for what comes next.
            agent.now = seconds(200);
        }
        let most = came.values().max().copied().unwrap_or_default();
        assert!(most <= 150, "{came:?}");
        cluster = (0..1000).map(|seed| Cluster::new(seed, &all)).collect();
    }
}

#[test]
fn a_scheduler_that_welcomes_nobody_is_given_more_time_each_time() {
    let mut cluster = Cluster::new(1, &[("a", Deposed), ("b", Follows("a"))]);
    cluster.later(Duration::from_secs(120));
    let asked = cluster.asked.iter().filter(|(address, _)| address == "a");
    let times: Vec<Time> = asked.map(|(_, at)| *at).collect();
    let waits: Vec<Duration> = times.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    assert!(waits[0] < Duration::from_millis(2700), "{waits:?}");
    assert!(waits[4..].iter().all(|wait| *wait >= Duration::from_secs(10)), "{waits:?}");
}

#[test]
fn who_refuses_a_machine_for_now_is_asked_again() {
    let mut cluster = Cluster::new(3, &[("a", Leads), ("b", Follows("a")), ("c", Follows("a"))]);
    cluster.finds("a");
    let session = cluster.agent.session.number();
    let body = LeaderMessage::Refused(Refused::LeaseEnded);
    let before = cluster.asked.len();
    cluster.step(vec![Input::Leader(ToAgent { term: Term(5), session, body })]);
    cluster.later(Duration::from_millis(100));
    assert!(cluster.is_with("a"));
    assert_eq!(cluster.asked.len(), before + 1, "{:?}", cluster.asked);
}
