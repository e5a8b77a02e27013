//! Machines and their metadata.

use serde_json::{Value, json};

use crate::http::{Http, M1, M2, Served};

async fn patch(http: &Http, operations: &Value) -> crate::http::Reply {
    // fleet asks for no Content-Type here.
    http.send("PATCH", "/fleet/v1/machines", &[], &operations.to_string()).await
}

fn operation(op: &str, machine: &str, key: &str, value: &Value) -> Value {
    json!({ "op": op, "path": format!("/{machine}/metadata/{key}"), "value": value })
}

#[tokio::test]
async fn metadata_is_added_changed_and_removed() {
    for transport in 0..2 {
        let served = Served::start().await;
        served.machine(1).await;
        served.machine(2).await;
        let http = &served.clients()[transport];
        let machine =
            |id: &str, ip: &str, metadata: &Value| json!({ "id": id, "primaryIP": ip, "metadata": metadata });
        let configured = json!({ "rack": "a" });
        let before = json!({ "machines": [machine(M1, "198.18.0.1", &configured), machine(M2, "198.18.0.2", &configured)] });
        assert_eq!(http.json("/fleet/v1/machines").await, before);

        let reply = patch(http, &json!([operation("remove", M1, "gone", &Value::Null)])).await;
        assert_eq!((reply.status, reply.content_type(), &*reply.text), (204, Some("application/json"), ""));
        assert_eq!(http.json("/fleet/v1/machines").await, before, "what is not there is not missed");

        // The value as fleet takes it, and as it documents it; all in their order.
        let reply = patch(
            http,
            &json!([
                operation("add", M1, "foo", &json!({ "value": "bar" })),
                operation("add", M1, "x", &json!("1")),
                operation("replace", M1, "x", &json!({ "Value": "2" })),
                operation("replace", M2, "rack", &json!("splat")),
                operation("add", M2, "y", &json!("1")),
                operation("remove", M2, "y", &Value::Null),
            ]),
        )
        .await;
        assert_eq!(reply.status, 204, "{reply:?}");
        let after = json!({ "machines": [
            machine(M1, "198.18.0.1", &json!({ "foo": "bar", "rack": "a", "x": "2" })),
            machine(M2, "198.18.0.2", &json!({ "rack": "splat" })),
        ] });
        assert_eq!(http.json("/fleet/v1/machines").await, after);

        // Units go by it.
        let options = json!([
            { "section": "Service", "name": "ExecStart", "value": "/bin/a" },
            { "section": "X-Fleet", "name": "MachineMetadata", "value": "rack=splat" },
        ]);
        let put = json!({ "options": options, "desiredState": "launched" }).to_string();
        assert_eq!(http.put("/fleet/v1/units/u.service", &put).await.status, 201);
        let unit = http.until("/fleet/v1/units/u.service", "currentState", "launched").await;
        assert_eq!(unit["machineID"], M2);
        let moves = json!([
            operation("add", M1, "rack", &json!("splat")),
            operation("remove", M2, "rack", &Value::Null),
        ]);
        assert_eq!(patch(http, &moves).await.status, 204);
        http.until("/fleet/v1/units/u.service", "machineID", M1).await;

        // Of several of which one is wrong none is done.
        let good = operation("add", M1, "good", &json!("1"));
        for (bad, message) in [
            (operation("noop", M1, "a", &json!("1")), "invalid op: expect add, remove, or replace"),
            (operation("add", "nobody", "a", &json!("1")), "machine metadata path invalid"),
            (operation("add", M1, "a/b", &json!("1")), "machine metadata path invalid"),
            (json!({ "op": "add", "path": "/", "value": "1" }), "machine metadata path invalid"),
            (operation("add", M1, "a", &Value::Null), "invalid value: add and replace require a value"),
            (
                operation("replace", M1, "a", &json!({ "other": "1" })),
                "invalid value: add and replace require a value",
            ),
            (
                operation("add", M1, "a", &json!("b=c")),
                "MachineMetadata= cannot ask for a label's value \"b=c\"",
            ),
            (json!(1), "unable to decode body: "),
        ] {
            let reply = patch(http, &json!([good, bad])).await;
            assert_eq!(reply.status, 400, "{bad}: {reply:?}");
            assert!(reply.message().starts_with(message), "{bad}: {reply:?}");
        }
        for body in ["", "{}", "[", "\"x\""] {
            let reply = http.send("PATCH", "/fleet/v1/machines", &[], body).await;
            assert!(
                reply.status == 400 && reply.message().starts_with("unable to decode body: "),
                "{reply:?}"
            );
        }
        let machines = http.json("/fleet/v1/machines").await;
        assert_eq!(machines["machines"][0]["metadata"], json!({ "foo": "bar", "rack": "splat", "x": "2" }));

        // A machine need not be there.
        let early = json!([operation("add", "00000000000000000000000000000003", "early", &json!("yes"))]);
        assert_eq!(patch(http, &early).await.status, 204);
        served.machine(3).await;
        let machines = http.json("/fleet/v1/machines").await;
        assert_eq!(machines["machines"][2]["metadata"], json!({ "early": "yes", "rack": "a" }));
        served.daemon.shutdown().await.expect("a clean shutdown");
    }
}
