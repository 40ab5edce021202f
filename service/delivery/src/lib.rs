//! The decisions of store and forward, without I/O.
//!
//! What a gateway owes, to whom, over what, in which order and until when is decided here; the
//! gateway waits, sends and writes. Nothing in this crate performs I/O, reads a clock or makes its
//! own randomness, so the same events at the same times give the same decisions, and whole
//! federations run in virtual time.
//!
//! | Module | Decides |
//! |---|---|
//! | `state` | which step a delivery may take (design, section 5) |
//! | `lanes` | in which order messages are shown (promise 5) |
//! | `receipts` | what a receipt changes, and whose word counts |
//! | `retry` | when to try again |
//! | `router` | which transports are asked, in which order, and why (section 8) |
//! | `dispatch` | what to do next with one claimed delivery |
//! | `warm` | to which gateways links are kept warm |
//! | `store` | what has to be remembered; `memory` remembers it in memory |
//! | [`suite`] | whether a store keeps its word |
//! | [`simulation`] | whether all of it together keeps the promises |

mod dispatch;
mod lanes;
mod memory;
mod receipts;
mod retry;
mod router;
pub mod simulation;
mod state;
mod store;
pub mod suite;
mod warm;

pub use dispatch::{Action, Dispatch, Event, Rules};
pub use lanes::{
    Admit, Held, Progress, Released, admit, has_lane, known_after, pass_over, pass_over_ended,
    predecessor, release,
};
pub use memory::{INBOX_LIMIT, MemoryStore, REMEMBERED};
pub use receipts::{Effect, Standing, effect, signer_of};
pub use retry::Backoff;
pub(crate) use retry::later;
pub use router::{
    Breaker, BreakerState, Candidate, Capabilities, Impact, LOCAL, Learned, Measured, OUT_OF_REACH,
    Outcome, Place, Plan, Question, Reach, RecipientKind, RuledOut, Verdict, Why, plan,
};
pub use state::{counts, may_follow, message_status};
pub use store::*;
pub use warm::Warm;
