//! Routes, methods, and what is answered of units.

use serde_json::{Value, json};

use crate::http::{Http, M1, Served};

const ONLY_GET: &str = "only GET supported against this resource";

/// Method, path, status, message of the error.
const ROUTES: [(&str, &str, u16, &str); 33] = [
    ("GET", "", 405, ""),
    ("POST", "", 405, ""),
    ("GET", "/", 404, ""),
    ("GET", "/x", 404, ""),
    ("GET", "/units/", 404, ""),
    ("GET", "/units/a.service/b", 404, ""),
    ("GET", "/machines/x", 404, ""),
    ("POST", "/units", 405, ONLY_GET),
    ("PUT", "/units", 405, ONLY_GET),
    ("GET", "/units?nextPageToken=EwBMLg==", 400, "token limit must be 100"),
    ("GET", "/units?nextPageToken=ZAAAAA==", 400, "token page must be greater than zero"),
    ("GET", "/units?nextPageToken=ZAACAA==&nextPageToken=ZAACAA==", 400, "too many values for page token"),
    ("GET", "/units/a.service", 404, "unit does not exist"),
    ("GET", "/units/no%20name", 404, "unit does not exist"),
    ("DELETE", "/units/a.service", 404, "unit does not exist"),
    ("DELETE", "/units/nonsense", 404, "unit does not exist"),
    ("POST", "/units/a.service", 405, "only GET, PUT and DELETE supported against this resource"),
    ("PATCH", "/units/a.service", 405, "only GET, PUT and DELETE supported against this resource"),
    ("DELETE", "/state", 405, ONLY_GET),
    ("GET", "/state?nextPageToken=EwBMLg==", 400, "token limit must be 100"),
    ("PUT", "/state/a.service", 405, ONLY_GET),
    ("GET", "/state/a.service", 404, "unit state does not exist"),
    ("GET", "/state/nonsense", 404, "unit state does not exist"),
    ("GET", "/state/", 404, ""),
    ("PUT", "/machines", 405, "only GET and PATCH supported against this resource"),
    ("DELETE", "/machines", 405, "only GET and PATCH supported against this resource"),
    ("GET", "/machines?nextPageToken=EwBMLg==", 400, "token limit must be 100"),
    ("GET", "/machines?nextPageToken=ZAAAAA==", 400, "token page must be greater than zero"),
    ("GET", "/machines?nextPageToken=%25", 400, "page token: Invalid symbol 37, offset 0."),
    ("POST", "/discovery", 400, "only HTTP GET supported against this resource"),
    ("PUT", "/discovery", 400, "only HTTP GET supported against this resource"),
    ("GET", "/discovery/x", 404, ""),
    ("GET", "/metrics", 404, ""),
];

#[tokio::test]
async fn every_route_and_method() {
    let served = Served::start().await;
    for http in served.clients() {
        for prefix in ["/fleet/v1", "/v1-alpha"] {
            for (method, path, status, message) in ROUTES {
                let reply = http.send(method, &format!("{prefix}{path}"), &[], "").await;
                let what = format!("{http:?}: {method} {prefix}{path}");
                assert_eq!((reply.status, reply.message()), (status, message.to_owned()), "{what}");
            }
            for path in
                ["units", "state", "state?machineID=x", "state?unitName=x", "machines", "machines?alt=json"]
            {
                let reply = http.get(&format!("{prefix}/{path}")).await;
                let answered = (reply.status, reply.content_type(), &*reply.text);
                assert_eq!(answered, (200, Some("application/json"), "{}"), "{path}");
                let server = reply.headers["server"].to_str().expect("text");
                assert!(server.starts_with("fleetd/1."), "{server}");
                assert_eq!(http.send("HEAD", &format!("{prefix}/{path}"), &[], "").await.status, 405);
            }
        }
        for (path, status) in [("/", 405), ("/x", 404), ("/fleet", 404), ("/fleet/v2/units", 404)] {
            let reply = http.get(path).await;
            assert_eq!((reply.status, &*reply.message()), (status, ""), "{path}");
        }
        let discovery = http.json("/fleet/v1/discovery").await;
        assert_eq!((&discovery["id"], &discovery["basePath"]), (&json!("fleet:v1"), &json!("/fleet/v1/")));
        assert_eq!(discovery["resources"]["Units"]["methods"]["Set"]["httpMethod"], "PUT");
        let metrics = http.get("/metrics").await;
        assert!(metrics.text.contains("\nfleet_engine_leader_start_time 1"), "{}", metrics.text);
    }
    served.daemon.shutdown().await.expect("a clean shutdown");
}

