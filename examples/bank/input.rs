//! Reads transfers from a text file, line by line, and refuses bad lines with their number and the reason.
//!
//! Format      the header `id,from,to,cents`, then one transfer a line: a number that no other line uses, two account
//!             names, an amount from 1 to [`CENTS_MAX`]. No quotes. Lines end with LF or CRLF.
//! Guarantee   every line after the header is either a transfer or a refusal; a bad line spoils no other line.
//! Limits      [`LINE_BYTES_MAX`] bytes a line, [`TRANSFERS_MAX`] transfers a file: memory does not follow the file.

use std::collections::HashMap;
use std::io::{self, BufRead, Read as _};

use serde::{Deserialize, Serialize};

use super::accounts::AccountId;

/// The longest line that is looked at; the longest sensible one has 20 + 7 + 7 + 20 characters and three commas.
pub const LINE_BYTES_MAX: usize = 256;

/// How many transfers a file may have: their ids are remembered to find duplicates, and every replica keeps a ledger of
/// all of them for the proof at the end, together some 200 bytes each and process.
pub const TRANSFERS_MAX: usize = 1_000_000;

/// The largest amount of one transfer: ten million in whole money. Sums of it cannot overflow.
pub const CENTS_MAX: u64 = 1_000_000_000;

/// The first line of every file.
pub const HEADER: &str = "id,from,to,cents";

/// One order: move `cents` between two accounts, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The order's number; an order that is repeated under the same number is not executed again.
    pub id: u64,
    /// Who pays.
    pub from: AccountId,
    /// Who receives.
    pub to: AccountId,
    /// How much, at least 1.
    pub cents: u64,
}

/// What one line of the file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// An order that can be carried out as far as the line itself tells.
    Transfer(u64, Transfer),
    /// A line that is no order, with its number.
    Refused(u64, BadLine),
}

/// Why a line is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// Too few or too many commas.
    #[error("{found} columns instead of 4")]
    Columns {
        /// How many there are.
        found: usize,
    },
    /// The line is longer than any order.
    #[error("longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// Bytes that are no text.
    #[error("not valid UTF-8")]
    NotText,
    /// A column that is no number.
    #[error("{column} {found:?} is not a number")]
    NotANumber {
        /// Its name.
        column: &'static str,
        /// What stands there.
        found: String,
    },
    /// A column that is no account's name.
    #[error("{column} {found:?} is not an account name such as b1-0042")]
    NotAnAccount {
        /// Its name.
        column: &'static str,
        /// What stands there.
        found: String,
    },
    /// Nothing, or less than nothing, would be moved.
    #[error("amount {found} is not positive")]
    NotPositive {
        /// What stands there.
        found: String,
    },
    /// More than one transfer may move.
    #[error("amount {found} exceeds the limit of {CENTS_MAX} cents")]
    TooMuch {
        /// What stands there.
        found: String,
    },
    /// From an account to itself.
    #[error("from and to are both {account}")]
    SameAccount {
        /// The account.
        account: AccountId,
    },
    /// The number was taken by an earlier line.
    #[error("id {id} was used on line {first_line}")]
    DuplicateId {
        /// The number.
        id: u64,
        /// Where it was first used.
        first_line: u64,
    },
}

impl BadLine {
    /// A name for all lines that are refused for the same reason.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Columns { .. } => "wrong number of columns",
            Self::TooLong => "line too long",
            Self::NotText => "not valid UTF-8",
            Self::NotANumber { .. } => "not a number",
            Self::NotAnAccount { .. } => "not an account name",
            Self::NotPositive { .. } => "amount not positive",
            Self::TooMuch { .. } => "amount too large",
            Self::SameAccount { .. } => "from and to are the same",
            Self::DuplicateId { .. } => "id used before",
        }
    }
}

