//! Several schedulers, with their state in etcd: whichever is lost, of these or of those, nothing that runs is touched,
//! nothing that was acknowledged is lost, and somebody leads again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use muster_cluster::{Cluster, Machine, Role};
use serde_json::Value;

use super::exclusive::{BEATS, runs_elsewhere_alone};
use super::support::{LIMIT, LONG, SLEEP, World, main_pid};

fn three_schedulers(workers: usize) -> Result<World> {
    World::up(Cluster::builder().machines(workers).schedulers(3))
}

/// What a scheduler says of itself.
fn described<'a>(all: &'a Value, machine: &Machine<'_>) -> Option<&'a Value> {
    let address = format!("{}:7400", machine.address());
    all.as_array()?.iter().find(|scheduler| scheduler["address"] == *address)
}

impl World {
    pub fn schedulers(&self) -> Result<Value> {
        // It says so with its exit status when one cannot be reached.
        Ok(serde_json::from_str(&self.try_ctl(&["schedulers", "-o", "json"])?.stdout)?)
    }

    /// Waits until one of the schedulers leads that is none of these.
    pub fn leader_other_than(&self, not: &[&str]) -> Result<Machine<'_>> {
        self.cluster.wait_for(&format!("a leader other than {not:?}"), LIMIT, || {
            let all = self.schedulers()?;
            let leads = |machine: &Machine<'_>| {
                described(&all, machine).is_some_and(|scheduler| scheduler["role"] == "leading")
            };
            let leaders: Vec<_> = self
                .cluster
                .machines()
                .filter(|machine| machine.role().schedules() && leads(machine))
                .collect();
            match leaders.as_slice() {
                [leader] if !not.contains(&leader.name()) => Ok(Some(*leader)),
                _ => bail!("{all:#}"),
            }
        })
    }

    /// Waits until this many schedulers follow.
    pub fn wait_followers(&self, count: usize) -> Result<()> {
        self.cluster.wait_for(&format!("{count} schedulers that follow"), LIMIT, || {
            let all = self.schedulers()?;
            let roles = all.as_array().context("a list")?.iter().map(|scheduler| &scheduler["role"]);
            ensure!(roles.filter(|role| **role == "following").count() == count, "{all:#}");
            Ok(Some(()))
        })
    }

    pub fn etcd(&self) -> Vec<Machine<'_>> {
        self.cluster.machines().filter(|machine| machine.role() == Role::Etcd).collect()
    }

    /// The member that leads etcd.
    fn etcd_leader(&self) -> Result<Machine<'_>> {
        self.cluster.wait_for("a leader of etcd", LIMIT, || {
            let found = self.etcd().into_iter().find(|member| {
                let status = etcdctl(member, &["endpoint", "status", "-w", "json"]).unwrap_or_default();
                let status: Value = serde_json::from_str(&status).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"] == status["header"]["member_id"] && !status["leader"].is_null()
            });
            Ok(found)
        })
    }

    /// Submits units until it is told to stop; gives those that were acknowledged. How many that are is said meanwhile.
    fn submits<T>(
        &self,
        prefix: &str,
        meanwhile: impl FnOnce(&AtomicUsize) -> Result<T>,
    ) -> Result<(Vec<String>, T)> {
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let submitting = scope.spawn(|| {
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let name = format!("{prefix}{number}.service");
                    let path = self.file(&name, SLEEP)?;
                    // Who is not answered in half a minute says so; that unit is there, or not.
                    if self.try_ctl(&["submit", &path])?.code == Some(0) {
                        acknowledged.push(name);
                        count.store(acknowledged.len(), Ordering::Release);
                    }
                }
                anyhow::Ok(acknowledged)
            });
            let done = meanwhile(&count);
            stop.store(true, Ordering::Release);
            let acknowledged = submitting.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
            Ok((acknowledged, done?))
        })
    }

    pub fn has_all(&self, names: &[String]) -> Result<()> {
        let listed = self.ctl(&["list-unit-files", "-o", "json"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        let known: BTreeSet<_> =
            listed.as_array().context("a list")?.iter().filter_map(|unit| unit["unit"].as_str()).collect();
        let lost: Vec<_> = names.iter().filter(|name| !known.contains(name.as_str())).collect();
        ensure!(lost.is_empty(), "acknowledged, and not there: {lost:?}");
        Ok(())
    }
}

pub fn etcdctl(member: &Machine<'_>, arguments: &[&str]) -> Result<String> {
    member.exec(&[&["env", "ETCDCTL_API=3", "etcdctl"], arguments].concat())?.ok()
}

/// All of the log, as etcd has it.
fn log(world: &World) -> Result<String> {
    let member = world.etcd_leader()?;
    etcdctl(&member, &["get", "--prefix", "/muster/log/"])
}

#[test]
fn whatever_becomes_of_the_leader_another_leads_and_no_unit_is_touched() -> Result<()> {
    let world = three_schedulers(2)?;
    for name in ["a.service", "b.service", "c.service"] {
        world.start(name, SLEEP)?;
    }
    world.start("beats.service", BEATS)?;
    world.home("beats.service")?;
    world.wait_followers(2)?;
    let before = world.invocations()?;
    assert_eq!(before.len(), 4);
    let mut acknowledged = Vec::new();
    // Somebody leads who accepts this, hears all machines, and finds everything as it was.
    let mut goes_on = |what: &str| -> Result<()> {
        let name = format!("{what}.service");
        world.ctl(&["submit", &world.file(&name, SLEEP)?])?;
        acknowledged.push(name);
        world.wait_machines_up(2)?;
        world.wait_invocations(&before).with_context(|| format!("the leader was {what}"))?;
        world.has_all(&acknowledged)
    };

    // Its process is killed, and comes again.
    let leader = world.leader_other_than(&[])?;
    leader.exec(&["systemctl", "kill", "--signal=KILL", "muster-scheduler"])?.ok()?;
    goes_on("killed")?;
    world.wait_followers(2)?;

    // It is stopped in an orderly way.
    let leader = world.leader_other_than(&[])?;
    leader.exec(&["systemctl", "stop", "muster-scheduler"])?.ok()?;
    let next = world.leader_other_than(&[leader.name()])?;
    goes_on("stopped")?;
    leader.exec(&["systemctl", "start", "muster-scheduler"])?.ok()?;
    world.wait_followers(2)?;

    // It steps down.
    let told = world.ctl(&["step-down"])?;
    let other = world.leader_other_than(&[next.name()])?;
    ensure!(told.contains(other.address()), "{told}");
    goes_on("asked-to-step-down")?;

    // Its machine loses its power.
    let leader = world.leader_other_than(&[])?;
    leader.kill()?;
    world.leader_other_than(&[leader.name()])?;
    goes_on("switched-off")?;
    leader.boot()?;
    world.wait_followers(2)?;

    // Its cable is cut.
    let leader = world.leader_other_than(&[])?;
    leader.cut()?;
    world.leader_other_than(&[leader.name()])?;
    goes_on("cut-off")?;
    leader.heal()?;
    world.wait_followers(2)?;

    // It is frozen, and wakes as somebody who does not know that he does not lead any more.
    let leader = world.leader_other_than(&[])?;
    leader.freeze()?;
    let next = world.leader_other_than(&[leader.name()])?;
    goes_on("frozen")?;
    let written = log(&world)?;
    leader.thaw()?;
    world.wait_followers(2)?;
    assert_eq!(world.leader_other_than(&[])?.name(), next.name());
    assert_eq!(log(&world)?, written, "who wakes writes nothing");
    goes_on("thawed")
}

/// A service that writes down each of its starts.
const STARTS: &str =
    "[Service]\nExecStart=/bin/sh -c 'echo started >> /var/lib/starts; exec sleep infinity'\n";

/// What was written for commands, in the log: units' files, and the commands themselves.
fn written(world: &World) -> Result<Vec<String>> {
    let mut written = Vec::new();
    for line in log(world)?.lines().filter(|line| line.starts_with('[')) {
        let changes: Vec<Value> = serde_json::from_str(line).with_context(|| line.to_owned())?;
        for change in &changes {
            written.extend(change["PutFile"][0].as_str().map(str::to_owned));
            written.extend(change["PutCommand"][1]["id"].as_str().map(str::to_owned));
        }
    }
    Ok(written)
}

/// A client submits all the time. Whom the leader serves that etcd does not hear any more, it has nothing done for.
#[test]
fn what_is_asked_while_leaders_are_lost_is_done_once() -> Result<()> {
    let world = three_schedulers(2)?;
    world.start("a.service", SLEEP)?;
    world.home("a.service")?;
    world.wait_followers(2)?;
    let before = world.invocations()?;
    let (acknowledged, ()) = world.submits("during", |count| {
        // Who waited for the leader that was lost is answered, and so are others after him.
        let goes_on = || {
            let before = count.load(Ordering::Acquire);
            world.cluster.wait_for("submissions to go on", LIMIT, || {
                ensure!(count.load(Ordering::Acquire) > before + 3, "{before} at first, and now {count:?}");
                Ok(Some(()))
            })
        };
        goes_on()?;
        let leader = world.leader_other_than(&[])?;
        leader.exec(&["systemctl", "kill", "--signal=KILL", "muster-scheduler"])?.ok()?;
        goes_on()?;
        world.wait_followers(2)?;
        let leader = world.leader_other_than(&[])?;
        leader.freeze()?;
        world.leader_other_than(&[leader.name()])?;
        goes_on()?;
        leader.thaw()?;
        world.wait_followers(2)?;
        let leader = world.leader_other_than(&[])?;
        leader.cut()?;
        world.leader_other_than(&[leader.name()])?;
        goes_on()?;
        leader.heal()?;
        world.wait_followers(2)?;
        // Agents and clients hear this one still.
        let leader = world.leader_other_than(&[])?;
        world.etcd().iter().try_for_each(|member| leader.lose(member))?;
        let (address, path) = (format!("{}:7400", leader.address()), world.file("asked.service", STARTS)?);
        // It is sent on, and knows of nobody else.
        let asked = world.try_ctl(&["--endpoint", &address, "start", &path])?;
        ensure!(asked.code != Some(0), "{asked:?}");
        world.leader_other_than(&[leader.name()])?;
        goes_on()?;
        leader.heal()?;
        world.wait_followers(2)
    })?;
    world.has_all(&acknowledged)?;
    let written = written(&world)?;
    let once: BTreeSet<_> = written.iter().collect();
    ensure!(acknowledged.iter().all(|name| once.contains(name)), "{written:?}");
    ensure!(once.len() == written.len(), "something was done twice: {written:?}");
    // Whether it was done then or is now: nobody has started it whom another one had overtaken.
    world.start("asked.service", STARTS)?;
    world.home("asked.service")?;
    world.wait_machines_up(2)?;
    let workers = world.cluster.machines().filter(|machine| machine.role().works());
    let starts: Result<Vec<_>> =
        workers.map(|worker| Ok(worker.exec(&["cat", "/var/lib/starts"])?.stdout.lines().count())).collect();
    ensure!(starts.as_ref().is_ok_and(|starts| starts.iter().sum::<usize>() == 1), "{starts:?}");
    let after = world.invocations()?;
    ensure!(before.iter().all(|(unit, ran)| after.get(unit) == Some(ran)), "{before:#?} {after:#?}");
    Ok(())
}

/// The old leader hears its agents and not etcd: it grants nothing more, so that what it does not know happens once.
#[test]
fn a_leader_that_is_cut_off_from_etcd_renews_no_lease() -> Result<()> {
    let world = three_schedulers(2)?;
    world.start("beats.service", BEATS)?;
    world.start("other.service", SLEEP)?;
    let home = world.home("beats.service")?;
    world.home("other.service")?;
    world.wait_followers(2)?;
    let leader = world.leader_other_than(&[])?;
    // The machine of the exclusive unit hears the old leader only: for all others it is lost.
    for scheduler in world.cluster.machines().filter(|machine| machine.role().schedules()) {
        if scheduler.name() != leader.name() {
            home.lose(&scheduler)?;
        }
    }
    for member in world.etcd() {
        leader.lose(&member)?;
    }
    let next = world.leader_other_than(&[leader.name()])?;
    runs_elsewhere_alone(&world, &home)?;
    let new = world.home("beats.service")?;
    let pid = main_pid(&new, "beats.service")?;
    leader.heal()?;
    home.heal()?;
    world.wait_machines_up(2)?;
    world.wait_followers(2)?;
    assert_eq!(world.leader_other_than(&[])?.name(), next.name());
    world.wait_active_state(&home, "beats.service", "inactive")?;
    assert_eq!(main_pid(&new, "beats.service")?, pid);
    Ok(())
}

#[test]
fn no_member_of_etcd_is_needed_and_without_a_majority_units_run_on() -> Result<()> {
    let world = three_schedulers(2)?;
    for name in ["a.service", "b.service"] {
        world.start(name, SLEEP)?;
        world.home(name)?;
    }
    world.wait_followers(2)?;
    let before = world.invocations()?;
    let (acknowledged, ()) = world.submits("during", |_| {
        // A member is killed (and started again by its systemd), one is frozen, one is cut off: the leader of etcd each time.
        let member = world.etcd_leader()?;
        member.exec(&["systemctl", "kill", "--signal=KILL", "etcd"])?.ok()?;
        world.leader_other_than(&[])?;
        let member = world.etcd_leader()?;
        member.freeze()?;
        world.leader_other_than(&[])?;
        world.ctl(&["submit", &world.file("frozen.service", SLEEP)?])?;
        member.thaw()?;
        let member = world.etcd_leader()?;
        member.cut()?;
        world.leader_other_than(&[])?;
        world.ctl(&["submit", &world.file("cut.service", SLEEP)?])?;
        member.heal()?;
        // The majority is away for longer than any lease.
        let lost = &world.etcd()[..2];
        lost.iter().try_for_each(Machine::cut)?;
        world.outlast(2 * LONG)?;
        lost.iter().try_for_each(Machine::heal)?;
        world.leader_other_than(&[])?;
        world.ctl(&["submit", &world.file("back.service", SLEEP)?])?;
        Ok(())
    })?;
    world.wait_machines_up(2)?;
    world.wait_invocations(&before)?;
    ensure!(acknowledged.len() > 10, "{acknowledged:?}");
    world.has_all(&acknowledged)?;
    world.has_all(&["frozen", "cut", "back"].map(|name| format!("{name}.service")))
}

/// The leader's machine is a worker, too: its units go elsewhere, by a leader that has to be elected first.
#[test]
fn a_machine_that_takes_the_leader_with_it_loses_its_units_to_others() -> Result<()> {
    let world = World::up(Cluster::builder().machines(3).schedulers(3).schedulers_on_workers())?;
    let names: Vec<_> = (0..6).map(|number| format!("u{number}.service")).collect();
    for name in &names {
        world.start(name, SLEEP)?;
    }
    world.start("beats.service", BEATS)?;
    for name in &names {
        world.home(name)?;
    }
    world.home("beats.service")?;
    world.wait_followers(2)?;
    let before = world.invocations()?;
    let leader = world.leader_other_than(&[])?;
    leader.kill()?;
    for name in &names {
        world.home_other_than(name, &[leader.name()])?;
    }
    world.home_other_than("beats.service", &[leader.name()])?;
    let after = world.invocations()?;
    for ((unit, machine), invocation) in &before {
        if machine != leader.machine_id() {
            assert_eq!(after.get(&(unit.clone(), machine.clone())), Some(invocation), "{unit}: {after:#?}");
        }
    }
    leader.boot()?;
    world.wait_machines_up(3)
}
