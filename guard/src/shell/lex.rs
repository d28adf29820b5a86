//! Words and operators of a shell command.
//!
//! One pass from left to right. What is quoted is literal; of expansions only plain variables are read, and a word with
//! one is marked. Everything that runs or makes text at run time is reported as unread.

/// A word, with what is known about how it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word {
    /// The text after quoting; of a variable, `$` and its name.
    pub(super) text: String,
    /// Any part was quoted or escaped.
    pub(super) quoted: bool,
    /// It holds a variable, so its text is not what the program gets.
    pub(super) variable: bool,
    /// It holds an unquoted `*`, `?`, `[` or `{`.
    pub(super) glob: bool,
    /// It begins with such a character, so that it may become an option.
    pub(super) leading_glob: bool,
    /// The bytes before the first such character.
    pub(super) glob_at: Option<usize>,
    /// The bytes before the first unquoted `=`, if all of them were unquoted.
    pub(super) assigned: Option<usize>,
}

impl Word {
    /// Whether the program gets this text and no other.
    pub(super) fn is_literal(&self) -> bool {
        !self.variable && !self.glob
    }

    /// Whether it is this reserved word.
    pub(super) fn is_reserved(&self, word: &str) -> bool {
        !self.quoted && self.text == word
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(Word),
    /// `;`, a line's end, `&`, `&&`, `||`.
    End,
    Pipe,
    Open,
    Close,
    /// The next word is a file that is read.
    From,
    /// The next word is a file that is written.
    To,
    /// The next word is a number of a stream, or text.
    Data,
}

/// Tokens, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct Lexed {
    pub(super) tokens: Vec<Token>,
    pub(super) unread: Vec<&'static str>,
}

/// Splits a command.
pub(super) fn lex(command: &str) -> Lexed {
    let mut lexer = Lexer { chars: command.chars().collect(), at: 0, out: Lexed::default(), documents: Vec::new() };
    lexer.run();
    lexer.out
}

/// A here-document whose text follows the line.
struct Document {
    end: String,
    /// Its end was not quoted, so variables in its text are replaced.
    replaces: bool,
    /// Tabs before its lines do not count.
    tabs: bool,
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    out: Lexed,
    documents: Vec<Document>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn unread(&mut self, why: &'static str) {
        if !self.out.unread.contains(&why) {
            self.out.unread.push(why);
        }
    }

