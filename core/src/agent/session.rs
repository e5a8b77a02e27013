//! The agent's sessions with leaders: connecting, terms, heartbeats, and what of the leader's words is obeyed.

use std::collections::VecDeque;
use std::time::Duration;

use super::io::{Effect, Event, Membership};
use super::schedulers::Schedulers;
use crate::ids::{MachineId, Revision, SessionNumber, Term};
use crate::machine::Pressure;
use crate::message::{Assignments, FromAgent, LeaderMessage, Refused, ToAgent, Welcome};
use crate::planted::{self, Fault};
use crate::time::Time;

/// The shortest and the longest wait before schedulers are asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// The wait of a machine whose id another one has. That lasts until an operator gives it an id of its own, or the other
/// one is gone.
const ID_IN_USE_WAIT: Duration = Duration::from_secs(15);
/// How old PID 1's last sign of life may be, about, when a session begins.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How long a scheduler may be silent before it has said how long a lease is.
const SILENCE_BEFORE_WELCOME: Duration = Duration::from_secs(10);
/// The lease to go by where none was granted yet, and where a longer one is: the default.
const USUAL_LEASE: Duration = Duration::from_secs(5);

// With several schedulers another one may lead at any moment. It counts every machine's lease from its election, so that an
// agent has about a lease to find it. In percent of that, as long as no more than two schedulers do not answer:
//
//   the longest wait between two rounds of asking all                              20
//   two that do not answer, 20 each                                                40
//   the one that is asked next says who leads: until that is asked                  2
//   to connect twice, Hello, and the answer to the first heartbeat                 38 are left
//
// The agent's own lease is shorter than that. Of a leader that is killed it may have 80 left at that moment, and the next one
// may be elected after 50: the longest wait leaves it 10.
//
// One that is said to lead has 50 to answer, in which the next one may be elected: then there was no wait between rounds. A
// leader that falls silent is noticed after 50. One that may be overtaken is silent from then on, and others are asked without
// a wait; one that is stopped cannot be overtaken for a while yet.
//
// A thousand agents that lose a leader together must not come to the next one together: each asks at a moment of its own
// within 20 (a second), and later at one within the second half of each wait. So there is about one in a millisecond.

/// The longest wait between two rounds, in percent of a lease.
const ROUND: u32 = 20;
/// How long one of several schedulers has to take a connection.
const ATTEMPT: u32 = 20;
/// How long the leader has that fell silent, in the first round.
const SILENT_ATTEMPT: u32 = 5;
/// The longest wait before the one is asked that is said to lead.
const REDIRECT: u32 = 2;
/// The longest wait after a session.
const SPREAD: u32 = 20;
/// How long a leader may be silent where others can be asked.
const SILENCE: u32 = 50;

/// The stream to a leader.
#[derive(Debug)]
enum Link {
    /// The next attempt is made then.
    Waiting(Time),
    /// The attempt with that number is given up then.
    Connecting(u64, Time),
    Open(Open),
}

#[derive(Debug)]
struct Open {
    connection: u64,
    welcome: Option<Welcome>,
    /// When the leader was last heard to know that this machine is alive.
    heard: Time,
    next_heartbeat: Time,
    /// The heartbeats that were sent and not answered, with their moments.
    sent: VecDeque<(u64, Time)>,
    last_number: u64,
    /// What was applied last.
    applied: Option<(Term, Revision)>,
    /// Whether a snapshot was asked for and has not come.
    snapshot_wanted: bool,
    /// When the lease that was granted in this session ends.
    lease_end: Option<Time>,
    /// When the leader was told that the agent restarts, if it has not answered.
    restart_said: Option<Time>,
}

#[derive(Debug)]
pub(super) struct Session {
    machine: MachineId,
    membership: Membership,
    number: SessionNumber,
    link: Link,
    /// What is being written down, and what the leader said meanwhile: nothing of it is obeyed before.
    saving: Option<Membership>,
    waiting: VecDeque<ToAgent>,
    schedulers: Schedulers,
    connections: u64,
    /// How often all schedulers were asked since the last welcome.
    attempts: u32,
    /// How many schedulers have taken a stream since then, and said nothing.
    silent: u32,
    /// How long leases are, as far as is known, and at most [`USUAL_LEASE`].
    lease: Duration,
    lease_end: Option<Time>,
    random: u64,
}

