//! Compiled conditions: what the conditions of a rule say, in a form that is evaluated on the facts where they stand.
//!
//! `read` compiles a rule when its pack is loaded, `value` and `texts` are what it compares. A rule with anything else
//! in it is not compiled, and Cedar evaluates it as before.
//! INVARIANT: a compiled condition holds, does not hold or fails exactly where the rule does in Cedar. The engine
//! compares the two on every case of a pack when it is loaded, and on a share of the checks (ADR 0041).

mod moment;
mod pattern;
mod read;
mod texts;
mod value;

use serde_json::Value as Json;

use crate::facts::{Attribute, Decimal, Facts};

use pattern::Pattern;
use texts::Texts;
use value::Value;

/// The rule fails: a fact is absent, a number overflows, or a value has another type than its operator wants. Why is of
/// no use, because a failed rule denies whatever the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

/// All conditions of a rule.
#[derive(Debug, Clone)]
pub(crate) struct Compiled(Expression);

#[derive(Debug, Clone)]
enum Expression {
    Bool(bool),
    Long(i64),
    Text(Box<str>),
    Decimal(Decimal),
    /// Milliseconds since the epoch.
    Datetime(i64),
    /// Sorted, each once.
    TextList(Box<[Box<str>]>),
    List(Box<[Expression]>),
    Fact(Attribute),
    Member(Attribute, Box<str>),
    HasFact(Attribute),
    HasMember(Attribute, Box<str>),
    Not(Box<Expression>),
    /// Joined by `&&`.
    All(Box<[Expression]>),
    /// Joined by `||`.
    Any(Box<[Expression]>),
    If(Box<[Expression; 3]>),
    Negative(Box<Expression>),
    Pair(Operator, Box<[Expression; 2]>),
    IsEmpty(Box<Expression>),
    Like(Box<Expression>, Pattern),
}

/// An operator that evaluates both of its sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Add,
    Subtract,
    Multiply,
    Contains,
    ContainsAll,
    ContainsAny,
    DecimalLess,
    DecimalLessOrEqual,
    DecimalGreater,
    DecimalGreaterOrEqual,
}

impl Compiled {
    /// Compiles a rule from Cedar's own form of it; none for a rule that only Cedar can evaluate.
    pub(crate) fn of(policy: &Json) -> Option<Self> {
        read::conditions(policy).map(Self)
    }

    /// The opposite, for tests of what must find it.
    pub(crate) fn negated(self) -> Self {
        Self(Expression::Not(Box::new(self.0)))
    }

    /// Whether the rule is satisfied.
    pub(crate) fn holds(&self, facts: &Facts) -> Result<bool, Failed> {
        self.0.holds(facts)
    }
}

impl Expression {
    fn holds(&self, facts: &Facts) -> Result<bool, Failed> {
        match self {
            Self::Bool(value) => Ok(*value),
            Self::HasFact(attribute) => Ok(attribute.view(facts).is_some()),
            Self::HasMember(attribute, member) => Ok(attribute.view(facts).ok_or(Failed)?.member(member).is_some()),
            Self::Not(inner) => Ok(!inner.holds(facts)?),
            // What stands behind the part that decides is not evaluated, so it cannot fail.
            Self::All(parts) => {
                for part in parts {
                    if !part.holds(facts)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Any(parts) => {
                for part in parts {
                    if part.holds(facts)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::IsEmpty(inner) => Ok(inner.value(facts)?.texts()?.is_empty()),
            Self::Like(inner, pattern) => Ok(pattern.matches(inner.value(facts)?.text()?)),
            _ => self.value(facts)?.bool(),
        }
    }

    fn value<'v>(&'v self, facts: &'v Facts) -> Result<Value<'v>, Failed> {
        Ok(match self {
            Self::Long(value) => Value::Long(*value),
            Self::Text(text) => Value::Text(text),
            Self::Decimal(value) => Value::Decimal(*value),
            Self::Datetime(at) => Value::Datetime(*at),
            Self::TextList(texts) => Value::Texts(Texts::Sorted(texts)),
            Self::List(items) => {
                let items = items.iter().map(|item| item.value(facts)).collect::<Result<_, _>>()?;
                Value::Texts(Texts::Listed(items))
            }
            Self::Fact(attribute) => Value::of(attribute.view(facts).ok_or(Failed)?)?,
            Self::Member(attribute, member) => {
                let record = attribute.view(facts).ok_or(Failed)?;
                Value::of(record.member(member).ok_or(Failed)?)?
            }
            Self::If(parts) => {
                let [test, then, otherwise] = &**parts;
                return if test.holds(facts)? { then.value(facts) } else { otherwise.value(facts) };
            }
            Self::Negative(inner) => Value::Long(inner.value(facts)?.long()?.checked_neg().ok_or(Failed)?),
            Self::Pair(operator, sides) => {
                let [left, right] = &**sides;
                operator.apply(&left.value(facts)?, &right.value(facts)?)?
            }
            Self::Bool(_)
            | Self::HasFact(_)
            | Self::HasMember(..)
            | Self::Not(_)
            | Self::All(_)
            | Self::Any(_)
            | Self::IsEmpty(_)
            | Self::Like(..) => Value::Bool(self.holds(facts)?),
        })
    }
}

impl Operator {
    fn apply<'v>(self, left: &Value<'v>, right: &Value<'v>) -> Result<Value<'v>, Failed> {
        let longs = || -> Result<(i64, i64), Failed> { Ok((left.long()?, right.long()?)) };
        let decimals = || -> Result<_, Failed> { Ok((left.decimal()?, right.decimal()?)) };
        let texts = || -> Result<_, Failed> { Ok((left.texts()?, right.texts()?)) };
        let number = |value: Option<i64>| value.map(Value::Long).ok_or(Failed);
        Ok(Value::Bool(match self {
            Self::Equal => left.is(right),
            Self::Unequal => !left.is(right),
            Self::Less => left.compare(right)?.is_lt(),
            Self::LessOrEqual => left.compare(right)?.is_le(),
            Self::Greater => left.compare(right)?.is_gt(),
            Self::GreaterOrEqual => left.compare(right)?.is_ge(),
            Self::Add => return longs().and_then(|(left, right)| number(left.checked_add(right))),
            Self::Subtract => return longs().and_then(|(left, right)| number(left.checked_sub(right))),
            Self::Multiply => return longs().and_then(|(left, right)| number(left.checked_mul(right))),
            Self::Contains => left.texts()?.contains(right),
            Self::ContainsAll => texts().map(|(left, right)| left.contains_all(right))?,
            Self::ContainsAny => texts().map(|(left, right)| left.contains_any(right))?,
            Self::DecimalLess => decimals().map(|(left, right)| left < right)?,
            Self::DecimalLessOrEqual => decimals().map(|(left, right)| left <= right)?,
            Self::DecimalGreater => decimals().map(|(left, right)| left > right)?,
            Self::DecimalGreaterOrEqual => decimals().map(|(left, right)| left >= right)?,
        }))
    }
}

#[cfg(test)]
mod tests;
