//! `musterctl` as a user runs it, against a scheduler as it is shipped. Only the machines are made up: each is an agent
//! that says of every unit what its name asks for.

mod cluster;
mod fleetctl;
mod follower;
mod import;
mod proxy;

use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, Run, eventually};
use follower::Follower;
use proxy::Proxy;

const WEB: &str = "# A comment, and no newline at the end\n[Unit]\nDescription=The web\n\n[Service]\nExecStart=/bin/sleep inf";
const APART: &str = "[Service]\nExecStart=/bin/sleep inf\n[X-Fleet]\nConflicts=apart@*.service\n";
const GLOBAL: &str = "[Service]\nExecStart=/bin/sleep inf\n[X-Fleet]\nGlobal=true\n";

const M1: &str = "11111111.../198.18.0.101";

fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path.display().to_string()
}

#[track_caller]
fn ended(run: &Run, code: i32, stdout: &str, stderr: &str) {
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (Some(code), stdout, stderr));
}

#[test]
fn the_life_of_a_unit() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let web = file(cluster.directory(), "web.service", WEB);

    ended(&cluster.ctl(&["submit", &web]), 0, "Unit web.service inactive\n", "");
    ended(&cluster.ctl(&["submit", &web]), 0, "Unit web.service unchanged\n", "");
    ended(&cluster.ctl(&["cat", "web"]), 0, WEB, "");
    ended(&cluster.ctl(&["load", "web"]), 0, &format!("Unit web.service loaded on {M1}\n"), "");
    ended(&cluster.ctl(&["start", "web"]), 0, &format!("Unit web.service launched on {M1}\n"), "");
    let listed = cluster.ctl(&["list-units"]);
    ended(
        &listed,
        0,
        &format!("UNIT\t\tMACHINE\t\t\t\tACTIVE\tSUB\nweb.service\t{M1}\tactive\trunning\n"),
        "",
    );
    let listed =
        cluster.ctl(&["list-unit-files", "--no-legend", "--fields", "unit,dstate,state,target,desc"]);
    ended(&listed, 0, &format!("web.service\tlaunched\tlaunched\t{M1}\tThe web\n"), "");
    let status = cluster.ctl(&["status", "web"]);
    assert_eq!(status.code, Some(0));
    assert!(
        status.stdout.starts_with("● web.service - The web\n     Desired: launched\n"),
        "{}",
        status.stdout
    );

    let epoch = || cluster.ctl(&["list-units", "--no-legend", "--fields", "epoch"]).stdout;
    let before = epoch();
    ended(&cluster.ctl(&["restart", "web"]), 0, &format!("Unit web.service launched on {M1}\n"), "");
    assert_ne!(epoch(), before);

    let stopped = "Successfully stopped units [web.service].\n";
    ended(&cluster.ctl(&["stop", "web"]), 0, &format!("Unit web.service loaded on {M1}\n"), stopped);
    assert_eq!(cluster.ctl(&["status", "web"]).code, Some(3));
    let unloaded = "Successfully unloaded units [web.service].\n";
    ended(&cluster.ctl(&["unload", "web"]), 0, "Unit web.service inactive\n", unloaded);
    let error = "error: Unable to stop unit web.service in state inactive\nNothing was changed.\n";
    ended(&cluster.ctl(&["stop", "web"]), 1, "", error);
    ended(&cluster.ctl(&["destroy", "web"]), 0, "Destroyed web.service\n", "");

    let gone = "error: no such unit: web.service; `musterctl list-unit-files` shows those that are known\n";
    ended(&cluster.ctl(&["status", "web"]), 4, "", gone);
    ended(&cluster.ctl(&["cat", "web"]), 4, "", gone);
    let unknown = "error: web.service: no such unit; give its file, or submit it (or its template) first\n\
                   Nothing was changed.\n";
    ended(&cluster.ctl(&["start", "web"]), 4, "", unknown);
    ended(&cluster.ctl(&["list-units", "-o", "json"]), 0, "[]\n", "");
}

