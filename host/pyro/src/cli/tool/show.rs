//! What a person sees of a result, as the tool's form says.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use clap::ArgMatches;
use pyro::{CliForm, CliTable, ContentBody, HumanForm, ToolOutcome};
use serde_json::{Map, Value};

use super::{CONTENT_ONLY, ID_ONLY, JSON};
use crate::printer::Printer;

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Human,
    Json,
    IdOnly,
    ContentOnly,
}

impl Way {
    /// Returns the way that was asked for.
    pub fn of(matches: &ArgMatches) -> Way {
        [(JSON, Way::Json), (ID_ONLY, Way::IdOnly), (CONTENT_ONLY, Way::ContentOnly)]
            .into_iter()
            .find(|(name, _)| super::flag(matches, name))
            .map_or(Way::Human, |(_, way)| way)
    }
}

/// Prints a result. Of one whose output was streamed, what came that way is not printed again.
pub fn outcome(outcome: &ToolOutcome, form: &CliForm, way: Way, streamed: bool, printer: &Printer) {
    let nothing = Map::new();
    let result = outcome.structured.as_ref().unwrap_or(&nothing);
    let answer = form.answers.iter().find(|answer| result.contains_key(&answer.when));
    match way {
        Way::Human if let Some(answer) = answer => {
            texts(result, &answer.human, printer);
            // In the place of a command's output, but no file that may end anywhere.
            if !text(result, &answer.human.text).is_none_or(|text| text.ends_with('\n')) {
                printer.data("\n");
            }
            human(result, &answer.human, false, printer);
        }
        Way::Json if outcome.structured.is_some() => printer.json(result),
        Way::IdOnly => printer.line(&form.id.as_deref().map(|id| shown(id, at(result, id))).unwrap_or_default()),
        Way::ContentOnly => {
            let text = form.human.as_ref().and_then(|human| human.text.as_deref());
            printer.data(text.and_then(|name| at(result, name)).and_then(Value::as_str).unwrap_or_default());
        }
        Way::Human if form.human.is_some() && outcome.structured.is_some() => {
            let human_form = form.human.clone().unwrap_or_default();
            if !streamed {
                texts(result, &human_form, printer);
            }
            human(result, &human_form, form.streams, printer);
        }
        Way::Human if form.streams => {
            if !streamed {
                let text = |key: &str| result.get(key).and_then(Value::as_str).unwrap_or_default();
                printer.bytes(text("stdout").as_bytes());
                printer.error_bytes(text("stderr").as_bytes());
            }
        }
        Way::Human | Way::Json if outcome.structured.is_some() => printer.json(result),
        Way::Human | Way::Json => content(outcome, printer),
    }
}

/// Prints the blocks of a result without structure.
fn content(outcome: &ToolOutcome, printer: &Printer) {
    for block in &outcome.content {
        match &block.body {
            ContentBody::Text(text) => printer.line(text.trim_end_matches('\n')),
            ContentBody::Bytes(bytes) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                printer.line(&format!("data:{};base64,{text}", block.mime));
            }
        }
    }
}

fn text<'a>(result: &'a Map<String, Value>, name: &Option<String>) -> Option<&'a str> {
    name.as_deref().and_then(|name| at(result, name)).and_then(Value::as_str)
}

/// Prints what goes to both outputs as it is.
fn texts(result: &Map<String, Value>, form: &HumanForm, printer: &Printer) {
    if let Some(text) = text(result, &form.text) {
        printer.data(text);
    }
    if let Some(text) = text(result, &form.error_text) {
        printer.error_bytes(text.as_bytes());
    }
}

