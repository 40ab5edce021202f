//! Many askers, few statements: what is asked while a statement runs is answered by the next one.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

/// The most questions that one statement answers, unless its kind says otherwise.
pub(super) const MOST_QUESTIONS: usize = 64;
/// Statements of one kind at a time: a second one, so that one slow question does not hold up all
/// others.
const MOST_STATEMENTS: usize = 2;
/// The most content in one statement, in bytes; a single question may bring more.
const MOST_BYTES: usize = 8 << 20;
/// How long a statement that nobody waits for in person runs before a second one begins beside it.
/// One at a time has twice as many questions, and most of a statement's cost is its own.
pub(super) const SLOW: Duration = Duration::from_millis(25);

/// Something that can be asked together with others.
pub(super) trait Question: Clone + Send + 'static {
    /// Statements that run at the same time are never about the same key.
    type Key: Clone + Eq + Hash + Send;
    /// The most that one statement answers.
    const TOGETHER: usize = MOST_QUESTIONS;
    /// Whether one statement can answer several about the same key, in their order.
    const SHARES_KEYS: bool = false;
    /// How long a statement runs before a second one begins beside it.
    const SECOND_AFTER: Duration = Duration::ZERO;
    /// How long questions are collected before each statement, where nobody is in a hurry.
    const COLLECTED_FOR: Duration = Duration::ZERO;

    fn key(&self) -> Self::Key;

    /// How much content it brings.
    fn size_bytes(&self) -> usize {
        0
    }
}

/// Collects the questions of one kind.
///
/// There are never more of them than there are askers.
pub(super) struct Batches<Q: Question, A>(Mutex<State<Q, A>>);

struct State<Q: Question, A> {
    waiting: VecDeque<Asked<Q, A>>,
    /// Since when each of the statements under way runs.
    statements: [Option<Instant>; MOST_STATEMENTS],
    /// Whom the statements under way are about.
    under_way: HashSet<Q::Key>,
}

struct Asked<Q, A> {
    question: Q,
    answer: oneshot::Sender<sqlx::Result<A>>,
}

impl<Q: Question, A> Default for Batches<Q, A> {
    fn default() -> Self {
        let (waiting, under_way) = (VecDeque::new(), HashSet::new());
        Self(Mutex::new(State { waiting, statements: [None; MOST_STATEMENTS], under_way }))
    }
}

impl<Q: Question, A> State<Q, A> {
    /// The place of another statement, if it is worth beginning one.
    fn begin(&mut self) -> Option<usize> {
        let place = self.statements.iter().position(Option::is_none)?;
        if self.others_are_quick(place) {
            return None;
        }
        self.statements[place] = Some(Instant::now());
        Some(place)
    }

    /// Whether another statement runs that will soon take up what waits.
    fn others_are_quick(&self, place: usize) -> bool {
        let mut others = self.statements.iter().enumerate().filter(|(other, _)| *other != place);
        others.any(|(_, since)| since.is_some_and(|since| since.elapsed() < Q::SECOND_AFTER))
    }
}

impl<Q: Question, A: Send + 'static> Batches<Q, A> {
    /// Asks, and returns the answer of the statement that the question went into.
    ///
    /// `statement` answers in the order of its questions. If the future is dropped, the question may
    /// have been asked or not.
    pub(super) async fn ask<S, F>(self: &Arc<Self>, question: Q, statement: S) -> sqlx::Result<A>
    where
        S: Fn(Vec<Q>) -> F + Send + Sync + 'static,
        F: Future<Output = sqlx::Result<Vec<A>>> + Send,
    {
        let (answer, answered) = oneshot::channel();
        let place = {
            let mut state = self.lock();
            state.waiting.push_back(Asked { question, answer });
            state.begin()
        };
        if let Some(place) = place {
            // Not the asker itself, who may go away at any time. It ends when nobody asks.
            let keys = HashSet::new();
            let running = Running { batches: self.clone(), place, keys, is_over: false };
            tokio::spawn(async move { running.run(statement).await });
        }
        answered.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    fn lock(&self) -> MutexGuard<'_, State<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run one statement after the other.
struct Running<Q: Question, A: Send + 'static> {
    batches: Arc<Batches<Q, A>>,
    /// Which of the statements is its own.
    place: usize,
    /// Whom the statement under way is about.
    keys: HashSet<Q::Key>,
    is_over: bool,
}

