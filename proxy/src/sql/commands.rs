//! Texts of nothing but SET, SHOW and RESET of our own settings, read completely so that they can be answered without a
//! server. One that deviates from the grammar in anything but a value is not ours: PostgreSQL refuses it better.

use super::lexer::{Lexer, PlainStrings};
use super::name::Name;
use super::terms::{Command, ResetTag, Setting, SettingError, Span};
use super::token::{Token, TokenKind};

/// More statements in one text than this, and the server gets it.
const COMMANDS_MAX: usize = 64;

/// The statements of a text, if all of them are about settings of ours and the text has at least one.
pub fn commands(text: &[u8]) -> Option<Vec<Command>> {
    if !may_be_commands(text) {
        return None;
    }
    let mut reader = Reader::new(text);
    let mut commands = Vec::new();
    loop {
        match reader.current.kind {
            TokenKind::End => break,
            TokenKind::Semicolon => {
                reader.bump();
            }
            _ if commands.len() == COMMANDS_MAX => return None,
            _ => commands.push(reader.command()?),
        }
    }
    (!commands.is_empty()).then_some(commands)
}

/// Looks at the first letters only: whatever starts with another word costs nothing here.
#[inline]
pub fn may_be_commands(text: &[u8]) -> bool {
    match text {
        [b'S' | b's', b'E' | b'e', b'T' | b't', ..]
        | [b'S' | b's', b'H' | b'h', ..]
        | [b'R' | b'r', b'E' | b'e', b'S' | b's', ..]
        | [b'/' | b'-' | b';', ..] => true,
        [first, ..] if first.is_ascii_whitespace() => may_be_commands(text.trim_ascii_start()),
        _ => false,
    }
}

/// Reads the statements token by token.
struct Reader<'a> {
    lexer: Lexer<'a>,
    current: Token,
}

impl<'a> Reader<'a> {
    fn new(text: &'a [u8]) -> Self {
        let mut lexer = Lexer::new(text, PlainStrings::Standard);
        let current = lexer.next();
        Self { lexer, current }
    }

    fn bump(&mut self) -> Token {
        std::mem::replace(&mut self.current, self.lexer.next())
    }

    fn accept(&mut self, word: &[u8]) -> bool {
        let found =
            self.current.kind == TokenKind::Word && self.lexer.text(self.current).eq_ignore_ascii_case(word);
        if found {
            self.bump();
        }
        found
    }

    fn at_end(&self) -> bool {
        matches!(self.current.kind, TokenKind::Semicolon | TokenKind::End)
    }

    fn command(&mut self) -> Option<Command> {
        let command = if self.accept(b"set") {
            self.set()?
        } else if self.accept(b"reset") {
            self.named(|setting| Command::Reset(setting, Span::Session, ResetTag::Reset))?
        } else if self.accept(b"show") {
            self.named(Command::Show)?
        } else {
            return None;
        };
        self.at_end().then_some(command)
    }

    fn named(&mut self, command: impl FnOnce(Setting) -> Command) -> Option<Command> {
        Some(self.name()?.map_or_else(Command::Refuse, command))
    }

    /// `tidegate.x`; an unknown one is an error of ours. `None`: some other name.
    fn name(&mut self) -> Option<Result<Setting, SettingError>> {
        let mut name = self.identifier()?;
        if name != b"tidegate" || self.current.kind != TokenKind::Dot {
            return None;
        }
        while self.current.kind == TokenKind::Dot {
            self.bump();
            name.push(b'.');
            name.extend(self.identifier()?);
        }
        let unknown = || SettingError::Unknown(String::from_utf8_lossy(&name).into());
        Some(Setting::parse(&name).ok_or_else(unknown))
    }

    /// Case never matters in a name, not even in quotes (`guc_name_compare` in guc.c).
    fn identifier(&mut self) -> Option<Vec<u8>> {
        let token = self.bump();
        let text = self.lexer.text(token);
        match token.kind {
            TokenKind::Word => Some(text.to_ascii_lowercase()),
            TokenKind::QuotedWord => Some(Name::unquoted(text, b'"').as_bytes().to_ascii_lowercase()),
            _ => None,
        }
    }

    /// What stands behind SET.
    fn set(&mut self) -> Option<Command> {
        let span = if self.accept(b"local") {
            Span::Transaction
        } else {
            self.accept(b"session");
            Span::Session
        };
        let setting = self.name()?;
        if !self.accept(b"to") {
            let equals = self.bump();
            if self.lexer.text(equals) != b"=" {
                return None;
            }
        }
        if self.accept(b"default") {
            return Some(
                setting.map_or_else(Command::Refuse, |setting| Command::Reset(setting, span, ResetTag::Set)),
            );
        }
        let value = self.value()?;
        let assigned = setting.and_then(|setting| setting.read(&value));
        Some(assigned.map_or_else(Command::Refuse, |assignment| Command::Set(assignment, span)))
    }

