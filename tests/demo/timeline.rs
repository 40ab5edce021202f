//! What is printed: each step with its time, and at the end whether a promise broke.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    sync::Mutex,
};

use harness::{
    Recorder, Violation,
    client::{DeliveryRecord, InboxMessage},
};
use tokio::time::Instant;

/// The timeline, and the history for the judge.
pub(crate) struct Timeline {
    began: Instant,
    pub(crate) recorder: Recorder,
    broken: Mutex<usize>,
}

impl Timeline {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), recorder: Recorder::default(), broken: Mutex::default() }
    }

    /// One line: when, at whose gateway, what.
    pub(crate) fn say(&self, who: &str, what: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        // Whoever closed our output still gets the exit code.
        let _ = writeln!(stdout().lock(), "{seconds:8.3} s  {who:1}  {what}");
    }

    /// Something that belongs to the line before.
    pub(crate) fn add(&self, what: &str) {
        let _ = writeln!(stdout().lock(), "{:15}  {what}", "");
    }

    /// Something has to be so.
    pub(crate) fn promise(&self, is_kept: bool, what: impl FnOnce() -> String) {
        if !is_kept {
            self.broken(&what());
        }
    }

    pub(crate) fn broken(&self, what: &str) {
        *self.broken.lock().expect("nobody panics with it") += 1;
        self.say("", &format!("BROKEN: {what}"));
    }

    pub(crate) fn shown(&self, message: &InboxMessage) {
        let text = message.content.as_deref().unwrap_or_default();
        self.say("B", &format!("bob is shown number {}: “{text}”", message.seq));
    }

    /// What was tried for a delivery, with the router's reason for each.
    pub(crate) fn attempts(&self, delivery: &DeliveryRecord) {
        let Some(first) = delivery.attempts.first() else { return };
        for tried in &delivery.attempts {
            let after = (tried.started_at - first.started_at).as_seconds_f64();
            let hops = match tried.hops {
                None => String::new(),
                Some(1) => " over 1 hop".to_owned(),
                Some(hops) => format!(" over {hops} hops"),
            };
            let reason = tried.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            self.add(&format!("+{after:.3} s {} {}{hops}{reason}", tried.transport, tried.result));
        }
    }

    pub(crate) fn verdict(&self, violations: &[Violation]) -> ExitCode {
        for violation in violations {
            self.broken(&violation.to_string());
        }
        match *self.broken.lock().expect("nobody panics with it") {
            0 => {
                self.say("", "All promises were kept, says the history checker too.");
                ExitCode::SUCCESS
            }
            count => {
                self.say("", &format!("{count} promises were broken."));
                ExitCode::FAILURE
            }
        }
    }
}