/// A unit file as a list of its assignments.
fn options(exec: &str) -> Value {
    json!([
        { "section": "Unit", "name": "Description", "value": "A test" },
        { "section": "Service", "name": "ExecStart", "value": exec },
    ])
}

fn body(fields: &Value) -> String {
    fields.to_string()
}

const INVALID: &str = "line 5: [X-Fleet] MachineID cannot be used with Conflicts";

/// Puts, one after the other: what is sent, the status, the message, and the desired state afterwards.
fn puts() -> Vec<(&'static str, String, u16, &'static str, Option<&'static str>)> {
    let (a, b) = (options("/bin/a"), options("/bin/b"));
    let fleet = |name: &str, value: &str| json!({ "section": "X-Fleet", "name": name, "value": value });
    let contradiction = json!([a[1], fleet("MachineID", M1), fleet("Conflicts", "x.service")]);
    vec![
        ("u.service", String::new(), 400, "unable to decode body: ", None),
        ("u.service", "{".to_owned(), 400, "unable to decode body: ", None),
        ("u.service", "[]".to_owned(), 400, "unable to decode body: ", None),
        ("u.service", body(&json!({ "options": "x" })), 400, "unable to decode body: ", None),
        ("u.service", body(&json!({ "options": [{ "section": 1 }] })), 400, "unable to decode body: ", None),
        ("u.service", body(&json!({ "desiredState": 1 })), 400, "unable to decode body: ", None),
        ("u.service", body(&json!({})), 409, "unit does not exist and options field empty", None),
        (
            "u.service",
            body(&json!({ "desiredState": "launched" })),
            409,
            "unit does not exist and options field empty",
            None,
        ),
        (
            "u.service",
            body(&json!({ "options": a, "desiredState": "bogus" })),
            400,
            "invalid desiredState \"bogus\": expect inactive, loaded, or launched",
            None,
        ),
        (
            "u.service",
            body(&json!({ "options": a, "name": "v.service" })),
            400,
            "name in URL \"u.service\" differs from unit name in request body \"v.service\"",
            None,
        ),
        ("u.service", body(&json!({ "options": contradiction })), 400, INVALID, None),
        (
            "u.service",
            body(
                &json!({ "options": [{ "section": "Service", "name": "ExecStart", "value": "/bin/a\nUser=root" }] }),
            ),
            400,
            "option \"ExecStart\" in section \"Service\" has a value with a line end",
            None,
        ),
        ("nodot", body(&json!({ "options": a })), 400, "unit name must contain \".\"", None),
        ("u.bogus", body(&json!({ "options": a })), 400, "invalid unit type: \"bogus\"", None),
        ("a%21b.service", body(&json!({ "options": a })), 400, "invalid character '!' in unit name", None),
        // It is created, then changed.
        (
            "u.service",
            body(
                &json!({ "name": "u.service", "options": a, "currentState": "launched", "machineID": "x", "more": [1] }),
            ),
            201,
            "",
            Some("inactive"),
        ),
        (
            "u.service",
            body(&json!({ "options": a })),
            409,
            "must provide DesiredState to update existing unit",
            Some("inactive"),
        ),
        (
            "u.service",
            body(&json!({})),
            409,
            "must provide DesiredState to update existing unit",
            Some("inactive"),
        ),
        (
            "u.service",
            body(&json!({ "desiredState": "bogus" })),
            400,
            "invalid desiredState",
            Some("inactive"),
        ),
        (
            "u.service",
            body(&json!({ "desiredState": "launched", "name": "u.service" })),
            204,
            "",
            Some("launched"),
        ),
        ("u.service", body(&json!({ "options": a, "desiredState": "launched" })), 204, "", Some("launched")),
        ("u.service", body(&json!({ "desiredState": "loaded" })), 204, "", Some("loaded")),
        ("u.service", body(&json!({ "desiredState": "inactive" })), 204, "", Some("inactive")),
        ("u.service", body(&json!({ "desiredState": "launched" })), 204, "", Some("launched")),
        // Other options: what is not asked for is inactive.
        ("u.service", body(&json!({ "options": contradiction })), 400, INVALID, Some("launched")),
        ("u.service", body(&json!({ "options": b })), 201, "", Some("inactive")),
        ("u.service", body(&json!({ "options": a, "desiredState": "launched" })), 201, "", Some("launched")),
        ("u.service", body(&json!({ "options": b, "desiredState": "loaded" })), 201, "", Some("loaded")),
        ("u.service", body(&json!({ "options": a, "desiredState": "loaded" })), 201, "", Some("loaded")),
        ("v.service", body(&json!({ "options": a, "desiredState": "launched" })), 201, "", Some("launched")),
        // Templates.
        (
            "t@.service",
            body(&json!({ "options": a, "desiredState": "launched" })),
            400,
            "cannot activate template \"t@.service\"",
            None,
        ),
        ("t@.service", body(&json!({ "options": a })), 201, "", Some("inactive")),
        (
            "t@.service",
            body(&json!({ "desiredState": "loaded" })),
            400,
            "cannot activate template \"t@.service\"",
            Some("inactive"),
        ),
        ("t@.service", body(&json!({ "desiredState": "inactive" })), 204, "", Some("inactive")),
        (
            "t%401.service",
            body(&json!({ "desiredState": "launched" })),
            409,
            "unit does not exist and options field empty",
            None,
        ),
        (
            "t%401.service",
            body(&json!({ "options": a, "desiredState": "launched" })),
            201,
            "",
            Some("launched"),
        ),
    ]
}

