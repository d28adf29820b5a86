//! Texts of random rules in Cedar, from a seed.

use stage0_policy::fact_table;

const NUMBERS: [&str; 12] =
    ["0", "1", "2", "3", "5", "10", "100", "-1", "3600", "4611686018427387904", "9223372036854775807", "1000000"];
const TEXTS: [&str; 16] = [
    "production",
    "staging",
    "approved",
    "rejected",
    "absent",
    "shell",
    "send_email",
    "delete_record",
    "DE",
    "",
    "?",
    "acc",
    "high",
    "a",
    "run_id",
    "approval_status",
];
const PATTERNS: [&str; 10] = ["*", "", "prod*", "*e*", "*ing", "s*l*", "a**d", "\\*", "?", "a*p*o*d"];
const DECIMALS: [&str; 6] = ["0.0", "19.99", "0.1", "-0.5", "1000.00", "922337203685477.5807"];
const MOMENTS: [&str; 3] = ["2026-03-16", "2026-03-16T12:00:00Z", "2026-03-16T13:00:00.000+0100"];
const MEMBERS: [&str; 7] = ["amount", "price", "country", "urgent", "labels", "record_count", "unknown"];
const TOOLS: [&str; 5] = ["send_email", "delete_record", "read_record", "mcp__github__push", "unknown"];
/// Levels of operators.
const DEPTH: u32 = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Bool,
    Number,
    Text,
    Set,
    Decimal,
}

const TYPES: [Type; 5] = [Type::Bool, Type::Number, Type::Text, Type::Set, Type::Decimal];

pub(super) struct RuleTexts {
    state: u64,
    facts: Vec<(&'static str, &'static str, bool)>,
}

impl RuleTexts {
    pub(super) fn new(seed: u64) -> Self {
        let facts = fact_table().filter_map(|row| Some((row.name, row.cedar_type?, row.is_optional)));
        Self { state: seed | 1, facts: facts.collect() }
    }

    pub(super) fn rule(&mut self) -> String {
        let when = self.expression(Type::Bool, DEPTH);
        let unless =
            if self.one_in(3) { format!(" unless {{ {} }}", self.expression(Type::Bool, 2)) } else { String::new() };
        format!("forbid (principal, action, resource) when {{ {when} }}{unless};")
    }

