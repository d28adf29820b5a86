//! One text and its risk class, by the seven steps of contract section 6.
//!
//! Owns the order of the steps: the whole text or its head as a listed word, else the head by its parts, else
//! unknown; then what stands behind the colon, which only raises. Works on the parts once from left to right, so it
//! is linear in the text.

use stage0_contract::{Spelling, parts, plain};

use crate::pack::{Class, EffectWords, Marks, Meaning};

/// Most unknown parts that are told of one text, and the longest of them in characters.
const MAX_PARTS: usize = 5;
const MAX_PART_CHARS: usize = 64;

/// What a text is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    Effect,
    /// The name of a tool: what is not known says nothing, and neither does the bare name of a channel.
    Tool,
}

/// What a text comes to.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) class: Class,
    /// It counts as high because it is not known.
    pub(crate) unknown: bool,
    pub(crate) unknown_parts: Vec<String>,
    /// It says that there is no effect at all.
    pub(crate) nothing: bool,
    pub(crate) impact: bool,
    pub(crate) customer_visible: bool,
    pub(crate) writes: bool,
}

impl Judged {
    fn unknown(unknown_parts: Vec<String>) -> Self {
        Self { unknown: true, unknown_parts, ..Self::of(Class::High, Marks::default()) }
    }

    fn of(class: Class, marks: Marks) -> Self {
        Self {
            class,
            unknown: false,
            unknown_parts: Vec::new(),
            nothing: class == Class::None && marks.any(Marks::NOTHING),
            impact: marks.any(Marks::IMPACT),
            customer_visible: marks.any(Marks::VISIBLE),
            writes: marks.any(Marks::WRITES),
        }
    }
}

/// The class of one text.
pub(crate) fn judge(raw: &str, words: &EffectWords, read_as: As) -> Judged {
    let whole = Spelling::of(raw);
    if whole.folded().is_none() {
        return Judged::unknown(Vec::new());
    }
    if let Some(meaning) = words.listed(&whole)
        && let Some(class) = meaning.class
        && (read_as == As::Effect || !meaning.marks.any(Marks::SERVICE))
    {
        return Judged::of(class, meaning.marks);
    }
    let text = plain(raw);
    let tokens = tokens(&text);
    let mut rest = tokens.as_slice();
    let mut listed = text.split_once(':').and_then(|(head, _)| words.listed(&Spelling::of(head)));
    loop {
        let colon = rest.iter().position(|token| *token == Token::Colon);
        let (head, behind) = rest.split_at(colon.unwrap_or(rest.len()));
        let behind = behind.get(1..).unwrap_or_default();
        let head = match listed.take() {
            Some(meaning) => Head::listed(meaning),
            None => Head::read(head, words, read_as),
        };
        // A head of harmless nouns alone takes the class of what stands behind it.
        if head.class.is_none() && !head.unknown && !behind.is_empty() {
            rest = behind;
            continue;
        }
        return head.with(&Behind::read(behind, words), behind.is_empty());
    }
}

/// A part of a text, or what stands between parts and means something.
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

/// A part, or a run of parts that is one word.
struct Known<'t> {
    text: &'t str,
    meaning: Option<Meaning>,
    /// Of several parts: a name of an effect, no verb.
    run: bool,
}

impl Known<'_> {
    fn marks(&self) -> Marks {
        self.meaning.map_or(Marks::default(), |meaning| meaning.marks)
    }

    fn class(&self) -> Option<Class> {
        self.meaning.and_then(|meaning| meaning.class)
    }

    /// Nothing but a thing, or a number.
    fn is_noun(&self) -> bool {
        self.class().is_none() && (self.marks().any(Marks::NOUN) || (self.meaning.is_none() && is_number(self.text)))
    }
}

fn is_number(text: &str) -> bool {
    text.chars().all(char::is_numeric)
}

/// Looks the parts up, runs first; what is between them is left out.
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
            // `00` says as little as `0`.
            let part = if is_number(text) { text.trim_start_matches('0') } else { text };
            let part = if part.is_empty() { "0" } else { part };
            found.push(Known { text, meaning: words.part(part), run: false });
        }
    }
    found
}

/// What stands before the first colon.
struct Head {
    /// The strictest; none for harmless nouns alone, and where it is unknown.
    class: Option<Class>,
    unknown: bool,
    unknown_parts: Vec<String>,
    nothing: bool,
    takes_no_text: bool,
    marks: Marks,
    /// A verb of the medium class, or one that loops: what weighs beside it makes it high.
    weighed: bool,
    /// The verb's own name and not a name of several parts.
    verb: bool,
}

impl Head {
    fn empty() -> Self {
        Self {
            class: None,
            unknown: false,
            unknown_parts: Vec::new(),
            nothing: true,
            takes_no_text: false,
            marks: Marks::default(),
            weighed: false,
            verb: false,
        }
    }

    fn listed(meaning: Meaning) -> Self {
        let class = meaning.class;
        let weighed = matches!(class, Some(Class::Medium | Class::Loop));
        Self {
            class,
            nothing: meaning.marks.any(Marks::NOTHING),
            takes_no_text: meaning.marks.any(Marks::NO_TEXT),
            marks: meaning.marks,
            weighed,
            // `data_modification` is no verb, though it writes.
            verb: weighed && !meaning.marks.any(Marks::PHRASE),
            ..Self::empty()
        }
    }