    fn push(&mut self, token: Token, length: usize) {
        self.out.tokens.push(token);
        self.at += length;
    }

    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            let next = self.peek(1);
            match (c, next) {
                (' ' | '\t', _) => self.at += 1,
                ('\\', Some('\n')) => self.at += 2,
                ('\n', _) => {
                    self.push(Token::End, 1);
                    self.documents();
                }
                ('#', _) => self.comment(),
                (';', Some(';' | '&')) => {
                    self.unread("a `case`");
                    self.push(Token::End, 2);
                }
                ('&', Some('>')) => self.push(Token::To, if self.peek(2) == Some('>') { 3 } else { 2 }),
                ('&', Some('&')) | ('|', Some('|')) => self.push(Token::End, 2),
                (';' | '&', _) => self.push(Token::End, 1),
                ('|', Some('&')) => self.push(Token::Pipe, 2),
                ('|', _) => self.push(Token::Pipe, 1),
                ('(', _) => self.open(next),
                (')', _) => self.push(Token::Close, 1),
                ('<', _) => self.less(),
                ('>', _) => self.greater(),
                _ => self.word(),
            }
        }
        if !self.documents.is_empty() {
            self.unread("a here-document without an end");
        }
    }

    /// An interactive shell of another kind may take `#` for a word: what would be a command then is not read over.
    fn comment(&mut self) {
        let start = self.at;
        self.skip_line();
        if self.chars.get(start..self.at).unwrap_or_default().iter().any(|c| matches!(c, ';' | '&' | '|' | '>' | '<')) {
            self.unread("a comment with signs of a command in it");
        }
    }

    fn skip_line(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.at += 1;
        }
    }

    /// A subshell; behind a word it would be a function, and doubled an arithmetic expression.
    fn open(&mut self, next: Option<char>) {
        if matches!(self.out.tokens.last(), Some(Token::Word(_))) {
            self.unread("a function or a pattern");
        }
        if next == Some('(') {
            self.unread("an arithmetic expression");
        }
        self.push(Token::Open, 1);
    }

    fn less(&mut self) {
        match (self.peek(1), self.peek(2)) {
            (Some('('), _) => {
                self.unread("a process substitution");
                self.at += 1;
            }
            (Some('<'), Some('<')) => self.push(Token::Data, 3),
            (Some('<'), third) => {
                let tabs = third == Some('-');
                self.at += if tabs { 3 } else { 2 };
                self.document(tabs);
            }
            (Some('>'), _) => self.push(Token::To, 2),
            (Some('&'), _) => self.push(Token::Data, 2),
            _ => self.push(Token::From, 1),
        }
    }

    fn greater(&mut self) {
        let mut signs = self.chars.get(self.at..).unwrap_or_default().iter().take(4);
        if signs.find(|c| !matches!(c, '>' | '&' | '|')) == Some(&'!') {
            self.unread("a redirect that shells read differently");
        }
        match self.peek(1) {
            Some('(') => {
                self.unread("a process substitution");
                self.at += 1;
            }
            // `>&2` is another stream, `>&file` a file.
            Some('&') if self.peek(2).is_some_and(|c| c.is_ascii_digit() || c == '-') => self.push(Token::Data, 2),
            Some('>' | '|' | '&') => self.push(Token::To, 2),
            _ => self.push(Token::To, 1),
        }
    }

    /// The word behind `<<`.
    fn document(&mut self, tabs: bool) {
        while matches!(self.peek(0), Some(' ' | '\t')) {
            self.at += 1;
        }
        let before = self.out.tokens.len();
        self.word();
        match self.out.tokens.pop().filter(|_| self.out.tokens.len() == before) {
            Some(Token::Word(word)) => {
                self.documents.push(Document { end: word.text, replaces: !word.quoted, tabs });
            }
            _ => self.unread("a here-document without an end"),
        }
    }

    /// Skips the texts of the here-documents that were begun on the line before.
    fn documents(&mut self) {
        for document in std::mem::take(&mut self.documents) {
            let mut ended = false;
            while !ended && self.at < self.chars.len() {
                let start = self.at;
                self.skip_line();
                let line: String = self.chars.get(start..self.at).unwrap_or_default().iter().collect();
                self.at += 1;
                if document.replaces && line.contains('$') {
                    self.unread("a variable in a here-document");
                }
                // The shell joins it with the next line, which may then be the end.
                if document.replaces && line.ends_with('\\') {
                    self.unread("a line of a here-document that goes on");
                }
                ended = document.end == if document.tabs { line.trim_start_matches('\t') } else { &line };
            }
            if !ended {
                self.unread("a here-document without an end");
            }
        }
        self.at = self.at.min(self.chars.len());
    }

    fn word(&mut self) {
        let mut word = Word::default();
        let start = self.at;
        while let Some(c) = self.peek(0) {
            if matches!(c, ' ' | '\t' | '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>') {
                break;
            }
            self.at += 1;
            match c {
                '\\' => self.escaped(&mut word),
                '\'' => self.single(&mut word),
                '"' => self.double(&mut word),
                '$' => self.dollar(&mut word, false),
                '`' => self.unread("a command substitution"),
                _ => self.plain(c, &mut word),
            }
        }
        // `2>file`: the number of a stream. A word that was only a line continuation is none.
        let is_stream =
            word.text.chars().all(|c| c.is_ascii_digit()) && !word.quoted && matches!(self.peek(0), Some('<' | '>'));
        let is_nothing = word.text.is_empty() && !word.quoted;
        if self.at > start && !is_stream && !is_nothing {
            self.out.tokens.push(Token::Word(word));
        }
    }

    fn plain(&mut self, c: char, word: &mut Word) {
        match c {
            '*' | '?' | '[' | '{' => {
                // `{` alone is a reserved word, and `[` a program.
                let alone = matches!(c, '{' | '[')
                    && word.text.is_empty()
                    && self.peek(0).is_none_or(|c| c.is_ascii_whitespace());
                word.leading_glob |= word.text.is_empty() && !alone;
                word.glob |= !alone;
                if !alone {
                    word.glob_at.get_or_insert(word.text.len());
                }
            }
            '=' if word.assigned.is_none() && !word.quoted && !word.variable => word.assigned = Some(word.text.len()),
            _ if !c.is_ascii() => self.unread("a character that is not ASCII, outside of quotes"),
            _ => {}
        }
        word.text.push(c);
    }

    fn escaped(&mut self, word: &mut Word) {
        match self.peek(0) {
            Some('\n') => self.at += 1,
            Some(c) => {
                word.quoted = true;
                word.text.push(c);
                self.at += 1;
            }
            None => self.unread("a backslash at the end"),
        }
    }

    fn single(&mut self, word: &mut Word) {
        word.quoted = true;
        while let Some(c) = self.peek(0) {
            self.at += 1;
            if c == '\'' {
                return;
            }
            word.text.push(c);
        }
        self.unread("a quotation without an end");
    }

    fn double(&mut self, word: &mut Word) {
        word.quoted = true;
        while let Some(c) = self.peek(0) {
            self.at += 1;
            match c {
                '"' => return,
                '$' => self.dollar(word, true),
                '`' => self.unread("a command substitution"),
                '\\' => match self.peek(0) {
                    Some('\n') => self.at += 1,
                    Some(c @ ('$' | '`' | '"' | '\\')) => {
                        word.text.push(c);
                        self.at += 1;
                    }
                    _ => word.text.push('\\'),
                },
                _ => word.text.push(c),
            }
        }
        self.unread("a quotation without an end");
    }

    /// What follows a `$` that is not escaped.
    fn dollar(&mut self, word: &mut Word, inside: bool) {
        match self.peek(0) {
            Some('(') => {
                self.unread("a command substitution");
                word.variable = true;
            }
            Some('\'' | '"') if !inside => self.unread("a quotation with escapes"),
            Some('{') => {
                self.at += 1;
                let name = self.name();
                if self.peek(0) == Some('}') && !name.is_empty() {
                    self.at += 1;
                } else {
                    self.unread("an expansion that is more than a variable");
                }
                variable(&name, word);
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let name = self.name();
                variable(&name, word);
            }
            Some(c @ ('?' | '#' | '$' | '!' | '@' | '*' | '-' | '0'..='9')) => {
                self.at += 1;
                variable(&c.to_string(), word);
            }
            Some('[') if !inside => self.unread("an arithmetic expression"),
            _ => word.text.push('$'),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek(0).filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            self.at += 1;
        }
        name
    }
}

