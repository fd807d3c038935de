//! Tables on the wire: columns, rows, text and binary.

use crate::wire::backend::{DATA_ROW, ROW_DESCRIPTION};
use crate::wire::frame::{put_cstr, put_frame};

/// Type of a column. Object ids from `src/include/catalog/pg_type.dat`; they are PgBouncer's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Numeric,
}

impl Kind {
    fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int4 => 23,
            Self::Numeric => 1700,
        }
    }

    /// `typlen`.
    fn len(self) -> i16 {
        match self {
            Self::Int4 => 4,
            Self::Text | Self::Numeric => -1,
        }
    }
}

/// Name and type.
pub(super) type Column = (&'static str, Kind);

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cell {
    /// Not known, or not applicable.
    Null,
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Cell {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Cell {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Cell {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Cell {
    fn from(is: bool) -> Self {
        Self::Number(is.into())
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One value per column.
pub(super) type Row = Vec<Cell>;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Binary,
}

impl Format {
    /// The format code of the protocol.
    pub(super) fn of(code: u16) -> Option<Self> {
        match code {
            0 => Some(Self::Text),
            1 => Some(Self::Binary),
            _ => None,
        }
    }

    /// The format of a column: none given is text, one given is for all.
    pub(super) fn at(formats: &[Self], column: usize) -> Self {
        match formats {
            [] => Self::Text,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(Self::Text),
        }
    }
}

/// Appends a `RowDescription`.
pub(super) fn put_columns(out: &mut Vec<u8>, columns: &[Column], formats: &[Format]) {
    put_frame(out, ROW_DESCRIPTION, |out| {
        out.extend_from_slice(&count(columns.len()));
        for (index, (name, kind)) in columns.iter().enumerate() {
            put_cstr(out, name.as_bytes());
            // Neither a table nor a column of one.
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&kind.oid().to_be_bytes());
            out.extend_from_slice(&kind.len().to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            let format: u16 = (Format::at(formats, index) == Format::Binary).into();
            out.extend_from_slice(&format.to_be_bytes());
        }
    });
}

/// Appends a `DataRow`.
pub(super) fn put_row(out: &mut Vec<u8>, columns: &[Column], row: &Row, formats: &[Format]) {
    put_frame(out, DATA_ROW, |out| {
        out.extend_from_slice(&count(row.len()));
        for (index, (cell, (_, kind))) in row.iter().zip(columns).enumerate() {
            let Some(value) = encode(cell, *kind, Format::at(formats, index)) else {
                out.extend_from_slice(&(-1_i32).to_be_bytes());
                continue;
            };
            out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&value);
        }
    });
}

fn count(n: usize) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

fn encode(cell: &Cell, kind: Kind, format: Format) -> Option<Vec<u8>> {
    match (cell, kind, format) {
        (Cell::Null, _, _) => None,
        (Cell::Text(text), _, _) => Some(text.replace('\0', "").into_bytes()),
        (Cell::Number(number), Kind::Int4, _) => {
            // Too large is told as the largest.
            let number = i32::try_from(*number).unwrap_or(i32::MAX);
            Some(match format {
                Format::Text => number.to_string().into_bytes(),
                Format::Binary => number.to_be_bytes().to_vec(),
            })
        }
        (Cell::Number(number), Kind::Text, _) | (Cell::Number(number), Kind::Numeric, Format::Text) => {
            Some(number.to_string().into_bytes())
        }
        (Cell::Number(number), Kind::Numeric, Format::Binary) => Some(binary_numeric(*number)),
    }
}

/// As `numeric_send` in `src/backend/utils/adt/numeric.c`: count of digits to the base 10,000, weight of the first,
/// sign, digits behind the point, digits.
fn binary_numeric(number: i64) -> Vec<u8> {
    const BASE: u64 = 10_000;
    const NEGATIVE: u16 = 0x4000;
    let mut digits = Vec::new();
    let mut rest = number.unsigned_abs();
    while rest > 0 {
        digits.push(u16::try_from(rest % BASE).unwrap_or_default());
        rest /= BASE;
    }
    let weight = digits.len().saturating_sub(1);
    // Zeros at the end go without saying.
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    digits.drain(..zeros);
    let mut out = Vec::with_capacity(8 + 2 * digits.len());
    out.extend_from_slice(&count(digits.len()));
    out.extend_from_slice(&count(weight));
    out.extend_from_slice(&(if number < 0 { NEGATIVE } else { 0 }).to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    for digit in digits.iter().rev() {
        out.extend_from_slice(&digit.to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_sent_in_base_ten_thousand() {
        // Drivers that ask for binary would read another number; the bytes are from PostgreSQL's own numeric_send.
        assert_eq!(binary_numeric(0), [0; 8]);
        assert_eq!(binary_numeric(1), [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(binary_numeric(10_000), [0, 1, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!(binary_numeric(-12_345_678), [0, 2, 0, 1, 0x40, 0, 0, 0, 0x04, 0xd2, 0x16, 0x2e]);
    }

    #[test]
    fn a_number_beyond_its_column_is_the_largest_that_fits() {
        // Wrapping round would show a small or negative count where something has gone far out of bounds.
        let cell = Cell::Number(i64::from(i32::MAX) + 1);

        assert_eq!(encode(&cell, Kind::Int4, Format::Text).unwrap(), b"2147483647");
        assert_eq!(encode(&cell, Kind::Int4, Format::Binary).unwrap(), i32::MAX.to_be_bytes());
    }
}
