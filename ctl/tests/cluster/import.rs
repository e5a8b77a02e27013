//! Units are taken over from a fleet, which is made up: it says what fleet says, page by page.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use super::{M1, ended, eventually, file};
use crate::cluster::Cluster;

const WEB: &str = r#"{"currentState":"launched","desiredState":"launched","machineID":"f7e5","name":"web.service","options":[{"name":"Description","section":"Unit","value":"The web"},{"name":"ExecStart","section":"Service","value":"/bin/sleep inf"},{"name":"MachineID","section":"X-Fleet","value":"11111111"}]}"#;
const LOADED: &str = r#"{"currentState":"loaded","desiredState":"loaded","machineID":"f7e5","name":"loaded.socket","options":[{"name":"ListenStream","section":"Socket","value":"/run/loaded"},{"name":"Accept","section":"Socket","value":"yes"}]}"#;
const TEMPLATE: &str = r#"{"currentState":"inactive","desiredState":"inactive","name":"api@.service","options":[{"name":"ExecStart","section":"Service","value":"/bin/sleep inf"}]}"#;
const ODD: &str = r#"{"currentState":"inactive","desiredState":"launched","name":"odd.service","options":[{"name":"ExecStart","section":"Service","value":"/bin/true"},{"name":"Bogus","section":"X-Fleet","value":"1"}]}"#;

const UNITS: [&str; 4] = [TEMPLATE, LOADED, ODD, WEB];
/// The token of the second page, of two units each.
const SECOND: &str = "AgACAA==";

/// Answers one request after the other, each on a connection of its own, for as long as the test runs.
fn answer(stream: &mut (impl Read + Write), prefix: &str, units: &[&str; 4]) {
    let mut lines = BufReader::new(&mut *stream).lines().map_while(Result::ok);
    let asked = lines.next().unwrap_or_default();
    while lines.next().is_some_and(|line| !line.is_empty()) {}
    drop(lines);
    let page = |units: &[&str], token: &str| format!("{{{token}\"units\":[{}]}}", units.join(","));
    let (status, body) = match asked.split(' ').nth(1).and_then(|path| path.strip_prefix(prefix)) {
        Some("/units") => ("200 OK", page(&units[..2], &format!("\"nextPageToken\":\"{SECOND}\","))),
        Some(path) if path == format!("/units?nextPageToken={SECOND}") => ("200 OK", page(&units[2..], "")),
        _ => ("404 Not Found", r#"{"error":{"code":404,"message":""}}"#.to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nServer: fleetd/1.0.0\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all((head + &body).as_bytes());
}

fn over_tcp(prefix: &'static str, units: [&'static str; 4]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            answer(&mut stream, prefix, &units);
        }
    });
    url
}

fn known(cluster: &Cluster) -> String {
    cluster.ctl(&["list-unit-files", "--no-legend", "--fields", "unit,dstate"]).stdout
}

#[test]
fn a_fleet_is_imported() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let url = over_tcp("/fleet/v1", UNITS);

    let refused = "error: odd.service: line 5: [X-Fleet] Bogus=: unknown option\n\
                   Nothing was changed; --skip-refused imports the others.\n";
    ended(&cluster.ctl(&["import-fleet", &url]), 1, "", refused);
    assert_eq!(known(&cluster), "");

    let table = "UNIT\t\tCONTENT\tDSTATE\n\
                 api@.service\tnew\tinactive\n\
                 loaded.socket\tnew\tloaded\n\
                 web.service\tnew\tlaunched\n";
    let left_out = "WARNING: left out: odd.service: line 5: [X-Fleet] Bogus=: unknown option\n";
    let counts = "3 units: 3 new, 0 the same, 0 replaced, 1 left out; 2 to be loaded or started. ";
    let nothing = format!("{left_out}{counts}Nothing was changed (--dry-run).\n");
    ended(&cluster.ctl(&["import-fleet", "--dry-run", "--skip-refused", &url]), 0, table, &nothing);
    assert_eq!(known(&cluster), "");

    let done = format!("{left_out}{counts}`musterctl list-unit-files` shows how far they are.\n");
    ended(&cluster.ctl(&["import-fleet", "--skip-refused", &url]), 0, table, &done);
    assert_eq!(known(&cluster), "api@.service\tinactive\nloaded.socket\tloaded\nweb.service\tlaunched\n");
    eventually("web.service is active", || {
        let run = cluster.ctl(&["list-units", "--no-legend"]);
        if run.stdout.contains(&format!("web.service\t{M1}\tactive\t\trunning\n")) {
            Ok(())
        } else {
            Err(run)
        }
    });
    let web = "[Unit]\nDescription=The web\n\n[Service]\nExecStart=/bin/sleep inf\n\n[X-Fleet]\nMachineID=11111111\n";
    ended(&cluster.ctl(&["cat", "web"]), 0, web, "");

    // Once more changes nothing, and lowers nothing either.
    assert_eq!(cluster.ctl(&["start", "loaded.socket"]).code, Some(0));
    let run = cluster.ctl(&["import-fleet", "--skip-refused", &url]);
    let same = "3 units: 0 new, 3 the same, 0 replaced, 1 left out; 0 to be loaded or started. ";
    assert!(run.code == Some(0) && run.stderr.contains(same), "{run:?}");
    assert!(known(&cluster).contains("loaded.socket\tlaunched\n"));
}

#[test]
fn what_is_known_with_other_content_is_replaced_when_that_is_asked_for() {
    let cluster = Cluster::start();
    cluster.add_machine(1);
    let socket = cluster.directory().join("fleet.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            answer(&mut stream, "/v1-alpha", &[TEMPLATE, LOADED, WEB, WEB]);
        }
    });
    let url = format!("unix://{}", socket.display());
    let other = "[Service]\nExecStart=/bin/sleep 5\n";
    let web = file(cluster.directory(), "web.service", other);
    assert_eq!(cluster.ctl(&["start", &web]).code, Some(0));

    let differs = "error: web.service: is known here with other content\n\
                   Nothing was changed; --replace takes fleet's content.\n";
    ended(&cluster.ctl(&["import-fleet", &url]), 1, "", differs);
    ended(&cluster.ctl(&["cat", "web"]), 0, other, "");
    let run = cluster.ctl(&["import-fleet", "--replace", &url]);
    assert!(run.code == Some(0) && run.stdout.contains("web.service\treplaced\tlaunched\n"), "{run:?}");
    assert!(cluster.ctl(&["cat", "web"]).stdout.contains("Description=The web"));
    assert!(known(&cluster).contains("web.service\tlaunched\n"));
}

#[test]
fn a_fleet_that_does_not_answer_changes_nothing() {
    let cluster = Cluster::start();
    let gone = cluster.ctl(&["import-fleet", "unix:///nonexistent/fleet.sock"]);
    let error = "error: cannot read the units of the fleet at unix:///nonexistent/fleet.sock: No such file or directory\n\
                 Nothing was changed.\n";
    ended(&gone, 1, "", error);
    let url = over_tcp("/elsewhere", UNITS);
    let run = cluster.ctl(&["import-fleet", &url]);
    assert!(run.stderr.contains("it has no list of units (404): is that fleet's API?"), "{run:?}");
    // Below a path, as fleetctl has it.
    let run = cluster.ctl(&[
        "import-fleet",
        "--dry-run",
        "--skip-refused",
        &format!("{}/under", over_tcp("/under/fleet/v1", UNITS)),
    ]);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(cluster.ctl(&["import-fleet", "10.0.0.1:49153"]).code, Some(2));
}
