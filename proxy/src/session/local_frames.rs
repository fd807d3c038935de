//! What the answers to statements about the terms of a session look like: PostgreSQL's own, byte by byte.

use crate::sql::terms::{Command, ResetTag, Setting, SettingError};
use crate::wire::frame::{put_cstr, put_frame};
use crate::wire::{ErrorMessage, Severity, SqlState, backend as reply};

/// A type of a column: its `OID` and its length (`src/include/catalog/pg_type.dat`).
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnType(u32, i16);

const TEXT: ColumnType = ColumnType(25, -1);
/// Of functions that give nothing; its only value is empty.
pub(super) const VOID: ColumnType = ColumnType(2278, 4);

/// The SQLSTATE of an error about a setting of ours.
pub(crate) fn setting_code(error: &SettingError) -> SqlState {
    match error {
        SettingError::Unknown(_) => SqlState::UNDEFINED_OBJECT,
        SettingError::BadValue { .. } | SettingError::OutOfRange { .. } => SqlState::INVALID_PARAMETER_VALUE,
    }
}

/// The error about a setting.
pub(super) fn error_frame(error: &SettingError) -> Box<[u8]> {
    let message = error.to_string();
    frame_of(&ErrorMessage {
        severity: Severity::Error,
        code: setting_code(error),
        message: &message,
        detail: "",
        hint: error.hint(),
    })
}

/// What PostgreSQL says to any statement in a failed transaction.
pub(super) fn failed_transaction() -> Box<[u8]> {
    frame_of(&ErrorMessage {
        severity: Severity::Error,
        code: SqlState::IN_FAILED_SQL_TRANSACTION,
        message: "current transaction is aborted, commands ignored until end of transaction block",
        detail: "",
        hint: "",
    })
}

/// What PostgreSQL says to a second statement of the same name.
pub(super) fn taken_name(name: &[u8]) -> Box<[u8]> {
    frame_of(&ErrorMessage {
        severity: Severity::Error,
        code: SqlState::DUPLICATE_PREPARED_STATEMENT,
        message: &format!("prepared statement \"{}\" already exists", String::from_utf8_lossy(name)),
        detail: "",
        hint: "",
    })
}

fn frame_of(message: &ErrorMessage<'_>) -> Box<[u8]> {
    let mut frame = Vec::new();
    message.put(&mut frame);
    frame.into()
}

/// The command tag of a statement.
pub(super) fn command_tag(command: &Command) -> &'static [u8] {
    match command {
        Command::Set(..) | Command::Reset(_, _, ResetTag::Set) | Command::Refuse(_) => b"SET",
        Command::Reset(_, _, ResetTag::Reset) => b"RESET",
        Command::Show(_) => b"SHOW",
    }
}

/// One column of type text, as SHOW has it.
pub(super) fn put_row_description(out: &mut Vec<u8>, setting: Setting, format: u16) {
    put_column(out, setting.name().as_bytes(), TEXT, format);
}

/// The description of rows with one column.
pub(super) fn put_column(out: &mut Vec<u8>, name: &[u8], ColumnType(oid, len): ColumnType, format: u16) {
    put_frame(out, reply::ROW_DESCRIPTION, |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        put_cstr(out, name);
        // No table, no column of it; then type, its length, its modifier.
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&oid.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&(-1_i32).to_be_bytes());
        out.extend_from_slice(&format.to_be_bytes());
    });
}

/// A row of one text.
pub(super) fn put_row(out: &mut Vec<u8>, value: &str) {
    put_frame(out, reply::DATA_ROW, |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    });
}

/// PostgreSQL's warning (`WarnNoTransactionBlock` in xact.c).
pub(super) fn put_local_warning(out: &mut Vec<u8>) {
    put_frame(out, reply::NOTICE_RESPONSE, |out| {
        let code = SqlState::NO_ACTIVE_SQL_TRANSACTION;
        let fields: [(u8, &[u8]); 4] = [
            (b'S', b"WARNING"),
            (b'V', b"WARNING"),
            (b'C', code.as_bytes()),
            (b'M', b"SET LOCAL can only be used in transaction blocks"),
        ];
        for (kind, value) in fields {
            out.push(kind);
            put_cstr(out, value);
        }
        out.push(0);
    });
}
