//! The agent's sessions with leaders: connecting, terms, heartbeats, and what of the leader's words is obeyed.

use std::collections::VecDeque;
use std::time::Duration;

use super::io::{Effect, Event, Membership};
use crate::ids::{MachineId, Revision, SessionNumber, Term};
use crate::machine::Pressure;
use crate::message::{Assignments, FromAgent, LeaderMessage, Refused, ToAgent, Welcome};
use crate::planted::{self, Fault};
use crate::time::Time;

/// The shortest and the longest wait before the next attempt to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// The wait of a machine whose id another one has. That lasts until an operator gives it an id of its own, or the other
/// one is gone.
const ID_IN_USE_WAIT: Duration = Duration::from_secs(15);
/// How old PID 1's last sign of life may be, about, when a session begins.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How long a leader may be silent before it has said how long a lease is.
const SILENCE_BEFORE_WELCOME: Duration = Duration::from_secs(10);

/// The stream to a leader.
#[derive(Debug)]
enum Link {
    /// The next attempt is made then.
    Waiting(Time),
    Connecting(u64),
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
    connections: u64,
    /// How many attempts were made since the last welcome.
    attempts: u32,
    lease_end: Option<Time>,
    random: u64,
}

impl Session {
    pub fn new(
        machine: MachineId,
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
            connections: 0,
            attempts: 0,
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

    pub fn next_timer(&self) -> Option<Time> {
        match &self.link {
            Link::Waiting(until) => Some(*until),
            Link::Connecting(_) => None,
            Link::Open(open) => {
                let dead = open.heard + open.silence();
                Some(open.welcome.as_ref().map_or(dead, |_| dead.min(open.next_heartbeat)))
            }
        }
    }

    /// A stream is open: whether Hello is to be sent on it, under a new session number.
    pub fn connected(&mut self, now: Time, connection: u64) -> bool {
        if !matches!(self.link, Link::Connecting(asked) if asked == connection) {
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

    pub fn disconnected(&mut self, now: Time, connection: u64) {
        let current = match &self.link {
            Link::Waiting(_) => None,
            Link::Connecting(current) | Link::Open(Open { connection: current, .. }) => Some(*current),
        };
        if current == Some(connection) {
            let wait = self.backoff();
            self.wait(now, wait);
        }
    }

    fn wait(&mut self, now: Time, wait: Duration) {
        self.link = Link::Waiting(now + wait);
        // They belonged to the session that is over.
        self.waiting.clear();
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
            self.disconnect(now, Duration::ZERO, effects);
        }
    }

    /// Exponential, and jittered so that the agents of a cluster do not all come at once.
    fn backoff(&mut self) -> Duration {
        let longest = BACKOFF.0.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF.1);
        self.attempts = self.attempts.saturating_add(1);
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let percent = 50 + (z ^ (z >> 31)) % 51;
        longest * u32::try_from(percent).unwrap_or(100) / 100
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
        match &mut self.link {
            Link::Waiting(until) if *until <= now => {
                self.connections += 1;
                self.link = Link::Connecting(self.connections);
                effects.push(Effect::Connect(self.connections));
                Some(SIGN_OF_LIFE)
            }
            Link::Open(open) if open.heard + open.silence() <= now => {
                effects.push(Effect::Event(Event::LeaderSilent));
                let wait = self.backoff();
                self.disconnect(now, wait, effects);
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
                open.welcome = Some(welcome);
                open.heard = now;
                open.next_heartbeat = now;
                self.attempts = 0;
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

impl Open {
    /// How long the leader may be silent until the stream counts as dead.
    fn silence(&self) -> Duration {
        self.welcome.as_ref().map_or(SILENCE_BEFORE_WELCOME, |welcome| welcome.lease_ttl * 2)
    }
}
