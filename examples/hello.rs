//! Placeholder of the README's program.
fn main() {}
