//! The guard of exclusive units: the units and scripts with which PID 1 ends them, and the agent's part in it.
//!
//! `muster-lease.service` lasts until the moment in a file, which [`Guard::pet`] moves on; exclusive units are bound to
//! it. When it fails, `muster-fence.service` kills what is left of them, slice by slice. Neither needs the agent.

use std::fs;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use muster_core::agent::EXCLUSIVE_SLICE;
use muster_core::time::Time;
use muster_daemon::clock;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, UCred, sendmsg_addr, socket_with,
};
use rustix::process::{Gid, Pid, Uid};
use tracing::warn;

use crate::files::replace;

/// The unit that kills what is left.
pub(crate) const FENCE: &str = "muster-fence.service";
/// How much of a lease must be left when the guard is started: what its start may take, and its first watchdog.
pub(crate) const START_MIN: Duration = Duration::from_secs(2);

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
}

impl Guard {
    /// The guard whose scripts are in the run directory, and whose units are where systemd looks for them.
    pub(crate) fn new(run_dir: &Path, links: &Path) -> Self {
        Self { dir: run_dir.join("guard"), links: links.to_owned(), process: Arc::default() }
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

    /// Allows the guard to run until that moment.
    pub(crate) fn set_end(&self, until: Time) -> io::Result<()> {
        let hundredths = until.since(Time::default()).as_millis() / 10;
        replace(&self.dir.join("end"), format!("{hundredths}\n").as_bytes())
    }

    /// Allows it to run no more.
    pub(crate) fn clear_end(&self) -> io::Result<()> {
        self.set_process(None);
        match fs::remove_file(self.dir.join("end")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// This is the guard's process.
    pub(crate) fn set_process(&self, process: Option<Pid>) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
    }

    /// Has the guard last until that moment.
    ///
    /// # Errors
    /// It could not be told so; it ends when it was to end before.
    pub(crate) fn pet(&self, until: Time) -> io::Result<Pet> {
        let process = *self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(process) = process else { return Ok(Pet::Lost) };
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
        let script = self.dir.join("fence.sh");
        thread::spawn(move || match Command::new("/bin/sh").arg(&script).status() {
            Ok(status) if status.success() => {}
            Ok(status) => warn!(%status, "{} has failed", script.display()),
            Err(error) => warn!(%error, "cannot run {}", script.display()),
        });
    }
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
