//! The README says what the program has.

use twinscope::diff::catalogue;
use twinscope::op::STAGES;

#[test]
fn the_readme_lists_every_hypothesis_and_every_stage() {
    let readme = include_str!("../../README.md");
    let table: String =
        catalogue().map(|(id, description, ops)| format!("| `{id}` | {description} | {ops} |\n")).collect();
    assert!(
        readme.contains(&table),
        "README.md, between the hypotheses' header and the next section, should have:\n{table}"
    );
    for stage in STAGES {
        assert!(readme.contains(&format!("`{}`", stage.name)), "README.md does not name the stage {}", stage.name);
    }
}
