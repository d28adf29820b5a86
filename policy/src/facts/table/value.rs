//! The value of a fact: what Cedar compares, and what an answer shows of it.

use cedar_policy::RestrictedExpression;
use jiff::Timestamp;
use serde_json::Value;

use super::super::decimal::Decimal;
use super::row::Kind;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FactValue {
    Bool(bool),
    Long(i64),
    Text(String),
    Set(Vec<String>),
    Decimal(Decimal),
    Datetime(Timestamp),
    /// Members by name, each once.
    Record(Vec<(String, FactValue)>),
}

impl FactValue {
    /// As Cedar reads it; `None` for a value that Cedar does not take.
    pub(crate) fn into_expression(self) -> Option<RestrictedExpression> {
        Some(match self {
            Self::Bool(value) => RestrictedExpression::new_bool(value),
            Self::Long(value) => RestrictedExpression::new_long(value),
            Self::Text(value) => RestrictedExpression::new_string(value),
            Self::Set(values) => {
                RestrictedExpression::new_set(values.into_iter().map(RestrictedExpression::new_string))
            }
            Self::Decimal(value) => RestrictedExpression::new_decimal(value.to_string()),
            Self::Datetime(at) => RestrictedExpression::new_datetime(at.to_string()),
            Self::Record(members) => {
                let read = |(name, value): (String, Self)| Some((name, value.into_expression()?));
                RestrictedExpression::new_record(members.into_iter().map(read).collect::<Option<Vec<_>>>()?).ok()?
            }
        })
    }

    /// What was recorded of a fact of this kind; `None` for what is none. `counted` are the tools of a record of calls.
    /// Members of `context` are read by their types.
    pub(crate) fn recall(kind: Kind, recorded: &Value, counted: &[String]) -> Option<Self> {
        Some(match kind {
            Kind::Bool => Self::Bool(recorded.as_bool()?),
            Kind::Long => Self::Long(recorded.as_i64()?),
            Kind::Text => Self::Text(recorded.as_str()?.to_owned()),
            Kind::Set => {
                let text = |item: &Value| item.as_str().map(str::to_owned);
                Self::Set(recorded.as_array()?.iter().map(text).collect::<Option<_>>()?)
            }
            Kind::Datetime => {
                let (text, at) = (recorded.as_str()?, recorded.as_str()?.parse::<Timestamp>().ok()?);
                // Cedar writes a year in four digits, and a check is of a whole second.
                let is_written = at.subsec_nanosecond() == 0 && !text.starts_with(['-', '+']);
                Self::Datetime(Some(at).filter(|at| is_written && at.to_string() == text)?)
            }
            Kind::RunCalls => {
                let calls = recorded.as_object()?;
                let of = |tool: &String| Some((tool.clone(), Self::Long(calls.get(tool)?.as_i64()?)));
                Self::Record(counted.iter().map(of).collect::<Option<_>>()?)
            }
            Kind::Custom => return None,
        })
    }

    /// The member of a record.
    pub(crate) fn member(self, name: &str) -> Option<Self> {
        let Self::Record(members) = self else { return None };
        members.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

impl From<FactValue> for Value {
    fn from(value: FactValue) -> Self {
        match value {
            FactValue::Bool(value) => value.into(),
            FactValue::Long(value) => value.into(),
            FactValue::Text(value) => value.into(),
            FactValue::Set(values) => values.into(),
            FactValue::Decimal(value) => value.to_string().into(),
            FactValue::Datetime(at) => at.to_string().into(),
            FactValue::Record(members) => {
                Self::Object(members.into_iter().map(|(name, value)| (name, value.into())).collect())
            }
        }
    }
}

impl From<bool> for FactValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for FactValue {
    fn from(value: i64) -> Self {
        Self::Long(value)
    }
}

impl From<String> for FactValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<String>> for FactValue {
    fn from(values: Vec<String>) -> Self {
        Self::Set(values)
    }
}
