//! The baseline pack that is compiled into the binary.

use stage0_policy::{Pack, PackError};

#[test]
fn the_embedded_baseline_pack_loads_with_its_version() -> Result<(), PackError> {
    let pack = Pack::embedded().inspect_err(|error| println!("{error}"))?;
    assert!(pack.version().as_str().starts_with("baseline@2.0.0+"));
    Ok(())
}
