//! fleet's HTTP API: machines and their metadata, on the socket of a booted scheduler.

use anyhow::{Context, Result, ensure};
use muster_cluster::Machine;
use serde_json::{Value, json};

use super::cluster::{SOCKET, Shared};
use super::support::{LIMIT, World};

/// What the API answers to a request.
#[derive(Debug)]
struct Reply {
    status: String,
    content_type: String,
    body: String,
}

impl Reply {
    fn ensure(&self, status: &str) -> Result<()> {
        ensure!((&*self.status, &*self.content_type) == (status, "application/json"), "{self:?}");
        Ok(())
    }
}

fn request(world: &World, method: &str, path: &str, body: &Value) -> Result<Reply> {
    let (url, body) = (format!("http://fleet/fleet/v1/{path}"), body.to_string());
    let curl = ["curl", "-sS", "--max-time", "30", "--unix-socket", SOCKET, "-X", method];
    let rest =
        ["-w", "\n%{http_code} %{content_type}", "-H", "Content-Type: application/json", "-d", &body, &url];
    let output = world.scheduler()?.exec_within(LIMIT, &[&curl[..], &rest[..]].concat(), &[])?.ok()?;
    let (body, last) = output.rsplit_once('\n').context("curl's last line")?;
    let (status, content_type) = last.split_once(' ').context("status and type")?;
    Ok(Reply { status: status.to_owned(), content_type: content_type.to_owned(), body: body.to_owned() })
}

/// The metadata of the machine, as the API lists it.
fn metadata(world: &World, machine: &Machine<'_>) -> Result<Value> {
    let reply = request(world, "GET", "machines", &json!({}))?;
    reply.ensure("200")?;
    let page: Value = serde_json::from_str(&reply.body)?;
    let rows = page["machines"].as_array().context("machines")?;
    let row =
        rows.iter().find(|row| row["id"] == machine.machine_id()).with_context(|| reply.body.clone())?;
    Ok(row["metadata"].clone())
}

/// One operation of a patch.
fn operation(op: &str, machine: &Machine<'_>, key: &str, value: &Value) -> Value {
    json!({ "op": op, "path": format!("/{}/metadata/{key}", machine.machine_id()), "value": value })
}

/// fleet: `TestMachinesList`
#[test]
fn test_machines_list() -> Result<()> {
    let shared = Shared::of(1)?;
    request(&shared, "GET", "machines", &json!({}))?.ensure("200")?;
    request(&shared, "GET", "machines?alt=json", &json!({}))?.ensure("200")
}

/// fleet: `TestMachinesListBadNextPageToken`
#[test]
fn test_machines_list_bad_next_page_token() -> Result<()> {
    let shared = Shared::of(1)?;
    request(&shared, "GET", "machines?nextPageToken=EwBMLg==", &json!({}))?.ensure("400")
}

/// fleet: `TestMachinesPatchAddModify`
#[test]
fn test_machines_patch_add_modify() -> Result<()> {
    let shared = Shared::of(2)?;
    let (m1, m2) = (shared.cluster.machine("m1")?, shared.cluster.machine("m2")?);
    request(&shared, "PATCH", "machines", &json!([operation("add", &m2, "ping", &json!("pong"))]))?
        .ensure("204")?;
    assert_eq!(metadata(&shared, &m2)?, json!({ "hostname": "m2", "ping": "pong" }));

    let patch = json!([
        operation("add", &m1, "foo", &json!({ "value": "bar" })),
        operation("replace", &m2, "ping", &json!({ "value": "splat" })),
    ]);
    request(&shared, "PATCH", "machines", &patch)?.ensure("204")?;
    assert_eq!(metadata(&shared, &m1)?, json!({ "hostname": "m1", "foo": "bar" }));
    assert_eq!(metadata(&shared, &m2)?, json!({ "hostname": "m2", "ping": "splat" }));

    let patch = json!([
        operation("remove", &m1, "foo", &Value::Null),
        operation("remove", &m2, "ping", &Value::Null),
    ]);
    request(&shared, "PATCH", "machines", &patch)?.ensure("204")?;
    assert_eq!(metadata(&shared, &m1)?, json!({ "hostname": "m1" }));
    assert_eq!(metadata(&shared, &m2)?, json!({ "hostname": "m2" }));
    Ok(())
}

/// fleet: `TestMachinesPatchDelete`
#[test]
fn test_machines_patch_delete() -> Result<()> {
    let shared = Shared::of(2)?;
    let (m1, m2) = (shared.cluster.machine("m1")?, shared.cluster.machine("m2")?);
    let patch = json!([
        operation("remove", &m1, "foo", &Value::Null),
        operation("remove", &m2, "ping", &Value::Null),
    ]);
    request(&shared, "PATCH", "machines", &patch)?.ensure("204")?;
    assert_eq!(metadata(&shared, &m1)?, json!({ "hostname": "m1" }));
    assert_eq!(metadata(&shared, &m2)?, json!({ "hostname": "m2" }));
    Ok(())
}

/// fleet: `TestMachinesPatchBad`
#[test]
fn test_machines_patch_bad() -> Result<()> {
    let shared = Shared::of(1)?;
    let m1 = shared.cluster.machine("m1")?;
    for bad in [
        operation("noop", &m1, "foo", &json!({ "value": "bar" })),
        json!({ "op": "add", "path": "/foo", "value": { "value": "bar" } }),
        operation("add", &m1, "foo", &Value::Null),
        operation("replace", &m1, "foo", &json!({ "other": "bar" })),
    ] {
        let reply = request(&shared, "PATCH", "machines", &json!([bad]))?;
        reply.ensure("400").with_context(|| bad.to_string())?;
    }
    assert_eq!(metadata(&shared, &m1)?, json!({ "hostname": "m1" }));
    Ok(())
}
