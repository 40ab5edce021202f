//! The table that a run prints.

/// Rows in the order in which they were measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    figure: String,
    ratio: Option<(f64, Target, String)>,
    note: String,
}

/// What a ratio is to reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Table {
    /// A figure without a target.
    pub(crate) fn figure(
        &mut self,
        what: impl Into<String>,
        figure: impl Into<String>,
        note: impl Into<String>,
    ) {
        let row = Row { what: what.into(), figure: figure.into(), ratio: None, note: note.into() };
        eprintln!("{}: {} {}", row.what, row.figure, row.note);
        self.rows.push(row);
    }

    /// A figure that is judged as a ratio to another of the same run.
    pub(crate) fn ratio(
        &mut self,
        what: impl Into<String>,
        figure: impl Into<String>,
        ratio: f64,
        target: Target,
        of: impl Into<String>,
    ) {
        let (what, figure, of) = (what.into(), figure.into(), of.into());
        eprintln!("{what}: {figure}, {ratio:.2} of {of}");
        self.rows.push(Row { what, figure, ratio: Some((ratio, target, of)), note: String::new() });
    }

    /// Prints everything, aligned, to standard output.
    pub(crate) fn print(&self) {
        println!(
            "\n| what | measured | ratio | target | reached | beside |\n|---|---|---|---|---|---|"
        );
        for Row { what, figure, ratio, note } in &self.rows {
            match ratio {
                None => println!("| {what} | {figure} | | | | {note} |"),
                Some((ratio, target, of)) => {
                    let (goal, reached) = match *target {
                        Target::AtLeast(goal) => (format!("≥ {goal}"), *ratio >= goal),
                        Target::AtMost(goal) => (format!("≤ {goal}"), *ratio <= goal),
                    };
                    let reached = if reached { "yes" } else { "NO" };
                    println!("| {what} | {figure} | {ratio:.2} | {goal} | {reached} | {of} |");
                }
            }
        }
    }
}
