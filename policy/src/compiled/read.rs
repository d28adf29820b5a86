//! Compiles conditions from the form in which Cedar itself writes a policy as JSON.
//!
//! INVARIANT: what is not known exactly is not compiled. A new operator, a new type of a fact, or a form that Cedar
//! writes otherwise leaves the rule with Cedar.

use serde_json::Value as Json;

use crate::facts::{Attribute, Decimal, Kind};

use super::pattern::Pattern;
use super::{Expression, Operator, moment};

/// Levels of an expression. Evaluating recurses into them; longer chains of `&&` and `||` are one level.
const MAX_DEPTH: usize = 100;
/// Items of a list that are not all texts: they are compared one by one.
const MAX_LISTED: usize = 32;

/// All conditions of a policy that forbids for every principal, action and resource.
pub(super) fn conditions(policy: &Json) -> Option<Expression> {
    let is_unscoped = |part: &&str| policy.get(*part).and_then(|scope| scope.get("op")) == Some(&"All".into());
    let is_rule = policy.get("effect")? == "forbid" && ["principal", "action", "resource"].iter().all(is_unscoped);
    let read = |condition: &Json| {
        let body = expression(condition.get("body")?, 0)?;
        match condition.get("kind")?.as_str()? {
            "when" => Some(body),
            "unless" => Some(Expression::Not(Box::new(body))),
            _ => None,
        }
    };
    let parts = policy.get("conditions")?.as_array()?.iter().map(read).collect::<Option<_>>()?;
    is_rule.then_some(Expression::All(parts))
}

fn expression(json: &Json, depth: usize) -> Option<Expression> {
    let mut operators = json.as_object()?.iter();
    let ((name, operands), None) = (operators.next()?, operators.next()) else { return None };
    if depth > MAX_DEPTH {
        return None;
    }
    let inner = |operand: &Json| expression(operand, depth + 1);
    let argument = || inner(operands.get("arg")?).map(Box::new);
    Some(match name.as_str() {
        "Value" => literal(operands)?,
        "Set" => list(operands.as_array()?.iter().map(inner).collect::<Option<_>>()?)?,
        "decimal" => decimal(operands)?,
        "datetime" => moment::of(argument_of(operands)?).map(Expression::Datetime)?,
        "." => fact(operands.get("left")?, operands.get("attr")?.as_str()?)?,
        "has" => presence(operands.get("left")?, operands.get("attr")?)?,
        "!" => Expression::Not(argument()?),
        "neg" => Expression::Negative(argument()?),
        "isEmpty" => Expression::IsEmpty(argument()?),
        "&&" | "||" => {
            let mut parts = Vec::new();
            chain(name, json, depth, &mut parts)?;
            if name == "&&" { Expression::All(parts.into()) } else { Expression::Any(parts.into()) }
        }
        "if-then-else" => {
            let part = |name: &str| inner(operands.get(name)?);
            Expression::If(Box::new([part("if")?, part("then")?, part("else")?]))
        }
        "like" => Expression::Like(Box::new(inner(operands.get("left")?)?), Pattern::of(operands.get("pattern")?)?),
        _ => Expression::Pair(operator(name)?, Box::new(sides(operands, depth)?)),
    })
}

/// What a chain of `&&` or `||` joins, in its order.
fn chain(name: &str, json: &Json, depth: usize, parts: &mut Vec<Expression>) -> Option<()> {
    let Some(operands) = json.get(name) else {
        parts.push(expression(json, depth + 1)?);
        return Some(());
    };
    chain(name, operands.get("left")?, depth, parts)?;
    chain(name, operands.get("right")?, depth, parts)
}

fn operator(name: &str) -> Option<Operator> {
    Some(match name {
        "==" => Operator::Equal,
        "!=" => Operator::Unequal,
        "<" => Operator::Less,
        "<=" => Operator::LessOrEqual,
        ">" => Operator::Greater,
        ">=" => Operator::GreaterOrEqual,
        "+" => Operator::Add,
        "-" => Operator::Subtract,
        "*" => Operator::Multiply,
        "contains" => Operator::Contains,
        "containsAll" => Operator::ContainsAll,
        "containsAny" => Operator::ContainsAny,
        "lessThan" => Operator::DecimalLess,
        "lessThanOrEqual" => Operator::DecimalLessOrEqual,
        "greaterThan" => Operator::DecimalGreater,
        "greaterThanOrEqual" => Operator::DecimalGreaterOrEqual,
        _ => return None,
    })
}

