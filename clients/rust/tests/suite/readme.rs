//! The README's quick start is the example that is compiled.

#[test]
fn the_quick_start_of_the_readme_is_the_example() {
    let readme = include_str!("../../README.md");
    let example = include_str!("../../examples/quickstart.rs");
    let (_, program) = example.split_once("people\")]\n\n").unwrap();
    assert!(readme.contains(&format!("```rust\n{program}```\n")), "copy examples/quickstart.rs into the README");
}
