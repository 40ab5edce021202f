//! What is printed: each step with its time, and at the end whether a promise broke.

use std::{
    io::{Write, stdout},
    process::ExitCode,
    sync::Mutex,
    time::SystemTime,
};

use harness::{
    Recorder, Violation,
    client::{DeliveryRecord, InboxMessage},
};
use tokio::time::Instant;

/// How what every attempt in a lab says begins.
const LAB: &str = "lab:";

/// The timeline, and the history for the judge.
pub(crate) struct Timeline {
    began: Instant,
    /// The same by the clock that gateways tell times by.
    began_at: SystemTime,
    /// Whether it has been said that levels are those of a lab.
    told_of_lab: Mutex<bool>,
    pub(crate) recorder: Recorder,
    broken: Mutex<usize>,
}

impl Timeline {
    #[expect(clippy::disallowed_methods, reason = "gateways tell times by the machine's clock")]
    pub(crate) fn begin() -> Self {
        Self {
            began: Instant::now(),
            began_at: SystemTime::now(),
            told_of_lab: Mutex::default(),
            recorder: Recorder::default(),
            broken: Mutex::default(),
        }
    }

    /// One line: when, at whose gateway, what.
    pub(crate) fn say(&self, who: &str, what: &str) {
        line(self.began.elapsed().as_secs_f64(), who, what);
    }

    /// Something that belongs to the line before.
    pub(crate) fn add(&self, what: &str) {
        self.say("", &format!("  {what}"));
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
        for tried in &delivery.attempts {
            let began_at = SystemTime::from(tried.started_at);
            let seconds = began_at.duration_since(self.began_at).unwrap_or_default();
            let hops = match tried.hops {
                None => String::new(),
                Some(1) => " over 1 hop".to_owned(),
                Some(hops) => format!(" over {hops} hops"),
            };
            let reason = tried.reason.as_deref().map(|why| self.without_lab(why));
            let reason = reason.filter(|why| !why.is_empty());
            let reason = reason.map(|why| format!(" ({why})")).unwrap_or_default();
            let what = format!("  {} {}{hops}{reason}", tried.transport, tried.result);
            line(seconds.as_secs_f64(), "", &what);
        }
    }

    /// A reason, without what every attempt in a lab says, but for the first time.
    fn without_lab<'a>(&self, reason: &'a str) -> &'a str {
        let Some(at) = reason.find(LAB) else { return reason };
        let mut told = self.told_of_lab.lock().expect("nobody panics with it");
        match std::mem::replace(&mut *told, true) {
            false => reason,
            true => reason[..at].trim_end_matches("; "),
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

fn line(seconds: f64, who: &str, what: &str) {
    // Whoever closed our output still gets the exit code.
    let _ = writeln!(stdout().lock(), "{seconds:8.3} s  {who:1}  {what}");
}