impl Session {
    pub fn new(
        machine: MachineId,
        schedulers: Vec<String>,
        membership: Membership,
        number: SessionNumber,
        seed: u64,
        now: Time,
    ) -> Self {
        // The disk is a copy of another machine's. No leader has told this one its term, which would take it for that of
        // another leader.
        let copied = membership.machine.is_some_and(|saw| saw != machine);
        let term = if copied { Term::default() } else { membership.term };
        Self {
            machine,
            membership: Membership { term, ..membership },
            number,
            link: Link::Waiting(now),
            saving: None,
            waiting: VecDeque::new(),
            schedulers: Schedulers::new(schedulers, seed),
            connections: 0,
            attempts: 0,
            silent: 0,
            lease: USUAL_LEASE,
            lease_end: None,
            random: seed,
        }
    }

    pub fn membership(&self) -> Membership {
        self.membership
    }

    pub fn number(&self) -> SessionNumber {
        self.number
    }

    /// The number of the session's last heartbeat.
    #[cfg(test)]
    pub fn last_number(&self) -> u64 {
        if let Link::Open(open) = &self.link { open.last_number } else { 0 }
    }

    pub fn lease_end(&self) -> Option<Time> {
        self.lease_end
    }

    /// When the lease ends that was granted in this session, once it is known what the leader wants here.
    pub fn lease_of_session(&self) -> Option<Time> {
        match &self.link {
            Link::Open(Open { applied: Some(_), lease_end, .. }) => *lease_end,
            _ => None,
        }
    }

    /// The leader was told that the agent restarts.
    pub fn restart_said(&mut self, now: Time) {
        if let Link::Open(open) = &mut self.link {
            // Its answer may be to the first time.
            open.restart_said.get_or_insert(now);
        }
    }

    /// Whether what is sent reaches a leader that knows this session.
    pub fn is_welcome(&self) -> bool {
        matches!(&self.link, Link::Open(Open { welcome: Some(_), .. }))
    }

    pub fn next_timer(&self) -> Time {
        match &self.link {
            Link::Waiting(until) | Link::Connecting(_, until) => *until,
            Link::Open(open) => {
                let dead = open.heard + self.silence(open);
                open.welcome.as_ref().map_or(dead, |_| dead.min(open.next_heartbeat))
            }
        }
    }

    /// A stream is open: whether Hello is to be sent on it, under a new session number.
    pub fn connected(&mut self, now: Time, connection: u64) -> bool {
        if !matches!(self.link, Link::Connecting(asked, _) if asked == connection) {
            return false;
        }
        self.number.0 += 1;
        self.link = Link::Open(Open {
            connection,
            welcome: None,
            heard: now,
            next_heartbeat: now,
            sent: VecDeque::new(),
            last_number: 0,
            applied: None,
            snapshot_wanted: false,
            lease_end: None,
            restart_said: None,
        });
        true
    }

    /// A stream has ended, or could not be opened; `leader` is who leads, where the scheduler has said that.
    pub fn disconnected(&mut self, now: Time, connection: u64, leader: Option<String>) {
        match &self.link {
            Link::Connecting(current, _) if *current == connection => self.failed(now, leader),
            Link::Open(open) if open.connection == connection => {
                if open.welcome.is_none() {
                    return self.failed(now, leader);
                }
                let wait = if self.schedulers.has_others() || leader.is_some() {
                    self.random(0, 100, self.share(SPREAD))
                } else {
                    self.backoff()
                };
                self.schedulers.begin();
                if let Some(leader) = leader {
                    self.schedulers.lead(leader);
                }
                self.wait(now, wait);
            }
            _ => {}
        }
    }

