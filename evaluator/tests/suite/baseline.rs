//! The baseline pack as it is compiled in.

use stage0_evaluator::{Pack, PackError};

#[test]
fn the_embedded_baseline_loads_and_names_its_content() -> Result<(), PackError> {
    let pack = Pack::embedded().inspect_err(|error| println!("{error}"))?;
    assert!(pack.version().as_str().starts_with("baseline@2.0.0+"));
    Ok(())
}
