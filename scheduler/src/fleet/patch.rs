//! What a PATCH of the machines means: changes of their labels.

use muster_core::command::LabelEdit;
use muster_core::ids::MachineId;
use serde::Deserialize;
use serde_json::Value;

use super::wire::{Object, Refused};

#[derive(Debug, Deserialize)]
struct Operation {
    #[serde(default)]
    op: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    value: Value,
}

/// Reads all of them, or none.
pub(super) fn edits(body: &[u8]) -> Result<Vec<LabelEdit>, Refused> {
    let operations: Option<Vec<Object<Operation>>> = serde_json::from_slice(body)
        .map_err(|error| Refused::bad(format!("unable to decode body: {error}")))?;
    operations.unwrap_or_default().iter().map(|Object(operation)| edit(operation)).collect()
}

fn edit(operation: &Operation) -> Result<LabelEdit, Refused> {
    let removes = match operation.op.as_deref() {
        Some("add" | "replace") => false,
        Some("remove") => true,
        _ => return Err(Refused::bad("invalid op: expect add, remove, or replace")),
    };
    let path = operation.path.as_deref().unwrap_or_default();
    let (machine, key) =
        target(path).ok_or_else(|| Refused::bad(format!("machine metadata path invalid: {path:?}")))?;
    let value = text(&operation.value).filter(|value| !value.is_empty());
    if !removes && value.is_none() {
        return Err(Refused::bad("invalid value: add and replace require a value"));
    }
    Ok(LabelEdit { machine, key: key.to_owned(), value: value.filter(|_| !removes).map(str::to_owned) })
}

/// The machine and the key in `/<machine>/metadata/<key>`.
fn target(path: &str) -> Option<(MachineId, &str)> {
    let (machine, key) = path.strip_prefix('/')?.split_once("/metadata/")?;
    let is_key = !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    Some((machine.parse().ok()?, key)).filter(|_| is_key)
}

/// fleet takes `{"value": "x"}`, and documents `"x"`.
fn text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(fields) => fields
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("value"))
            .and_then(|(_, value)| value.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: &str = "0123456789abcdef0123456789abcdef";

    fn message(body: &str) -> String {
        edits(body.as_bytes()).expect_err("refused").message
    }

    #[test]
    fn values_come_as_objects_and_as_text() {
        let body = format!(
            r#"[{{"op":"add","path":"/{M}/metadata/foo","value":{{"value":"bar"}}}},
                {{"op":"replace","path":"/{M}/metadata/a.b_c-1","value":"x y"}},
                {{"op":"replace","path":"/{M}/metadata/up","value":{{"VALUE":"z"}}}},
                {{"op":"remove","path":"/{M}/metadata/foo","value":"no matter"}}]"#
        );
        let edit = |key: &str, value: Option<&str>| LabelEdit {
            machine: M.parse().expect("an id"),
            key: key.to_owned(),
            value: value.map(str::to_owned),
        };
        let expected = vec![
            edit("foo", Some("bar")),
            edit("a.b_c-1", Some("x y")),
            edit("up", Some("z")),
            edit("foo", None),
        ];
        assert_eq!(edits(body.as_bytes()), Ok(expected));
        assert_eq!(edits(b"[]"), Ok(Vec::new()));
    }

    #[test]
    fn one_that_is_wrong_is_refused_with_all() {
        let good = format!(r#"{{"op":"remove","path":"/{M}/metadata/a"}}"#);
        let with = |operation: String| message(&format!("[{good},{operation}]"));
        for op in [r#""noop""#, "null", r#""ADD""#] {
            let refused = with(format!(r#"{{"op":{op},"path":"/{M}/metadata/a","value":"b"}}"#));
            assert_eq!(refused, "invalid op: expect add, remove, or replace");
        }
        for path in [
            "",
            "/",
            "foo",
            "/x/metadata/a",
            &format!("/{M}/metadata/"),
            &format!("/{M}/metadata/a/b"),
            &format!("/{M}/metadata/a b"),
            &format!("/{M}/other/a"),
            &format!("{M}/metadata/a"),
        ] {
            let refused = with(format!(r#"{{"op":"add","path":"{path}","value":"b"}}"#));
            assert_eq!(refused, format!("machine metadata path invalid: {path:?}"));
        }
        for value in ["null", "1", "{}", r#"{"value":1}"#, r#""""#, r#"{"value":""}"#, "[]"] {
            let refused = with(format!(r#"{{"op":"add","path":"/{M}/metadata/a","value":{value}}}"#));
            assert_eq!(refused, "invalid value: add and replace require a value");
        }
        for body in ["", "{}", "[1]", r#"[["add"]]"#, r#"[{"op":1}]"#, "[", "nonsense"] {
            assert!(message(body).starts_with("unable to decode body: "), "{body}");
        }
    }
}
