//! A run's state in few bytes, as the journal stores it: each round writes every run that the journal holds.
//!
//! All but the allowed checks and the last tools is JSON. Checks are numbers, each relative to the check before, and
//! tools are places among the names that are counted: JSON takes five times as much for them, and they are most of a
//! run.

use bytes::Bytes;
use stage0_contract::RequestId;
use uuid::Uuid;

use super::super::{Allowed, RunState};
use super::compact::{Reader, put_bytes, put_number, put_signed};

const AGAIN: u8 = 1;
const SETTLED: u8 = 2;
const EXPIRED: u8 = 4;
const APPROVED: u8 = 8;

/// What a check's numbers are relative to.
#[derive(Default)]
struct Before {
    at: i64,
    iteration: i64,
    before_micros: i64,
}

impl Before {
    fn after(allowed: &Allowed) -> Self {
        Self { at: allowed.at, iteration: allowed.iteration, before_micros: allowed.before_micros }
    }
}

/// The state is as before when it returns.
pub(super) fn pack(state: &mut RunState) -> Result<Bytes, serde_json::Error> {
    let (allowed, tools) = (std::mem::take(&mut state.allowed), std::mem::take(&mut state.tools));
    let json = serde_json::to_vec(&*state);
    (state.allowed, state.tools) = (allowed, tools);
    let mut packed = Vec::new();
    put_bytes(&mut packed, &json?);
    let names: Vec<&String> = state.calls.keys().collect();
    put_number(&mut packed, state.tools.len() as u64);
    for tool in &state.tools {
        match names.binary_search(&tool) {
            Ok(place) => put_number(&mut packed, place as u64 + 1),
            // It is not counted by its name.
            Err(_) => {
                put_number(&mut packed, 0);
                put_bytes(&mut packed, tool.as_bytes());
            }
        }
    }
    let mut before = Before::default();
    for allowed in &state.allowed {
        put(&mut packed, allowed, &before);
        before = Before::after(allowed);
    }
    Ok(packed.into())
}

/// `None` for what was not packed here.
pub(super) fn unpack(packed: &[u8]) -> Option<RunState> {
    let mut reader = Reader(packed);
    let mut state: RunState = serde_json::from_slice(reader.bytes()?).ok()?;
    let names: Vec<&String> = state.calls.keys().collect();
    for _ in 0..reader.number()? {
        let tool = match reader.number()?.checked_sub(1) {
            Some(place) => (*names.get(usize::try_from(place).ok()?)?).clone(),
            None => std::str::from_utf8(reader.bytes()?).ok()?.to_owned(),
        };
        state.tools.push_back(tool);
    }
    let mut before = Before::default();
    while !reader.is_empty() {
        let allowed = read(&mut reader, &before)?;
        before = Before::after(&allowed);
        state.allowed.push_back(allowed);
    }
    Some(state)
}

fn put(out: &mut Vec<u8>, allowed: &Allowed, before: &Before) {
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    out.push(
        flag(allowed.again.is_some(), AGAIN)
            | flag(allowed.settled_micros.is_some(), SETTLED)
            | flag(allowed.expired, EXPIRED)
            | flag(allowed.approved, APPROVED),
    );
    out.extend_from_slice(&allowed.operation.into_bytes());
    if let Some(again) = allowed.again {
        out.extend_from_slice(&again.into_bytes());
    }
    put_signed(out, allowed.at.wrapping_sub(before.at));
    put_signed(out, allowed.iteration.wrapping_sub(before.iteration));
    put_signed(out, allowed.calls);
    put_signed(out, allowed.before_micros.wrapping_sub(before.before_micros));
    put_signed(out, allowed.estimate_micros);
    if let Some(settled) = allowed.settled_micros {
        put_signed(out, settled);
    }
}

fn read(reader: &mut Reader<'_>, before: &Before) -> Option<Allowed> {
    let flags = reader.byte()?;
    let has = |flag: u8| flags & flag != 0;
    let operation = request_id(reader)?;
    let again = if has(AGAIN) { Some(request_id(reader)?) } else { None };
    let at = before.at.wrapping_add(reader.signed()?);
    let iteration = before.iteration.wrapping_add(reader.signed()?);
    let calls = reader.signed()?;
    let before_micros = before.before_micros.wrapping_add(reader.signed()?);
    let estimate_micros = reader.signed()?;
    let settled_micros = if has(SETTLED) { Some(reader.signed()?) } else { None };
    let (expired, approved) = (has(EXPIRED), has(APPROVED));
    let counted = Allowed {
        operation,
        again,
        at,
        iteration,
        calls,
        before_micros,
        estimate_micros,
        settled_micros,
        expired,
        approved,
    };
    Some(counted)
}

fn request_id(reader: &mut Reader<'_>) -> Option<RequestId> {
    let bytes = reader.take(16)?.try_into().ok()?;
    RequestId::new(Uuid::from_bytes(bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> RequestId {
        RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
    }

    fn allowed(number: u64) -> Allowed {
        let place = i64::try_from(number).unwrap();
        Allowed {
            operation: id(number),
            again: number.is_multiple_of(3).then(|| id(number + 1_000)),
            at: 1_773_662_400 + place,
            iteration: place,
            calls: place % 2,
            before_micros: place * 10_000,
            estimate_micros: 10_000,
            settled_micros: number.is_multiple_of(5).then_some(-place),
            expired: number.is_multiple_of(7),
            approved: number.is_multiple_of(2),
        }
    }

    #[test]
    fn a_state_is_unpacked_as_it_was_packed_and_takes_a_fraction_of_its_json() {
        let mut state = RunState::new(1_773_662_400);
        state.tools = (0..100).map(|call| ["web_search", "shell", "?"][call % 3].to_owned()).collect();
        state.calls = [("shell".to_owned(), 34), ("web_search".to_owned(), 34), ("another".to_owned(), 1)].into();
        state.allowed = (0..100).map(allowed).collect();
        let (before, json) = (state.clone(), serde_json::to_vec(&state).unwrap());
        let packed = pack(&mut state).unwrap();
        assert_eq!((&state, unpack(&packed).as_ref()), (&before, Some(&before)));
        assert!(packed.len() * 3 < json.len(), "{} of {}", packed.len(), json.len());
        let extreme = Allowed { at: i64::MIN, before_micros: i64::MAX, iteration: i64::MIN, ..allowed(1) };
        state.allowed.push_back(extreme);
        assert_eq!(unpack(&pack(&mut state).unwrap()).as_ref(), Some(&state));
    }

    #[test]
    fn a_torn_state_is_not_read_as_a_shorter_one() {
        let mut state = RunState::new(1);
        state.allowed = (0..3).map(allowed).collect();
        let packed = pack(&mut state).unwrap();
        let (mut one, mut two) = (state.clone(), state.clone());
        one.allowed.truncate(1);
        two.allowed.truncate(2);
        // Where one check ends and the next begins the journal's own lengths tell.
        let whole: Vec<_> = [&mut one, &mut two].into_iter().map(|state| pack(state).unwrap().len()).collect();
        one.allowed.clear();
        let none = pack(&mut one).unwrap().len();
        for end in 0..packed.len() {
            let torn = packed.get(..end).unwrap();
            assert_eq!(unpack(torn).is_some(), end == none || whole.contains(&end), "{end}");
        }
    }
}
