//! What is sent and received, as JSON: fleet's objects, field for field. What is empty is left out.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

/// A unit.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unit {
    pub(super) name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) options: Vec<UnitOption>,
    pub(super) desired_state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) current_state: Option<String>,
    #[serde(rename = "machineID", skip_serializing_if = "Option::is_none")]
    pub(super) machine_id: Option<String>,
}

/// One assignment in a unit's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UnitOption {
    #[serde(default)]
    pub(super) section: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) value: String,
}

/// A JSON object: serde alone would take a list for one, too.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = serde_json::Map::deserialize(deserializer)?;
        T::deserialize(serde_json::Value::Object(fields)).map(Self).map_err(D::Error::custom)
    }
}

/// What a client sends of a unit. All else that it may send does not count.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SetUnit {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) options: Option<Vec<Object<UnitOption>>>,
    #[serde(default)]
    pub(super) desired_state: Option<String>,
}

/// What systemd says of a unit on a machine.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UnitState {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) hash: String,
    #[serde(rename = "machineID", skip_serializing_if = "String::is_empty")]
    pub(super) machine_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) systemd_load_state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) systemd_active_state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) systemd_sub_state: String,
}

/// A machine.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) id: String,
    #[serde(rename = "primaryIP", skip_serializing_if = "String::is_empty")]
    pub(super) primary_ip: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) metadata: BTreeMap<String, String>,
}

/// A part of a list.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) units: Vec<Unit>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) states: Vec<UnitState>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) machines: Vec<Machine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_page_token: Option<String>,
}

/// Why a request came to nothing, as fleet says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A path that leads nowhere.
    pub(super) fn nowhere() -> Self {
        Self::new(StatusCode::NOT_FOUND, "")
    }

    /// The body of the answer.
    pub(super) fn body(&self) -> serde_json::Value {
        serde_json::json!({ "error": { "code": self.status.as_u16(), "message": self.message } })
    }
}
