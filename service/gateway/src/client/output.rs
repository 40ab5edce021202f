//! Standard output: text for people, or one JSON object a line for scripts.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::ClientError;

/// Where results go. Everything said beside the result goes to standard error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes a result and makes sure that it left this process.
    pub(super) fn write(
        self,
        json: &Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), ClientError> {
        let mut line = if self.json { json.to_string() } else { text() };
        line.push('\n');
        let mut stdout = io::stdout().lock();
        stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).map_err(ClientError::Output)
    }

    /// Tells a person what goes on; scripts that read JSON are spared.
    pub(super) fn note(self, text: &str) {
        if !self.json {
            // A closed standard error is no reason to stop.
            drop(writeln!(io::stderr().lock(), "{text}"));
        }
    }

    /// Whether a progress bar would be seen.
    pub(super) fn shows_progress(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }
}

/// What strangers wrote, made harmless for a terminal: control characters, which could move the
/// cursor or retitle the window, are shown as escapes. Line breaks and tabs stay.
pub(super) fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        let is_direction_mark = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\n' && c != '\t') || is_direction_mark {
            clean.extend(c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Lays out rows under a heading, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(heading)];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_wrote_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{9b}c"), "a\\u{1b}[2Jb\\u{9b}c");
        assert_eq!(printable("\u{202e}txt.exe"), "\\u{202e}txt.exe");
        assert_eq!(printable("zwei\n\tZeilen äöü 🦀"), "zwei\n\tZeilen äöü 🦀");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["alice".to_owned(), "online".to_owned()], ["b".to_owned(), String::new()]];
        assert_eq!(table(["PEER", "IS"], &rows), "PEER   IS\nalice  online\nb");
    }
}