#[test]
fn templates_globs_and_units_that_wait() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    cluster.add_machine(2);
    let template = file(cluster.directory(), "apart@.service", APART);
    let path = |instance: &str| cluster.directory().join(format!("apart@{instance}")).display().to_string();

    // From the template's file, in the same directory.
    let run = cluster.ctl(&["start", &path("1"), &path("2")]);
    assert_eq!((run.code, run.stdout.lines().count(), run.stderr.as_str()), (Some(0), 2, ""), "{run:?}");

    // No machine is left for the third: the reason is told, the intent stays.
    let run = cluster.ctl(&["start", "--timeout", "1", &path("3")]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    assert!(
        run.stderr
            .starts_with("error: not done after 1 s:\n  apart@3.service: waits: no machine takes the unit"),
        "{}",
        run.stderr
    );
    let status = cluster.ctl(&["status", "apart@3"]);
    assert_eq!(status.code, Some(3));
    assert!(
        status
            .stdout
            .contains("Waiting: no machine takes the unit\n              11111111.../198.18.0.101: "),
        "{}",
        status.stdout
    );
    let run = cluster.ctl(&["list-unit-files", "--no-legend", "--fields", "waiting"]);
    assert!(run.stdout.contains("\nno machine takes the unit (1 machine: apart@"), "{run:?}");
    ended(&cluster.ctl(&["start", "--no-block", "apart@3"]), 0, "Triggered unit apart@3.service start\n", "");

    // A known template counts more than the file here.
    ended(&cluster.ctl(&["submit", &template]), 0, "Unit apart@.service inactive\n", "");
    std::fs::write(&template, format!("{APART}# changed\n")).expect("written");
    let run = cluster.ctl(&["submit", &path("4")]);
    let warning = format!(
        "WARNING: Unit apart@.service in registry differs from local unit file {template}. Add --replace to override.\n"
    );
    ended(&run, 0, "Unit apart@4.service inactive\n", &warning);
    ended(&cluster.ctl(&["cat", "apart@4"]), 0, APART, "");
    let error = "error: apart@.service: is a template: name an instance of it, for example apart@1.service\nNothing was changed.\n";
    ended(&cluster.ctl(&["start", "apart@"]), 1, "", error);

    // The template is known, and apart@4 is inactive: a glob does not mean what cannot be meant.
    let run = cluster.ctl(&["restart", "apart@[124]"]);
    assert_eq!((run.code, run.stdout.lines().count()), (Some(0), 2), "{run:?}");
    let run = cluster.ctl(&["stop", "apart@*"]);
    assert_eq!((run.code, run.stdout.lines().count()), (Some(0), 3), "{run:?}");
    let run = cluster.ctl(&["start", "--no-block", "apart@*"]);
    assert_eq!((run.code, run.stdout.lines().count()), (Some(0), 4), "{run:?}");
    let run = cluster.ctl(&["unload", "*"]);
    assert_eq!((run.code, run.stdout.lines().count()), (Some(0), 4), "{run:?}");
    let nothing = "error: \"apart@[.1]*\" matches nothing that there is to stop: apart@.service is a template, \
                   apart@1.service is inactive\n";
    ended(&cluster.ctl(&["stop", "apart@[.1]*"]), 1, "", nothing);
    let run = cluster.ctl(&["destroy", "apart@*"]);
    assert_eq!((run.code, run.stdout.lines().count()), (Some(0), 5), "{run:?}");
    let error = "error: no unit of the cluster matches \"apart@*\"; `musterctl list-unit-files` shows them\n";
    ended(&cluster.ctl(&["destroy", "apart@*"]), 4, "", error);
}

#[test]
fn other_content_needs_replace() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let web = file(cluster.directory(), "web.service", WEB);
    assert_eq!(cluster.ctl(&["start", &web]).code, Some(0));
    let other = format!("{WEB}\n# other\n");
    std::fs::write(&web, &other).expect("written");
    let warning = format!(
        "WARNING: Unit web.service in registry differs from local unit file {web}. Add --replace to override.\n"
    );
    ended(&cluster.ctl(&["start", &web]), 0, &format!("Unit web.service launched on {M1}\n"), &warning);
    ended(&cluster.ctl(&["cat", "web"]), 0, WEB, "");
    let run = cluster.ctl(&["submit", "--replace", &web]);
    assert_eq!(run.code, Some(1), "{run:?}");
    ended(
        &cluster.ctl(&["start", "--replace", &web]),
        0,
        &format!("Unit web.service launched on {M1}\n"),
        "",
    );
    ended(&cluster.ctl(&["cat", "web"]), 0, &other, "");
}

