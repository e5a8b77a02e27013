//! The guard of exclusive units: the units and scripts with which PID 1 ends them, and the agent's part in it.
//!
//! `muster-lease.service` lasts until the moment in a file, which [`Guard::pet`] moves on; exclusive units are bound to
//! it. When it fails, `muster-fence.service` kills what is left of them, slice by slice. Neither needs the agent.

use std::fs::{self, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_core::agent::EXCLUSIVE_SLICE;
use muster_core::time::Time;
use muster_daemon::clock;
use muster_daemon::files::replace;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, UCred, sendmsg_addr, socket_with,
};
use rustix::process::{Gid, Pid, Uid};
use tracing::warn;

use crate::files::absent;

/// The unit that kills what is left.
pub(crate) const FENCE: &str = "muster-fence.service";
/// How much of a lease must be left when the guard is started: what its start may take, and its first watchdog.
pub(crate) const START_MIN: Duration = Duration::from_secs(2);

/// By how much the clock that the guard's shell scripts read may differ from the agent's.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(1);

/// Where PID 1 is told how its services are.
const NOTIFY: &str = "/run/systemd/notify";
/// Where the hierarchies of control groups are in which systemd keeps its units, and how `/proc/1/cgroup` names each.
const HIERARCHIES: [(&str, &str); 3] = [
    ("/sys/fs/cgroup", "0::"),
    ("/sys/fs/cgroup/unified", "0::"),
    ("/sys/fs/cgroup/systemd", "name=systemd:"),
];

/// What becomes of a message for the guard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pet {
    Done,
    /// The guard's process is gone.
    Lost,
}

/// The guard's files, and its process.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    dir: PathBuf,
    links: PathBuf,
    process: Arc<Mutex<Option<Pid>>>,
    /// The fence that the agent has run itself.
    fence: Arc<Mutex<Option<Child>>>,
}

impl Guard {
    /// The guard whose scripts are in the run directory, and whose units are where systemd looks for them. It is known
    /// whether one runs that an agent before this one has started.
    pub(crate) fn new(run_dir: &Path, links: &Path) -> Self {
        let guard = Self {
            dir: run_dir.join("guard"),
            links: links.to_owned(),
            process: Arc::default(),
            fence: Arc::default(),
        };
        let process = fs::read_to_string(guard.dir.join("process")).ok();
        let process = process.and_then(|process| Pid::from_raw(process.trim().parse().ok()?));
        // The number may be another process's by now.
        let is_guard = |process: &Pid| {
            fs::read_to_string(format!("/proc/{}/cgroup", process.as_raw_nonzero()))
                .is_ok_and(|groups| is_in(&groups, muster_core::agent::LEASE))
        };
        *lock(&guard.process) = process.filter(is_guard);
        guard
    }

    /// Writes units and scripts that are not there, before systemd loads the first unit that is bound to them.
    pub(crate) fn write_files(&self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let slices = slices(&fs::read_to_string("/proc/1/cgroup")?);
        for (directory, name, text) in [
            (&self.dir, "lease.sh", include_str!("guard/lease.sh")),
            (&self.dir, "fence.sh", include_str!("guard/fence.sh")),
            (&self.links, FENCE, include_str!("guard/muster-fence.service")),
            (&self.links, muster_core::agent::LEASE, include_str!("guard/muster-lease.service")),
        ] {
            let path = directory.join(name);
            let text = text.replace("@DIR@", &self.dir.display().to_string()).replace("@SLICES@", &slices);
            if !fs::read_to_string(&path).is_ok_and(|there| there == text) {
                replace(&path, text.as_bytes())?;
            }
        }
        Ok(())
    }

    /// Allows a guard that does not run yet to run until that moment. What was still to be killed of the last time must not
    /// be taken for what it guards.
    pub(crate) fn grant(&self, until: Time) -> io::Result<()> {
        self.end_fence();
        self.set_end(until)
    }

