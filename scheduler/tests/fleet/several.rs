//! Schedulers that do not lead: fleetctl goes to one alone, so each serves.

use std::path::Path;

use muster_scheduler::config::{Config, FleetApi};
use muster_scheduler::daemon::Daemon;
use muster_test_etcd::Etcd;
use serde_json::json;

use crate::common::on_etcd;
use crate::http::{Http, soon};

async fn start(endpoints: Vec<String>, directory: &Path, name: &str) -> (Daemon, Http) {
    let fleet_api = FleetApi { listen: Some("127.0.0.1:0".parse().expect("an address")), socket: None };
    let config = Config { fleet_api: Some(fleet_api), ..on_etcd(endpoints, directory, name) };
    let daemon = Daemon::start(&config).await.expect("start");
    let http = Http::Tcp(daemon.fleet_address().expect("on TCP"));
    (daemon, http)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_follows_asks_the_leader() {
    let directory = tempfile::tempdir().expect("a directory");
    let etcd = tokio::task::spawn_blocking(|| Etcd::start(1, &[])).await.expect("etcd");
    let (first, one) = start(etcd.endpoints(), directory.path(), "first").await;
    // It waits until one leads.
    soon("a leader", one.json("/fleet/v1/units")).await;
    let (second, other) = start(etcd.endpoints(), directory.path(), "second").await;

    let options = json!([{ "section": "Service", "name": "ExecStart", "value": "/bin/a" }]);
    let put = json!({ "options": options, "desiredState": "loaded" }).to_string();
    assert_eq!(other.put("/fleet/v1/units/u%401.service", &put).await.status, 201);
    for http in [&one, &other] {
        let unit = http.json("/fleet/v1/units/u%401.service").await;
        assert_eq!((&unit["desiredState"], &unit["options"]), (&json!("loaded"), &options));
    }
    let machine = "00000000000000000000000000000007";
    let patch =
        |key: &str| json!([{ "op": "add", "path": format!("/{machine}/metadata/{key}"), "value": "1" }]);
    let patched = other.send("PATCH", "/fleet/v1/machines", &[], &patch("a").to_string()).await;
    assert_eq!(patched.status, 204, "{patched:?}");
    let refused = other
        .send("PATCH", "/fleet/v1/machines", &[], &patch("a").to_string().replace("\"1\"", "\"=\""))
        .await;
    assert_eq!((refused.status, refused.message().is_empty()), (400, false), "{refused:?}");
    for path in ["units", "state", "state/u@1.service", "machines", "state?unitName=x.service"] {
        let path = format!("/fleet/v1/{path}");
        assert_eq!(other.json(&path).await, one.json(&path).await, "{path}");
    }
    let refused = other.put("/fleet/v1/units/u%401.service", "{\"desiredState\":\"bogus\"}").await;
    assert_eq!(refused.status, 400);
    assert_eq!(other.get("/fleet/v1/units/x.service").await.message(), "unit does not exist");
    assert!(other.get("/metrics").await.text.ends_with("fleet_engine_leader_start_time 0\n"));

    // The leader ends: who asks meanwhile waits for the next one.
    let (ended, unit) =
        tokio::join!(first.shutdown(), soon("the next leader", other.json("/fleet/v1/units/u%401.service")));
    ended.expect("a clean shutdown");
    assert_eq!(unit["desiredState"], "loaded");
    let deleted =
        soon("the next leader", other.send("DELETE", "/fleet/v1/units/u%401.service", &[], "")).await;
    assert_eq!(deleted.status, 204);
    second.shutdown().await.expect("a clean shutdown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_none_leads_that_is_said() {
    let directory = tempfile::tempdir().expect("a directory");
    // Nobody is there.
    let (daemon, http) = start(vec!["http://127.0.0.1:1".to_owned()], directory.path(), "alone").await;
    let patch =
        json!([{ "op": "remove", "path": "/00000000000000000000000000000007/metadata/a" }]).to_string();
    let put = "{\"desiredState\":\"loaded\"}";
    let json = [("content-type", "application/json")];
    let requests = async {
        tokio::join!(
            http.get("/fleet/v1/units"),
            http.get("/fleet/v1/state/u.service"),
            http.send("PUT", "/fleet/v1/units/u.service", &json, put),
            http.send("PATCH", "/fleet/v1/machines", &[], &patch),
        )
    };
    let (units, state, put, patch) = requests.await;
    for reply in [units, state, put, patch] {
        assert_eq!(reply.status, 503, "{reply:?}");
        assert_eq!(reply.message(), "this scheduler does not lead, and knows of none that does");
    }
    // What needs no leader is answered all the same.
    assert_eq!(http.get("/fleet/v1/discovery").await.status, 200);
    assert_eq!(http.get("/fleet/v1/x").await.status, 404);
    daemon.shutdown().await.expect("a clean shutdown");
}