/// Both sides of an operator; a method of an extension has them in a list.
fn sides(operands: &Json, depth: usize) -> Option<[Expression; 2]> {
    let (left, right) = match operands {
        Json::Array(sides) => match sides.as_slice() {
            [left, right] => (left, right),
            _ => return None,
        },
        _ => (operands.get("left")?, operands.get("right")?),
    };
    Some([expression(left, depth + 1)?, expression(right, depth + 1)?])
}

fn literal(json: &Json) -> Option<Expression> {
    Some(match json {
        Json::Bool(value) => Expression::Bool(*value),
        Json::Number(number) => Expression::Long(number.as_i64()?),
        Json::String(text) => Expression::Text(text.as_str().into()),
        _ => return None,
    })
}

/// `decimal("19.99")`. A text that Cedar would not take is left to it.
fn decimal(operands: &Json) -> Option<Expression> {
    let text = argument_of(operands).filter(|text| text.contains('.'))?;
    Decimal::parse(text).map(Expression::Decimal)
}

/// The text that a value of an extension is made of.
fn argument_of(operands: &Json) -> Option<&str> {
    let [argument] = operands.as_array()?.as_slice() else { return None };
    argument.get("Value")?.as_str()
}

fn list(items: Vec<Expression>) -> Option<Expression> {
    let text = |item: &Expression| if let Expression::Text(text) = item { Some(text.clone()) } else { None };
    if let Some(mut texts) = items.iter().map(text).collect::<Option<Vec<_>>>() {
        texts.sort_unstable();
        texts.dedup();
        return Some(Expression::TextList(texts.into()));
    }
    let is_simple = |item: &Expression| !matches!(item, Expression::TextList(_) | Expression::List(_));
    (items.len() <= MAX_LISTED && items.iter().all(is_simple)).then(|| Expression::List(items.into()))
}

/// `context.role`, or `context.custom.amount`.
fn fact(record: &Json, name: &str) -> Option<Expression> {
    if is_context(record) {
        let is_record = |attribute: &Attribute| matches!(attribute.kind(), Kind::Custom | Kind::RunCalls);
        return Attribute::parse(name).filter(|attribute| !is_record(attribute)).map(Expression::Fact);
    }
    record_fact(record).map(|attribute| Expression::Member(attribute, name.into()))
}

/// `context has role`, `context.custom has amount`, or both in one: `context has custom.amount`.
fn presence(record: &Json, path: &Json) -> Option<Expression> {
    let path: Vec<&str> = match path {
        Json::String(name) => vec![name],
        Json::Array(names) => names.iter().map(Json::as_str).collect::<Option<_>>()?,
        _ => return None,
    };
    match path.as_slice() {
        [name] if is_context(record) => Attribute::parse(name).map(Expression::HasFact),
        [name, member] if is_context(record) => {
            let attribute = record_of(name)?;
            let parts = [Expression::HasFact(attribute), Expression::HasMember(attribute, (*member).into())];
            Some(Expression::All(Box::new(parts)))
        }
        [member] => record_fact(record).map(|attribute| Expression::HasMember(attribute, (*member).into())),
        _ => None,
    }
}

fn is_context(json: &Json) -> bool {
    json.get("Var").and_then(Json::as_str) == Some("context")
}

/// The record that `context.custom` or `context.run_calls` is.
fn record_fact(json: &Json) -> Option<Attribute> {
    let access = json.get(".").filter(|access| access.get("left").is_some_and(is_context))?;
    record_of(access.get("attr")?.as_str()?)
}

fn record_of(name: &str) -> Option<Attribute> {
    Attribute::parse(name).filter(|attribute| matches!(attribute.kind(), Kind::Custom | Kind::RunCalls))
}
