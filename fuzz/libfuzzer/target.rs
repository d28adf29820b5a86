//! libFuzzer's side of the targets: `STAGE0_FUZZ_TARGET` names the one that is run.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use stage0_fuzz::Target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("STAGE0_FUZZ_TARGET").expect("STAGE0_FUZZ_TARGET names a target");
    stage0_fuzz::named(&name).expect("STAGE0_FUZZ_TARGET is the name of a folder in fuzz/corpus")
});

fuzz_target!(|input: &[u8]| {
    TARGET.run(input);
});
