//! What somebody who comes from fleetctl types.

use super::{M1, WEB, ended, file};
use crate::cluster::Cluster;

#[test]
fn a_script_written_for_fleetctl() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let web = file(cluster.directory(), "web.service", WEB);
    let start = ["--driver=API", "start", "--block-attempts=30", "--replace=false", &web];
    ended(&cluster.ctl(&start), 0, &format!("Unit web.service launched on {M1}\n"), "");
    let list = ["list-units", "--no-legend=true", "--full=false", "--fields=unit,active", "--debug"];
    let warning = "WARNING: --debug has no effect: what is wrong is said anyway; `musterctl events` says what happened\n";
    ended(&cluster.ctl(&list), 0, "web.service\tactive\n", warning);
    let full = cluster.ctl(&["list-units", "--l", "--no-legend", "--fields", "hash,load"]);
    let fields: Vec<&str> = full.stdout.trim_end().split('\t').collect();
    assert_eq!((fields[0].len(), fields[1]), (64, "loaded"), "{full:?}");
    let older = cluster.ctl(&["list-unit-files", "--fields", "unit,tmachine"]);
    let warning = "WARNING: the field tmachine is an older name of target\n";
    ended(&older, 0, &format!("UNIT\t\tTMACHINE\nweb.service\t{M1}\n"), warning);

    let gone = "error: Units not found in registry: a.service, b.service\nNothing was changed.\n";
    ended(&cluster.ctl(&["destroy", "a", "b", "web"]), 4, "", gone);
    let gone = "error: Units not found in registry: a.service\nNothing was changed.\n";
    ended(&cluster.ctl(&["stop", "a"]), 4, "", gone);

    let refused = |arguments: &[&str]| {
        let run = cluster.ctl(arguments);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{run:?}");
        run.stderr
    };
    assert!(
        refused(&["--endpoint=unix:///var/run/fleet.sock", "list-units"]).contains("write its HOST:PORT")
    );
    assert!(refused(&["--driver", "etcd", "list-units"]).contains("--driver is fleetctl's: "));
    assert!(refused(&["start", "--sign", "web"]).contains("units are not signed"));
    assert!(
        refused(&["list-units", "--fields", "unit,sube"]).contains("Invalid key in output format: \"sube\"")
    );

    let apart = "[Service]\nExecStart=/bin/true\n[X-Fleet]\nMachineID=99999999\n";
    let apart = file(cluster.directory(), "apart.service", apart);
    let run = cluster.ctl(&["start", "--block-attempts=1", &apart]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.starts_with("error: not done after 2 s:\n  apart.service: waits: "), "{run:?}");
}

#[test]
fn the_tab_key_completes() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let units = [("web@1.service", "[Service]\nExecStart=/bin/sleep 1111\n"), ("web@.service", WEB)];
    for (name, text) in units {
        let path = file(cluster.directory(), name, text);
        assert_eq!(cluster.ctl(&["submit", &path]).code, Some(0));
    }
    file(cluster.directory(), "here.socket", "[Socket]\nListenStream=/run/here\n");
    let typed = cluster.typed_in_bash(&[
        "musterctl list-unit-f\t--no-l\t--fields unit,dst\t",
        "musterctl cat web@1\t",
        "musterctl submit her\t",
        "musterctl cordon 11\t",
        // Where nobody answers nothing is said.
        "musterctl --endpoint 127.0.0.1:1 cat web@1\t-nothing -h >/dev/null && echo all is quiet",
    ]);
    for expected in [
        "web@1.service  inactive\n",
        "ExecStart=/bin/sleep 1111\n",
        "Unit here.socket inactive\n",
        "-nothing -h >/dev/null && echo all is quiet\nall is quiet\n",
    ] {
        assert!(typed.contains(expected), "{expected:?} is not in:\n{typed}");
    }
    assert_eq!(
        cluster.ctl(&["list-machines", "--no-legend", "--fields", "availability"]).stdout,
        "cordoned\n"
    );
}