    /// The scheduler that was asked is no leader that could be worked with: on to the one that is, or to the next.
    fn failed(&mut self, now: Time, leader: Option<String>) {
        let wait = if leader.is_some_and(|leader| self.schedulers.lead(leader)) {
            self.random(0, 100, self.share(REDIRECT))
        } else if self.schedulers.has_unasked() {
            Duration::ZERO
        } else {
            self.schedulers.begin();
            self.backoff()
        };
        self.wait(now, wait);
    }

    fn wait(&mut self, now: Time, wait: Duration) {
        self.link = Link::Waiting(now + wait);
        // They belonged to the session that is over.
        self.waiting.clear();
    }

    /// So many percent of a lease.
    fn share(&self, percent: u32) -> Duration {
        self.lease * percent / 100
    }

    /// How long a scheduler may be silent that has taken a stream. That is longer each time: it may have much to do, and less
    /// if it is not asked again and again.
    fn patience(&self) -> Duration {
        if self.schedulers.has_others() {
            self.share(SILENCE).saturating_mul(1 << self.silent.min(10)).min(SILENCE_BEFORE_WELCOME)
        } else {
            SILENCE_BEFORE_WELCOME
        }
    }

    /// How long the leader may be silent until the stream counts as dead.
    fn silence(&self, open: &Open) -> Duration {
        match &open.welcome {
            None => self.patience(),
            // Two heartbeats may be late.
            Some(welcome) if self.schedulers.has_others() => {
                (welcome.lease_ttl * SILENCE / 100).max(welcome.heartbeat_interval * 2)
            }
            Some(welcome) => welcome.lease_ttl * 2,
        }
    }

    fn disconnect(&mut self, now: Time, wait: Duration, effects: &mut Vec<Effect>) {
        if let Link::Open(open) = &self.link {
            effects.push(Effect::Disconnect(open.connection));
        }
        self.wait(now, wait);
    }

    /// Presents the machine anew: what was said of it in this session counts no more.
    pub fn renew(&mut self, now: Time, effects: &mut Vec<Effect>) {
        if matches!(self.link, Link::Open(_)) {
            self.schedulers.begin_with_same();
            self.disconnect(now, Duration::ZERO, effects);
        }
    }

    /// Exponential, and jittered so that the agents of a cluster do not all come at once.
    fn backoff(&mut self) -> Duration {
        let most = if self.schedulers.has_others() { self.share(ROUND) } else { BACKOFF.1 };
        let longest = BACKOFF.0.saturating_mul(1 << self.attempts.min(10)).min(most);
        self.attempts = self.attempts.saturating_add(1);
        self.random(50, 100, longest)
    }

    /// From one to the other of these percentages of it.
    fn random(&mut self, least: u64, most: u64, of: Duration) -> Duration {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let thousandths = 10 * least + (z ^ (z >> 31)) % (10 * (most - least) + 1);
        of * u32::try_from(thousandths).unwrap_or(1000) / 1000
    }

