//! The risk class of one text, found in seven steps.
//!
//! The steps in order: the whole text, or the head before its colon, as a listed word; else the head by its parts; else
//! unknown. Then the tail after the colon, which can only make the class stricter. The work is linear in the text.

use stage0_contract::{Spelling, parts, plain};

use crate::vocabulary::{Class, EffectWords, Marks, Meaning};

const MAX_PARTS: usize = 5;
/// The length at which a reported part is cut, in characters.
const MAX_PART_CHARS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Effect,
    /// The name of a tool: unknown parts and the bare name of a channel do not make it an effect.
    Tool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    pub(crate) class: Class,
    /// Unknown, so that it counts as high.
    pub(crate) unknown: bool,
    /// Its unknown parts, where the answer reports them.
    pub(crate) unknown_parts: Vec<String>,
    pub(crate) near: Vec<String>,
    /// It says that there is no effect at all.
    pub(crate) nothing: bool,
    pub(crate) impact: bool,
    pub(crate) customer_visible: bool,
    pub(crate) writes: bool,
}

impl Reading {
    fn unknown(unknown_parts: Vec<String>) -> Self {
        Self { class: Class::High, unknown: true, unknown_parts, ..Self::default() }
    }

    fn of(class: Class, marks: Marks) -> Self {
        Self {
            class,
            nothing: class == Class::None && marks.any(Marks::NOTHING),
            impact: marks.any(Marks::IMPACT),
            customer_visible: marks.any(Marks::VISIBLE),
            writes: marks.any(Marks::WRITES),
            ..Self::default()
        }
    }
}

pub(crate) fn classify(raw: &str, words: &EffectWords, source: Source) -> Reading {
    let whole = Spelling::of(raw);
    if whole.folded().is_none() {
        return Reading::unknown(Vec::new());
    }
    if let Some(meaning) = words.listed(&whole)
        && let Some(class) = meaning.class
        && (source == Source::Effect || !meaning.marks.any(Marks::SERVICE))
    {
        return Reading::of(class, meaning.marks);
    }
    let text = plain(raw);
    let tokens = tokens(&text);
    let mut rest = tokens.as_slice();
    let mut listed = text.split_once(':').and_then(|(head, _)| words.listed(&Spelling::of(head)));
    loop {
        let colon = rest.iter().position(|token| *token == Token::Colon);
        let (head, tail) = rest.split_at(colon.unwrap_or(rest.len()));
        let tail = tail.get(1..).unwrap_or_default();
        let head = match listed.take() {
            Some(meaning) => Head::listed(meaning),
            None => Head::read(head, words, source),
        };
        // A head of only harmless nouns takes the class of its tail.
        if head.class.is_none() && !head.unknown && !tail.is_empty() {
            rest = tail;
            continue;
        }
        return head.with_tail(&Tail::read(tail, words), tail.is_empty());
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Part(String),
    Colon,
    Separator,
    Dot,
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    for piece in text.split_inclusive([':', '.', ',', ';', '|', '+', '&']) {
        let end = piece.chars().next_back();
        tokens.extend(parts(piece).into_iter().map(Token::Part));
        match end {
            Some(':') => tokens.push(Token::Colon),
            Some('.') => tokens.push(Token::Dot),
            Some(',' | ';' | '|' | '+' | '&') => tokens.push(Token::Separator),
            _ => {}
        }
    }
    tokens
}

/// A part, or a run of parts that the vocabulary lists as one word.
struct Known<'t> {
    text: &'t str,
    meaning: Option<Meaning>,
    /// It has several parts, so it is the name of an effect and not a verb.
    run: bool,
}

impl Known<'_> {
    fn marks(&self) -> Marks {
        self.meaning.map_or(Marks::default(), |meaning| meaning.marks)
    }

    fn class(&self) -> Option<Class> {
        self.meaning.and_then(|meaning| meaning.class)
    }

    fn is_noun(&self) -> bool {
        self.class().is_none() && (self.marks().any(Marks::NOUN) || (self.meaning.is_none() && is_number(self.text)))
    }
}

fn is_number(text: &str) -> bool {
    text.chars().all(char::is_numeric)
}