#[test]
fn what_fails_on_the_machine_reaches_the_user() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    // Nothing is tried again, so that what is said is always the same.
    let once = format!("{WEB}\n[X-Muster]\nRescheduleAttempts=0\n");
    let fails = file(cluster.directory(), "fails.service", &once);
    let refused = file(cluster.directory(), "refused.service", &once);
    let hint = "`musterctl status UNIT` says more about a unit.\n";
    let given_up = |unit: &str, why: &str| {
        format!(
            "given up: it failed once on 11111111, with: {why}; `musterctl restart {unit}` tries again\n{hint}"
        )
    };
    let given_up_fails = given_up("fails.service", "exit-code");
    let error = format!("error: fails.service did not start on {M1}: exit-code; {given_up_fails}");
    ended(&cluster.ctl(&["start", &fails]), 1, "", &error);
    let why = "the machine has a unit of that name";
    let given_up_refused = given_up("refused.service", why);
    let error = format!("error: {M1} refuses refused.service: {why}; {given_up_refused}");
    ended(&cluster.ctl(&["start", &refused]), 1, "", &error);
    let status = cluster.ctl(&["status", "fails", "refused"]);
    assert_eq!(status.code, Some(3));
    assert!(status.stdout.contains("it did not start: exit-code"), "{}", status.stdout);
    assert!(
        status.stdout.contains("the machine refuses it: the machine has a unit of that name"),
        "{}",
        status.stdout
    );

    let invalid = file(
        cluster.directory(),
        "invalid.service",
        "[Service]\nExecStart=/bin/true\n[X-Fleet]\nReplicas=2\n",
    );
    let run = cluster.ctl(&["start", &fails, &invalid]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.starts_with(&format!("error: {invalid}: line 4: ")), "{}", run.stderr);
    assert!(
        run.stderr
            .ends_with(&format!("\nNothing was changed. `musterctl verify {invalid}` shows the lines.\n")),
        "{}",
        run.stderr
    );
    assert_eq!(cluster.ctl(&["verify", &invalid]).code, Some(1));
}

#[test]
fn global_units_and_machines() {
    let cluster = Cluster::start();
    let empty = cluster.ctl(&["list-machines"]);
    assert_eq!((empty.code, empty.stdout.as_str()), (Some(0), "MACHINE\tIP\tMETADATA\n"));
    assert!(empty.stderr.starts_with("No machine has joined this cluster yet."), "{}", empty.stderr);
    cluster.add_machine(1);
    let lost = cluster.add_machine(2);
    let global = file(cluster.directory(), "everywhere.service", GLOBAL);
    let said = |verb: &str, state: &str| {
        format!("Triggered global unit everywhere.service {verb}\nUnit everywhere.service {state}\n")
    };
    let active = || cluster.ctl(&["list-units", "--no-legend", "--fields", "unit,active"]).stdout;
    ended(&cluster.ctl(&["start", &global]), 0, &said("start", "launched on 2 machines"), "");
    assert_eq!(active(), "everywhere.service\tactive\neverywhere.service\tactive\n");
    ended(&cluster.ctl(&["restart", "everywhere"]), 0, &said("restart", "launched on 2 machines"), "");
    let stopped = "Successfully stopped units [everywhere.service].\n";
    ended(&cluster.ctl(&["stop", "everywhere"]), 0, &said("stop", "loaded on 2 machines"), stopped);
    assert_eq!(active(), "everywhere.service\tinactive\neverywhere.service\tinactive\n");
    let unloaded = "Successfully unloaded units [everywhere.service].\n";
    ended(&cluster.ctl(&["unload", "everywhere"]), 0, &said("unload", "inactive"), unloaded);
    assert_eq!(active(), "");
    let triggered = "Triggered global unit everywhere.service start\n";
    ended(&cluster.ctl(&["start", "--no-block", "everywhere"]), 0, triggered, "");
    ended(&cluster.ctl(&["start", "everywhere"]), 0, &said("start", "launched on 2 machines"), "");
    assert_eq!(cluster.ctl(&["status", "everywhere"]).code, Some(0));

    let listed = "MACHINE\t\tIP\t\tMETADATA\n\
                  11111111...\t198.18.0.101\tzone=1\n\
                  22222222...\t198.18.0.102\tzone=2\n";
    ended(&cluster.ctl(&["list-machines"]), 0, listed, "");
    lost.kill();
    eventually("the second machine is unreachable", || {
        let run = cluster.ctl(&["list-machines", "--no-legend", "--fields", "state"]);
        (run.stdout == "up\nunreachable\n").then_some(()).ok_or(run)
    });
    let run = cluster.ctl(&["list-machines", "--no-legend"]);
    assert_eq!(run.stdout, "11111111...\t198.18.0.101\tzone=1\n");
    assert!(
        run.stderr.starts_with("1 machine is unreachable: 22222222... (198.18.0.102), last heard "),
        "{}",
        run.stderr
    );

    // What the lost machine still holds is not waited for.
    let loaded = format!("loaded on {M1} (1 more unreachable)");
    ended(&cluster.ctl(&["stop", "everywhere"]), 0, &said("stop", &loaded), stopped);
    ended(&cluster.ctl(&["destroy", "everywhere"]), 0, "Destroyed everywhere.service\n", "");
}

