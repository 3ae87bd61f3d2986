//! What `#[service]` does not take, in the words that the user reads. `TRYBUILD=overwrite` writes the expectations anew;
//! read the difference before keeping it.

#[test]
fn r01_what_cannot_be_a_service_is_refused_in_the_users_words() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/refused/*.rs");
}