    /// One value, unquoted; strings with escapes stay as they are written, and fit no setting.
    fn value(&mut self) -> Option<Vec<u8>> {
        let token = self.bump();
        let text = self.lexer.text(token);
        match token.kind {
            TokenKind::Word => Some(text.to_ascii_lowercase()),
            TokenKind::QuotedWord => Some(Name::unquoted(text, b'"').as_bytes().to_vec()),
            TokenKind::PlainString => Some(Name::unquoted(text, b'\'').as_bytes().to_vec()),
            TokenKind::Number
            | TokenKind::EscapeString
            | TokenKind::OtherString
            | TokenKind::DollarString => Some(text.to_vec()),
            TokenKind::Operator if matches!(text, b"+" | b"-") => {
                let number = self.bump();
                let digits = self.lexer.text(number);
                (number.kind == TokenKind::Number).then(|| [text, digits].concat())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::terms::{Assignment, DurationSetting, LaneChoice, MILLIS_MAX, show_millis};
    use crate::sql::{Lane, Priority};

    fn one(text: &str) -> Command {
        let mut commands = commands(text.as_bytes()).unwrap_or_else(|| panic!("{text} is not ours"));
        assert_eq!(commands.len(), 1, "{text}");
        commands.remove(0)
    }

    fn millis(text: &str) -> Option<u32> {
        match one(&format!("SET tidegate.write_timeout = {text}")) {
            Command::Set(Assignment::Duration(DurationSetting::Write, millis), Span::Session) => Some(millis),
            _ => None,
        }
    }

    #[test]
    fn values_are_read_as_postgresql_reads_durations() {
        // A number taken for seconds would be a thousand times too long.
        let rows = [
            ("250", Some(250)),
            ("'250ms'", Some(250)),
            ("'5s'", Some(5000)),
            ("'0.5 s'", Some(500)),
            ("\"2min\"", Some(120_000)),
            ("'1h'", Some(3_600_000)),
            ("'1d'", Some(86_400_000)),
            ("'1500us'", Some(2)),
            ("+7", Some(7)),
            ("0", None),
            ("'0'", None),
            ("-1", None),
            ("'5 S'", None),
            ("'5 weeks'", None),
            ("''", None),
            ("'ms'", None),
            ("E'5s'", None),
            ("$$5s$$", None),
            ("2147483647", Some(MILLIS_MAX)),
            ("2147483648", None),
            ("'1e300d'", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(millis(text), wanted, "{text}");
        }
    }

    #[test]
    fn durations_are_shown_in_the_largest_unit_that_fits() {
        // Tools compare what SHOW says with what they have set.
        let rows = [(0, "0"), (1, "1ms"), (1500, "1500ms"), (5000, "5s"), (60_000, "1min"), (90_000, "90s")];
        for (millis, wanted) in rows {
            assert_eq!(show_millis(millis), wanted);
        }
    }

    #[test]
    fn all_forms_of_the_statements_are_known() {
        // A form that is not known goes to the server, which takes it silently: the application's wish is lost.
        let write = Assignment::Duration(DurationSetting::Write, 250);
        let lane = |lane| Command::Set(Assignment::Lane(lane), Span::Session);
        let rows = [
            ("SET tidegate.write_timeout TO '250ms'", Command::Set(write, Span::Session)),
            ("set session TIDEGATE.Write_Timeout=250;", Command::Set(write, Span::Session)),
            (
                "/* x */ SET LOCAL \"tidegate\".\"WRITE_timeout\" = 250 -- y",
                Command::Set(write, Span::Transaction),
            ),
            ("SET tidegate.lane = write", lane(LaneChoice::Fixed(Lane::Write))),
            ("SET tidegate.lane = 'AUTO'", lane(LaneChoice::Auto)),
            (
                "SET tidegate.priority = sheddable_plus",
                Command::Set(Assignment::Priority(Priority::SheddablePlus), Span::Session),
            ),
            (
                "SET LOCAL tidegate.lane TO DEFAULT",
                Command::Reset(Setting::Lane, Span::Transaction, ResetTag::Set),
            ),
            ("RESET tidegate.lane", Command::Reset(Setting::Lane, Span::Session, ResetTag::Reset)),
            ("SHOW tidegate . priority", Command::Show(Setting::Priority)),
            ("SHOW tidegate.nonsense", Command::Refuse(SettingError::Unknown("tidegate.nonsense".into()))),
            ("SET tidegate.x.y = 1", Command::Refuse(SettingError::Unknown("tidegate.x.y".into()))),
        ];
        for (text, wanted) in rows {
            assert_eq!(one(text), wanted, "{text}");
        }
        assert_eq!(commands(b";SET tidegate.lane=read; ;SHOW tidegate.lane;").map(|all| all.len()), Some(2));
    }

    #[test]
    fn what_is_not_ours_alone_is_left_to_the_server() {
        // Answering such a text ourselves would swallow a statement, or a syntax error.
        for text in [
            "",
            ";",
            "SELECT 1",
            "/*tidegate:lane=write*/ SELECT 1",
            "SET work_mem = 1",
            "SET tidegate.lane = read; SELECT 1",
            "SET tidegate = 1",
            "SET tidegate.lane",
            "SET tidegate.lane =",
            "SET tidegate.lane = read, write",
            "SET tidegate.lane = $1",
            "SET tidegate.lane FROM CURRENT",
            "SET TRANSACTION READ ONLY",
            "SHOW ALL",
            "SHOW tidegate.lane x",
            "RESET ALL",
            "RESET tidegate",
            "SET tidegate. = 1",
            "settle tidegate.lane",
        ] {
            assert_eq!(commands(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn errors_are_worded_as_postgresql_words_them() {
        // Drivers and people search for these words.
        let error = |text| match one(text) {
            Command::Refuse(error) => error.to_string(),
            other => panic!("{other:?}"),
        };

        assert_eq!(
            error("SET tidegate.priority = 'high'"),
            "invalid value for parameter \"tidegate.priority\": \"high\""
        );
        assert_eq!(
            error("SET tidegate.write_timeout = 0"),
            "0 ms is outside the valid range for parameter \"tidegate.write_timeout\" (1 ms .. 2147483647 ms)"
        );
        assert_eq!(error("RESET tidegate.foo"), "unrecognized configuration parameter \"tidegate.foo\"");
    }
}
