//! The network of virtual machines: a switch to which each of them is plugged by a stream of frames, as QEMU's `stream`
//! backend sends them: four bytes of length, the highest first, and the frame.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use crate::machine::{CUT, IMPAIRED, Impairment, LOST};

/// The longest frame that anybody sends: a segment of 64 KiB that the sender leaves undivided.
const LONGEST: usize = 1 << 17;
/// How many frames wait at most. What comes when so many do is lost.
const WAITING: usize = 1000;

type Address = [u8; 6];

#[derive(Default)]
struct Ports {
    plugged: HashMap<String, Plug>,
    /// Behind which port an address was seen last.
    learned: HashMap<Address, String>,
}

struct Plug {
    stream: UnixStream,
    /// What is left of a frame of which the receiver took only a part.
    rest: Vec<u8>,
}

pub(super) struct Switch {
    /// The machines' directories. What is there says which frames are lost: files, so that it is in force at once, for
    /// whoever looks, and through reboots.
    machines: PathBuf,
    ports: Mutex<Ports>,
    waiting: Mutex<Waiting>,
    /// Something new waits.
    came: Condvar,
}

/// The frames that are delayed, the first one to be sent on top.
#[derive(Default)]
struct Waiting {
    frames: BinaryHeap<Reverse<Delayed>>,
    /// How many there have been so far.
    count: u64,
    dice: Dice,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: Instant,
    /// Of those that are due at once the first one goes first.
    number: u64,
    from: String,
    to: String,
    frame: Vec<u8>,
}

/// Throws the same at each run.
#[derive(Default)]
struct Dice(u64);

impl Dice {
    /// A number from 0 to `most`: splitmix64, of which the remainder is even enough here.
    fn throw(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % (most + 1)
    }

    /// How long a frame takes that meets these impairments; `None` when it is lost.
    fn delay(&mut self, impairments: &[Impairment]) -> Option<Duration> {
        impairments.iter().try_fold(Duration::ZERO, |sum, impairment| {
            let lost = self.throw(99) < u64::from(impairment.loss_percent);
            let jitter = self.throw(u64::from(impairment.jitter_ms));
            (!lost).then(|| sum + Duration::from_millis(u64::from(impairment.delay_ms) + jitter))
        })
    }
}