    /// Each effect between separators by itself; the strictest holds.
    fn read(tokens: &[Token], words: &EffectWords, read_as: As) -> Self {
        let mut head = Self::empty();
        let mut any = false;
        let is_separator = |token: &Token| match token {
            Token::Separator => true,
            Token::Part(part) => words.part(part).is_some_and(|meaning| meaning.marks.any(Marks::SEPARATOR)),
            Token::Colon | Token::Dot => false,
        };
        for effect in tokens.split(is_separator) {
            if effect.iter().any(|token| matches!(token, Token::Part(_))) {
                any = true;
                head.add(effect, words, read_as);
            }
        }
        head.unknown |= !any;
        head.nothing &= head.class == Some(Class::None);
        head
    }

    fn add(&mut self, tokens: &[Token], words: &EffectWords, read_as: As) {
        let known = known(tokens, words);
        let reads = harmless_verb_leads(tokens, &known, words, read_as);
        let sends = known.iter().any(|part| {
            part.marks().any(Marks::SENDS)
                || (part.class() == Some(Class::Medium) && !part.marks().any(Marks::ALSO_NOUN))
        });
        let (mut class, mut marks, mut verb, mut weighed) = (None, Marks::default(), false, false);
        let (mut harmless, mut nothing) = (true, true);
        let mut unknown_parts = Vec::new();
        for part in &known {
            let own = part.marks();
            let noun = reads && own.any(Marks::ALSO_NOUN.and(Marks::HEAD_NOUN));
            let name = read_as == As::Tool && own.any(Marks::SERVICE) && !sends;
            let counted = part.class().filter(|_| !noun && !name);
            class = class.max(counted);
            if let Some(counted) = counted {
                marks = marks.and(own);
                verb |= counted == Class::Medium && !part.run;
                weighed |= matches!(counted, Class::Medium | Class::Loop);
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
                if weighed && weighs(marks, verb && class < Some(Class::Approval)) =>
            {
                Some(Class::High)
            }
            other => other,
        };
        let told = self.unknown || class.is_some_and(|class| class > Class::None && class < Class::High);
        if told {
            let room = MAX_PARTS.saturating_sub(self.unknown_parts.len());
            self.unknown_parts.extend(unknown_parts.into_iter().take(room));
        }
        self.class = self.class.max(class);
        self.marks = self.marks.and(marks);
        self.verb |= verb;
        self.weighed |= weighed;
        self.nothing &= nothing;
    }

    /// With what stands behind the colon, which counts only upwards.
    fn with(self, behind: &Behind, alone: bool) -> Judged {
        let class = match self.class {
            Some(class) if !self.unknown => class,
            _ => return Judged::unknown(self.unknown_parts),
        };
        let denied = behind.marks.any(Marks::NEGATION.and(Marks::SENSITIVE)) || (self.takes_no_text && !alone);
        if class == Class::None && denied {
            return Judged::unknown(self.unknown_parts);
        }
        let sends = self.marks.and(behind.marks).any(Marks::SENDS);
        let mut strictest = class.max(behind.class).max(if sends { behind.channel } else { Class::None });
        let verb = (self.verb && self.marks.any(Marks::WRITES.and(Marks::SENDS))) || behind.verb;
        let weighed = self.weighed || behind.weighed;
        if weighed && weighs(behind.marks, verb && strictest < Class::Approval) {
            strictest = Class::High;
        }
        let told = strictest < Class::High;
        Judged {
            unknown_parts: if told { self.unknown_parts } else { Vec::new() },
            nothing: self.nothing && strictest == Class::None,
            ..Judged::of(strictest, self.marks.and(behind.marks))
        }
    }
}

/// Whether a harmless verb comes first, so that what is a common noun too is one here; behind a dot the last part may
/// be it. Where no other verb is about, things and the names of channels may stand before it
/// (`github_list_releases`).
fn harmless_verb_leads(tokens: &[Token], known: &[Known<'_>], words: &EffectWords, read_as: As) -> bool {
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
    let behind_dot = || last_dot.is_some_and(|dot| leads(&self::known(tokens.get(dot..).unwrap_or_default(), words)));
    // `issue_comments_list` is a common way to name a tool; a declared effect must say it plainly.
    let ends = || read_as == As::Tool && is_harmless(known.last());
    leads(known) || behind_dot() || ends()
}

/// What may make a medium effect high or a harmless one unknown, of a part that has no class itself.
fn weights(marks: Marks) -> Marks {
    let kept = [Marks::SENSITIVE, Marks::HEAVY, Marks::LIGHT];
    kept.into_iter().filter(|mark| marks.any(*mark)).fold(Marks::default(), Marks::and)
}

fn weighs(marks: Marks, beside_verb: bool) -> bool {
    marks.any(Marks::SENSITIVE.and(Marks::HEAVY)) || (beside_verb && marks.any(Marks::LIGHT))
}

/// What stands behind the colon.
struct Behind {
    class: Class,
    /// What a verb that sends would send through.
    channel: Class,
    marks: Marks,
    weighed: bool,
    /// A verb that writes or sends.
    verb: bool,
}

impl Behind {
    fn read(tokens: &[Token], words: &EffectWords) -> Self {
        let mut behind =
            Self { class: Class::None, channel: Class::None, marks: Marks::default(), weighed: false, verb: false };
        for part in known(tokens, words) {
            let (own, class) = (part.marks(), part.class().unwrap_or(Class::None));
            if own.any(Marks::ALSO_NOUN) && !part.run {
                if class == Class::Communication {
                    behind.channel = class;
                }
            } else if part.class().is_some() {
                behind.class = behind.class.max(class);
                behind.weighed |= matches!(class, Class::Medium | Class::Loop);
                behind.verb |= class == Class::Medium && !part.run && own.any(Marks::WRITES.and(Marks::SENDS));
                behind.marks = behind.marks.and(own);
            } else {
                behind.marks = behind.marks.and(own);
            }
        }
        behind
    }
}
