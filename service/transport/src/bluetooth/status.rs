//! What the Bluetooth radio is doing, in words and figures.

use std::fmt;

use serde::Serialize;

/// How the radio stands.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct BluetoothStatus {
    /// The adapter in use, such as `hci0`.
    pub adapter: Option<String>,
    /// Its address, where the system tells it.
    pub address: Option<String>,
    /// Why there is none, or why it cannot be used.
    pub problem: Option<String>,
    /// Whether it looks for neighbours and connects to them.
    pub is_central: bool,
    /// Whether neighbours find it and connect to it.
    pub is_peripheral: bool,
    /// Why they do not.
    pub peripheral_problem: Option<String>,
    /// Links that it made.
    pub central_links: usize,
    /// Links that others made.
    pub peripheral_links: usize,
}

impl BluetoothStatus {
    /// Whether links can come about.
    pub fn is_available(&self) -> bool {
        self.is_central || self.is_peripheral
    }

    pub(super) fn unavailable(problem: String) -> Self {
        Self { problem: Some(problem), ..Self::default() }
    }
}

impl fmt::Display for BluetoothStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(adapter) = &self.adapter else {
            return write!(
                f,
                "unavailable: {}",
                self.problem.as_deref().unwrap_or("not looked yet")
            );
        };
        write!(f, "{adapter}")?;
        if let Some(address) = &self.address {
            write!(f, " ({address})")?;
        }
        match (self.is_central, self.is_peripheral) {
            (true, true) => write!(f, ", both roles")?,
            (true, false) => write!(f, ", connects to others, cannot be found")?,
            (false, true) => write!(f, ", can be found, does not connect to others")?,
            (false, false) => write!(f, ", idle")?,
        }
        write!(f, ", links: {} made, {} taken", self.central_links, self.peripheral_links)?;
        for problem in [&self.problem, &self.peripheral_problem].into_iter().flatten() {
            write!(f, "; {problem}")?;
        }
        Ok(())
    }
}