    /// Does what is due: connects, sends heartbeats, gives up a leader that is silent. When it connects or sends a
    /// heartbeat, says how young PID 1's last sign of life should be at the next.
    pub fn tick(
        &mut self,
        now: Time,
        pid1_age: Duration,
        pressure: Pressure,
        effects: &mut Vec<Effect>,
    ) -> Option<Duration> {
        let silence = if let Link::Open(open) = &self.link { self.silence(open) } else { Duration::ZERO };
        if let Link::Open(open @ Open { welcome: Some(_), .. }) = &mut self.link {
            // What the agent is late itself is no silence of the leader's, whose answers may wait to be read.
            open.heard = now.min(open.heard + now.since(open.next_heartbeat)).max(open.heard);
        }
        match &mut self.link {
            Link::Waiting(until) if *until <= now => {
                self.connections += 1;
                let scheduler = self.schedulers.next();
                let within = match (self.schedulers.has_others(), self.schedulers.is_hinted()) {
                    // It may be dead, and others say that it leads until one of them does: little time at first, and twice
                    // that in each second round.
                    (true, false) if self.schedulers.is_silent() => self
                        .share(SILENT_ATTEMPT)
                        .saturating_mul(1 << (self.attempts / 2).min(10))
                        .min(self.share(SILENCE)),
                    (true, false) => self.share(ATTEMPT),
                    (true, true) => self.share(SILENCE),
                    (false, _) => SILENCE_BEFORE_WELCOME,
                };
                self.link = Link::Connecting(self.connections, now + within);
                effects.push(Effect::Connect(self.connections, scheduler));
                Some(SIGN_OF_LIFE)
            }
            Link::Connecting(connection, until) if *until <= now => {
                effects.push(Effect::Disconnect(*connection));
                effects.push(Effect::Event(Event::NoAnswer(self.schedulers.current().to_owned())));
                self.failed(now, None);
                None
            }
            Link::Open(open) if open.heard + silence <= now => {
                let scheduler = self.schedulers.current().to_owned();
                if open.welcome.is_some() {
                    effects.push(Effect::Event(Event::LeaderSilent(scheduler)));
                } else {
                    self.silent += 1;
                    effects.push(Effect::Event(Event::NoAnswer(scheduler)));
                }
                effects.push(Effect::Disconnect(open.connection));
                if open.welcome.is_none() {
                    self.failed(now, None);
                } else if self.schedulers.has_others() {
                    self.schedulers.begin_with_others();
                    self.wait(now, Duration::ZERO);
                } else {
                    let wait = self.backoff();
                    self.wait(now, wait);
                }
                None
            }
            Link::Open(Open { welcome: Some(welcome), next_heartbeat, sent, last_number, .. })
                if *next_heartbeat <= now =>
            {
                *last_number += 1;
                // The rhythm is kept, but what was missed is not made up for.
                *next_heartbeat = (*next_heartbeat + welcome.heartbeat_interval).max(now);
                sent.push_back((*last_number, now));
                let number = *last_number;
                effects.push(Effect::Send(FromAgent::Heartbeat { number, pid1_age, pressure }));
                Some(welcome.heartbeat_interval)
            }
            _ => None,
        }
    }

    /// A leader says something: what of it concerns units, now that it is to be obeyed.
    pub fn heard(&mut self, now: Time, message: ToAgent, effects: &mut Vec<Effect>) -> Option<Assignments> {
        if message.session != self.number && !planted::is(Fault::OldSessionObeyed) {
            return None;
        }
        let Link::Open(open) = &mut self.link else { return None };
        if let LeaderMessage::Refused(refused) = message.body {
            effects.push(Effect::Event(Event::Refused(refused.clone())));
            match refused {
                Refused::OtherCluster { .. } => self.schedulers.begin(),
                // It leads, and is to be asked again.
                _ => self.schedulers.begin_with_same(),
            }
            let wait = match refused {
                // Nothing but an operator changes the first; the agents of the second must not chase each other at full
                // speed. Both may end at any moment, and then a lease's time must not pass before the next attempt.
                Refused::OtherCluster { .. } | Refused::Replaced => BACKOFF.1,
                Refused::IdInUse { .. } => ID_IN_USE_WAIT,
                Refused::HigherTermSeen(_) | Refused::LeaseEnded | Refused::SystemdSilent(_) => {
                    self.backoff()
                }
            };
            self.disconnect(now, wait, effects);
            return None;
        }
        if self.saving.is_some() {
            self.waiting.push_back(message);
            return None;
        }
        if open.welcome.is_none() && !matches!(message.body, LeaderMessage::Welcome(_)) {
            return None;
        }
        if message.term < self.membership.term && !planted::is(Fault::TermNotCompared) {
            effects.push(Effect::Event(Event::OldTerm { term: message.term, newest: self.membership.term }));
            return None;
        }
        let mut membership =
            Membership { term: message.term, machine: Some(self.machine), ..self.membership };
        if let LeaderMessage::Welcome(welcome) = &message.body {
            // Its term is another cluster's and says nothing here.
            if let Some(ours) = membership.cluster.filter(|ours| *ours != welcome.cluster) {
                effects.push(Effect::Event(Event::OtherCluster { ours, theirs: welcome.cluster }));
                self.schedulers.begin();
                self.disconnect(now, BACKOFF.1, effects);
                return None;
            }
            membership.cluster = Some(welcome.cluster);
        }
        if membership != self.membership && planted::is(Fault::TermNotWritten) {
            self.membership = membership;
            effects.push(Effect::SaveMembership(membership));
        }
        if membership != self.membership {
            self.saving = Some(membership);
            self.waiting.push_back(message);
            effects.push(Effect::SaveMembership(membership));
            return None;
        }
        self.obey(now, message, effects)
    }