/// Why a file cannot be read (further). What was read before stays valid.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The first line is not the header.
    #[error("line 1 is {found:?} instead of {HEADER:?}")]
    Header {
        /// What stands there, shortened.
        found: String,
    },
    /// More transfers than a run takes.
    #[error("line {line}: more than {TRANSFERS_MAX} transfers")]
    TooMany {
        /// The first line that is not read.
        line: u64,
    },
    /// The file could not be read.
    #[error("line {line} cannot be read")]
    Io {
        /// The line that was wanted.
        line: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The lines of one file, as an iterator that ends after the first [`InputError`].
pub struct Lines<R> {
    reader: R,
    line: u64,
    buffer: Vec<u8>,
    first_use: HashMap<u64, u64>,
    is_over: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`InputError::Header`] when it is missing, [`InputError::Io`].
    pub fn open(reader: R) -> Result<Self, InputError> {
        let mut lines =
            Self { reader, line: 0, buffer: Vec::new(), first_use: HashMap::new(), is_over: false };
        let is_header = lines.read_line()? == Some(Ok(())) && lines.buffer == HEADER.as_bytes();
        if is_header {
            Ok(lines)
        } else {
            let found = String::from_utf8_lossy(&lines.buffer).chars().take(40).collect();
            Err(InputError::Header { found })
        }
    }

    /// Puts the next line into the buffer, without its end; `None` at the end of the file.
    fn read_line(&mut self) -> Result<Option<Result<(), BadLine>>, InputError> {
        self.line += 1;
        let line = self.line;
        let io = |source| InputError::Io { line, source };
        self.buffer.clear();
        // One more than the longest line, and its end.
        let limit = LINE_BYTES_MAX as u64 + 2;
        self.reader.by_ref().take(limit).read_until(b'\n', &mut self.buffer).map_err(io)?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let is_whole = self.buffer.last() == Some(&b'\n');
        while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
            self.buffer.pop();
        }
        if self.buffer.len() <= LINE_BYTES_MAX {
            return Ok(Some(Ok(())));
        }
        if !is_whole {
            skip_line(&mut self.reader).map_err(io)?;
        }
        Ok(Some(Err(BadLine::TooLong)))
    }

    fn next_line(&mut self) -> Result<Option<Line>, InputError> {
        let Some(read) = self.read_line()? else { return Ok(None) };
        match read.and_then(|()| parse(&self.buffer)) {
            Err(reason) => Ok(Some(Line::Refused(self.line, reason))),
            Ok(transfer) => {
                if let Some(&first_line) = self.first_use.get(&transfer.id) {
                    let reason = BadLine::DuplicateId { id: transfer.id, first_line };
                    return Ok(Some(Line::Refused(self.line, reason)));
                }
                if self.first_use.len() == TRANSFERS_MAX {
                    return Err(InputError::TooMany { line: self.line });
                }
                self.first_use.insert(transfer.id, self.line);
                Ok(Some(Line::Transfer(self.line, transfer)))
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Line, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_line().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// Reads one line's text. The order of the checks is the order of the columns.
fn parse(line: &[u8]) -> Result<Transfer, BadLine> {
    let text = str::from_utf8(line).map_err(|_| BadLine::NotText)?;
    let columns: Vec<&str> = text.split(',').collect();
    let [id, from, to, cents] = columns[..] else { return Err(BadLine::Columns { found: columns.len() }) };
    let id = id.parse().map_err(|_| BadLine::NotANumber { column: "id", found: id.to_owned() })?;
    let account = |column, text: &str| {
        text.parse::<AccountId>().map_err(|_| BadLine::NotAnAccount { column, found: text.to_owned() })
    };
    let (from, to) = (account("from", from)?, account("to", to)?);
    let cents = parse_cents(cents)?;
    if from == to {
        return Err(BadLine::SameAccount { account: from });
    }
    Ok(Transfer { id, from, to, cents })
}

fn parse_cents(text: &str) -> Result<u64, BadLine> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadLine::NotANumber { column: "cents", found: text.to_owned() });
    }
    let found = text.to_owned();
    match digits.parse::<u64>() {
        Ok(0) => Err(BadLine::NotPositive { found }),
        _ if digits.len() < text.len() => Err(BadLine::NotPositive { found }),
        Ok(cents) if cents <= CENTS_MAX => Ok(cents),
        // Only digits, so the one way not to be a number is to be too large for one.
        Ok(_) | Err(_) => Err(BadLine::TooMuch { found }),
    }
}

