//! The time of one decision, a typical deployment request against the whole baseline pack, and of each of its steps.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use stage0_contract::{AccountId, CallerTexts, CheckRequest, EvaluateRequest, RequestId};
use stage0_policy::bench_support::{Measured, TYPICAL_REQUEST};
use stage0_policy::{Engine, Pack, secrets};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: i64 = 1_773_662_400;

fn decision(criterion: &mut Criterion) {
    let engine = Engine::new(Pack::embedded().expect("the baseline loads")).expect("it parses again");
    let request = CheckRequest::parse(serde_json::from_str(TYPICAL_REQUEST).unwrap()).unwrap();
    let message = serde_json::to_vec(&request).unwrap();
    let measured = Measured::new(&engine, &request, NOW).expect("it is decided");
    let name = |part: &str| format!("{part} ({} rules)", measured.rules());
    criterion
        .bench_function(&name("facts and decision"), |b| b.iter(|| black_box(engine.decide(&request, NOW).is_ok())));
    criterion.bench_function("part: request from JSON", |b| {
        b.iter(|| black_box(serde_json::from_slice::<CheckRequest>(&message).is_ok()));
    });
    criterion.bench_function("part: constraints", |b| b.iter(|| measured.constraints()));
    criterion.bench_function("part: secrets", |b| {
        b.iter(|| black_box(secrets::find(&request, engine.pack().secrets()).len()));
    });
    criterion.bench_function("part: facts, with constraints and secrets", |b| b.iter(|| measured.facts(NOW)));
    criterion.bench_function("part: context", |b| b.iter(|| measured.context()));
    criterion.bench_function("part: evaluate, with context", |b| b.iter(|| measured.evaluate()));
    criterion.bench_function("without triggers: evaluate all rules", |b| b.iter(|| measured.evaluate_all()));
    let check = EvaluateRequest {
        asker: None,
        request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
        account: AccountId::parse("acc").unwrap(),
        request: request.clone(),
        evaluated_at: NOW,
        operation: None,
        caller: CallerTexts {
            client_request_id: Some("a5c1f0de-7c4f-4d3c-9a55-3f1f0b7f2f11".to_owned()),
            user_agent: Some("python-requests/2.32.3 agent-runner/4.1 (linux; x86_64)".to_owned()),
        },
        max_runs: None,
    };
    criterion.bench_function("part: what may be recorded", |b| b.iter(|| measured.redact(&check)));
    criterion.bench_function("part: assembly", |b| b.iter(|| black_box(measured.assemble())));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).without_plots();
    targets = decision
}
criterion_main!(benches);
