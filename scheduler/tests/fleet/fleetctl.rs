//! What the original fleetctl sends, request by request, as its commands do it.

use serde_json::{Value, json};

use crate::http::{Http, M1, Served};

/// fleetctl, as far as a server sees it.
struct Fleetctl(Http);

fn path(unit: &str) -> String {
    format!("/fleet/v1/units/{}?alt=json", unit.replace('@', "%40"))
}

fn options(exec: &str) -> Value {
    json!([
        { "section": "Unit", "name": "Description", "value": "Hello" },
        { "section": "Service", "name": "ExecStart", "value": exec },
    ])
}

impl Fleetctl {
    /// Creates the unit where there is none, and waits until it is seen to be inactive.
    async fn submit(&self, unit: &str, exec: &str) {
        let found = self.0.get(&path(unit)).await;
        if found.status == 404 {
            let create = json!({ "name": unit, "options": options(exec) }).to_string();
            assert_eq!(self.0.put(&path(unit), &create).await.status, 201);
            self.0.until(&path(unit), "currentState", "inactive").await;
        } else {
            assert_eq!(found.json()["options"], options(exec), "it compares its file with that");
        }
    }

    /// `--replace`: other options, without a desired state.
    async fn replace(&self, unit: &str, exec: &str) {
        let replace = json!({ "name": unit, "options": options(exec) }).to_string();
        assert_eq!(self.0.put(&path(unit), &replace).await.status, 201);
        self.0.until(&path(unit), "currentState", "inactive").await;
        assert_eq!(self.0.json(&path(unit)).await["desiredState"], "inactive");
    }

    /// Asks for a state, and waits for it.
    async fn target(&self, unit: &str, state: &str) -> Value {
        let target = json!({ "desiredState": state, "name": unit }).to_string();
        let reply = self.0.put(&path(unit), &target).await;
        assert_eq!(reply.status, 204, "{reply:?}");
        self.0.until(&path(unit), "currentState", state).await
    }

    /// `start` looks at systemd's state at last: any status but 404 will do, and it must become active.
    async fn is_active(&self, unit: &str) {
        let path = format!("/fleet/v1/state/{}?alt=json", unit.replace('@', "%40"));
        assert_ne!(self.0.get(&path).await.status, 404);
        let state = self.0.until(&path, "systemdActiveState", "active").await;
        assert_eq!(state["systemdLoadState"], "loaded");
        assert!(
            state["hash"].as_str().is_some_and(|hash| hash.len() >= 7),
            "it shows seven of them: {state}"
        );
    }

    async fn names(&self, list: &str, rows: &str) -> Vec<String> {
        let (rows, _) = self.0.all(&format!("/fleet/v1/{list}"), rows).await;
        rows.iter().map(|row| row["name"].as_str().expect("a name").to_owned()).collect()
    }

    async fn destroy(&self, unit: &str) {
        assert_eq!(self.0.send("DELETE", &path(unit), &[], "").await.status, 204);
        assert_eq!(self.0.send("DELETE", &path(unit), &[], "").await.status, 404, "which it skips");
    }

