//! What neighbours may try.