impl<Q: Question, A: Send + 'static> Running<Q, A> {
    async fn run<S, F>(mut self, statement: S)
    where
        S: Fn(Vec<Q>) -> F + Send + Sync,
        F: Future<Output = sqlx::Result<Vec<A>>> + Send,
    {
        loop {
            if !Q::COLLECTED_FOR.is_zero() {
                sleep(Q::COLLECTED_FOR).await;
            }
            let batch = self.next();
            if batch.is_empty() {
                return;
            }
            let questions = batch.iter().map(|asked| asked.question.clone()).collect();
            match statement(questions).await {
                Ok(answers) => {
                    for (asked, answer) in batch.into_iter().zip(answers) {
                        let _ = asked.answer.send(Ok(answer));
                    }
                }
                Err(error) if batch.len() > 1 && is_of_one(&error) => {
                    // What one question suffers must not befall the others.
                    for asked in batch {
                        let one = statement(vec![asked.question]).await;
                        let answer = one.and_then(|answers| {
                            answers.into_iter().next().ok_or(sqlx::Error::RowNotFound)
                        });
                        let _ = asked.answer.send(answer);
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    let errors = std::iter::once(error)
                        .chain(std::iter::repeat_with(|| sqlx::Error::Protocol(text.clone())));
                    for (asked, error) in batch.into_iter().zip(errors) {
                        let _ = asked.answer.send(Err(error));
                    }
                }
            }
        }
    }

    /// Takes what can be asked together, leaving out what nobody waits for any more. With nothing
    /// taken, the right is given back.
    fn next(&mut self) -> Vec<Asked<Q, A>> {
        let mut state = self.batches.lock();
        for key in self.keys.drain() {
            state.under_way.remove(&key);
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut left = VecDeque::new();
        if state.others_are_quick(self.place) {
            state.statements[self.place] = None;
            self.is_over = true;
            return batch;
        }
        // Of one key none is taken after one that was left.
        let mut passed_over = HashSet::new();
        while let Some(asked) = state.waiting.pop_front() {
            if asked.answer.is_closed() {
                continue;
            }
            let size = asked.question.size_bytes();
            if batch.len() >= Q::TOGETHER || (bytes > 0 && bytes + size > MOST_BYTES) {
                left.push_back(asked);
                break;
            }
            let key = asked.question.key();
            let is_shared = Q::SHARES_KEYS && self.keys.contains(&key);
            if !passed_over.contains(&key) && (is_shared || !state.under_way.contains(&key)) {
                state.under_way.insert(key.clone());
                self.keys.insert(key);
                bytes += size;
                batch.push(asked);
            } else {
                // Whoever asks about its key now takes it next.
                passed_over.insert(key);
                left.push_back(asked);
            }
        }
        left.append(&mut state.waiting);
        state.waiting = left;
        self.is_over = batch.is_empty();
        state.statements[self.place] = (!self.is_over).then(Instant::now);
        batch
    }
}

impl<Q: Question, A: Send + 'static> Drop for Running<Q, A> {
    fn drop(&mut self) {
        // After a panic. Whoever waits asks again; nobody might come to whom the rest would fall.
        if !self.is_over {
            let mut state = self.batches.lock();
            state.statements[self.place] = None;
            for key in &self.keys {
                state.under_way.remove(key);
            }
            state.waiting.clear();
        }
    }
}

/// Whether one question may be at fault: values (22), constraints (23) and conflicts with other
/// transactions (40). Others would only meet the same outage again, one after the other.
fn is_of_one(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| ["22", "23", "40"].iter().any(|class| code.starts_with(class)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    impl Question for u32 {
        type Key = Self;

        fn key(&self) -> Self {
            *self
        }
    }

    #[tokio::test]
    async fn what_is_asked_while_statements_run_is_answered_by_the_next() {
        let (batches, statements) = (Arc::new(Batches::default()), Arc::new(AtomicUsize::new(0)));
        let answers = join_all((0..40_u32).map(|number| {
            let statements = statements.clone();
            batches.ask(number, move |numbers: Vec<u32>| {
                statements.fetch_add(1, Ordering::Relaxed);
                async move {
                    tokio::task::yield_now().await;
                    Ok(numbers.iter().map(|number| number * 2).collect())
                }
            })
        }))
        .await;
        for (number, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer.unwrap() as usize, number * 2);
        }
        assert!(statements.load(Ordering::Relaxed) <= MOST_STATEMENTS + 1);
    }

    #[tokio::test]
    async fn the_same_is_not_asked_twice_in_one_statement() {
        let batches = Arc::new(Batches::default());
        let answers = join_all((0..10).map(|_| {
            batches.ask(7_u32, |numbers: Vec<u32>| async move { Ok(vec![numbers.len()]) })
        }))
        .await;
        assert!(answers.into_iter().all(|answer| answer.unwrap() == 1));
    }

    #[tokio::test]
    async fn after_a_panic_questions_are_answered() {
        let batches = Arc::new(Batches::<u32, u32>::default());
        for _ in 0..2 * MOST_STATEMENTS {
            let answer = batches.ask(1, |_| async { panic!("planted") }).await;
            assert!(matches!(answer, Err(sqlx::Error::WorkerCrashed)));
        }
        assert_eq!(batches.ask(1, |numbers| async { Ok(numbers) }).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn an_outage_is_told_to_all() {
        let batches = Arc::new(Batches::<u32, u32>::default());
        let answers = join_all(
            (0..10).map(|number| batches.ask(number, |_| async { Err(sqlx::Error::PoolTimedOut) })),
        )
        .await;
        assert!(answers.iter().all(Result::is_err));
    }
}
