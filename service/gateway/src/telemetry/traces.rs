//! Which trace a message belongs to, from its request to the socket that shows it.
//!
//! Kept in memory, for the messages accepted last: after a restart, or on another replica, a message
//! begins a trace of its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use fieldpost_envelope::{MessageId, PeerId};
use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt as _},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The most messages whose trace is remembered; then the oldest is forgotten.
const REMEMBERED: usize = 10_000;

/// The traces of the messages accepted last; of none while traces go nowhere.
#[derive(Debug)]
pub struct Traces {
    are_exported: bool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    spans: HashMap<Key, SpanContext>,
    oldest_first: VecDeque<Key>,
}

/// A message id is its sender's.
type Key = (PeerId, MessageId);

impl Traces {
    /// Remembers nothing unless traces are exported.
    pub fn new(are_exported: bool) -> Self {
        Self { are_exported, known: Mutex::default() }
    }

    /// The message belongs to the trace of the current span.
    pub fn begin(&self, sender: &PeerId, id: MessageId) {
        if !self.are_exported {
            return;
        }
        let span = Span::current().context().span().span_context().clone();
        if !span.is_valid() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (sender.clone(), id);
        if known.spans.insert(key.clone(), span).is_none() {
            known.oldest_first.push_back(key);
        }
        if known.oldest_first.len() > REMEMBERED
            && let Some(oldest) = known.oldest_first.pop_front()
        {
            known.spans.remove(&oldest);
        }
    }

    /// A new span as a part of the message's trace; no span unless traces are exported.
    pub fn part(&self, sender: &PeerId, id: MessageId, span: impl FnOnce() -> Span) -> Span {
        if !self.are_exported {
            return Span::none();
        }
        let span = span();
        self.join(&span, sender, id);
        span
    }

    /// Makes `span`, which was not entered yet, a part of the message's trace.
    pub fn join(&self, span: &Span, sender: &PeerId, id: MessageId) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parent) = known.spans.get(&(sender.clone(), id)) {
            // Fails without a layer that exports, and then there is nothing to join.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::{
        error::OTelSdkResult,
        trace::{SdkTracerProvider, SpanData, SpanExporter},
    };
    use tracing::info_span;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn what_happens_to_a_message_later_is_in_the_trace_of_its_request() {
        let exported = Exported::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exported.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let subscriber = tracing_subscriber::registry().with(layer);
        let traces = Traces::new(true);
        let (alice, message, other) = ("alice".parse().unwrap(), name(1), name(2));
        tracing::subscriber::with_default(subscriber, || {
            info_span!("request").in_scope(|| traces.begin(&alice, message));
            for (name, id) in [("known", message), ("unknown", other)] {
                traces.part(&alice, id, || info_span!("later", otel.name = name)).in_scope(|| {});
            }
        });
        let [request, known, unknown] = exported.spans().try_into().unwrap();
        assert_eq!(known.span_context.trace_id(), request.span_context.trace_id());
        assert_eq!(known.parent_span_id, request.span_context.span_id());
        assert_ne!(unknown.span_context.trace_id(), request.span_context.trace_id());
    }

    fn name(number: u128) -> MessageId {
        MessageId(uuid::Uuid::from_u128(number))
    }

    #[derive(Clone, Debug, Default)]
    struct Exported(Arc<Mutex<Vec<SpanData>>>);

    impl Exported {
        fn spans(&self) -> Vec<SpanData> {
            self.0.lock().unwrap().clone()
        }
    }

    impl SpanExporter for Exported {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }
}