/// Looks up the parts, and runs of parts before single ones. Punctuation is left out.
fn known<'t>(tokens: &'t [Token], words: &EffectWords) -> Vec<Known<'t>> {
    let mut found = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let Token::Part(text) = token else { continue };
        let following = tokens.get(at..).unwrap_or_default().iter().map_while(|token| match token {
            Token::Part(part) => Some(part.as_str()),
            _ => None,
        });
        if let Some((length, meaning)) = words.run(text, &following) {
            at += length - 1;
            found.push(Known { text, meaning: Some(meaning), run: true });
        } else {
            // `00` is read as `0`.
            let part = if is_number(text) { text.trim_start_matches('0') } else { text };
            let part = if part.is_empty() { "0" } else { part };
            found.push(Known { text, meaning: words.part(part), run: false });
        }
    }
    found
}

/// The text before the first colon.
#[derive(Default)]
struct Head {
    /// The strictest class of its parts; `None` for harmless nouns alone, and where it is unknown.
    class: Option<Class>,
    unknown: bool,
    unknown_parts: Vec<String>,
    nothing: bool,
    takes_no_text: bool,
    marks: Marks,
    /// It has a word of the medium or the loop class, which a weighty word makes high.
    weighable: bool,
    /// That word is a verb itself and not a name of several parts.
    verb: bool,
}

impl Head {
    fn listed(meaning: Meaning) -> Self {
        let class = meaning.class;
        let weighable = matches!(class, Some(Class::Medium | Class::Loop));
        Self {
            class,
            nothing: meaning.marks.any(Marks::NOTHING),
            takes_no_text: meaning.marks.any(Marks::NO_TEXT),
            marks: meaning.marks,
            weighable,
            // `data_modification` writes but is not a verb.
            verb: weighable && !meaning.marks.any(Marks::PHRASE),
            ..Self::default()
        }
    }

    /// Reads each effect between separators by itself; the strictest class counts.
    fn read(tokens: &[Token], words: &EffectWords, source: Source) -> Self {
        let mut head = Self { nothing: true, ..Self::default() };
        let mut any = false;
        let is_separator = |token: &Token| match token {
            Token::Separator => true,
            Token::Part(part) => words.part(part).is_some_and(|meaning| meaning.marks.any(Marks::SEPARATOR)),
            Token::Colon | Token::Dot => false,
        };
        for effect in tokens.split(is_separator) {
            if effect.iter().any(|token| matches!(token, Token::Part(_))) {
                any = true;
                head.add(effect, words, source);
            }
        }
        head.unknown |= !any;
        head.nothing &= head.class == Some(Class::None);
        head
    }

    fn add(&mut self, tokens: &[Token], words: &EffectWords, source: Source) {
        let known = known(tokens, words);
        let reads = harmless_verb_leads(tokens, &known, words, source);
        let sends = known.iter().any(|part| {
            part.marks().any(Marks::SENDS)
                || (part.class() == Some(Class::Medium) && !part.marks().any(Marks::ALSO_NOUN))
        });
        let mut class = None;
        let mut marks = Marks::default();
        let mut verb = false;
        let mut weighable = false;
        let mut harmless = true;
        let mut nothing = true;
        let mut unknown_parts = Vec::new();
        for part in &known {
            let own = part.marks();
            let noun = reads && own.any(Marks::ALSO_NOUN.and(Marks::HEAD_NOUN));
            let name = source == Source::Tool && own.any(Marks::SERVICE) && !sends;
            let counted = part.class().filter(|_| !noun && !name);
            class = class.max(counted);
            if let Some(counted) = counted {
                marks = marks.and(own);
                verb |= counted == Class::Medium && !part.run;
                weighable |= matches!(counted, Class::Medium | Class::Loop);
                nothing &= own.any(Marks::NOTHING);
            } else {
                marks = marks.and(weights(own));
                harmless &= noun || name || part.is_noun();
            }
            harmless &= !own.any(Marks::SENSITIVE.and(Marks::NEGATION));
            nothing &= counted.is_some();
            if part.meaning.is_none() && !is_number(part.text) && unknown_parts.len() < MAX_PARTS {
                unknown_parts.push(part.text.chars().take(MAX_PART_CHARS).collect());
            }
        }
        let class = match class {
            None | Some(Class::None) if !harmless => {
                self.unknown = true;
                class
            }
            Some(Class::Loop | Class::Medium | Class::Approval | Class::Communication)
                if weighable && is_weighty(marks, verb && class < Some(Class::Approval)) =>
            {
                Some(Class::High)
            }
            other => other,
        };
        let reports_parts = self.unknown || class.is_some_and(|class| class > Class::None && class < Class::High);
        if reports_parts {
            let left = MAX_PARTS.saturating_sub(self.unknown_parts.len());
            self.unknown_parts.extend(unknown_parts.into_iter().take(left));
        }
        self.class = self.class.max(class);
        self.marks = self.marks.and(marks);
        self.verb |= verb;
        self.weighable |= weighable;
        self.nothing &= nothing;
    }