/// Reads to the end of the line without keeping it.
fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let piece = reader.fill_buf()?;
        let end = piece.iter().position(|b| *b == b'\n');
        let taken = end.map_or(piece.len(), |at| at + 1);
        reader.consume(taken);
        if end.is_some() || taken == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line after the header as `line: what became of it`.
    fn read(body: &[u8]) -> Vec<String> {
        let mut file = format!("{HEADER}\n").into_bytes();
        file.extend_from_slice(body);
        let lines = Lines::open(&file[..]).expect("the header is right");
        lines
            .map(|line| match line.expect("memory can be read") {
                Line::Transfer(line, t) => format!("{line}: {} {} {} {}", t.id, t.from, t.to, t.cents),
                Line::Refused(line, reason) => format!("{line}: {reason}"),
            })
            .collect()
    }

    #[test]
    fn good_lines_become_transfers_whatever_ends_them() {
        assert_eq!(
            read(b"1,b1-0001,b2-0002,500\r\n2,b1-0001,b1-0002,1\n3,b9-9999,b1-0002,1000000000"),
            ["2: 1 b1-0001 b2-0002 500", "3: 2 b1-0001 b1-0002 1", "4: 3 b9-9999 b1-0002 1000000000"]
        );
    }

    #[test]
    fn every_kind_of_bad_line_is_refused_with_its_number_and_reason() {
        let cases: [(&[u8], &str); 14] = [
            (b"1,b1-0001,b1-0002", "3 columns instead of 4"),
            (b"1,b1-0001,b1-0002,5,x", "5 columns instead of 4"),
            (b"", "1 columns instead of 4"),
            (b"x,b1-0001,b1-0002,5", "id \"x\" is not a number"),
            (b"-1,b1-0001,b1-0002,5", "id \"-1\" is not a number"),
            (b"1,c1-0001,b1-0002,5", "from \"c1-0001\" is not an account name such as b1-0042"),
            (b"1,b1-0001,,5", "to \"\" is not an account name such as b1-0042"),
            (b"1,b1-0001,b1-0002,5.0", "cents \"5.0\" is not a number"),
            (b"1,b1-0001,b1-0002,0", "amount 0 is not positive"),
            (b"1,b1-0001,b1-0002,-5", "amount -5 is not positive"),
            (b"1,b1-0001,b1-0002,1000000001", "amount 1000000001 exceeds the limit of 1000000000 cents"),
            (
                b"1,b1-0001,b1-0002,99999999999999999999",
                "amount 99999999999999999999 exceeds the limit of 1000000000 cents",
            ),
            (b"1,b1-0001,b1-0001,5", "from and to are both b1-0001"),
            (b"1,b1-00\xff1,b1-0001,5", "not valid UTF-8"),
        ];
        for (line, reason) in cases {
            let mut body = line.to_vec();
            body.extend_from_slice(b"\n7,b1-0001,b1-0002,5\n");
            assert_eq!(read(&body), [format!("2: {reason}"), "3: 7 b1-0001 b1-0002 5".to_owned()]);
        }
    }

    #[test]
    fn a_repeated_id_is_refused_and_names_the_line_that_used_it() {
        assert_eq!(
            read(b"8,b1-0001,b1-0002,5\nx\n8,b1-0001,b1-0002,5\n8,b2-0001,b1-0002,6\n"),
            [
                "2: 8 b1-0001 b1-0002 5",
                "3: 1 columns instead of 4",
                "4: id 8 was used on line 2",
                "5: id 8 was used on line 2"
            ]
        );
    }

    #[test]
    fn a_line_without_end_is_refused_and_skipped_in_bounded_memory() {
        let mut body = vec![b'9'; 100_000];
        body.extend_from_slice(b"\n7,b1-0001,b1-0002,5\n");
        assert_eq!(read(&body), ["2: longer than 256 bytes", "3: 7 b1-0001 b1-0002 5"]);
        for length in LINE_BYTES_MAX..LINE_BYTES_MAX + 4 {
            let mut body = vec![b'9'; length];
            body.extend_from_slice(b"\n7,b1-0001,b1-0002,5\n");
            let lines = read(&body);
            assert_eq!(lines.len(), 2, "{length}: {lines:?}");
            assert_eq!(lines[1], "3: 7 b1-0001 b1-0002 5", "{length}");
        }
    }

    #[test]
    fn a_file_without_the_header_is_no_list_of_transfers() {
        for file in ["", "1,b1-0001,b1-0002,5\n", "id;from;to;cents\n"] {
            assert!(matches!(Lines::open(file.as_bytes()), Err(InputError::Header { .. })), "{file:?}");
        }
    }
}
