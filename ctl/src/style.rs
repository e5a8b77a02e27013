//! What is coloured, by role. Whether colour is shown at all is anstream's to decide (terminal, `NO_COLOR`).

use std::borrow::Cow;

use anstyle::{AnsiColor, Style};

/// What a piece of text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nothing special.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Wrong.
    Bad,
    /// On its way, or worth a look.
    Warn,
    /// What the eye should find first.
    Strong,
}

impl Role {
    /// How it looks.
    pub const fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Strong => Style::new().bold(),
        }
    }

    /// The role of a unit that systemd shows with this `ActiveState`.
    pub fn of_active_state(active: &str) -> Self {
        match active {
            "active" => Self::Good,
            "failed" => Self::Bad,
            "activating" | "deactivating" | "reloading" | "maintenance" => Self::Warn,
            _ => Self::Plain,
        }
    }

    /// The text in this role's look.
    pub fn paint(self, text: &str) -> String {
        let style = self.style();
        format!("{style}{text}{style:#}")
    }
}

/// The text without anything that a terminal takes for an order: units' descriptions and machines' messages come from
/// others.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() && c != '\t';
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if bad(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    Cow::Owned(clean)
}

/// Says on standard error what the user should know although the command goes on.
pub fn warn(text: &str) {
    anstream::eprintln!("{} {}", Role::Warn.paint("WARNING:"), harmless(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_to_the_terminal_are_shown_not_obeyed() {
        assert_eq!(harmless("a \u{1b}[2J b"), "a \\u{1b}[2J b");
        assert_eq!(harmless("Wörter, 日本"), "Wörter, 日本");
    }
}