#[test]
fn a_global_unit_fails_where_it_fails() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    cluster.add_machine(2);
    let fails = file(cluster.directory(), "fails.service", GLOBAL);
    let error = format!(
        "error: fails.service did not start on {M1}: exit-code\n\
         error: fails.service did not start on 22222222.../198.18.0.102: exit-code\n\
         `musterctl status UNIT` says more about a unit.\n"
    );
    ended(&cluster.ctl(&["start", &fails]), 1, "Triggered global unit fails.service start\n", &error);
    let nowhere = format!("{GLOBAL}MachineMetadata=zone=9\n");
    let nowhere = file(cluster.directory(), "nowhere.service", &nowhere);
    let said = "Triggered global unit nowhere.service start\n\
                Unit nowhere.service launched on no machine: none takes it at present\n";
    ended(&cluster.ctl(&["start", &nowhere]), 0, said, "");
}

#[test]
fn what_has_no_effect_is_told() {
    let cluster = Cluster::start();
    let web = file(cluster.directory(), "web.service", &format!("{WEB}\n[Install]\nAlias=www.service\n"));
    let warning = format!("WARNING: {web}: line 8: [Install] Alias=: has no effect in a cluster\n");
    ended(&cluster.ctl(&["submit", &web]), 0, "Unit web.service inactive\n", &warning);
}

#[test]
fn waiting_survives_a_restart_of_the_scheduler_and_ends_with_ctrl_c() {
    let mut cluster = Cluster::start();
    let web = file(cluster.directory(), "web.service", WEB);
    let mut waiting = cluster.spawn(&["start", &web]);
    let line = waiting.stderr_line();
    assert_eq!(line, "web.service: waits: no machine has joined the cluster");

    cluster.restart();
    let lost = waiting.stderr_line();
    assert!(lost.starts_with("Lost the scheduler at 127.0.0.1:"), "{lost}");
    let mut second = cluster.spawn(&["start", "web"]);
    assert_eq!(second.stderr_line(), "web.service: waits: no machine has joined the cluster");
    let run = second.interrupt();
    let message = "error: interrupted while waiting for web.service. The command stands, and the cluster goes on with \
                   it; `musterctl status UNIT` shows how far it is.\n";
    ended(&run, 130, "", message);

    cluster.add_machine(1);
    let run = waiting.end();
    assert_eq!((run.code, run.stdout), (Some(0), format!("Unit web.service launched on {M1}\n")));
}

