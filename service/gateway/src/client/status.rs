//! `fieldpost status`: the gateway, or one message and how it travelled.

use clap::Args;
use fieldpost_envelope::PeerId;
use serde_json::Value;
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::{ClientError, Connection, output::printable};

/// Options of `fieldpost status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// A message; without it, the gateway's own state is shown.
    message_id: Option<Uuid>,

    /// Ask as this peer; a message is shown to its sender and its recipients alone.
    #[arg(long = "as", alias = "from", value_name = "PEER")]
    caller: Option<PeerId>,

    #[command(flatten)]
    connection: Connection,
}

const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn run(args: StatusArgs) -> Result<(), ClientError> {
    let output = args.connection.output();
    let deadline = Instant::now() + PATIENCE;
    match args.message_id {
        None => {
            let api = args.connection.anybody(args.caller.as_ref())?;
            let status: Value = api.persist(deadline, || api.get(&["v1", "status"])).await?;
            output.write(&status, || outline(&status, 0).trim_end().to_owned())
        }
        Some(id) => {
            let api = args.connection.known_caller(args.caller.as_ref())?;
            let id = id.to_string();
            let message: Value =
                api.persist(deadline, || api.get(&["v1", "messages", &id])).await?;
            output.write(&message, || describe(&message))
        }
    }
}

/// A message for people: its state, then each recipient's, then how it was tried.
fn describe(message: &Value) -> String {
    let text = |value: &Value, name: &str| value[name].as_str().map(printable).unwrap_or_default();
    let mut lines = vec![format!(
        "{}  {}  {} → {}",
        text(message, "message_id"),
        text(message, "status"),
        text(message, "from"),
        text(message, "to"),
    )];
    for recipient in message["recipients"].as_array().into_iter().flatten() {
        let name = text(recipient, "recipient");
        lines.push(with_reason(format!("  {name}  {}", text(recipient, "status")), recipient));
        for attempt in recipient["attempts"].as_array().into_iter().flatten() {
            let line = format!(
                "    {}  {}  {}",
                text(attempt, "started_at"),
                text(attempt, "transport"),
                text(attempt, "result"),
            );
            lines.push(with_reason(line, attempt));
        }
    }
    lines.join("\n")
}

fn with_reason(line: String, value: &Value) -> String {
    match value["reason"].as_str().or_else(|| value["waits_for"].as_str()) {
        Some(reason) => format!("{line}: {}", printable(reason)),
        None => line,
    }
}

/// Any JSON as lines of a name and what it is, the names of one object under each other.
fn outline(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(members) => {
            let width = members.keys().map(|name| name.chars().count()).max().unwrap_or_default();
            members
                .iter()
                .map(|(name, value)| {
                    let name = printable(name).replace('_', " ");
                    match inline(value) {
                        Some(text) => format!("{indent}{name:width$}  {text}\n"),
                        None => format!("{indent}{name}\n{}", outline(value, depth + 1)),
                    }
                })
                .collect()
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match inline(item) {
                Some(text) => format!("{indent}- {text}\n"),
                // The mark takes the place of the first line's indentation.
                None => {
                    let lines = outline(item, depth + 1);
                    format!("{indent}- {}", lines.trim_start())
                }
            })
            .collect(),
        other => format!("{indent}{}\n", inline(other).unwrap_or_default()),
    }
}

/// What fits on the line of its name.
fn inline(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("none".to_owned()),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(printable(text)),
        Value::Array(items) if items.is_empty() => Some("none".to_owned()),
        Value::Array(items) if !items.iter().any(|item| item.is_object() || item.is_array()) => {
            Some(items.iter().filter_map(inline).collect::<Vec<_>>().join(", "))
        }
        Value::Object(members) if members.is_empty() => Some("none".to_owned()),
        Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_told_with_each_recipient_and_each_attempt() {
        let message = json!({
            "message_id": "m", "status": "failed", "from": "alice", "to": "bob",
            "recipients": [{
                "recipient": "bob", "status": "failed", "reason": "quota",
                "attempts": [{"transport": "htx", "started_at": "t", "result": "failed", "reason": "no\u{1b} route"}],
            }],
        });
        assert_eq!(
            describe(&message),
            "m  failed  alice → bob\n  bob  failed: quota\n    t  htx  failed: no\\u{1b} route"
        );
    }

    #[test]
    fn the_gateways_state_is_outlined_whatever_it_holds() {
        let status = json!({
            "draining": false, "sends_waiting": 0, "transports": ["ble", "mesh"], "held": [],
            "queues": {"depth": 3}, "links": [{"name": "a", "rtt_ms": 4}, {"name": "b"}],
        });
        let lines = [
            "draining       no",
            "held           none",
            "links",
            "  - name    a",
            "    rtt ms  4",
            "  - name  b",
            "queues",
            "  depth  3",
            "sends waiting  0",
            "transports     ble, mesh",
        ];
        let told = outline(&status, 0);
        assert_eq!(told.lines().collect::<Vec<_>>(), lines);
    }
}
