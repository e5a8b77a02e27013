//! Object paths of units and jobs.

use std::fmt::Write;

/// Under which all units are.
pub(super) const UNITS: &str = "/org/freedesktop/systemd1/unit";

/// The object path of a unit: `bus_path_escape()` of systemd.
pub(super) fn of_unit(name: &str) -> String {
    let mut path = format!("{UNITS}/");
    for (at, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => path.push(char::from(byte)),
            b'0'..=b'9' if at > 0 => path.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => write!(path, "_{byte:02x}").unwrap_or_default(),
        }
    }
    path
}

/// The unit that has this object path; none when it is no unit's.
pub(super) fn unit(path: &str) -> Option<String> {
    let escaped = path.strip_prefix(UNITS)?.strip_prefix('/')?;
    let mut name = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'_' {
            name.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        name.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(name).ok()
}

/// The number of the job that has this object path.
pub(super) fn job(path: &str) -> Option<u32> {
    path.rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_and_paths_names() {
        let cases = [
            ("web.service", "web_2eservice"),
            ("1st.service", "_31st_2eservice"),
            ("web@a-b_c\\x2d.service", "web_40a_2db_5fc_5cx2d_2eservice"),
        ];
        for (name, escaped) in cases {
            let path = of_unit(name);
            assert_eq!(path, format!("{UNITS}/{escaped}"));
            assert_eq!(unit(&path).as_deref(), Some(name));
        }
        for path in [
            "/org/freedesktop/systemd1",
            "/org/freedesktop/systemd1/unit/a_2",
            "/org/freedesktop/systemd1/unit/_zz",
        ] {
            assert_eq!(unit(path), None, "{path}");
        }
    }

    #[test]
    fn jobs_have_numbers() {
        assert_eq!(job("/org/freedesktop/systemd1/job/4711"), Some(4711));
        assert_eq!(job("/"), None);
    }
}