    /// Cluster and term are written down, or could not be: the messages that waited for that.
    pub fn saved(
        &mut self,
        now: Time,
        outcome: Result<(), String>,
        effects: &mut Vec<Effect>,
    ) -> VecDeque<ToAgent> {
        let Some(membership) = self.saving.take() else { return VecDeque::new() };
        match outcome {
            Ok(()) => self.membership = membership,
            Err(reason) => {
                effects.push(Effect::Event(Event::MembershipNotSaved(reason)));
                self.schedulers.begin_with_same();
                let wait = self.backoff();
                self.disconnect(now, wait, effects);
            }
        }
        std::mem::take(&mut self.waiting)
    }

    /// Asks for a snapshot, unless one is on its way.
    pub fn want_snapshot(&mut self, effects: &mut Vec<Effect>) {
        if let Link::Open(open) = &mut self.link
            && !std::mem::replace(&mut open.snapshot_wanted, true)
        {
            effects.push(Effect::Send(FromAgent::SnapshotWanted));
        }
    }

    fn obey(&mut self, now: Time, message: ToAgent, effects: &mut Vec<Effect>) -> Option<Assignments> {
        let Link::Open(open) = &mut self.link else { return None };
        match message.body {
            LeaderMessage::Welcome(welcome) => {
                effects.push(Effect::Event(Event::Welcomed {
                    cluster: welcome.cluster,
                    term: message.term,
                    lease_ttl: welcome.lease_ttl,
                }));
                self.lease = welcome.lease_ttl.min(USUAL_LEASE);
                open.welcome = Some(welcome);
                open.heard = now;
                open.next_heartbeat = now;
                (self.attempts, self.silent) = (0, 0);
                self.schedulers.leads();
                None
            }
            LeaderMessage::HeartbeatAck { number } => {
                while let Some((first, sent)) =
                    open.sent.front().copied().filter(|(first, _)| *first <= number)
                {
                    open.sent.pop_front();
                    if first == number
                        && let Some(welcome) = &open.welcome
                    {
                        open.heard = now;
                        let sent = if planted::is(Fault::LeaseFromAnswer) { now } else { sent };
                        open.lease_end = open.lease_end.max(Some(sent + welcome.lease_ttl));
                        self.lease_end = self.lease_end.max(open.lease_end);
                    }
                }
                None
            }
            LeaderMessage::Assignments(assignments) => {
                let next = (message.term, assignments.revision);
                let follows = match open.applied {
                    _ if assignments.snapshot => open.applied.is_none_or(|applied| applied <= next),
                    Some((term, revision)) => term == next.0 && revision.0.checked_add(1) == Some(next.1.0),
                    None => false,
                };
                if follows || planted::is(Fault::DeltaOutOfOrder) {
                    open.applied = Some(next);
                    open.snapshot_wanted &= !assignments.snapshot;
                    return Some(assignments);
                }
                if !assignments.snapshot {
                    self.want_snapshot(effects);
                }
                None
            }
            LeaderMessage::Probe => {
                open.next_heartbeat = now;
                None
            }
            LeaderMessage::OpenStream(key) => {
                effects.push(Effect::OpenStream(open.connection, key));
                None
            }
            LeaderMessage::Farewell { lease } => {
                if let (Some(sent), Some(lease)) = (open.restart_said.take(), lease) {
                    open.lease_end = open.lease_end.max(Some(sent + lease));
                    self.lease_end = self.lease_end.max(open.lease_end);
                }
                effects.push(Effect::Farewell);
                None
            }
            // Dealt with before its term was looked at.
            LeaderMessage::Refused(_) => None,
        }
    }
}
