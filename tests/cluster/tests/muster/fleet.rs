//! fleet's API where it is served as it is shipped: on the socket in the scheduler's own directory.

use anyhow::{Result, ensure};
use muster_cluster::Machine;
use serde_json::{Value, json};

use super::support::{LIMIT, World, configure};

const SOCKET: &str = "/run/muster-scheduler/fleet.sock";

/// What root is answered on the scheduler's machine.
fn ask(machine: &Machine<'_>, method: &str, path: &str, body: &Value) -> Result<String> {
    let (url, body) = (format!("http://fleet/fleet/v1/{path}"), body.to_string());
    let curl = ["curl", "-sS", "--fail-with-body", "--max-time", "30", "--unix-socket", SOCKET, "-X", method];
    let rest = ["-H", "Content-Type: application/json", "-d", &body, &url];
    machine.exec(&[&curl[..], &rest[..]].concat())?.ok()
}

#[test]
fn units_are_started_and_moved_over_fleets_api() -> Result<()> {
    let world = World::of(2)?;
    let scheduler = world.scheduler()?;
    configure(&scheduler, "scheduler", &format!("\n[fleet_api]\nsocket = \"{SOCKET}\"\n"))?;
    let until = |unit: &str, field: &str, value: &str| {
        world.cluster.wait_for(&format!("{field} of {unit} to be {value}"), LIMIT, || {
            let text = ask(&scheduler, "GET", unit, &json!({}))?;
            let answer: Value = serde_json::from_str(&text)?;
            ensure!(answer[field] == value, "{text}");
            Ok(Some(answer))
        })
    };
    world.cluster.wait_for("the API", LIMIT, || ask(&scheduler, "GET", "units", &json!({})).map(Some))?;
    let mode = scheduler.exec(&["stat", "--dereference", "--format", "%a %F", SOCKET])?.ok()?;
    assert_eq!(mode.trim(), "660 socket");

    let options = json!([
        { "section": "Service", "name": "ExecStart", "value": "/usr/bin/sleep \\\n  infinity" },
        { "section": "X-Fleet", "name": "MachineMetadata", "value": "role=web" },
    ]);
    ask(&scheduler, "PUT", "units/web.service", &json!({ "options": options, "desiredState": "launched" }))?;
    let machines: Value = serde_json::from_str(&ask(&scheduler, "GET", "machines", &json!({}))?)?;
    let ids: Vec<&str> = machines["machines"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|machine| machine["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 2, "{machines}");
    let role =
        |op: &str, id: &str| json!([{ "op": op, "path": format!("/{id}/metadata/role"), "value": "web" }]);
    for (here, there) in [(ids[0], ids[1]), (ids[1], ids[0])] {
        ask(&scheduler, "PATCH", "machines", &role("add", here))?;
        ask(&scheduler, "PATCH", "machines", &role("remove", there))?;
        let unit = until("units/web.service", "machineID", here)?;
        assert_eq!(unit["options"], options);
        until("state/web.service", "systemdActiveState", "active")?;
        let (here, there) = (world.by_id(here)?, world.by_id(there)?);
        world.wait_active_state(&here, "web.service", "active")?;
        world.wait_active_state(&there, "web.service", "inactive")?;
    }
    // A restart of the scheduler makes no difference, to the socket neither.
    scheduler.exec(&["systemctl", "kill", "--signal=KILL", "muster-scheduler.service"])?.ok()?;
    world.wait_machines_up(2)?;
    until("units/web.service", "machineID", ids[1])?;
    until("units/web.service", "currentState", "launched")?;
    ask(&scheduler, "DELETE", "units/web.service", &json!({}))?;
    world.wait_active_state(&world.by_id(ids[1])?, "web.service", "inactive")
}
