//! `fieldpost send`: one message, sent until the gateway has it.

use std::{
    io::{self, IsTerminal, Read},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use fieldpost_envelope::{PeerId, Recipient};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Duration, Instant};
use uuid::Uuid;

use super::{
    ClientError, Connection,
    api::{Api, Backoff},
    files,
    output::{Output, printable},
};
use crate::config::duration;

/// Options of `fieldpost send`.
#[derive(Args, Clone, Debug)]
pub struct SendArgs {
    /// The peer that sends. Default: whom the token names, or the only peer whose token is kept.
    #[arg(long, visible_alias = "as", value_name = "PEER")]
    from: Option<PeerId>,

    /// For whom: a peer, `peer@gateway`, `group:ID` or `broadcast`.
    to: Recipient,

    /// What to say; several words are joined by spaces. Default: standard input, unless there is a
    /// file.
    text: Vec<String>,

    /// A file to send along.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Go on with an upload that was cut off, under the id that it was given.
    #[arg(long, value_name = "FILE_ID", requires = "file")]
    resume: Option<String>,

    /// How long the message may be under way, such as 90s, 5m, 2h or 30d. Default: the gateway's,
    /// 7 days.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    ttl: Option<Duration>,

    /// How urgent it is; `critical` takes all transports at once and keeps to no order.
    #[arg(long, value_enum)]
    priority: Option<PriorityWord>,

    /// The least anonymity, 0 to 3, of any transport that may carry it.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=3))]
    min_anonymity: Option<u8>,

    /// The same as --min-anonymity 3.
    #[arg(long)]
    requires_privacy: bool,

    /// The only transport that may carry it, such as `htx`.
    #[arg(long, value_name = "NAME")]
    transport: Option<String>,

    /// The transport to try first.
    #[arg(long, value_name = "NAME", conflicts_with = "transport")]
    prefer: Option<String>,

    /// Wait for a recipient that nobody knows yet, instead of refusing.
    #[arg(long)]
    allow_unknown: bool,

    /// The message's id, a UUID; the same again is the same message. Default: a fresh one.
    #[arg(long, value_name = "UUID")]
    message_id: Option<Uuid>,

    /// Wait until it has got so far.
    #[arg(long, value_enum, value_name = "STATUS")]
    wait: Option<Goal>,

    /// How long to wait, for the gateway to take it and for --wait.
    #[arg(long, value_parser = duration, default_value = "60s", value_name = "TIME")]
    timeout: Duration,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum PriorityWord {
    Low,
    Normal,
    High,
    Critical,
}

/// How far a message is to get before the command ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Goal {
    /// A transport took charge of it, or its recipient's client was shown it.
    Sent,
    /// The recipient's client confirmed it.
    Delivered,
    /// The recipient read it.
    Read,
}

/// The body of `POST /v1/messages`.
#[derive(Debug, Serialize)]
struct Draft {
    message_id: Uuid,
    to: Recipient,
    content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    file_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<PriorityWord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_anonymity: Option<u8>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    requires_privacy: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    allow_unknown: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport_required: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transport_preference: Option<String>,
}

/// The part of a message's state that waiting looks at.
#[derive(Debug, Deserialize)]
struct State {
    status: String,
    #[serde(default)]
    recipients: Vec<RecipientState>,
}

#[derive(Debug, Deserialize)]
struct RecipientState {
    reason: Option<String>,
}

pub(super) async fn run(args: SendArgs) -> Result<(), ClientError> {
    let output = args.connection.output();
    let api = args.connection.known_caller(args.from.as_ref())?;
    let mut content = content(&args)?;
    let mut file_ids = Vec::new();
    if let Some(path) = &args.file {
        let uploaded =
            files::upload(&api, path, args.resume.as_deref(), args.timeout, output).await?;
        if content.is_empty() {
            content = uploaded.filename;
        }
        file_ids.push(uploaded.file_id);
    }
    let draft = Draft {
        message_id: args.message_id.unwrap_or_else(Uuid::new_v4),
        to: args.to,
        content,
        file_ids,
        ttl: args.ttl.map(|ttl| ttl.as_secs()),
        priority: args.priority,
        min_anonymity: args.min_anonymity,
        requires_privacy: args.requires_privacy,
        allow_unknown: args.allow_unknown,
        transport_required: args.transport,
        transport_preference: args.prefer,
    };
    let deadline = Instant::now() + args.timeout;
    // Safe to repeat: the message has its id from here.
    let accepted: Value =
        api.persist(deadline, || api.post(&["v1", "messages"]).json(&draft)).await?;
    let id = draft.message_id;
    match args.wait {
        None => output.write(&accepted, || format!("{id}  {}", word(&accepted["status"]))),
        Some(goal) => wait(&api, output, id, goal, args.timeout).await,
    }
}