    fn below(&mut self, bound: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from((self.state >> 16) % u64::try_from(bound).unwrap()).unwrap()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.below(from.len())]
    }

    fn expression(&mut self, wanted: Type, depth: u32) -> String {
        // A rule that compares what cannot be compared fails, or the values are unequal.
        let wanted = if self.one_in(300) { TYPES[self.below(TYPES.len())] } else { wanted };
        if depth == 0 || self.one_in(6) {
            return self.leaf(wanted);
        }
        let depth = depth - 1;
        if self.one_in(12) {
            let test = self.expression(Type::Bool, depth);
            let (then, otherwise) = (self.expression(wanted, depth), self.expression(wanted, depth));
            return format!("(if {test} then {then} else {otherwise})");
        }
        match wanted {
            Type::Bool => self.test(depth),
            Type::Number => match self.below(5) {
                0 => format!("(-{})", self.expression(Type::Number, 0)),
                1..=3 => self.pair(Type::Number, &["+", "-", "*"], depth),
                _ => self.leaf(Type::Number),
            },
            Type::Set if self.one_in(3) => {
                let items: Vec<String> = (0..=self.below(3)).map(|_| self.expression(Type::Text, 0)).collect();
                format!("[{}]", items.join(", "))
            }
            Type::Text | Type::Set | Type::Decimal => self.leaf(wanted),
        }
    }

    fn pair(&mut self, of: Type, operators: &[&'static str], depth: u32) -> String {
        let (left, operator, right) = (self.expression(of, depth), self.pick(operators), self.expression(of, depth));
        format!("({left} {operator} {right})")
    }

    fn test(&mut self, depth: u32) -> String {
        match self.below(15) {
            0..=3 => self.pair(Type::Bool, &["&&", "||"], depth),
            4 => format!("!{}", self.expression(Type::Bool, depth)),
            5 | 6 => self.pair(Type::Number, &["<", "<=", ">", ">=", "==", "!="], depth),
            7 => {
                let of = TYPES[self.below(TYPES.len())];
                self.pair(of, &["==", "!="], depth)
            }
            8 => format!("({} like \"{}\")", self.expression(Type::Text, depth), self.pick(&PATTERNS)),
            9 => {
                let of = if self.one_in(5) { Type::Number } else { Type::Text };
                format!("{}.contains({})", self.expression(Type::Set, depth), self.expression(of, depth))
            }
            10 => {
                let method = self.pick(&["containsAll", "containsAny"]);
                format!("{}.{method}({})", self.expression(Type::Set, depth), self.expression(Type::Set, depth))
            }
            11 => format!("{}.isEmpty()", self.expression(Type::Set, depth)),
            12 => {
                let (operator, moment) = (self.pick(&["<", "<=", ">", ">=", "==", "!="]), self.pick(&MOMENTS));
                format!("(context.now {operator} datetime(\"{moment}\"))")
            }
            13 => {
                let method = self.pick(&["lessThan", "lessThanOrEqual", "greaterThan", "greaterThanOrEqual"]);
                format!("{}.{method}({})", self.leaf(Type::Decimal), self.leaf(Type::Decimal))
            }
            _ => self.presence(),
        }
    }

    fn presence(&mut self) -> String {
        let optional: Vec<&str> = self.facts.iter().filter(|fact| fact.2).map(|fact| fact.0).collect();
        match self.below(4) {
            0 => format!("(context has {})", optional[self.below(optional.len())]),
            1 => format!("(context.custom has {})", self.pick(&MEMBERS)),
            2 => format!("(context has custom.{})", self.pick(&MEMBERS)),
            // Only Cedar knows it.
            _ if self.one_in(8) => "(context.now.toTime() > duration(\"11h59m\"))".to_owned(),
            _ => format!("(context.run_calls has {})", self.pick(&TOOLS)),
        }
    }

    fn leaf(&mut self, of: Type) -> String {
        if self.one_in(3) {
            return match of {
                Type::Bool => self.presence(),
                Type::Number => self.pick(&NUMBERS).to_owned(),
                Type::Text => format!("\"{}\"", self.pick(&TEXTS)),
                Type::Set => {
                    let texts: Vec<String> =
                        (0..=self.below(20)).map(|_| format!("\"{}\"", self.pick(&TEXTS))).collect();
                    format!("[{}]", texts.join(", "))
                }
                Type::Decimal => format!("decimal(\"{}\")", self.pick(&DECIMALS)),
            };
        }
        match of {
            Type::Decimal => "context.custom.price".to_owned(),
            Type::Number if self.one_in(6) => format!("context.run_calls.{}", self.pick(&TOOLS)),
            _ if self.one_in(12) => {
                let member = match of {
                    Type::Bool => "urgent",
                    Type::Number => self.pick(&["amount", "record_count"]),
                    Type::Text => "country",
                    Type::Set | Type::Decimal => "labels",
                };
                format!("context.custom.{member}")
            }
            _ => {
                let kind = match of {
                    Type::Bool => "Bool",
                    Type::Number => "Long",
                    Type::Text => "String",
                    Type::Set | Type::Decimal => "Set<String>",
                };
                let may_be_absent = self.one_in(12);
                let is_wanted = |fact: &&(_, &str, bool)| fact.1 == kind && (may_be_absent || !fact.2);
                let known: Vec<&str> = self.facts.iter().filter(is_wanted).map(|fact| fact.0).collect();
                format!("context.{}", known[self.below(known.len())])
            }
        }
    }
}
