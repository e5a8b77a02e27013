//! Lists of things with fields: columns for people, JSON for programs.

use std::io::{self, Write};

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
    /// What programs see.
    pub json: Value,
}

impl Field {
    /// A field that shows `-` (and `null`) when there is nothing.
    pub fn optional(name: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => Self::text(name, value.into()),
            None => Self { name, text: "-".to_owned(), role: Role::Plain, json: Value::Null },
        }
    }

    /// A field that people and programs see alike.
    pub fn text(name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        Self { name, text: harmless(&value).into_owned(), role: Role::Plain, json: Value::String(value) }
    }

    /// The same field with other text for people.
    pub fn shown_as(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// The same field with another value for programs.
    pub fn with_json(mut self, json: impl Into<Value>) -> Self {
        self.json = json.into();
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

/// Writes columns, aligned with blanks and never cut short. `fields` are the columns from left to right.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_table(
    out: &mut impl Write,
    rows: &Rows,
    fields: &[&'static str],
    legend: bool,
) -> io::Result<()> {
    if fields.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    // The writer behind takes colour out where there is none.
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .enforce_styling();
    if legend {
        table.set_header(fields.iter().map(|name| name.to_ascii_uppercase()));
    }
    for row in rows {
        let found = fields.iter().filter_map(|name| row.iter().find(|field| field.name == *name));
        table.add_row(found.map(cell));
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

/// Writes an array of objects, with these fields or with all.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_json(out: &mut impl Write, rows: Rows, fields: Option<&[&'static str]>) -> io::Result<()> {
    let wanted = |name| fields.is_none_or(|fields| fields.contains(&name));
    let objects = rows.into_iter().map(|row| {
        let fields = row.into_iter().filter(|field| wanted(field.name));
        Value::Object(fields.map(|field| (field.name.to_owned(), field.json)).collect::<Map<_, _>>())
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
