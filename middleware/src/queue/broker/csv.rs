//! Comma-separated values (RFC 4180): a line with the names of the columns, then a line for each record.
//!
//! Guarantee   what was written is read as the same texts; what is not of this form is refused with its line, never guessed.
//! Limits      [`COLUMNS_MAX`] columns. Everything is text when it is read; see [`Change::Number`](super::Change::Number).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::field::as_text;
use super::format::{Format, FormatError};

/// The content is a list of objects, one for each record; an object alone is written as one record.
#[derive(Debug, Clone)]
pub struct Csv {
    separator: char,
    columns: Option<Vec<String>>,
}

impl Csv {
    /// With commas. Columns are written in the order of the alphabet, and all that any record has.
    pub fn new() -> Self {
        Self { separator: ',', columns: None }
    }

    /// Another sign between fields, such as `;` or a tab; not a quote or the end of a line.
    pub fn separator(mut self, separator: char) -> Self {
        self.separator = separator;
        self
    }

    /// Writes these columns, in this order; a record that has others is refused.
    pub fn columns<T: Into<String>>(mut self, columns: impl IntoIterator<Item = T>) -> Self {
        self.columns = Some(columns.into_iter().map(Into::into).collect());
        self
    }

    fn line<'a>(&self, out: &mut String, fields: impl Iterator<Item = &'a str>) {
        for (n, field) in fields.enumerate() {
            if n > 0 {
                out.push(self.separator);
            }
            let is_plain = !field.contains([self.separator, '"', '\n', '\r']);
            if is_plain {
                out.push_str(field);
            } else {
                out.push('"');
                out.push_str(&field.replace('"', "\"\""));
                out.push('"');
            }
        }
        out.push('\n');
    }
}

impl Default for Csv {
    fn default() -> Self {
        Self::new()
    }
}

impl Format for Csv {
    fn read(&self, bytes: &[u8]) -> Result<Value, FormatError> {
        let text = std::str::from_utf8(bytes).map_err(FormatError::new)?;
        let mut lines = records(text, self.separator)?.into_iter();
        let Some((_, columns)) = lines.next() else { return Err(FormatError::new("there is no header")) };
        if columns.iter().collect::<BTreeSet<_>>().len() != columns.len() {
            return Err(FormatError::new("line 1: two columns have one name"));
        }
        let record = |(line, fields): (usize, Vec<String>)| {
            if fields.len() != columns.len() {
                let (have, want) = (fields.len(), columns.len());
                return Err(FormatError::new(format_args!("line {line}: {have} fields for {want} columns")));
            }
            let fields = columns.iter().cloned().zip(fields.into_iter().map(Value::from));
            Ok(Value::Object(fields.collect::<Map<_, _>>()))
        };
        lines.map(record).collect::<Result<_, _>>().map(Value::Array)
    }

    fn write(&self, content: &Value) -> Result<Vec<u8>, FormatError> {
        let no_record = || FormatError::new("only objects of plain values are records");
        let records: Vec<&Map<String, Value>> = match content {
            Value::Object(record) => vec![record],
            Value::Array(list) => {
                list.iter().map(Value::as_object).collect::<Option<_>>().ok_or_else(no_record)?
            }
            _ => return Err(no_record()),
        };
        let found: BTreeSet<&str> =
            records.iter().flat_map(|record| record.keys()).map(String::as_str).collect();
        let columns: Vec<&str> = match &self.columns {
            None => found.into_iter().collect(),
            Some(columns) => {
                if let Some(other) = found.iter().find(|found| !columns.iter().any(|column| column == *found))
                {
                    return Err(FormatError::new(format_args!("there is no column {other:?}")));
                }
                columns.iter().map(String::as_str).collect()
            }
        };
        if columns.is_empty() || columns == [""] {
            return Err(FormatError::new("there are no columns"));
        }
        if columns.len() > COLUMNS_MAX {
            return Err(FormatError::new(format_args!("more than {COLUMNS_MAX} columns")));
        }
        let mut out = String::new();
        self.line(&mut out, columns.iter().copied());
        for record in records {
            let fields = columns.iter().map(|column| match record.get(*column) {
                None | Some(Value::Null) => Ok(String::new()),
                Some(value) => as_text(value).ok_or_else(no_record),
            });
            let fields: Vec<String> = fields.collect::<Result<_, _>>()?;
            if let [only] = &fields[..]
                && only.is_empty()
            {
                // An empty line would be none.
                out.push_str("\"\"\n");
                continue;
            }
            self.line(&mut out, fields.iter().map(String::as_str));
        }
        Ok(out.into_bytes())
    }
}

/// The fields of each line that is not empty, with the number of the line that it begins in.
fn records(text: &str, separator: char) -> Result<Vec<(usize, Vec<String>)>, FormatError> {
    let mut records = Vec::new();
    let mut signs = text.chars().peekable();
    let mut line = 1;
    while signs.peek().is_some() {
        let began = line;
        let mut fields = Vec::new();
        let mut is_quoted = false;
        loop {
            let mut field = String::new();
            if signs.peek() == Some(&'"') {
                is_quoted = true;
                signs.next();
                loop {
                    match signs.next() {
                        Some('"') if signs.peek() == Some(&'"') => {
                            signs.next();
                            field.push('"');
                        }
                        Some('"') => break,
                        Some(sign) => {
                            line += usize::from(sign == '\n');
                            field.push(sign);
                        }
                        None => {
                            return Err(FormatError::new(format_args!("line {began}: a quote has no end")));
                        }
                    }
                }
            } else {
                while let Some(sign) =
                    signs.next_if(|sign| *sign != separator && !matches!(sign, '\n' | '\r' | '"'))
                {
                    field.push(sign);
                }
            }
            fields.push(field);
            if fields.len() > COLUMNS_MAX {
                return Err(FormatError::new(format_args!("line {began}: more than {COLUMNS_MAX} columns")));
            }
            match signs.next() {
                Some(sign) if sign == separator => {}
                Some('\r') if signs.next_if_eq(&'\n').is_some() => break,
                Some('\n') | None => break,
                Some(sign) => {
                    return Err(FormatError::new(format_args!("line {line}: {sign:?} within a field")));
                }
            }
        }
        line += 1;
        let is_empty = matches!(&fields[..], [only] if only.is_empty()) && !is_quoted;
        if !is_empty {
            records.push((began, fields));
        }
    }
    Ok(records)
}

/// More than any table that people look at has.
const COLUMNS_MAX: usize = 1024;
