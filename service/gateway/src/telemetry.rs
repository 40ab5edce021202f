//! Logs, traces and metrics of the process (design, section 13).
//!
//! Logs go to standard error: for people on a terminal, as JSON otherwise. `RUST_LOG` chooses
//! what; the default is `info`. With `--otlp-endpoint` the spans also go out over OTLP/HTTP.

pub mod metrics;
pub mod traces;

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use anyhow::Context;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    runtime::Tokio,
    trace::{
        BatchConfigBuilder, SdkTracerProvider,
        span_processor_with_async_runtime::BatchSpanProcessor,
    },
};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

/// Libraries whose own chatter is of use only to those who ask for it; the exporter's would also
/// feed on itself.
const QUIET: [&str; 7] =
    ["h2", "hyper", "hyper_util", "opentelemetry", "opentelemetry_sdk", "reqwest", "sqlx"];
/// Spans that wait for the collector; more are dropped.
const QUEUED_SPANS: usize = 8192;
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What has to be flushed before the process ends.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Installs logging and, with an endpoint, the export of traces. Needs a running tokio runtime.
///
/// # Errors
///
/// If `RUST_LOG` or the endpoint cannot be understood.
pub fn init(otlp_endpoint: Option<&str>) -> anyhow::Result<Telemetry> {
    let log = tracing_subscriber::fmt::layer().with_writer(stderr);
    let log = if stderr().is_terminal() {
        log.with_target(false).boxed()
    } else {
        log.json().flatten_event(true).with_span_list(false).boxed()
    };
    let traces = otlp_endpoint.map(exporter).transpose()?;
    let export = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("fieldpost"))
            .with_location(false)
            .with_threads(false)
            .with_filter(default_filter())
    });
    tracing_subscriber::registry()
        .with(log.with_filter(filter()?))
        .with(export)
        .try_init()
        .context("logging is set up already")?;
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends what has not been sent, within a few seconds.
    pub async fn shutdown(self) {
        let Some(provider) = self.traces else { return };
        // It waits on the runtime, so it must not hold one of its threads.
        let flushed =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(EXPORT_TIMEOUT));
        match tokio::time::timeout(2 * EXPORT_TIMEOUT, flushed).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last traces were not exported"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last traces were not exported in time"),
        }
    }
}

fn exporter(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let endpoint = traces_url(endpoint);
    let client = reqwest::Client::builder()
        .timeout(EXPORT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("cannot make a client for --otlp-endpoint")?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&endpoint)
        .with_http_client(client)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .with_context(|| {
            format!(
                "--otlp-endpoint {endpoint} cannot be used: write for example http://127.0.0.1:4318"
            )
        })?;
    let processor = BatchSpanProcessor::builder(exporter, Tokio)
        .with_batch_config(BatchConfigBuilder::default().with_max_queue_size(QUEUED_SPANS).build())
        .build();
    let resource = Resource::builder()
        .with_service_name("fieldpost")
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build())
}

/// OTLP appends the signal's path to the endpoint that operators know.
fn traces_url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.ends_with("/v1/traces") {
        endpoint.to_owned()
    } else {
        format!("{endpoint}/v1/traces")
    }
}

fn filter() -> anyhow::Result<EnvFilter> {
    match std::env::var("RUST_LOG") {
        Ok(given) if !given.is_empty() => EnvFilter::try_new(&given)
            .with_context(|| format!("RUST_LOG={given} cannot be understood: write for example info,fieldpost_gateway=debug")),
        _ => Ok(default_filter()),
    }
}

fn default_filter() -> EnvFilter {
    QUIET
        .iter()
        .filter_map(|name| format!("{name}=warn").parse().ok())
        .fold(EnvFilter::new("info"), EnvFilter::add_directive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_is_taken_with_and_without_the_signals_path() {
        for given in ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"] {
            assert_eq!(traces_url(given), "http://c:4318/v1/traces", "{given}");
        }
    }

    #[test]
    fn the_default_filter_quietens_every_library_named() {
        let filter = default_filter().to_string();
        for name in QUIET {
            assert!(filter.contains(&format!("{name}=warn")), "{filter}");
        }
    }
}
