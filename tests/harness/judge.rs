//! Judges a history that somebody else wrote down: `judge FILE` prints a line `RESULT`, and ends with
//! status 1 if a promise was broken.

use std::{env, path::Path, process::ExitCode};

use harness::history::{History, check};

fn main() -> ExitCode {
    let Some(file) = env::args().nth(1) else {
        println!("usage: judge FILE, a history as JSON");
        return ExitCode::FAILURE;
    };
    let history = match History::load(Path::new(&file)) {
        Ok(history) => history,
        Err(error) => {
            println!("{file} is not a history: {error}");
            return ExitCode::FAILURE;
        }
    };
    let violations = check(&history);
    for violation in &violations {
        println!("{violation}");
    }
    let (result, events) =
        (if violations.is_empty() { "held" } else { "FAILED" }, history.events.len());
    println!(
        "RESULT {result}\tjudged by the history checker\t\t{events} events, {} violations",
        violations.len()
    );
    if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
