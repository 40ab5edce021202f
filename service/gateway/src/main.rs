//! The `fieldpost` command.
fn main() {}