impl Switch {
    /// A switch, with a thread that sends what is delayed.
    pub(super) fn start(machines: PathBuf) -> Arc<Self> {
        let switch = Arc::new(Self {
            machines,
            ports: Mutex::default(),
            waiting: Mutex::default(),
            came: Condvar::new(),
        });
        let for_thread = switch.clone();
        thread::spawn(move || for_thread.send_delayed());
        switch
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what has waited long enough, for ever.
    fn send_delayed(&self) {
        let mut waiting = self.waiting();
        loop {
            let left =
                waiting.frames.peek().map(|first| first.0.due.saturating_duration_since(Instant::now()));
            waiting = match left {
                None => self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let first = waiting.frames.pop();
                    // Nobody who sends must wait for us.
                    drop(waiting);
                    if let Some(Reverse(delayed)) = first
                        && !self.loses(&delayed.from, &delayed.to)
                        && let Some(plug) = self.ports().plugged.get_mut(&delayed.to)
                    {
                        plug.send(&delayed.frame);
                    }
                    self.waiting()
                }
                Some(left) => self.came.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what a machine sends, until it is unplugged.
    pub(super) fn serve(&self, name: &str, stream: UnixStream) {
        let Ok(reader) = stream.try_clone() else { return };
        self.ports().plugged.insert(name.to_owned(), Plug { stream, rest: Vec::new() });
        let mut reader = BufReader::with_capacity(1 << 16, reader);
        while let Some(frame) = read_frame(&mut reader) {
            self.pass_on(name, &frame);
        }
        self.ports().plugged.remove(name);
    }

    fn pass_on(&self, from: &str, frame: &[u8]) {
        let (Some(to), Some(sender)) = (address(frame, 0), address(frame, 6)) else { return };
        let mut ports = self.ports();
        if ports.learned.get(&sender).is_none_or(|port| port != from) {
            ports.learned.insert(sender, from.to_owned());
        }
        // The lowest bit of the first byte: for all.
        let only = if to[0] & 1 == 0 { ports.learned.get(&to).cloned() } else { None };
        for (name, plug) in &mut ports.plugged {
            if name == from || only.as_ref().is_some_and(|only| only != name) || self.loses(from, name) {
                continue;
            }
            let impairments: Vec<_> =
                [from, name].into_iter().filter_map(|name| self.impairment(name)).collect();
            if impairments.is_empty() {
                plug.send(frame);
            } else {
                self.delay(&impairments, from, name, frame);
            }
        }
    }

    /// What frames from and to this machine suffer just now.
    fn impairment(&self, name: &str) -> Option<Impairment> {
        // What is half written is written in full a moment later.
        fs::read_to_string(self.machines.join(name).join(IMPAIRED)).ok()?.parse().ok()
    }

    fn delay(&self, impairments: &[Impairment], from: &str, to: &str, frame: &[u8]) {
        let mut waiting = self.waiting();
        let Some(delay) = waiting.dice.delay(impairments) else { return };
        if waiting.frames.len() < WAITING {
            waiting.count += 1;
            let (number, due) = (waiting.count, Instant::now() + delay);
            let [from, to] = [from, to].map(str::to_owned);
            waiting.frames.push(Reverse(Delayed { due, number, from, to, frame: frame.to_vec() }));
            self.came.notify_one();
        }
    }

    /// Whether frames between these two are lost just now.
    fn loses(&self, from: &str, to: &str) -> bool {
        let [from_dir, to_dir] = [from, to].map(|name| self.machines.join(name));
        from_dir.join(CUT).exists() || to_dir.join(CUT).exists() || from_dir.join(LOST).join(to).exists()
    }
}

impl Plug {
    /// Sends a frame, with its length before it. One that finds no room is lost, as in any switch: a machine that is frozen
    /// must not keep the others waiting.
    fn send(&mut self, frame: &[u8]) {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.push(rest);
        }
        if self.rest.is_empty() {
            let Ok(length) = u32::try_from(frame.len()) else { return };
            self.push([&length.to_be_bytes()[..], frame].concat());
            // Of a frame that was not begun, nothing must be sent later.
            if self.rest.len() == frame.len() + 4 {
                self.rest.clear();
            }
        }
    }

    fn push(&mut self, mut bytes: Vec<u8>) {
        // A receiver that is gone is noticed where it is read from.
        let sent = send(&self.stream, &bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap_or(0);
        self.rest = bytes.split_off(sent);
    }
}

fn read_frame(reader: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok().filter(|length| *length <= LONGEST)?;
    let mut frame = vec![0; length];
    reader.read_exact(&mut frame).ok()?;
    Some(frame)
}

fn address(frame: &[u8], at: usize) -> Option<Address> {
    frame.get(at..at + 6)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Network {
        switch: Arc<Switch>,
        machines: tempfile::TempDir,
    }

    impl Network {
        fn new() -> Self {
            let machines = tempfile::tempdir().unwrap();
            Self { switch: Switch::start(machines.path().to_owned()), machines }
        }

        fn plug(&self, name: &'static str) -> UnixStream {
            let (machine, port) = UnixStream::pair().unwrap();
            let switch = self.switch.clone();
            thread::spawn(move || switch.serve(name, port));
            let deadline = Instant::now() + Duration::from_secs(10);
            while !self.switch.ports().plugged.contains_key(name) {
                assert!(Instant::now() < deadline, "{name} is not plugged in");
                thread::yield_now();
            }
            fs::create_dir_all(self.machines.path().join(name).join(LOST)).unwrap();
            machine.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            machine
        }
    }

    fn frame(to: u8, from: u8, text: &str) -> Vec<u8> {
        [&[if to == 255 { 255 } else { 2 }, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from], text.as_bytes()].concat()
    }

    fn say(machine: &mut UnixStream, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap();
        machine.write_all(&[&length.to_be_bytes()[..], frame].concat()).unwrap();
    }

    /// What this machine hears next.
    fn heard(machine: &mut UnixStream) -> String {
        String::from_utf8(read_frame(machine).unwrap()[12..].to_vec()).unwrap()
    }

    #[test]
    fn frames_go_where_they_are_meant_to_go() {
        let network = Network::new();
        let (mut a, mut b, mut c) = (network.plug("a"), network.plug("b"), network.plug("c"));
        say(&mut a, &frame(255, 1, "who is there?"));
        assert_eq!(heard(&mut b), "who is there?");
        assert_eq!(heard(&mut c), "who is there?");
        say(&mut b, &frame(1, 2, "b is"));
        assert_eq!(heard(&mut a), "b is");
        say(&mut a, &frame(2, 1, "for b alone"));
        say(&mut a, &frame(255, 1, "for all"));
        assert_eq!(heard(&mut b), "for b alone");
        assert_eq!(heard(&mut b), "for all");
        assert_eq!(heard(&mut c), "for all");
    }

    #[test]
    fn losses_are_one_way_and_cuts_are_both_ways() {
        let network = Network::new();
        let (mut a, mut b, mut c) = (network.plug("a"), network.plug("b"), network.plug("c"));
        // Not through its port: what is lost must be so before the loss ends.
        let say =
            |from: &str, text: &str| network.switch.pass_on(from, &frame(255, from.as_bytes()[0], text));
        let lost = network.machines.path().join("a/lost/b");
        fs::write(&lost, "").unwrap();
        say("a", "1");
        say("b", "2");
        fs::remove_file(&lost).unwrap();
        let cut = network.machines.path().join("c/cut");
        fs::write(&cut, "").unwrap();
        say("a", "3");
        say("c", "4");
        fs::remove_file(&cut).unwrap();
        say("a", "5");
        say("b", "6");
        assert_eq!([heard(&mut a), heard(&mut a)], ["2", "6"]);
        assert_eq!([heard(&mut b), heard(&mut b)], ["3", "5"]);
        assert_eq!([heard(&mut c), heard(&mut c), heard(&mut c), heard(&mut c)], ["1", "2", "5", "6"]);
    }

    #[test]
    fn who_is_impaired_keeps_nobody_else_waiting() {
        let network = Network::new();
        let (mut a, mut b, mut c) = (network.plug("a"), network.plug("b"), network.plug("c"));
        let mark = network.machines.path().join("c").join(IMPAIRED);
        let began = Instant::now();
        fs::write(&mark, "300 0 0").unwrap();
        for text in ["1", "2", "3"] {
            say(&mut a, &frame(255, 1, text));
        }
        assert_eq!([heard(&mut b), heard(&mut b), heard(&mut b)], ["1", "2", "3"]);
        assert_eq!([heard(&mut c), heard(&mut c), heard(&mut c)], ["1", "2", "3"], "in their order");
        assert!(began.elapsed() >= Duration::from_millis(300));
        // What it says, too.
        let began = Instant::now();
        say(&mut c, &frame(255, 3, "4"));
        assert_eq!(heard(&mut a), "4");
        assert!(began.elapsed() >= Duration::from_millis(300));
        // What comes after the end of it overtakes what waits.
        fs::write(&mark, "3000 0 0").unwrap();
        network.switch.pass_on("a", &frame(255, 1, "5"));
        fs::remove_file(&mark).unwrap();
        network.switch.pass_on("a", &frame(255, 1, "6"));
        assert_eq!([heard(&mut c), heard(&mut c)], ["6", "5"]);
        // What waits when the cable is cut is lost.
        fs::write(&mark, "2000 0 0").unwrap();
        network.switch.pass_on("a", &frame(255, 1, "7"));
        let cut = network.machines.path().join("c").join(CUT);
        fs::write(&cut, "").unwrap();
        while !network.switch.waiting().frames.is_empty() {
            thread::yield_now();
        }
        fs::write(&mark, "nonsense").unwrap();
        network.switch.pass_on("a", &frame(255, 1, "8"));
        fs::remove_file(&cut).unwrap();
        network.switch.pass_on("a", &frame(255, 1, "9"));
        assert_eq!(heard(&mut c), "9");
    }

    #[test]
    fn what_waits_has_a_limit() {
        let network = Network::new();
        let mut b = network.plug("b");
        let mark = network.machines.path().join("b").join(IMPAIRED);
        fs::write(&mark, "600000 0 0").unwrap();
        for number in 0..2 * WAITING {
            network.switch.pass_on("a", &frame(255, 1, &number.to_string()));
        }
        assert_eq!(network.switch.waiting().frames.len(), WAITING);
        fs::remove_file(&mark).unwrap();
        network.switch.pass_on("a", &frame(255, 1, "undelayed"));
        assert_eq!(heard(&mut b), "undelayed");
    }

    #[test]
    fn jitter_changes_the_order_and_losses_are_as_many_as_asked_for() {
        let mut dice = Dice::default();
        let of = |text: &str| text.parse::<Impairment>().unwrap();
        let delays: Vec<_> = (0..1000).filter_map(|_| dice.delay(&[of("20 30 10"), of("5 0 0")])).collect();
        assert!((850..950).contains(&delays.len()), "{} of 1000", delays.len());
        assert!(!delays.is_sorted());
        let all = Duration::from_millis(25)..=Duration::from_millis(55);
        assert!(delays.iter().all(|delay| all.contains(delay)), "{delays:?}");
        for end in [all.start(), all.end()] {
            assert!(delays.contains(end), "never {end:?}");
        }
        assert_eq!(dice.delay(&[of("0 0 100")]), None);
        assert_eq!(dice.delay(&[of("0 0 0")]), Some(Duration::ZERO));
    }

    #[test]
    fn who_does_not_read_keeps_nobody_waiting() {
        let network = Network::new();
        let (mut a, frozen, mut c) = (network.plug("a"), network.plug("frozen"), network.plug("c"));
        for number in 0..2000 {
            say(&mut a, &frame(255, 1, &format!("{number:01400}")));
            assert_eq!(heard(&mut c).trim_start_matches('0'), number.to_string().trim_start_matches('0'));
        }
        // It finds whole frames only.
        let mut frozen = BufReader::new(frozen);
        for _ in 0..10 {
            assert_eq!(read_frame(&mut frozen).unwrap().len(), 1412);
        }
    }
}
