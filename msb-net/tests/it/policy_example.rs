//! The policy that the README shows does what the README says.

use msb_net::policy::Document;

#[test]
fn the_policy_in_the_readme_fulfils_its_expectations() {
    let readme = include_str!("../../README.md");
    let text = readme
        .split("```text\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the README shows a policy");
    let document: Document = text.parse().expect("it can be read");
    assert_eq!(document.expectations.len(), 4);
    let failures: Vec<String> = document.failures().map(|f| f.to_string()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
