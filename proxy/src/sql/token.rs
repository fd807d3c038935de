//! Tokens.

/// The kinds of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Unquoted identifier or keyword.
    Word,
    /// `"..."`.
    QuotedWord,
    /// `U&"..."`.
    UnicodeWord,
    /// `'...'`.
    PlainString,
    /// `E'...'`.
    EscapeString,
    /// `U&'...'`, `B'...'`, `X'...'`, `N'...'`.
    OtherString,
    /// `$tag$...$tag$`.
    DollarString,
    /// A number.
    Number,
    /// `$1`.
    Parameter,
    /// A run of operator characters.
    Operator,
    /// `::`.
    Cast,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `,`.
    Comma,
    /// `;`.
    Semicolon,
    /// `.`.
    Dot,
    /// Anything else.
    Other,
    /// The end of the text; repeated for ever.
    End,
}

impl TokenKind {
    /// A string, however it is written.
    pub(super) fn is_string(self) -> bool {
        matches!(self, Self::PlainString | Self::EscapeString | Self::OtherString | Self::DollarString)
    }
}

/// A token: its kind and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) start: usize,
    pub(super) end: usize,
}