#[test]
fn machines_are_drained() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let web = file(cluster.directory(), "web.service", WEB);
    assert_eq!(cluster.ctl(&["start", &web]).code, Some(0));
    let short = "error: 111 is too short to name a machine: give at least the first 4 digits of its id, or its address\n";
    ended(&cluster.ctl(&["drain", "111"]), 1, "", short);
    let short = "error: 111 is no unit that the cluster knows, and too short to name a machine: give 111.service, or at \
                 least the first 4 digits of the machine's id\n";
    ended(&cluster.ctl(&["events", "111"]), 1, "", short);

    let left = format!("web.service on {M1}: no other machine takes it: there is none\n");
    let error = format!(
        "error: not drained after 1 s; what other machines take moves all the same, until `musterctl uncordon 11111111`:\n  \
         {left}"
    );
    ended(&cluster.ctl(&["drain", "--timeout", "1", "1111"]), 1, "", &error);
    let note = "1 machine is draining: 11111111... (198.18.0.101), 1 left; it takes no new units.\n";
    let listed = "11111111...\t198.18.0.101\tzone=1\n";
    ended(&cluster.ctl(&["list-machines", "--no-legend"]), 0, listed, note);
    let hint = "`musterctl events -f 11111111` shows how it goes on, `musterctl list-machines --fields \
                machine,availability,units` what is left; `musterctl uncordon 11111111` ends it.\n";
    let begun = format!("Machine {M1} draining, 1 left\n");
    ended(&cluster.ctl(&["drain", "--no-block", M1]), 0, &begun, hint);
    cluster.add_machine(2);
    ended(&cluster.ctl(&["drain", "1111"]), 0, &format!("Machine {M1} drained\n"), "");
    let begun = format!("Machine {M1} drained\n");
    ended(&cluster.ctl(&["drain", "--no-block", M1]), 0, &begun, hint);
    let kinds = cluster.ctl(&["events", "-o", "json", M1]).stdout;
    for kind in ["machine_drains", "machine_not_drained", "machine_drained"] {
        assert!(kinds.contains(&format!("\"kind\":\"{kind}\"")), "{kind}: {kinds}");
    }
    ended(&cluster.ctl(&["uncordon", M1]), 0, &format!("Machine {M1} uncordoned\n"), "");
}

#[test]
fn a_drain_is_waited_for_across_a_restart_of_the_scheduler_and_goes_on_after_ctrl_c() {
    let mut cluster = Cluster::start();
    cluster.add_machine(1);
    let web = file(cluster.directory(), "web.service", WEB);
    assert_eq!(cluster.ctl(&["start", &web]).code, Some(0));
    let mut draining = cluster.spawn(&["drain", "1111"]);
    let held = format!("web.service on {M1}: no other machine takes it: there is none");
    assert_eq!(draining.stderr_line(), held);
    cluster.stop();
    let lost = draining.stderr_line();
    assert!(lost.starts_with("Lost the scheduler at 127.0.0.1:"), "{lost}");
    cluster.start_again();
    // The machine is made up, and does not come back.
    let unreachable = format!("{M1}: is unreachable, so that nobody knows what it runs");
    eventually("the machine is unreachable", || {
        let line = draining.stderr_line();
        (line == unreachable).then_some(()).ok_or(line)
    });
    let run = draining.interrupt();
    let message = "error: interrupted while waiting. The drain goes on, and nothing new comes to the machine; `musterctl \
                   uncordon 11111111` ends it.\n";
    ended(&run, 130, "", message);
    let fields = ["list-machines", "--no-legend", "--fields", "availability,state"];
    assert_eq!(cluster.ctl(&fields).stdout, "draining\tunreachable\n");
}

#[test]
fn a_command_whose_answer_was_lost_is_repeated_under_its_id() {
    let cluster = Cluster::start();
    let web = file(cluster.directory(), "web.service", WEB);
    let proxy = Proxy::start(cluster.address(), WEB);
    let through = cluster.spawn(&["--endpoint", &proxy.address().to_string(), "submit", &web]);
    eventually("the command is carried out", || {
        let run = cluster.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"]);
        (run.stdout == "web.service\n").then_some(()).ok_or(run)
    });
    proxy.cut();
    // "unchanged" would be the answer to a second command.
    let run = through.end();
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Unit web.service inactive\n"), "{run:?}");
    assert!(run.stderr.starts_with("Lost the scheduler at "), "{}", run.stderr);
}

#[test]
fn it_is_repeated_under_its_id_to_another_scheduler_too() {
    let cluster = Cluster::start();
    let web = file(cluster.directory(), "web.service", WEB);
    let proxy = Proxy::start(cluster.address(), WEB);
    // The way that breaks, and one to the same store: as to a leader that was elected since.
    let endpoints = list(&[proxy.address(), cluster.address()]);
    let through = cluster.spawn(&["--endpoint", &endpoints, "submit", &web]);
    eventually("the command is carried out", || {
        let run = cluster.ctl(&["list-unit-files", "--no-legend", "--fields", "unit"]);
        (run.stdout == "web.service\n").then_some(()).ok_or(run)
    });
    proxy.cut();
    let run = through.end();
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), "Unit web.service inactive\n"), "{run:?}");
    assert!(run.stderr.ends_with("; asking the others.\n"), "{}", run.stderr);
}

