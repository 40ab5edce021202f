//! The transport trait and its adapters.
