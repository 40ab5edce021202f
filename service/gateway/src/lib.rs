//! The Fieldpost gateway process.
