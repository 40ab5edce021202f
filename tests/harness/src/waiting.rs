//! What a client does one message at a time: wait for the next, confirm it, and watch how its own fares.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::Client;

/// How long a message or a status may take: machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// The next message of a client's inbox, as it is shown.
///
/// # Panics
///
/// If none comes in time.
pub async fn next(client: &Client) -> Value {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let request = client.request(Method::GET, "/v1/inbox?wait=20&limit=1");
        let page: Value = client
            .call(request.timeout(Duration::from_secs(40)))
            .await
            .expect("the inbox can be read");
        if let Some(first) = page["messages"].get(0) {
            return first.clone();
        }
    }
    panic!("nothing came for {}", client.peer());
}

/// Confirms a message that [`next`] gave.
///
/// # Panics
///
/// If that is refused.
pub async fn confirm(client: &Client, shown: &Value, read: bool) {
    let body = json!({ "message_ids": [shown["message_id"]], "read": read });
    let request = client.request(Method::POST, "/v1/inbox/ack").json(&body);
    client.call::<Value>(request).await.expect("it is confirmed");
}

/// Waits until a message of the client's own has this status.
///
/// # Panics
///
/// If it does not come to that in time.
pub async fn becomes(client: &Client, message: Uuid, status: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let record = client.record(message).await.expect("it is the sender's");
        if record.status == status {
            return;
        }
        assert!(Instant::now() < deadline, "{message} stays {}: {record:?}", record.status);
        sleep(Duration::from_millis(50)).await;
    }
}
