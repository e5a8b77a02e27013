//! Long lists.

use std::collections::BTreeSet;

use muster_proto::v1::{self, muster_client::MusterClient};

use crate::common::agent::channel;
use crate::http::{Served, soon};

const MANY: usize = 10_000;

/// Starts so many units, in one command.
async fn start_many(served: &Served, number: usize) {
    let units = (0..number).map(|number| v1::UnitArgument {
        name: format!("unit-{number:05}.service"),
        content: Some(format!("[Service]\nExecStart=/bin/sleep {number}\n").into_bytes().into()),
    });
    let command = v1::CommandRequest {
        id: vec![1; 16].into(),
        verb: v1::Verb::Start.into(),
        units: units.collect(),
        replace: false,
    };
    let mut muster = MusterClient::new(channel(&served.daemon))
        .max_decoding_message_size(muster_proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(muster_proto::MAX_MESSAGE_BYTES);
    soon("the command", muster.execute(command)).await.expect("done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_units_are_read_in_a_hundred_pages() {
    let served = Served::start().await;
    served.machine(1).await;
    served.machine(2).await;
    start_many(&served, MANY).await;
    for http in served.clients() {
        let (units, pages) = soon("all units", http.all("/fleet/v1/units", "units")).await;
        // fleet would have an empty page at the end.
        assert_eq!((units.len(), pages), (MANY, MANY / 100));
        let names: Vec<_> = units.iter().map(|unit| unit["name"].as_str().expect("a name")).collect();
        assert!(
            names.is_sorted() && names.windows(2).all(|two| two[0] != two[1]),
            "in their order, each once"
        );
        for (number, unit) in units.iter().enumerate() {
            assert_eq!(unit["options"][0]["value"], format!("/bin/sleep {number}"));
        }
    }
    let [http, _] = served.clients();
    let page = http.json("/fleet/v1/units").await;
    assert_eq!(
        (page["units"].as_array().map(Vec::len), &page["nextPageToken"]),
        (Some(100), &"ZAACAA==".into())
    );
    // Beyond the end.
    assert_eq!(http.json("/fleet/v1/units?nextPageToken=ZADgLg==").await, serde_json::json!({}));

    let all = async {
        loop {
            let (states, _) = http.all("/fleet/v1/state", "states").await;
            if states.len() == MANY {
                return states;
            }
        }
    };
    let states = soon("all states", all).await;
    let names: BTreeSet<_> = states.iter().map(|state| state["name"].as_str().expect("a name")).collect();
    assert_eq!(names.len(), MANY);
    let mut on_each = 0;
    for machine in [crate::http::M1, crate::http::M2] {
        let (states, _) = http.all(&format!("/fleet/v1/state?machineID={machine}"), "states").await;
        assert!(states.iter().all(|state| state["machineID"] == machine));
        on_each += states.len();
    }
    assert_eq!(on_each, MANY);
    served.daemon.shutdown().await.expect("a clean shutdown");
}

#[tokio::test]
async fn the_last_page_has_no_token() {
    let served = Served::start().await;
    start_many(&served, 100).await;
    let [http, _] = served.clients();
    let (units, pages) = http.all("/fleet/v1/units", "units").await;
    assert_eq!((units.len(), pages), (100, 1));
    for number in 1..=101 {
        served.machine(number).await;
    }
    let (machines, pages) = http.all("/fleet/v1/machines", "machines").await;
    assert_eq!((machines.len(), pages), (101, 2));
    served.daemon.shutdown().await.expect("a clean shutdown");
}
