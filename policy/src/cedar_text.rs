//! The text of Cedar policies as its author wrote it: statements, conditions, and the parts of a condition.
//!
//! Cedar's parser keeps none of it, so formatting and explaining read the text again. Only texts that Cedar has parsed
//! come here: nothing is refused, and what an unfinished text would mean does not matter.

use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    Comment,
    Text,
    Word,
    Mark,
}

#[derive(Debug, Clone, Copy)]
struct Token<'t> {
    kind: Kind,
    text: &'t str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    fn is_blank(&self) -> bool {
        matches!(self.kind, Kind::Space | Kind::Comment)
    }

    fn is_mark(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }

    /// How much deeper in brackets the text behind the token is.
    fn depth(&self) -> isize {
        match (self.kind, self.text) {
            (Kind::Mark, "(" | "[" | "{") => 1,
            (Kind::Mark, ")" | "]" | "}") => -1,
            _ => 0,
        }
    }
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut start) = (Vec::new(), 0);
    while let Some((kind, length)) = text.get(start..).and_then(first_token) {
        tokens.push(Token { kind, text: text.get(start..start + length).unwrap_or_default(), start });
        start += length;
    }
    tokens
}

fn first_token(text: &str) -> Option<(Kind, usize)> {
    let first = text.chars().next()?;
    let until = |stops: fn(char) -> bool| text.find(stops).unwrap_or(text.len());
    Some(match first {
        _ if text.starts_with("//") => (Kind::Comment, until(|c| c == '\n')),
        _ if first.is_whitespace() => (Kind::Space, until(|c| !c.is_whitespace())),
        '"' => (Kind::Text, string_length(text)),
        _ if first.is_alphanumeric() || first == '_' => (Kind::Word, until(|c| !c.is_alphanumeric() && c != '_')),
        _ if text.starts_with("&&") || text.starts_with("||") => (Kind::Mark, 2),
        _ => (Kind::Mark, first.len_utf8()),
    })
}

/// Bytes of the string literal that the text begins with, quotes included; JSON's end as Cedar's do.
pub(crate) fn string_length(text: &str) -> usize {
    let mut escaped = false;
    let closes = |(_, c): &(usize, char)| {
        let closing = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        closing
    };
    text.char_indices().skip(1).find(closes).map_or(text.len(), |(at, _)| at + 1)
}

/// The bytes of each statement of a policy file, from its first annotation to its semicolon.
pub(crate) fn statements(text: &str) -> Vec<Range<usize>> {
    let (mut found, mut start) = (Vec::new(), None);
    for token in tokens(text).iter().filter(|token| !token.is_blank()) {
        let begins = *start.get_or_insert(token.start);
        if token.is_mark(";") {
            found.push(begins..token.end());
            start = None;
        }
    }
    found
}

/// The statement with the brace of each condition in the line of its `when` or `unless`.
pub(crate) fn with_braces_beside(statement: &str) -> String {
    let tokens = tokens(statement);
    let (mut depth, mut text) = (0, String::with_capacity(statement.len()));
    for (at, token) in tokens.iter().enumerate() {
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        let opens = depth == 0
            && token.kind == Kind::Space
            && before.is_some_and(|word| word.kind == Kind::Word && matches!(word.text, "when" | "unless"))
            && tokens.get(at + 1).is_some_and(|brace| brace.is_mark("{"));
        depth += token.depth();
        text.push_str(if opens { " " } else { token.text });
    }
    text
}

/// One condition of a rule: `when { … }`, or `unless { … }`, which must not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) is_unless: bool,
    /// What is joined by `&&` at the top, each in one line and without comments. One part where `||` or `if` is.
    pub(crate) parts: Vec<String>,
}

/// The conditions of one statement, in their order.
pub(crate) fn conditions(statement: &str) -> Vec<Condition> {
    let tokens: Vec<Token<'_>> = tokens(statement).into_iter().filter(|token| token.kind != Kind::Comment).collect();
    let (mut found, mut depth) = (Vec::new(), 0);
    let mut is_unless = None;
    let mut body: Vec<Token<'_>> = Vec::new();
    for token in tokens {
        let inside = depth > 0;
        depth += token.depth();
        match is_unless {
            None if !inside && token.kind == Kind::Word && matches!(token.text, "when" | "unless") => {
                is_unless = Some(token.text == "unless");
            }
            Some(unless) if depth == 0 && token.is_mark("}") => {
                found.push(Condition { is_unless: unless, parts: parts(&body) });
                body.clear();
                is_unless = None;
            }
            Some(_) if inside => body.push(token),
            Some(_) | None => {}
        }
    }
    found
}

fn parts(body: &[Token<'_>]) -> Vec<String> {
    let body = unwrapped(body);
    let (mut depth, mut parts, mut part) = (0, Vec::new(), Vec::new());
    for token in body {
        let is_top = depth == 0;
        depth += token.depth();
        if is_top && (token.is_mark("||") || (token.kind == Kind::Word && token.text == "if")) {
            return vec![in_one_line(body)];
        }
        if is_top && token.is_mark("&&") {
            parts.push(in_one_line(&part));
            part.clear();
        } else {
            part.push(*token);
        }
    }
    parts.push(in_one_line(&part));
    parts
}

/// Without the brackets around all of it, if there are such.
fn unwrapped<'s, 't>(body: &'s [Token<'t>]) -> &'s [Token<'t>] {
    let blank = |token: &Token<'_>| token.is_blank();
    let first = body.iter().position(|token| !blank(token)).unwrap_or(body.len());
    let last = body.iter().rposition(|token| !blank(token)).map_or(first, |last| last + 1);
    let body = body.get(first..last).unwrap_or_default();
    let [open, inner @ .., close] = body else { return body };
    let mut depth = 0;
    let closed_early = inner.iter().any(|token| {
        depth += token.depth();
        depth < 0
    });
    if open.is_mark("(") && close.is_mark(")") && !closed_early { unwrapped(inner) } else { body }
}