    /// Waits until the list of states has so many rows.
    async fn rows(&self, number: usize) {
        let mut rows = Vec::new();
        let wait = async {
            while {
                rows = self.names("state", "states").await;
                rows.len() != number
            } {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(crate::common::agent::PATIENCE, wait).await;
        assert!(seen.is_ok(), "waited in vain for {number} rows: {rows:?}");
    }
}

#[tokio::test]
async fn submit_load_start_stop_unload_destroy() {
    for transport in 0..2 {
        let served = Served::start().await;
        served.machine(1).await;
        let fleetctl = Fleetctl(served.clients()[transport].clone());
        let units = ["hello@1.service", "hello@2.service", "hello@3.service"];
        for unit in units {
            fleetctl.submit(unit, "/bin/hello").await;
        }
        assert_eq!(fleetctl.names("units", "units").await, units);
        assert_eq!(fleetctl.names("state", "states").await, [""; 0]);
        for unit in units {
            fleetctl.submit(unit, "/bin/hello").await;
            let loaded = fleetctl.target(unit, "loaded").await;
            assert_eq!(loaded["machineID"], M1, "for \"on MACHINE\"");
        }
        for unit in units {
            fleetctl.target(unit, "launched").await;
            fleetctl.is_active(unit).await;
        }
        let machines = fleetctl.0.json("/fleet/v1/machines?alt=json").await;
        assert_eq!(machines["machines"][0]["primaryIP"], "198.18.0.1");
        fleetctl.rows(3).await;
        fleetctl.target(units[0], "loaded").await;
        let state = format!("/fleet/v1/state/{}", units[0]);
        fleetctl.0.until(&state, "systemdActiveState", "inactive").await;
        fleetctl.target(units[1], "inactive").await;
        fleetctl.rows(2).await;
        for unit in units {
            fleetctl.destroy(unit).await;
        }
        fleetctl.rows(0).await;
        assert_eq!(fleetctl.names("units", "units").await, [""; 0]);
        served.daemon.shutdown().await.expect("a clean shutdown");
    }
}

#[tokio::test]
async fn replace_in_every_state() {
    let served = Served::start().await;
    served.machine(1).await;
    let fleetctl = Fleetctl(served.clients()[0].clone());
    fleetctl.submit("u.service", "/bin/1").await;
    fleetctl.replace("u.service", "/bin/2").await;
    fleetctl.target("u.service", "loaded").await;
    fleetctl.replace("u.service", "/bin/3").await;
    fleetctl.target("u.service", "launched").await;
    fleetctl.is_active("u.service").await;
    fleetctl.replace("u.service", "/bin/4").await;
    fleetctl.target("u.service", "launched").await;
    fleetctl.is_active("u.service").await;
    assert_eq!(fleetctl.0.json(&path("u.service")).await["options"], options("/bin/4"));
    served.daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn a_global_unit_is_waited_for_by_what_was_asked_for() {
    let served = Served::start().await;
    served.machine(1).await;
    served.machine(2).await;
    let fleetctl = Fleetctl(served.clients()[1].clone());
    let options = json!([
        { "section": "Service", "name": "ExecStart", "value": "/bin/a" },
        { "section": "X-Fleet", "name": "Global", "value": "true" },
    ]);
    let create = json!({ "name": "all.service", "options": options }).to_string();
    assert_eq!(fleetctl.0.put(&path("all.service"), &create).await.status, 201);
    fleetctl.0.until(&path("all.service"), "desiredState", "inactive").await;
    let target = json!({ "desiredState": "launched", "name": "all.service" }).to_string();
    assert_eq!(fleetctl.0.put(&path("all.service"), &target).await.status, 204);
    fleetctl.0.until(&path("all.service"), "desiredState", "launched").await;
    fleetctl.rows(2).await;
    fleetctl.destroy("all.service").await;
    fleetctl.rows(0).await;
    served.daemon.shutdown().await.expect("a clean shutdown");
}

/// Nobody takes it: it stays inactive, and says that it should be launched.
#[tokio::test]
async fn a_unit_that_fits_nowhere() {
    let served = Served::start().await;
    served.machine(1).await;
    let fleetctl = Fleetctl(served.clients()[0].clone());
    let options = json!([
        { "section": "Service", "name": "ExecStart", "value": "/bin/a" },
        { "section": "X-Fleet", "name": "MachineMetadata", "value": "disk=none" },
    ]);
    let start = json!({ "options": options, "desiredState": "launched" }).to_string();
    assert_eq!(fleetctl.0.put(&path("u.service"), &start).await.status, 201);
    let unit = fleetctl.0.json(&path("u.service")).await;
    let expected = json!({
        "name": "u.service", "options": options, "desiredState": "launched", "currentState": "inactive",
    });
    assert_eq!(unit, expected);
    assert_eq!(fleetctl.0.json("/fleet/v1/state/u.service").await, json!({}));
    served.daemon.shutdown().await.expect("a clean shutdown");
}
