//! A unit's worst-case time: its parts, their sum, and what may come on top.

use std::io::{self, Write};

use muster_core::command::Rto;
use muster_core::unit::UnitName;
use serde_json::{Value, json};

use crate::style::{Role, harmless};

/// Writes the page.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_page(out: &mut impl Write, name: &UnitName, rto: &Rto) -> io::Result<()> {
    if rto.parts.is_empty() {
        writeln!(out, "{}: is not moved", Role::Strong.paint(name.as_str()))?;
    } else {
        let sum = Role::Strong.paint(&format!("{} s", seconds(rto.sum_ms())));
        let name = Role::Strong.paint(name.as_str());
        writeln!(out, "{name}: {sum} at worst from the loss of its machine until it is started elsewhere")?;
        for part in &rto.parts {
            writeln!(
                out,
                "{:>10} s  {:<14}  {}",
                seconds(part.span_ms),
                harmless(&part.name),
                harmless(&part.what)
            )?;
        }
        match rto.start_ms {
            Some(0) => {}
            Some(start) => {
                writeln!(out, "Its own start comes on top; systemd gives it up after {} s.", seconds(start))?;
            }
            None => writeln!(out, "Its own start comes on top; systemd lets it take as long as it takes.")?,
        }
    }
    if !rto.notes.is_empty() {
        writeln!(out, "Not counted:")?;
    }
    for note in &rto.notes {
        writeln!(out, "  - {}", harmless(note))?;
    }
    Ok(())
}

/// The same for programs.
pub fn as_json(name: &UnitName, rto: &Rto) -> Value {
    let parts = rto
        .parts
        .iter()
        .map(|part| json!({"name": part.name, "seconds": in_seconds(part.span_ms), "what": part.what}));
    json!({
        "unit": name.as_str(),
        "seconds": (!rto.parts.is_empty()).then(|| in_seconds(rto.sum_ms())),
        "parts": parts.collect::<Vec<_>>(),
        "start_seconds": rto.start_ms.map(in_seconds),
        "not_counted": rto.notes,
    })
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

#[allow(clippy::cast_precision_loss)] // a time of 2^53 ms is of no use to anybody
fn in_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use muster_core::command::RtoPart;

    use super::*;
    use crate::fixtures::unit_name;

    #[test]
    fn pages_and_json() {
        let part =
            |name: &str, span_ms| RtoPart { name: name.to_owned(), span_ms, what: format!("what {name} is") };
        let plain = Rto {
            parts: vec![part("lease", 5000), part("exclusive_stop", 10_000), part("decide", 50)],
            start_ms: Some(90_000),
            notes: vec!["the brake".to_owned(), "no room".to_owned()],
        };
        let endless = Rto { start_ms: None, notes: Vec::new(), ..plain.clone() };
        let global = Rto { parts: Vec::new(), start_ms: Some(0), notes: vec!["it is global".to_owned()] };
        let mut out = Vec::new();
        let name = unit_name("web.service");
        for rto in [&plain, &endless, &global] {
            write_page(&mut out, &name, rto).expect("written");
            writeln!(out, "{:#}\n", as_json(&name, rto)).expect("written");
        }
        let text = String::from_utf8(out).expect("text");
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