fn in_one_line(tokens: &[Token<'_>]) -> String {
    let line: String = tokens.iter().map(|token| if token.kind == Kind::Space { " " } else { token.text }).collect();
    line.trim().to_owned()
}

/// The facts that a part of a condition names, each once, as paths: `side_effects`, or `custom` and `amount`.
pub(crate) fn facts(part: &str) -> Vec<Vec<String>> {
    let tokens: Vec<Token<'_>> = tokens(part).into_iter().filter(|token| !token.is_blank()).collect();
    let mut found: Vec<Vec<String>> = Vec::new();
    for (at, _) in tokens.iter().enumerate().filter(|(_, token)| token.kind == Kind::Word && token.text == "context") {
        let (mut path, mut rest) = (Vec::new(), tokens.get(at + 1..).unwrap_or_default());
        loop {
            rest = match rest {
                [dot, name, call, ..] if dot.is_mark(".") && name.kind == Kind::Word && call.is_mark("(") => break,
                [link, name, after @ ..] if link.is_mark(".") || (link.kind == Kind::Word && link.text == "has") => {
                    path.push(name.text.trim_matches('"').to_owned());
                    after
                }
                [open, name, close, after @ ..] if open.is_mark("[") && close.is_mark("]") => {
                    path.push(name.text.trim_matches('"').to_owned());
                    after
                }
                _ => break,
            };
        }
        if !path.is_empty() && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = "// One; two.\n\n@id(\"a;}\")\nforbid (principal, action, resource)\nwhen {\n    // why\n    \
                         context.custom has amount && // and\n    context.custom.amount > 500 &&\n    \
                         !(context.high_effect && context.role == \"a && b\")\n}\nunless { context.approved };\n\
                         @id(\"b\") forbid(principal, action, resource);";

    fn parts_of(body: &str) -> Vec<String> {
        conditions(&format!("forbid(principal, action, resource) when {{ {body} }};"))[0].parts.clone()
    }

    #[test]
    fn a_statement_ends_at_its_own_semicolon() {
        let found: Vec<&str> = statements(RULES).into_iter().map(|at| &RULES[at]).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("@id(\"a;}\")") && found[0].ends_with("context.approved };"), "{}", found[0]);
        assert_eq!(found[1], "@id(\"b\") forbid(principal, action, resource);");
    }

    #[test]
    fn a_condition_is_split_where_all_of_its_parts_must_hold() {
        let found = conditions(&RULES[statements(RULES)[0].clone()]);
        let first = [
            "context.custom has amount",
            "context.custom.amount > 500",
            "!(context.high_effect && context.role == \"a && b\")",
        ];
        assert_eq!((found[0].is_unless, found[0].parts.as_slice()), (false, &first.map(str::to_owned)[..]));
        assert_eq!((found[1].is_unless, found[1].parts.as_slice()), (true, &["context.approved".to_owned()][..]));
        assert!(conditions("forbid(principal, action, resource);").is_empty());
    }

    #[test]
    fn the_brace_of_a_condition_stands_beside_its_word() {
        let text =
            "@m(\"when\n{\")\nforbid (principal, action, resource)\nwhen\n{\n    context.a\n}\nunless\n{ context.b };";
        let wanted = text.replace(")\nwhen\n{", ")\nwhen {").replace("unless\n{", "unless {");
        assert_eq!(with_braces_beside(text), wanted);
        let commented = "forbid (principal, action, resource)\nwhen // why\n{ context.a };";
        assert_eq!(with_braces_beside(commented), commented);
    }

    #[test]
    fn alternatives_are_one_part() {
        assert_eq!(parts_of("context.a || context.b && context.c"), ["context.a || context.b && context.c"]);
        assert_eq!(parts_of("if context.a then context.b else context.c && context.d").len(), 1);
        assert_eq!(parts_of("(context.a || context.b) && context.c"), ["(context.a || context.b)", "context.c"]);
        assert_eq!(parts_of("((context.a && context.b))"), ["context.a", "context.b"]);
        assert_eq!(parts_of("(context.a) && (context.b)"), ["(context.a)", "(context.b)"]);
    }

    #[test]
    fn the_facts_of_a_part_are_named_once_and_with_their_members() {
        let shown = |part: &str| facts(part).iter().map(|path| path.join("/")).collect::<Vec<_>>();
        let part = "context.custom has amount && context.custom.amount > 5 || [\"a\"].containsAll(context.tools)";
        assert_eq!(shown(part), ["custom/amount", "tools"]);
        let part = "context has max_records && context.tools.contains(\"context.role\")";
        assert_eq!(shown(part), ["max_records", "tools"]);
        assert_eq!(shown("context.run_calls[\"vendor.send\"] > 3"), ["run_calls/vendor.send"]);
        assert!(shown("1 == 1").is_empty());
    }
}