#[tokio::test]
async fn what_a_put_does() {
    for transport in 0..2 {
        let served = Served::start().await;
        let http = &served.clients()[transport];
        for (number, (unit, body, status, message, desired)) in puts().into_iter().enumerate() {
            let path = format!("/fleet/v1/units/{unit}");
            let reply = http.put(&path, &body).await;
            let what = format!("{number}: {unit} {body}: {reply:?}");
            assert_eq!(reply.status, status, "{what}");
            if status < 300 {
                assert_eq!(reply.text, "", "{what}");
            } else {
                assert!(reply.message().starts_with(message), "{what}");
            }
            let unit = http.get(&path).await;
            assert_eq!(unit.status, if desired.is_some() { 200 } else { 404 }, "{what}");
            if let Some(desired) = desired {
                assert_eq!(unit.json()["desiredState"], desired, "{what}");
            }
        }
        assert_eq!(http.json("/fleet/v1/units/u.service").await["options"], options("/bin/a"));
        served.daemon.shutdown().await.expect("a clean shutdown");
    }
}

#[tokio::test]
async fn a_put_says_that_it_is_json() {
    let served = Served::start().await;
    let file = body(&json!({ "options": options("/bin/a") }));
    let only = "only acceptable Content-Type is application/json";
    let types: [(&[&str], u16, &str); 7] = [
        (&[], 415, "expected 1 Content-Type, got 0"),
        (&["application/json", "application/json"], 415, "expected 1 Content-Type, got 2"),
        (&["text/plain"], 415, only),
        (&["application/jsonx"], 415, only),
        (&[""], 415, only),
        (&["application/json"], 201, ""),
        (&["Application/JSON; charset=utf-8"], 409, "must provide DesiredState to update existing unit"),
    ];
    for (number, http) in served.clients().iter().enumerate() {
        for (types, status, message) in types {
            let headers: Vec<_> = types.iter().map(|value| ("content-type", *value)).collect();
            let reply =
                http.send("PUT", &format!("/fleet/v1/units/u{number}.service"), &headers, &file).await;
            assert_eq!(reply.status, status, "{types:?}: {reply:?}");
            if status > 299 {
                assert_eq!(reply.message(), message, "{types:?}");
            }
        }
    }
    served.daemon.shutdown().await.expect("a clean shutdown");
}