/// The words of the command line, else standard input, else nothing beside a file.
fn content(args: &SendArgs) -> Result<String, ClientError> {
    if !args.text.is_empty() {
        return Ok(args.text.join(" "));
    }
    if args.file.is_some() {
        return Ok(String::new());
    }
    let mut stdin = io::stdin().lock();
    if stdin.is_terminal() {
        return Err(nothing_to_send());
    }
    let mut bytes = Vec::new();
    stdin
        .by_ref()
        .take(CONTENT_LIMIT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ClientError::File { path: "standard input".into(), source })?;
    if bytes.len() > CONTENT_LIMIT {
        return Err(ClientError::Usage(format!(
            "standard input is longer than a message may be, {CONTENT_LIMIT} bytes: send it with \
             --file"
        )));
    }
    if bytes.is_empty() {
        return Err(nothing_to_send());
    }
    String::from_utf8(bytes).map_err(|_| {
        ClientError::Usage("standard input is not UTF-8 text: send it with --file".to_owned())
    })
}

fn nothing_to_send() -> ClientError {
    ClientError::Usage(
        "nothing to send: write the text after the recipient, pipe it in, or give --file; an \
         empty text is \"\""
            .to_owned(),
    )
}

/// The most that a message may hold (design, section 6).
const CONTENT_LIMIT: usize = 1 << 20;

async fn wait(
    api: &Api,
    output: Output,
    id: Uuid,
    goal: Goal,
    timeout: Duration,
) -> Result<(), ClientError> {
    let deadline = Instant::now() + timeout;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let text = id.to_string();
    loop {
        let message: Value = api.persist(deadline, || api.get(&["v1", "messages", &text])).await?;
        let state = State::deserialize(&message).map_err(|error| ClientError::Unexpected {
            url: api.base().to_owned(),
            cause: format!("a message without its status: {error}"),
        })?;
        if goal.is_reached_by(&state.status) {
            return output.write(&message, || format!("{id}  {}", printable(&state.status)));
        }
        if matches!(state.status.as_str(), "expired" | "failed" | "cancelled") {
            let reason = state.recipients.into_iter().find_map(|recipient| recipient.reason);
            return Err(ClientError::Undelivered { id, status: state.status, reason });
        }
        let pause = backoff.next();
        if Instant::now() + pause > deadline {
            return Err(ClientError::StillWaiting {
                url: api.base().to_owned(),
                caller: api.peer().map(ToString::to_string),
                id,
                status: state.status,
                waited: timeout,
            });
        }
        tokio::time::sleep(pause).await;
    }
}

impl Goal {
    fn is_reached_by(self, status: &str) -> bool {
        match self {
            Self::Sent => matches!(status, "sent" | "delivered" | "read"),
            Self::Delivered => matches!(status, "delivered" | "read"),
            Self::Read => status == "read",
        }
    }
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| "accepted".to_owned(), printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_by_what_lies_beyond_it_and_never_by_a_bad_end() {
        for (goal, reached) in [
            (Goal::Sent, ["sent", "delivered", "read"].as_slice()),
            (Goal::Delivered, &["delivered", "read"]),
            (Goal::Read, &["read"]),
        ] {
            for status in ["pending", "sent", "delivered", "read", "expired", "failed", "cancelled"]
            {
                assert_eq!(goal.is_reached_by(status), reached.contains(&status), "{status}");
            }
        }
    }

    #[test]
    fn a_draft_says_only_what_was_asked_for() {
        let draft = Draft {
            message_id: Uuid::nil(),
            to: "bob".parse().unwrap(),
            content: "hi".to_owned(),
            file_ids: Vec::new(),
            ttl: None,
            priority: Some(PriorityWord::High),
            min_anonymity: None,
            requires_privacy: false,
            allow_unknown: false,
            transport_required: None,
            transport_preference: None,
        };
        assert_eq!(
            serde_json::to_value(&draft).unwrap(),
            serde_json::json!({
                "message_id": "00000000-0000-0000-0000-000000000000",
                "to": "bob",
                "content": "hi",
                "priority": "high",
            })
        );
    }
}
