//! Whether the gateway can do its work now and, if not, why.

use tokio::sync::watch;

/// The gateway's word on itself; cheap to clone, all clones agree.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: watch::Sender<State>,
}

/// What keeps the gateway from its work, if anything does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// Nothing does.
    Ready,
    /// Something that it waits for; it recovers by itself.
    Waiting {
        /// What, for the operator.
        reason: String,
    },
}

impl Readiness {
    /// Not ready yet, as nothing has been tried.
    pub fn starting() -> Self {
        Self { state: watch::Sender::new(waiting("the gateway is starting")) }
    }

    /// What holds now.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Whether the gateway can do its work.
    pub fn is_ready(&self) -> bool {
        *self.state.borrow() == State::Ready
    }

    /// It can do its work from now on. Tells whether that is news.
    pub fn ready(&self) -> bool {
        self.change(State::Ready)
    }

    /// It cannot, because of `reason`. Tells whether that is news.
    pub fn wait_for(&self, reason: &str) -> bool {
        self.change(waiting(reason))
    }

    /// Returns once the gateway can do its work.
    pub async fn until_ready(&self) {
        let mut states = self.state.subscribe();
        // We hold a sender ourselves, so the channel stays open.
        let _ = states.wait_for(|state| *state == State::Ready).await;
    }

    fn change(&self, state: State) -> bool {
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        })
    }
}

fn waiting(reason: &str) -> State {
    State::Waiting { reason: reason.to_owned() }
}