fn human(result: &Map<String, Value>, form: &HumanForm, streams: bool, printer: &Printer) {
    if let Some(table) = &form.table {
        print_table(result, table, printer);
    }
    if let Some(blocks) = &form.blocks {
        for row in rows(result, &blocks.rows) {
            printer.line(&filled(&blocks.head, row));
            for name in &blocks.text {
                let text = at(row, name).and_then(Value::as_str).unwrap_or_default();
                printer.data(text);
                if !text.is_empty() && !text.ends_with('\n') {
                    printer.data("\n");
                }
            }
        }
    }
    let width = form.fields.iter().map(|name| name.len()).max().unwrap_or_default();
    for name in &form.fields {
        printer.line(&format!("{name:width$}  {}", cell(&shown(name, at(result, name)))));
    }
    if let Some(template) = &form.summary {
        let line = filled(template, result);
        // What a command printed stays alone on both streams.
        if streams { printer.detail(&line) } else { printer.note(&line) }
    }
}

fn print_table(result: &Map<String, Value>, table: &CliTable, printer: &Printer) {
    let mut lines = vec![table.columns.iter().map(|name| head(name)).collect::<Vec<_>>()];
    for row in rows(result, &table.rows) {
        lines.push(table.columns.iter().map(|name| cell(&shown(name, at(row, name)))).collect());
    }
    for line in aligned(&lines) {
        printer.line(&line);
    }
}

fn head(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).to_uppercase()
}

/// Returns the lines with every column but the last padded to its widest cell.
fn aligned(lines: &[Vec<String>]) -> Vec<String> {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let padded = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(padded).collect()
}

fn rows<'a>(result: &'a Map<String, Value>, name: &str) -> impl Iterator<Item = &'a Map<String, Value>> {
    at(result, name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object)
}

/// Returns the value at a way of property names joined with dots.
fn at<'a>(object: &'a Map<String, Value>, way: &str) -> Option<&'a Value> {
    let mut names = way.split('.');
    let mut value = object.get(names.next()?)?;
    for name in names {
        value = value.get(name)?;
    }
    Some(value)
}

/// Returns a template with its properties in place.
fn filled(template: &str, object: &Map<String, Value>) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let Some((name, behind)) = after.split_once('}') else {
            text.push('{');
            rest = after;
            continue;
        };
        text.push_str(&shown(name, at(object, name)));
        rest = behind;
    }
    text.push_str(rest);
    text
}

fn shown(name: &str, value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(seconds) if name.ends_with("_at") => time(seconds),
            _ => number.to_string(),
        },
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| shown("", Some(item))).collect::<Vec<_>>().join(", "),
        Some(Value::Object(pairs)) if pairs.is_empty() => "-".to_owned(),
        Some(Value::Object(pairs)) => {
            pairs.iter().map(|(key, value)| format!("{key}={}", shown(key, Some(value)))).collect::<Vec<_>>().join(", ")
        }
        Some(other) => other.to_string(),
    }
}

/// Returns what a terminal shows of a cell: guests choose names, and a name must not move the cursor or end the line.
fn cell(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Returns a point in time, in UTC.
fn time(seconds: f64) -> String {
    let since = Duration::try_from_secs_f64(seconds).ok().and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since));
    // The end of year 9999 is the last that has such a form.
    match since.filter(|_| seconds < 253_402_300_800.0) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn properties_are_shown_by_their_way() {
        let object = json!({
            "path": "/a", "seed": {"mode": "empty"}, "labels": {"a": "1", "b": "2"}, "none": null, "list": ["x", "y"],
            "created_at": 1_700_000_000.5, "count": 3, "flag": true,
        });
        let object = object.as_object().unwrap();
        assert_eq!(
            filled("{path}: {seed.mode}, {labels}, {none}, {list}, {created_at}, {count}, {flag}, {gone}", object),
            "/a: empty, a=1, b=2, -, x, y, 2023-11-14T22:13:20Z, 3, true, -"
        );
        assert_eq!(filled("open { and {path", object), "open { and {path");
        assert_eq!(time(253_402_300_800.0), "253402300800");
        assert_eq!(time(-1.0), "-1");
    }

    #[test]
    fn columns_are_aligned_and_names_cannot_move_the_cursor() {
        let lines = [vec!["NAME".to_owned(), "SIZE".to_owned()], vec![cell("long\u{1b}[2Jname\n"), "1".to_owned()]];
        assert_eq!(aligned(&lines), ["NAME           SIZE", "long\u{fffd}[2Jname\u{fffd}  1"]);
    }
}