    /// Writes the moment down, at once and as a whole. Where one was before, that takes no room on the file system, which
    /// may be full: of two files of one length one is overwritten, and takes the place of the other.
    fn set_end(&self, until: Time) -> io::Result<()> {
        let hundredths = until.since(Time::default()).as_millis() / 10;
        let (end, spare) = (self.dir.join("end"), self.dir.join("end~"));
        let write = || -> io::Result<()> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&spare)?;
            file.write_all_at(format!("{hundredths:<20}\n").as_bytes(), 0)
        };
        write()?;
        match renameat_with(CWD, &spare, CWD, &end, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => {
                fs::rename(&spare, &end)?;
                write()
            }
            outcome => Ok(outcome?),
        }
    }

    /// Allows it to run no more.
    pub(crate) fn clear_end(&self) -> io::Result<()> {
        *lock(&self.process) = None;
        absent(fs::remove_file(self.dir.join("end")))
    }

    /// This is the guard's process, also for the agent after this one: PID 1 may be busy then.
    pub(crate) fn set_process(&self, process: Pid) -> io::Result<()> {
        *lock(&self.process) = Some(process);
        replace(&self.dir.join("process"), format!("{}\n", process.as_raw_nonzero()).as_bytes())
    }

    /// Has the guard last until that moment.
    ///
    /// # Errors
    /// It could not be told so; it ends when it was to end before.
    pub(crate) fn pet(&self, until: Time) -> io::Result<Pet> {
        let Some(process) = *lock(&self.process) else { return Ok(Pet::Lost) };
        let left = until.since(clock::now());
        if left.is_zero() {
            return Ok(Pet::Done);
        }
        self.set_end(until)?;
        // Both in one message: the watchdog must not be petted with the time of the lease before.
        let pet = format!("WATCHDOG_USEC={}\nWATCHDOG=1", left.as_micros());
        match notify_as(process, pet.as_bytes()) {
            Err(Errno::SRCH) => return Ok(Pet::Lost),
            outcome => outcome?,
        }
        // This process may have been stopped in between, and the watchdog counts from when PID 1 hears of it.
        if until <= clock::now() {
            match notify_as(process, b"WATCHDOG=trigger") {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Pet::Done)
    }

    /// Kills what is left of exclusive units, each when its time is over, without PID 1.
    pub(crate) fn fence(&self) {
        self.end_fence();
        let script = self.dir.join("fence.sh");
        match Command::new("/bin/sh").arg(&script).spawn() {
            Ok(fence) => *lock(&self.fence) = Some(fence),
            Err(error) => warn!(%error, "cannot run {}", script.display()),
        }
    }

    /// What it has not killed yet, it does not kill any more.
    fn end_fence(&self) {
        let Some(mut fence) = lock(&self.fence).take() else { return };
        match fence.try_wait() {
            Ok(Some(status)) if status.success() => {}
            Ok(Some(status)) => warn!(%status, "the fence has failed"),
            // That it has ended meanwhile is as well.
            _ => drop(fence.kill()),
        }
        if let Err(error) = fence.wait() {
            warn!(%error, "cannot wait for the end of the fence");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the control groups of a process, as in `/proc/PID/cgroup`, are those of a unit.
fn is_in(groups: &str, unit: &str) -> bool {
    groups.lines().any(|group| group.rsplit_once('/').is_some_and(|(_, last)| last == unit))
}

/// Whether the guard's scripts, to which `/proc/uptime` says what time it is, would know when a lease is over.
///
/// # Errors
/// Why not.
pub(crate) fn check_clock() -> Result<(), String> {
    let text =
        fs::read_to_string("/proc/uptime").map_err(|error| format!("cannot read /proc/uptime: {error}"))?;
    compare_clocks(&text, clock::now())
}

fn compare_clocks(uptime: &str, now: Time) -> Result<(), String> {
    let seconds = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok());
    let uptime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(uptime) = uptime else { return Err(format!("/proc/uptime makes no sense: {uptime:?}")) };
    let differ = uptime.abs_diff(now.since(Time::default()));
    if differ > CLOCKS_DIFFER_MAX {
        return Err(format!(
            "/proc/uptime differs from CLOCK_BOOTTIME by {differ:.1?}, so that the end of a lease would not be known; \
             something puts a file of its own there (lxcfs does): have it leave /proc/uptime as it is"
        ));
    }
    Ok(())
}

/// Tells PID 1 something in the name of another process, as `systemd-notify --pid=` does. It waits for nobody.
fn notify_as(process: Pid, text: &[u8]) -> Result<(), Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let credentials = UCred { pid: process, uid: Uid::ROOT, gid: Gid::ROOT };
    control.push(SendAncillaryMessage::ScmCredentials(credentials));
    let address = SocketAddrUnix::new(NOTIFY)?;
    sendmsg_addr(&socket, &address, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The slices of exclusive units, as patterns for the shell.
fn slices(of_pid1: &str) -> String {
    let patterns = HIERARCHIES.iter().filter_map(|(mount, name)| {
        let path = of_pid1.lines().find_map(|line| line.split_once(name).map(|(_, path)| path))?;
        let root = path.strip_suffix("/init.scope").unwrap_or(path).trim_end_matches('/');
        let parent = EXCLUSIVE_SLICE.split_once('-').map_or(EXCLUSIVE_SLICE, |(parent, _)| parent);
        Some(format!("'{mount}{root}/{parent}.slice/{EXCLUSIVE_SLICE}.slice/{EXCLUSIVE_SLICE}-'*.slice"))
    });
    patterns.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guard in a directory of its own, whose control groups are plain directories there.
    struct Bench {
        directory: tempfile::TempDir,
        guard: Guard,
    }

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let links = directory.path().join("links");
            fs::create_dir(&links).unwrap();
            let guard = Guard::new(directory.path(), &links);
            guard.write_files().unwrap();
            let script = guard.dir.join("fence.sh");
            let text = fs::read_to_string(&script).unwrap();
            let own = directory.path().display().to_string();
            fs::write(&script, text.replace("/sys/fs/cgroup", &own)).unwrap();
            Self { directory, guard }
        }

        fn status(&self, script: &str, arguments: &[&str]) -> Option<i32> {
            let script = self.guard.dir.join(script);
            Command::new("/bin/sh").arg(script).args(arguments).status().unwrap().code()
        }
    }

    #[test]
    fn the_lease_lasts_until_its_moment() {
        let bench = Bench::new();
        assert_eq!(bench.status("lease.sh", &[]), Some(1), "nobody has granted it");
        bench.guard.set_end(clock::now() + Duration::from_secs(60)).unwrap();
        assert_eq!(bench.status("lease.sh", &["200"]), Some(0));
        assert_eq!(bench.status("lease.sh", &["6000"]), Some(1), "less than that is left");
        let end = clock::now() + Duration::from_millis(300);
        bench.guard.set_end(end).unwrap();
        assert_eq!(bench.status("lease.sh", &[]), Some(1));
        // It reads hundredths of a second.
        assert!(clock::now() + Duration::from_millis(10) >= end, "it has waited");
        bench.guard.clear_end().unwrap();
        assert_eq!(bench.status("lease.sh", &["0"]), Some(1));
    }

    #[test]
    fn the_fence_kills_what_is_in_the_slices_when_its_time_is_over() {
        let bench = Bench::new();
        let mut victims: Vec<_> =
            (0..2).map(|_| Command::new("/bin/sleep").arg("1000").spawn().unwrap()).collect();
        let slice =
            bench.directory.path().join("muster.slice/muster-exclusive.slice/muster-exclusive-1.slice");
        for (victim, unit) in victims.iter().zip(["a.service", "b.service/below"]) {
            fs::create_dir_all(slice.join(unit)).unwrap();
            fs::write(slice.join(unit).join("cgroup.procs"), format!("{}\n", victim.id())).unwrap();
        }
        for directory in [slice.clone(), slice.join("b.service")] {
            fs::write(directory.join("cgroup.procs"), "").unwrap();
        }
        bench.guard.set_end(clock::now() - Duration::from_millis(500)).unwrap();
        let fence = bench.guard.dir.join("fence.sh");
        let mut fence = Command::new("/bin/sh").arg(fence).spawn().unwrap();
        for victim in &mut victims {
            assert_eq!(victim.wait().unwrap().code(), None, "a signal has ended it");
        }
        // These groups stay as they are: it would go on for half a minute.
        fence.kill().unwrap();
        fence.wait().unwrap();
    }

    #[test]
    fn a_fence_of_the_last_lease_kills_nothing_under_the_next() {
        let bench = Bench::new();
        let slice =
            bench.directory.path().join("muster.slice/muster-exclusive.slice/muster-exclusive-300.slice");
        fs::create_dir_all(slice).unwrap();
        bench.guard.set_end(clock::now()).unwrap();
        bench.guard.fence();
        let fence = lock(&bench.guard.fence).as_ref().map(|fence| format!("/proc/{}", fence.id())).unwrap();
        assert!(Path::new(&fence).exists(), "it waits for minutes");
        bench.guard.grant(clock::now() + Duration::from_secs(5)).unwrap();
        assert!(!Path::new(&fence).exists());
    }

    #[test]
    fn an_agent_knows_the_process_of_a_guard_that_was_started_before() {
        let bench = Bench::new();
        let guard = |bench: &Bench| Guard::new(bench.directory.path(), &bench.directory.path().join("links"));
        assert_eq!(*lock(&guard(&bench).process), None);
        // This process is in no such group.
        bench.guard.set_process(rustix::process::getpid()).unwrap();
        assert_eq!(*lock(&guard(&bench).process), None);
        let groups = |unit: &str| format!("4:memory:/\n1:name=systemd:/a b/system.slice/{unit}\n0::/\n");
        assert!(is_in(&groups("muster-lease.service"), "muster-lease.service"));
        assert!(!is_in(&groups("x-muster-lease.service"), "muster-lease.service"));
        assert!(is_in("0::/system.slice/muster-lease.service\n", "muster-lease.service"));
    }

    #[test]
    fn a_clock_that_is_not_the_agents_is_found_out() {
        let now = Time::from_boot(Duration::from_millis(351_735_470));
        assert_eq!(compare_clocks("351735.47 234388.90\n", now), Ok(()));
        assert_eq!(compare_clocks("351736.40 0.00\n", now), Ok(()));
        let virtualized = compare_clocks("12.00 9.00\n", now).unwrap_err();
        assert!(
            virtualized.starts_with("/proc/uptime differs from CLOCK_BOOTTIME by 351723.5s"),
            "{virtualized}"
        );
        assert!(compare_clocks("351740.00 0.00\n", now).is_err());
        for text in ["", "a b", "-1.0 2.0"] {
            assert!(compare_clocks(text, now).unwrap_err().contains("makes no sense"), "{text}");
        }
        check_clock().unwrap();
    }

    #[test]
    fn a_guard_without_a_process_is_lost() {
        let bench = Bench::new();
        let until = clock::now() + Duration::from_secs(60);
        assert_eq!(bench.guard.pet(until).unwrap(), Pet::Lost);
    }

    #[test]
    fn slices_are_looked_for_where_systemd_has_them() {
        let plain = "'/sys/fs/cgroup/muster.slice/muster-exclusive.slice/muster-exclusive-'*.slice";
        assert!(slices("0::/init.scope\n").starts_with(plain));
        let hybrid = slices("1:name=systemd:/machine.slice/a b/init.scope\n0::/\n");
        let nested = "'/sys/fs/cgroup/systemd/machine.slice/a b/muster.slice/muster-exclusive.slice/muster-exclusive-'*";
        assert!(hybrid.contains(nested), "{hybrid}");
    }
}