#[test]
fn what_happened_is_told_and_explained() {
    let mut cluster = Cluster::start();
    cluster.add_machine(1);
    let apart = file(cluster.directory(), "apart@.service", APART);
    assert_eq!(cluster.ctl(&["submit", &apart]).code, Some(0));
    assert_eq!(cluster.ctl(&["start", "apart@1"]).code, Some(0));
    assert_eq!(cluster.ctl(&["start", "--no-block", "apart@2"]).code, Some(0));

    let kinds = |arguments: &[&str]| {
        let run = cluster.ctl(&[&["events"], arguments].concat());
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
        // A date, a time, the kind.
        run.stdout
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let story = ["client_start", "unit_placed", "unit_started"];
    assert_eq!(kinds(&["apart@1"]), story);
    assert_eq!(kinds(&["-n", "1", "apart@1.service"]), story[2..]);
    assert_eq!(kinds(&["apart@*1"]), story, "a glob");
    assert_eq!(kinds(&["1111"]), ["machine_up", "unit_placed", "unit_started"], "a machine");
    assert_eq!(kinds(&["never-known"]), [""; 0]);
    assert_eq!(kinds(&[])[0], "leader_took_office");
    let run = cluster.ctl(&["events", "-o", "json", "-n1", "apart@2"]);
    assert!(run.stdout.contains("\"kind\":\"unit_waits\"") && run.stdout.lines().count() == 1, "{run:?}");

    let run = cluster.ctl(&["explain", "apart@1", "apart@2"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
    let told = [
        "Why there: apart@1.service is placed on 11111111: a client asked for it (at 2",
        "unit_started        apart@1.service has started on 11111111\n",
        "Waiting: no machine takes the unit\n              11111111.../198.18.0.101: ",
        "client_start        a client started apart@2.service\n",
    ];
    told.iter().for_each(|told| assert!(run.stdout.contains(told), "{told}: {}", run.stdout));
    assert_eq!(cluster.ctl(&["explain", "never-known"]).code, Some(4));

    let run = cluster.ctl(&["rto", "apart@1"]);
    let sum =
        "apart@1.service: 4.930 s at worst from the loss of its machine until it is started elsewhere\n";
    assert!(run.stdout.starts_with(sum), "{run:?}");
    assert_eq!(cluster.ctl(&["rto", "never-known"]).code, Some(4));

    // Of a unit that is gone the story is left; of what was before the scheduler was restarted it is not.
    assert_eq!(cluster.ctl(&["destroy", "apart@1"]).code, Some(0));
    let run = cluster.ctl(&["explain", "apart@1"]);
    assert!(run.code == Some(0) && run.stdout.contains("a client destroyed apart@1.service"), "{run:?}");
    cluster.restart();
    let run = cluster.ctl(&["explain", "apart@2"]);
    assert!(run.stdout.contains("journalctl -u muster-scheduler MUSTER_UNIT=apart@2.service"), "{run:?}");
}

#[test]
fn events_are_followed_across_a_restart_of_the_scheduler() {
    let mut cluster = Cluster::start();
    let mut follower = cluster.spawn(&["events", "-f", "-o", "json", "web"]);
    let web = file(cluster.directory(), "web.service", WEB);
    assert_eq!(cluster.ctl(&["submit", &web]).code, Some(0));
    assert!(follower.stdout_line().contains("client_submit"));
    cluster.restart();
    assert_eq!(cluster.ctl(&["start", "--no-block", "web"]).code, Some(0));
    assert!(follower.stdout_line().contains("client_start"));
}

#[test]
fn a_cluster_is_backed_up_and_restored() {
    let cluster = Cluster::start();
    let web = file(cluster.directory(), "web.service", WEB);
    assert_eq!(cluster.ctl(&["submit", &web]).code, Some(0));
    let path = cluster.directory().join("cluster.backup").display().to_string();
    let run = cluster.ctl(&["backup", &path]);
    let content = "1 unit and 0 machines of cluster ";
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert!(run.stdout.starts_with(&format!("Wrote {path}: {content}")), "{run:?}");
    let run = cluster.ctl(&["backup", "-"]);
    assert!(run.stdout.starts_with("{\"muster_backup\":1,") && run.stderr.contains(content), "{run:?}");
    let run = cluster.ctl(&["check", &path]);
    assert_eq!(run.code, Some(0));
    assert!(run.stdout.starts_with(&format!("{path}: {content}")), "{run:?}");

    let run = cluster.ctl(&["restore", &path]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    let refused = "error: this cluster is not empty: it has 1 unit and 0 machines, ";
    assert!(run.stderr.starts_with(refused), "{run:?}");
    let missing = cluster.directory().join("missing").display().to_string();
    ended(&cluster.ctl(&["restore", &missing]), 1, "", &format!("error: {missing}: no such file\n"));

    let other = Cluster::start();
    let run = other.ctl(&["restore", &path]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.starts_with(&format!("Restored {content}")), "{run:?}");
    let term = run.stdout.lines().last().and_then(|line| {
        line.strip_prefix("The scheduler leads it in term ")?.strip_suffix('.')?.parse::<u64>().ok()
    });
    assert!(term.is_some_and(|term| term > 1 << 20), "{run:?}");
    ended(&other.ctl(&["cat", "web"]), 0, WEB, "");
}

#[test]
fn no_scheduler() {
    let directory = tempfile::tempdir().expect("a directory");
    let web = file(directory.path(), "web.service", WEB);
    let address = nowhere().to_string();
    for arguments in [&["list-machines"][..], &["start", &web], &["status", "web"]] {
        let run = cluster::ctl(&address, arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(69), ""));
        let expected = format!(
            "error: cannot reach the scheduler at {address} (from MUSTERCTL_ENDPOINT in the environment): Connection refused\n"
        );
        assert!(run.stderr.starts_with(&expected), "{}", run.stderr);
    }
    // A mistake in the arguments needs no scheduler.
    let run = cluster::ctl(&address, &["start", "we b"]);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (Some(1), "error: \"we b\" is no unit: invalid character ' ' in unit name\n")
    );
    let run = cluster::ctl(&address, &["start", "/nope/x.service"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.starts_with("error: /nope/x.service: no such file "), "{}", run.stderr);
    assert_eq!(cluster::ctl("::1", &["list-units"]).code, Some(2));
    assert_eq!(
        cluster::ctl(&address, &["version"]).stdout,
        format!("musterctl version {}\n", env!("CARGO_PKG_VERSION"))
    );
}

/// An address where nobody listens: it was free a moment ago.
fn nowhere() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port")
}

fn list(addresses: &[std::net::SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn the_scheduler_that_leads_is_found() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let web = file(cluster.directory(), "web.service", WEB);
    // One that is gone, one that does not know, and one that does: the leader is none of those that were given.
    let (unknowing, knowing) = (Follower::start(None), Follower::start(Some(cluster.address())));
    let endpoints = list(&[nowhere(), unknowing.address(), knowing.address()]);
    let run = cluster::ctl(&endpoints, &["start", &web]);
    ended(&run, 0, &format!("Unit web.service launched on {M1}\n"), "");
    assert_eq!((unknowing.asked(), knowing.asked()), (1, 1), "who was found to lead is asked from then on");
    for arguments in
        [&["status", "web"][..], &["rto", "web"], &["events"], &["cat", "web"], &["cordon", "1111"]]
    {
        let run = cluster::ctl(&endpoints, arguments);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{arguments:?}: {run:?}");
    }
    let run = cluster::ctl(&endpoints, &["brake", "release"]);
    ended(&run, 0, "The brake was not held: nothing has changed.\n", "");
}

#[test]
fn a_leader_that_is_elected_while_it_is_waited_for_is_asked() {
    let cluster = Cluster::start();
    let web = file(cluster.directory(), "web.service", WEB);
    let followers = [Follower::start(None), Follower::start(None)];
    let endpoints = list(&[followers[0].address(), followers[1].address()]);
    let mut submit = cluster.spawn(&["--endpoint", &endpoints, "submit", &web]);
    assert_eq!(submit.stderr_line(), "No scheduler leads at the moment; trying again for 30 s.");
    followers[1].follows(Some(cluster.address()));
    ended(&submit.end(), 0, "Unit web.service inactive\n", "");
    let mut follower = cluster.spawn(&["--endpoint", &endpoints, "events", "-f", "web"]);
    assert!(follower.stdout_line().contains("client_submit"));
}

#[test]
fn nobody_leads_and_nobody_is_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let web = file(directory.path(), "web.service", WEB);
    let gone = [nowhere(), nowhere()];
    let run = cluster::ctl(&list(&gone), &["start", &web]);
    assert_eq!((run.code, run.stdout.as_str()), (Some(69), ""));
    let expected = format!(
        "error: cannot reach any scheduler (from MUSTERCTL_ENDPOINT in the environment):\n  \
         {}: Connection refused\n  {}: Connection refused\n",
        gone[0], gone[1]
    );
    assert!(run.stderr.starts_with(&expected), "{}", run.stderr);
    let run = cluster::ctl(&list(&gone), &["schedulers"]);
    assert_eq!(run.code, Some(69));
    let told = format!("{} cannot be asked: Connection refused.\n", gone[1]);
    assert!(run.stdout.contains(&told) && run.stderr.starts_with(&expected), "{run:?}");
    assert_eq!(cluster::ctl(&list(&gone), &["step-down"]).code, Some(69));
}

#[test]
fn schedulers_describe_themselves() {
    let cluster = Cluster::start();
    let (gone, address) = (nowhere(), cluster.address());
    let run = cluster::ctl(&list(&[gone, address]), &["schedulers"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{run:?}");
    let words: Vec<Vec<&str>> = run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(words[0], ["ADDRESS", "ROLE", "SINCE", "BEHIND", "VERSION"]);
    assert_eq!(words[1], [gone.to_string().as_str(), "unreachable", "-", "-", "-"]);
    assert_eq!(words[2][..2], [address.to_string().as_str(), "leading"]);
    assert_eq!(words[2][words[2].len() - 2..], ["0", version]);
    assert!(
        run.stdout.ends_with(&format!(
            "{gone} cannot be asked: Connection refused.\n\nStore: a file of the scheduler's own.\n"
        )),
        "{}",
        run.stdout
    );
    let run = cluster.ctl(&["schedulers", "-o", "json"]);
    assert!(run.stdout.contains("\"role\":\"leading\"") && run.stdout.contains("\"term\":1"), "{run:?}");
    let error = format!(
        "error: the scheduler at {address} goes on leading: it has its store to itself (state_dir), so that no other \
         scheduler could lead; stop muster-scheduler.service to have nobody lead\n"
    );
    ended(&cluster.ctl(&["step-down"]), 1, "", &error);
    // Not every scheduler of old describes itself.
    let follower = Follower::start(None);
    let run = cluster::ctl(&list(&[follower.address(), address]), &["schedulers"]);
    assert!(
        run.stdout.contains(&format!("{} cannot be asked: it is of another version.", follower.address()))
    );
}

/// How long anything here may take at most.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn the_metadata_of_a_machine_is_changed() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let run = cluster.ctl(&["metadata", "1111", "disk=ssd", "zone=b", "gone-"]);
    ended(&run, 0, &format!("Machine {M1} has disk=ssd,zone=b\n"), "");
    let fast = "[Service]\nExecStart=/bin/sleep inf\n[X-Fleet]\nMachineMetadata=disk=ssd\n";
    let fast = file(cluster.directory(), "fast.service", fast);
    ended(&cluster.ctl(&["start", &fast]), 0, &format!("Unit fast.service launched on {M1}\n"), "");
    ended(
        &cluster.ctl(&["metadata", M1, "disk-", "zone-"]),
        0,
        &format!("Machine {M1} has no metadata\n"),
        "",
    );
    let listed = cluster.ctl(&["list-machines", "--no-legend", "--fields", "machine,metadata"]);
    ended(&listed, 0, "11111111...\t-\n", "");
    let events = cluster.ctl(&["events", "1111"]).stdout;
    assert!(
        events.contains("a client changed the metadata of machine 11111111: disk- and zone-")
            && events.contains(
                "fast.service is taken off 11111111: the machine's metadata was changed, and is not what it asks for any more"
            ),
        "{events}"
    );
    let refused = cluster.ctl(&["metadata", M1, "a>=b"]);
    ended(
        &refused,
        1,
        "",
        "error: MachineMetadata= cannot ask for a label \"a>\": it ends in !, <, > or ~\n",
    );
    assert_eq!(cluster.ctl(&["metadata", M1, "disk"]).code, Some(2));
}