/// Not even the fields that are there say more than fleet's.
#[tokio::test]
async fn units_and_states_have_fleets_fields() {
    let served = Served::start().await;
    served.machine(1).await;
    for (number, http) in served.clients().iter().enumerate() {
        let (one, all) = (format!("one{number}.service"), format!("all{number}.service"));
        let global = json!([
            { "section": "Service", "name": "ExecStart", "value": "/bin/a \\\n  b" },
            { "section": "X-Fleet", "name": "Global", "value": "true" },
        ]);
        let create = body(&json!({ "options": options("/bin/a") }));
        assert_eq!(http.put(&format!("/fleet/v1/units/{one}"), &create).await.status, 201);
        let unit = http.json(&format!("/fleet/v1/units/{one}")).await;
        let inactive = json!({
            "name": one, "options": options("/bin/a"), "desiredState": "inactive", "currentState": "inactive",
        });
        assert_eq!(unit, inactive);
        // There is no state yet, and fleetctl has to be told so.
        assert_eq!(http.json(&format!("/fleet/v1/state/{one}")).await, json!({}));

        for (unit, options) in [(&one, options("/bin/a")), (&all, global.clone())] {
            let launched = body(&json!({ "options": options, "desiredState": "launched" }));
            let reply = http.put(&format!("/fleet/v1/units/{unit}"), &launched).await;
            assert!(reply.status < 300, "{reply:?}");
        }
        let unit = http.until(&format!("/fleet/v1/units/{one}"), "currentState", "launched").await;
        let launched = json!({
            "name": one, "options": options("/bin/a"), "desiredState": "launched", "currentState": "launched",
            "machineID": M1,
        });
        assert_eq!(unit, launched);
        let state = http.until(&format!("/fleet/v1/state/{one}"), "systemdActiveState", "active").await;
        let expected = json!({
            "name": one, "hash": state["hash"], "machineID": M1,
            "systemdLoadState": "loaded", "systemdActiveState": "active", "systemdSubState": "running",
        });
        assert_eq!(state, expected);
        // printf '[Unit]\nDescription=A test\n\n[Service]\nExecStart=/bin/a\n' | sha1sum
        assert_eq!(state["hash"], "5956e4b85cb4a3b4423b42fbd25e58833f911ff9");

        // Of a global unit fleet says less, and in a list something else.
        let global_state =
            http.until(&format!("/fleet/v1/state/{all}"), "systemdActiveState", "active").await;
        assert_eq!(global_state["machineID"], M1);
        let unit = http.json(&format!("/fleet/v1/units/{all}")).await;
        assert_eq!(unit, json!({ "name": all, "options": global, "desiredState": "launched" }));
        let list = http.json("/fleet/v1/units").await;
        let listed = list["units"].as_array().expect("a list").iter().find(|unit| unit["name"] == *all);
        let expected =
            json!({ "name": all, "options": global, "desiredState": "launched", "currentState": "inactive" });
        assert_eq!(listed, Some(&expected));

        for (filter, rows) in [
            (format!("unitName={one}"), vec![&state]),
            (format!("machineID={M1}&unitName={all}"), vec![&global_state]),
            (format!("unitName={one}&unitName={all}"), vec![&state]),
            ("unitName=other.service".to_owned(), vec![]),
            ("machineID=00000000000000000000000000000009".to_owned(), vec![]),
            ("machineID=00000001".to_owned(), vec![]),
        ] {
            let page = http.json(&format!("/fleet/v1/state?{filter}")).await;
            let expected = if rows.is_empty() { json!({}) } else { json!({ "states": rows }) };
            assert_eq!(page, expected, "{filter}");
        }
        for unit in [one, all] {
            assert_eq!(http.send("DELETE", &format!("/fleet/v1/units/{unit}"), &[], "").await.status, 204);
            assert_eq!(http.get(&format!("/fleet/v1/units/{unit}")).await.status, 404);
        }
    }
    served.daemon.shutdown().await.expect("a clean shutdown");
}

