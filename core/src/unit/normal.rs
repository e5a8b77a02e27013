//! The text of a unit file that was only known as its assignments, as fleet's API hands it over.

/// fleet's normal form of these assignments, each its section, its name and its value: sections in the order in which they
/// come first, with an empty line between. Nothing is checked.
pub fn normal_form<'a>(assignments: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> String {
    let mut sections: Vec<(&str, String)> = Vec::new();
    for (section, name, value) in assignments {
        let line = format!("{name}={value}\n");
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, lines)) => lines.push_str(&line),
            None => sections.push((section, line)),
        }
    }
    let sections: Vec<String> = sections.iter().map(|(name, lines)| format!("[{name}]\n{lines}")).collect();
    sections.join("\n")
}