/// A variable: three are as good as their usual values, as long as nothing assigns them.
fn variable(name: &str, word: &mut Word) {
    match name {
        "HOME" if word.text.is_empty() => word.text.push('~'),
        "PWD" if word.text.is_empty() => word.text.push('.'),
        "TMPDIR" if word.text.is_empty() => word.text.push_str("/tmp"),
        _ => {
            word.variable = true;
            word.text.push('$');
            word.text.push_str(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &str) -> Vec<String> {
        let tokens = lex(command).tokens.into_iter();
        tokens
            .map(|token| match token {
                Token::Word(word) => word.text,
                Token::End => ";".to_owned(),
                Token::Pipe => "|".to_owned(),
                Token::Open => "(".to_owned(),
                Token::Close => ")".to_owned(),
                Token::From => "<".to_owned(),
                Token::To => ">".to_owned(),
                Token::Data => "<<<".to_owned(),
            })
            .collect()
    }

    #[test]
    fn words_lose_their_quotes_and_keep_their_blanks() {
        for (command, expected) in [
            ("a  b\tc", vec!["a", "b", "c"]),
            (r"r\m 'x y' ", vec!["rm", "x y"]),
            ("\"r\"m a\\ b", vec!["rm", "a b"]),
            ("a\\\nb c", vec!["ab", "c"]),
            ("a # b\nc#d", vec!["a", ";", "c#d"]),
            ("a&&b||c;d&e|f|&g", vec!["a", ";", "b", ";", "c", ";", "d", ";", "e", "|", "f", "|", "g"]),
            (
                "(a) 2>&1 >f 2>>g &>h >|i <j",
                vec!["(", "a", ")", "<<<", "1", ">", "f", ">", "g", ">", "h", ">", "i", "<", "j"],
            ),
            ("a '' \"\"", vec!["a", "", ""]),
            ("a \"x\\\"y\\n\"", vec!["a", "x\"y\\n"]),
        ] {
            assert_eq!(words(command), expected, "{command}");
            assert_eq!(lex(command).unread, [""; 0], "{command}");
        }
    }

    #[test]
    fn the_text_of_a_here_document_is_no_command() {
        assert_eq!(words("cat <<EOF >f\nrm -rf /\nEOF\nls"), ["cat", ">", "f", ";", "ls"]);
        assert_eq!(words("cat <<-'E'\n\trm x\n\tE\nls"), ["cat", ";", "ls"]);
        assert_eq!(lex("cat <<EOF\nrm").unread.len(), 1);
        assert_eq!(lex("cat <<EOF").unread.len(), 1);
        assert_eq!(words("cat <<'EOF'\nx\nEOF \nrm y\nEOF"), ["cat", ";"], "an end with a blank is none");
    }

    #[test]
    fn what_makes_text_at_run_time_is_reported() {
        for command in [
            "a $(b)",
            "a `b`",
            "a \"`b`\"",
            "a \"$(b)\"",
            "a <(b)",
            "a >(b)",
            "a $'\\x72'",
            "a $\"b\"",
            "a ${b:-c}",
            "a ${!b}",
            "a $((1))",
            "a 'b",
            "a \"b",
            "a b\\",
            "f() { x; }",
            "((a))",
            "case a in b) c;; esac",
            "a $[1]",
            "a \u{a0}b",
        ] {
            assert!(!lex(command).unread.is_empty(), "{command}");
        }
        for command in ["a $b", "a ${b}", "a '$(b'", "a '`'", "a \\$b", "a $", "a '<('", "a \"größe\""] {
            assert!(lex(command).unread.is_empty(), "{command}");
        }
    }
}
