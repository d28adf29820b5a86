//! Runs a target: the inputs of its corpus as they are, then changed ones until the time is over.
//!
//! What is allocated for an input is bounded by its length, in place of the time that it takes. The changes are other
//! ones each time: a failure prints the seed (`STAGE0_SEED` repeats it) and the input, and keeps the input in a file.
//! `STAGE0_FUZZ_SECONDS` is the time for each target.

use std::cell::{Cell, RefCell};
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use stage0_fuzz::Target;

use super::changes::{Material, plan};

/// Unless the environment says otherwise.
const SECONDS: f64 = 4.0;
/// Inputs under one seed. A pack that loads takes a while, and the time is looked at only between batches.
const BATCH: u32 = 50;
const MAX_SHRINK_STEPS: u32 = 1_000;
/// What a target may allocate in all, for each byte of its input and besides. It reads some inputs a dozen times.
const MAX_BYTES_PER_BYTE: u64 = 10_000;
const MAX_BASE_BYTES: u64 = 64 << 20;

/// An input for which a property does not hold.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) input: Vec<u8>,
    pub(super) why: String,
}

/// Fails the test with the input that a target does not stand.
pub(super) fn fuzz(name: &str) {
    let target = stage0_fuzz::named(name).unwrap_or_else(|| panic!("there is no target `{name}`"));
    let material = Material { inputs: inputs(name).into_iter().map(|(_, input)| input).collect(), words: words(name) };
    let (began, end, first) = (Instant::now(), seconds(), seed());
    let (mut seed, mut count) = (first, 0);
    while count == 0 || began.elapsed() < end {
        if let Err(failure) = run(target, &material, seed, BATCH) {
            let file = keep(name, &failure.input);
            panic!(
                "{name}, STAGE0_SEED={}: {}\nthe input of {} bytes is in {}: {}",
                failure.seed,
                failure.why,
                failure.input.len(),
                file.display(),
                failure.input.escape_ascii()
            );
        }
        (seed, count) = (seed.wrapping_add(1), count + BATCH);
    }
    println!("{name}: {count} changed inputs, from STAGE0_SEED={first}");
}

/// Runs changed inputs under one seed, and returns the smallest that fails.
pub(super) fn run(target: &Target, material: &Material, seed: u64, count: u32) -> Result<(), Failure> {
    let config =
        Config { cases: count, failure_persistence: None, max_shrink_iters: MAX_SHRINK_STEPS, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let outcome = TestRunner::new_with_rng(config, rng)
        .run(&plan(), |plan| judge(target, &plan.input(material)).map(|_| ()).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, plan)) => Err(Failure { seed, input: plan.input(material), why: why.to_string() }),
        Err(TestError::Abort(why)) => panic!("{}: {why}", target.name),
    }
}

/// Whether the parser took the input, or what does not hold for it.
pub(super) fn judge(target: &Target, input: &[u8]) -> Result<bool, String> {
    keep_panics();
    let mut is_taken = None;
    IS_JUDGING.set(true);
    // Within: a panic that passed the measurement would disturb the next one.
    let allocated =
        allocation_counter::measure(|| is_taken = catch_unwind(AssertUnwindSafe(|| target.run(input))).ok());
    IS_JUDGING.set(false);
    let is_taken = is_taken.ok_or_else(|| PANIC.take())?;
    let most = MAX_BASE_BYTES + MAX_BYTES_PER_BYTE * u64::try_from(input.len()).unwrap();
    if allocated.bytes_total > most {
        return Err(format!("{} bytes were allocated, and may be {most}", allocated.bytes_total));
    }
    Ok(is_taken)
}

thread_local! {
    static IS_JUDGING: Cell<bool> = const { Cell::new(false) };
    /// What the last panic of a target said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A target's panic is what was looked for. Printed as it happens, it would come once for each step to a smaller input.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if IS_JUDGING.get() {
                PANIC.set(panic.to_string());
            } else {
                others(panic);
            }
        }));
    });
}

pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The inputs of a corpus, by the names of their files.
pub(super) fn inputs(name: &str) -> Vec<(String, Vec<u8>)> {
    let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    let mut inputs: Vec<_> = fs::read_dir(folder().join(name)).unwrap().map(|entry| read(entry.unwrap())).collect();
    inputs.sort();
    inputs
}

/// The words of a dictionary, in the form of libFuzzer: a quoted text a line, with `\\`, `\"` and `\xAB`.
pub(super) fn words(name: &str) -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("dictionaries/{name}.dict"));
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.lines().filter(|line| !line.starts_with('#')).map(|line| word(line).expect(line)).collect()
}

fn word(line: &str) -> Option<Vec<u8>> {
    let mut left = line.strip_prefix('"')?.strip_suffix('"')?;
    let mut word = Vec::new();
    while let Some((before, escape)) = left.split_once('\\') {
        word.extend_from_slice(before.as_bytes());
        left = match escape.strip_prefix('x') {
            Some(digits) => {
                word.push(u8::from_str_radix(digits.get(..2)?, 16).ok()?);
                &digits[2..]
            }
            None => {
                word.extend_from_slice(escape.get(..1)?.as_bytes());
                &escape[1..]
            }
        };
    }
    word.extend_from_slice(left.as_bytes());
    Some(word)
}

fn seconds() -> Duration {
    let given = std::env::var("STAGE0_FUZZ_SECONDS").ok();
    let seconds = given.map_or(SECONDS, |given| given.parse().expect("STAGE0_FUZZ_SECONDS is a number"));
    Duration::from_secs_f64(seconds)
}

fn seed() -> u64 {
    let given = std::env::var("STAGE0_SEED").ok().map(|seed| seed.parse().expect("STAGE0_SEED is a number"));
    given.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish())
}

/// Writes the input where `cargo clean` finds it.
fn keep(name: &str, input: &[u8]) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
    fs::write(&file, input).unwrap();
    file
}
