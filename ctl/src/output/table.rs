//! Lists of things with fields: columns for people, JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde_json::{Map, Value};

use crate::style::{Role, harmless};

/// One field of one thing.
#[derive(Clone, Debug)]
pub struct Field {
    /// The name in `--fields` and in JSON; in capitals it is the column's heading.
    pub name: &'static str,
    /// What people see.
    pub text: String,
    /// How it looks.
    pub role: Role,
    /// What programs see, where it is not that text.
    json: Option<Value>,
}

impl Field {
    /// A field that shows `-` (and `null`) when there is nothing.
    pub fn optional(name: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => Self::text(name, value.into()),
            None => Self { name, text: "-".to_owned(), role: Role::Plain, json: Some(Value::Null) },
        }
    }

    /// A field that people and programs see alike.
    pub fn text(name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        let (text, json) = match harmless(&value) {
            Cow::Owned(text) => (text, Some(Value::String(value))),
            Cow::Borrowed(_) => (value, None),
        };
        Self { name, text, role: Role::Plain, json }
    }

    /// The same field with other text for people.
    pub fn shown_as(mut self, text: impl Into<String>) -> Self {
        let text = std::mem::replace(&mut self.text, text.into());
        self.json.get_or_insert(Value::String(text));
        self
    }

    /// The same field with another value for programs.
    pub fn with_json(mut self, json: impl Into<Value>) -> Self {
        self.json = Some(json.into());
        self
    }

    /// The same field in another look.
    pub fn in_role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

/// A list: each row has the same fields in the same order.
pub type Rows = Vec<Vec<Field>>;

/// How columns are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// For people: blanks.
    Blanks,
    /// For scripts that were written for fleetctl: tabs, as many as it takes to be aligned where tabs are 8 wide.
    Tabs,
}

impl Columns {
    /// Those for whoever reads standard output.
    pub fn of_stdout() -> Self {
        if io::stdout().is_terminal() { Self::Blanks } else { Self::Tabs }
    }
}

/// Writes columns, aligned and never cut short. `fields` are the columns from left to right.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_table(
    out: &mut impl Write,
    rows: &Rows,
    fields: &[&'static str],
    legend: bool,
    columns: Columns,
) -> io::Result<()> {
    if fields.is_empty() {
        return Ok(());
    }
    let header = legend.then(|| fields.iter().map(|name| name.to_ascii_uppercase()));
    let cells = |row: &Vec<Field>| -> Vec<usize> {
        fields.iter().filter_map(|name| row.iter().position(|field| field.name == *name)).collect()
    };
    match columns {
        Columns::Tabs => {
            // All rows have the same fields in the same order.
            let places = rows.first().map(cells).unwrap_or_default();
            let mut lines: Vec<Vec<Cow<'_, str>>> = Vec::with_capacity(rows.len() + 1);
            lines.extend(header.map(|names| names.map(Cow::Owned).collect()));
            lines.extend(rows.iter().map(|row| {
                places.iter().map(|place| Cow::Borrowed(row[*place].text.as_str())).collect::<Vec<_>>()
            }));
            write_tabs(out, &lines)
        }
        Columns::Blanks => {
            let mut table = Table::new();
            // The writer behind takes colour out where there is none.
            table
                .load_style(presets::NOTHING)
                .set_content_arrangement(ContentArrangement::Disabled)
                .enforce_styling();
            if let Some(names) = header {
                table.set_header(names);
            }
            for row in rows {
                table.add_row(cells(row).into_iter().map(|place| cell(&row[place])));
            }
            table.style_text_only(); // not the blanks beside it
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            for line in table.lines() {
                writeln!(out, "{}", line.trim_end())?;
            }
            Ok(())
        }
    }
}

/// As wide as fleetctl takes a tab to be.
const TAB: usize = 8;

/// The cells of lines of equal length, the last one of each without a tab.
fn write_tabs(out: &mut impl Write, lines: &[Vec<Cow<'_, str>>]) -> io::Result<()> {
    let width = |text: &str| text.chars().count();
    let mut widths = vec![0; lines.first().map_or(0, Vec::len)];
    for line in lines {
        for (widest, text) in widths.iter_mut().zip(line) {
            *widest = (*widest).max((width(text) + 1).next_multiple_of(TAB));
        }
    }
    let mut text = String::new();
    for line in lines {
        for (index, (cell, widest)) in line.iter().zip(&widths).enumerate() {
            text.push_str(cell);
            if index + 1 < line.len() {
                let tabs = (widest - width(cell)).div_ceil(TAB);
                text.extend(std::iter::repeat_n('\t', tabs));
            }
        }
        text.push('\n');
    }
    out.write_all(text.as_bytes())
}

fn cell(field: &Field) -> Cell {
    let cell = Cell::new(&field.text);
    match field.role {
        Role::Plain => cell,
        Role::Good => cell.fg(Color::Green),
        Role::Bad => cell.fg(Color::Red).add_attribute(Attribute::Bold),
        Role::Warn => cell.fg(Color::Yellow),
        Role::Strong => cell.add_attribute(Attribute::Bold),
    }
}

/// Writes an array of objects, with these fields.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_json(out: &mut impl Write, rows: Rows, fields: &[&'static str]) -> io::Result<()> {
    let objects = rows.into_iter().map(|row| {
        let fields = row.into_iter().filter(|field| fields.contains(&field.name));
        Value::Object(
            fields
                .map(|field| (field.name.to_owned(), field.json.unwrap_or(Value::String(field.text))))
                .collect::<Map<_, _>>(),
        )
    });
    write_array(out, objects)
}

/// Writes a JSON array, one element to a line: readable by people, by line tools and by programs.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_array(out: &mut impl Write, objects: impl Iterator<Item = Value>) -> io::Result<()> {
    let mut separator = "[\n";
    for object in objects {
        write!(out, "{separator}{object}")?;
        separator = ",\n";
    }
    if separator == "[\n" { writeln!(out, "[]") } else { writeln!(out, "\n]") }
}
