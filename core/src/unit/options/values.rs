//! What the value of one option means.

use std::time::Duration;

use crate::unit::specifier::{SpecifierError, expand_with};
use crate::unit::{Bytes, QuantityError, UnitName, WHITESPACE, quantity};

/// The values of an assignment: one, or several in double quotes with blanks between. Backslashes mean nothing here, as
/// in fleet. None when the quotes do not match up.
pub(super) fn split_quoted(value: &str) -> Option<Vec<&str>> {
    if !value.contains('"') {
        return Some(vec![value]);
    }
    let mut values = Vec::new();
    let mut rest = value;
    while !rest.is_empty() {
        let (value, after) = rest.strip_prefix('"')?.split_once('"')?;
        if !after.is_empty() && !after.starts_with(WHITESPACE) {
            return None;
        }
        values.push(value);
        rest = after.trim_start_matches(WHITESPACE);
    }
    Some(values)
}

/// Replaces the specifiers that fleet knew, and `%%`. None when the value can only be known of an instance.
pub(super) fn expand(text: &str, name: &UnitName, as_glob: bool) -> Result<Option<String>, SpecifierError> {
    let waits = std::cell::Cell::new(false);
    let expanded = expand_with(text, |specifier| {
        let value = match specifier {
            'n' => name.as_str(),
            'N' => name.stem(),
            'p' => name.prefix(),
            'i' => name.instance().unwrap_or_default(),
            other => return Err(SpecifierError::Unknown(other)),
        };
        if specifier != 'p' && name.is_template() {
            waits.set(true);
        }
        // What a name contains is meant as it is: `\x2d` in an instance must not become a glob for `x2d`.
        Ok(if as_glob { value.replace('\\', r"\\").into() } else { value.into() })
    })?;
    Ok((!waits.get()).then_some(expanded))
}

pub(super) fn parse_bool(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" | "y" | "t" => Ok(true),
        "0" | "no" | "false" | "off" | "n" | "f" => Ok(false),
        _ => Err(format!("{value:?} is neither yes nor no")),
    }
}

pub(super) fn parse_peer(value: &str, name: &UnitName) -> Result<UnitName, String> {
    let peer = UnitName::parse(value).map_err(|error| {
        let quote = if value.contains(WHITESPACE) {
            "; write several names as \"a.service\" \"b.service\" or one on each line"
        } else {
            ""
        };
        format!("{value:?}: {error}{quote}")
    })?;
    if peer == *name {
        return Err("a unit cannot be tied to itself".to_owned());
    }
    if peer.is_template() {
        return Err(format!("{peer} is a template, which is never placed; name an instance of it"));
    }
    Ok(peer)
}

pub(super) fn parse_dependency(value: &str, name: &UnitName) -> Result<UnitName, String> {
    let other = UnitName::parse(value).map_err(|error| format!("{value:?}: {error}"))?;
    if other == *name {
        return Err("a unit cannot wait for itself".to_owned());
    }
    if other.is_template() {
        return Err(format!("{other} is a template, which is never started; name an instance of it"));
    }
    Ok(other)
}

pub(super) fn span_between(value: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let span = quantity::time_span(value)
        .ok_or_else(|| format!("{value:?} is no time span; write seconds (10) or units (500ms, 2min 30s)"))?;
    if span < least || span > most {
        return Err(format!("{value:?} is not between {} s and {} s", least.as_secs(), most.as_secs()));
    }
    Ok(span)
}

pub(super) fn parse_label(text: &str) -> Result<(&str, &str), String> {
    let hint = if text.matches('=').count() > 1 && text.contains(WHITESPACE) {
        "; write several pairs as \"a=1\" \"b=2\" or one on each line"
    } else {
        ""
    };
    let bad = |why: &str| Err(format!("{text:?} is not key=value: {why}{hint}"));
    let Some((key, value)) = text.split_once('=') else {
        return bad("there is no \"=\"");
    };
    if value.contains('=') {
        return bad("there is more than one \"=\"");
    }
    if key.is_empty() || value.is_empty() {
        return bad("one side is empty");
    }
    if key.ends_with(['!', '<', '>', '~']) {
        return bad("labels can only be compared for equality");
    }
    if key.trim_matches(WHITESPACE) != key || value.trim_matches(WHITESPACE) != value {
        return bad("there are blanks beside the \"=\" or at an end");
    }
    Ok((key, value))
}

pub(super) fn parse_memory(value: &str) -> Result<Bytes, String> {
    if value == "infinity" || value.ends_with(['%', '‰', '‱']) {
        return Err(format!(
            "{value:?} cannot be set aside: what it means differs from machine to machine; write bytes, such as 512M"
        ));
    }
    value.parse().map_err(|error: QuantityError| error.to_string())
}