    /// The tail can only make the class stricter.
    fn with_tail(self, tail: &Tail, tail_is_empty: bool) -> Reading {
        let class = match self.class {
            Some(class) if !self.unknown => class,
            _ => return Reading::unknown(self.unknown_parts),
        };
        let denied = tail.marks.any(Marks::NEGATION.and(Marks::SENSITIVE)) || (self.takes_no_text && !tail_is_empty);
        if class == Class::None && denied {
            return Reading::unknown(self.unknown_parts);
        }
        let sends = self.marks.and(tail.marks).any(Marks::SENDS);
        let mut strictest = class.max(tail.class).max(if sends { tail.channel } else { Class::None });
        let verb = (self.verb && self.marks.any(Marks::WRITES.and(Marks::SENDS))) || tail.verb;
        let weighable = self.weighable || tail.weighable;
        if weighable && is_weighty(tail.marks, verb && strictest < Class::Approval) {
            strictest = Class::High;
        }
        Reading {
            unknown_parts: if strictest < Class::High { self.unknown_parts } else { Vec::new() },
            nothing: self.nothing && strictest == Class::None,
            ..Reading::of(strictest, self.marks.and(tail.marks))
        }
    }
}

/// Whether a harmless verb comes first, so that a word which can be a verb or a common noun is a noun here. If there is
/// no other verb, nouns and names of channels may precede it (`github_list_releases`), and it may follow the last dot.
fn harmless_verb_leads(tokens: &[Token], known: &[Known<'_>], words: &EffectWords, source: Source) -> bool {
    let is_harmless = |part: Option<&Known<'_>>| part.and_then(Known::class) == Some(Class::None);
    if is_harmless(known.first()) {
        return true;
    }
    let nouns = Marks::ALSO_NOUN.and(Marks::HEAD_NOUN);
    let acts = |part: &Known<'_>| part.class() > Some(Class::None) && !part.marks().any(nouns);
    if known.iter().any(acts) {
        return false;
    }
    let leads = |known: &[Known<'_>]| {
        is_harmless(known.iter().find(|part| !part.is_noun() && !part.marks().any(Marks::SERVICE)))
    };
    let last_dot = tokens.iter().rposition(|token| *token == Token::Dot);
    let after_dot = || last_dot.is_some_and(|dot| leads(&self::known(tokens.get(dot..).unwrap_or_default(), words)));
    // `issue_comments_list` is a common form of a tool's name; a declared effect must have its verb first.
    let ends = || source == Source::Tool && is_harmless(known.last());
    leads(known) || after_dot() || ends()
}

/// The marks of a part without a class that can make a medium effect high or a harmless one unknown.
fn weights(marks: Marks) -> Marks {
    let kept = [Marks::SENSITIVE, Marks::HEAVY, Marks::LIGHT];
    kept.into_iter().filter(|mark| marks.any(*mark)).fold(Marks::default(), Marks::and)
}

fn is_weighty(marks: Marks, beside_verb: bool) -> bool {
    marks.any(Marks::SENSITIVE.and(Marks::HEAVY)) || (beside_verb && marks.any(Marks::LIGHT))
}

/// The text after the colon.
#[derive(Default)]
struct Tail {
    class: Class,
    /// The class of a channel, which counts if there is a verb that sends.
    channel: Class,
    marks: Marks,
    weighable: bool,
    /// It has a verb that writes or sends.
    verb: bool,
}

impl Tail {
    fn read(tokens: &[Token], words: &EffectWords) -> Self {
        let mut tail = Self::default();
        for part in known(tokens, words) {
            let (own, class) = (part.marks(), part.class().unwrap_or(Class::None));
            if own.any(Marks::ALSO_NOUN) && !part.run {
                if class == Class::Communication {
                    tail.channel = class;
                }
            } else if part.class().is_some() {
                tail.class = tail.class.max(class);
                tail.weighable |= matches!(class, Class::Medium | Class::Loop);
                tail.verb |= class == Class::Medium && !part.run && own.any(Marks::WRITES.and(Marks::SENDS));
                tail.marks = tail.marks.and(own);
            } else {
                tail.marks = tail.marks.and(own);
            }
        }
        tail
    }
}