/// What musterctl has submitted is kept byte for byte, and has for fleet's clients what fleetctl reads from such a file.
#[tokio::test]
async fn a_file_is_kept_as_it_was_submitted() {
    use muster_proto::v1::{self, muster_client::MusterClient};

    let served = Served::start().await;
    let file =
        "# A comment\n[Service]\nExecStart = /bin/a \\\n   b\n\n[Unit]\nDescription=x\n[Service]\nUser=c";
    let mut muster = MusterClient::new(crate::common::agent::channel(&served.daemon));
    let submit = v1::CommandRequest {
        id: vec![1; 16].into(),
        verb: v1::Verb::Submit.into(),
        units: vec![v1::UnitArgument {
            name: "u.service".to_owned(),
            content: Some(file.as_bytes().to_vec().into()),
        }],
        replace: false,
    };
    muster.execute(submit).await.expect("submitted");
    let [http, _] = served.clients();
    let options = http.json("/fleet/v1/units/u.service").await["options"].clone();
    let option =
        |section: &str, name: &str, value: &str| json!({ "section": section, "name": name, "value": value });
    let expected = json!([
        option("Service", "ExecStart", "/bin/a \\\n   b"),
        option("Service", "User", "c"),
        option("Unit", "Description", "x"),
    ]);
    assert_eq!(options, expected);
    let same = body(&json!({ "options": options, "desiredState": "inactive" }));
    assert_eq!(http.put("/fleet/v1/units/u.service", &same).await.status, 204, "they are the same");
    let names = Some(v1::UnitNames { names: vec!["u.service".to_owned()] });
    let request = v1::UnitsRequest { names, content: true, reasons: false };
    let part = muster.list_units(request).await.expect("listed").into_inner().message().await;
    let part = part.expect("a part").expect("a part");
    assert_eq!(part.units[0].content.as_deref(), Some(file.as_bytes()));
    served.daemon.shutdown().await.expect("a clean shutdown");
}

/// Clients that write the same unit at the same time are told what came of that, and none of them waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_write_at_once() {
    let served = Served::start().await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..40_usize {
        let http: Http = served.clients()[number % 2].clone();
        writers.spawn(async move {
            let state = ["inactive", "loaded", "launched"][number % 3];
            let exec = if number % 5 == 0 { "/bin/b" } else { "/bin/a" };
            let put = body(&json!({ "options": options(exec), "desiredState": state }));
            http.put("/fleet/v1/units/u.service", &put).await
        });
    }
    while let Some(reply) = writers.join_next().await {
        let reply = reply.expect("no panic");
        assert!(matches!(reply.status, 201 | 204 | 409), "{reply:?}");
    }
    let [http, _] = served.clients();
    let unit = http.json("/fleet/v1/units/u.service").await;
    assert!(["/bin/a", "/bin/b"].iter().any(|exec| unit["options"] == options(exec)), "{unit}");
    served.daemon.shutdown().await.expect("a clean shutdown");
}
