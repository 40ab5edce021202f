//! `fieldpost peer register` and `fieldpost peers`.

use chrono::{DateTime, Utc};
use clap::Args;
use ed25519_dalek::SigningKey;
use fieldpost_envelope::PeerId;
use rand::{TryRng, rngs::SysRng};
use reqwest::StatusCode;
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant};
use zeroize::Zeroizing;

use super::{
    ClientError, Connection,
    api::age,
    output::{printable, table},
};

/// Options of `fieldpost peer register`.
#[derive(Args, Clone, Debug)]
pub struct RegisterArgs {
    /// The peer's name: a letter or digit, then letters, digits, `.`, `_`, `:` or `-`.
    name: PeerId,

    /// The peer's public key. Default: a fresh Ed25519 key, of which only the public half is used;
    /// give your own if you mean to renew the token by signature.
    #[arg(long)]
    public_key: Option<String>,

    /// A name for people to read.
    #[arg(long)]
    display_name: Option<String>,

    /// The invite, where the gateway asks for one.
    #[arg(long, env = "FIELDPOST_INVITE", hide_env_values = true)]
    invite: Option<String>,

    #[command(flatten)]
    connection: Connection,
}

/// Options of `fieldpost peers`.
#[derive(Args, Clone, Debug)]
pub struct PeersArgs {
    /// Only those that are online.
    #[arg(long)]
    online: bool,

    /// Ask as this peer; what is shown depends on who asks.
    #[arg(long = "as", alias = "from", value_name = "PEER")]
    caller: Option<PeerId>,

    #[command(flatten)]
    connection: Connection,
}

const PATIENCE: Duration = Duration::from_secs(30);

pub(super) async fn register(args: RegisterArgs) -> Result<(), ClientError> {
    let output = args.connection.output();
    let credentials = args.connection.credentials()?;
    // Whoever holds the peer's token already may register it again.
    let api = args.connection.caller(Some(&args.name))?;
    let public_key = args.public_key.map_or_else(fresh_public_key, Ok)?;
    let mut body = Map::new();
    body.insert("peer_id".to_owned(), json!(args.name));
    body.insert("public_key".to_owned(), json!(public_key));
    if let Some(display_name) = &args.display_name {
        body.insert("display_name".to_owned(), json!(display_name));
    }
    if let Some(invite) = &args.invite {
        body.insert("invite".to_owned(), json!(invite));
    }
    // Not repeated by itself: an answer that was lost on the way held the only copy of the token.
    let answer = api.call(api.post(&["v1", "peers"]).json(&body)).await;
    let answer: Value = answer.map_err(|error| match error {
        ClientError::NoToken { peer, url } => ClientError::Taken { peer, url },
        ClientError::Refused { status: StatusCode::UNAUTHORIZED, .. } if api.has_token() => {
            ClientError::Stale {
                peer: args.name.to_string(),
                url: api.base().to_owned(),
                path: credentials.path().to_owned(),
            }
        }
        other => other,
    })?;
    let token = answer["token"].as_str();
    // Shown before it is kept: a full disk must not cost the only copy.
    output.write(&answer, || format!("{}  {}", args.name, token.unwrap_or("registered")))?;
    let Some(token) = token else {
        output.note("registered again: the gateway asks for no token, and the peer's stays");
        return Ok(());
    };
    credentials.keep(api.base(), args.name.as_str(), &SecretString::from(token))?;
    output.note(&format!(
        "registered {} at {}; the token above is shown once and is kept in {}",
        args.name,
        api.base(),
        credentials.path().display()
    ));
    Ok(())
}

/// A key that nobody will sign with: its secret half is gone at once.
fn fresh_public_key() -> Result<String, ClientError> {
    let mut seed = Zeroizing::new([0; 32]);
    SysRng.try_fill_bytes(&mut *seed).map_err(|error| {
        ClientError::Usage(format!("no random numbers for a key ({error}): give --public-key"))
    })?;
    let public = SigningKey::from_bytes(&seed).verifying_key();
    Ok(data_encoding::HEXLOWER.encode(public.as_bytes()))
}

pub(super) async fn list(args: PeersArgs) -> Result<(), ClientError> {
    #[derive(Deserialize)]
    struct Page {
        peers: Vec<Value>,
        next: Option<String>,
    }

    let output = args.connection.output();
    let api = args.connection.anybody(args.caller.as_ref())?;
    let deadline = Instant::now() + PATIENCE;
    let mut rows = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let page: Page = api
            .persist(deadline, || {
                let mut request = api.get(&["v1", "peers"]).query(&[("limit", "1000")]);
                if args.online {
                    request = request.query(&[("online", "true")]);
                }
                if let Some(cursor) = &cursor {
                    request = request.query(&[("cursor", cursor)]);
                }
                request
            })
            .await?;
        for peer in page.peers {
            if args.connection.json {
                output.write(&peer, String::new)?;
            } else {
                rows.push(row(&peer));
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if args.connection.json {
        return Ok(());
    }
    if rows.is_empty() {
        output.note("no peers to see");
        return Ok(());
    }
    output.write(&Value::Null, || table(["PEER", "NAME", "PRESENCE", "LAST SEEN", "VIA"], &rows))
}

/// What a peer keeps to itself is not in the answer, and shows as `–`. Of a peer of another gateway it
/// is told when that was heard, and by which transports it is reached.
fn row(peer: &Value) -> [String; 5] {
    let text = |name: &str| peer[name].as_str().map(printable);
    let presence = match peer["online"].as_bool() {
        Some(true) => "online",
        Some(false) => "away",
        None => "–",
    };
    let via = match peer["transports"].as_array() {
        None => "here".to_owned(),
        Some(transports) if transports.is_empty() => "out of reach".to_owned(),
        Some(transports) => {
            let names: Vec<_> =
                transports.iter().filter_map(Value::as_str).map(printable).collect();
            names.join(", ")
        }
    };
    let time = |name: &str| peer[name].as_str()?.parse::<DateTime<Utc>>().ok().map(age);
    // Not the same: when a gateway was heard says nothing of whether the peer was there.
    let last_seen = time("last_seen")
        .or_else(|| time("heard_at").map(|age| format!("gateway heard {age}")))
        .unwrap_or_else(|| "–".to_owned());
    [
        text("peer_id").unwrap_or_default(),
        text("display_name").unwrap_or_default().replace(['\n', '\t'], " "),
        presence.to_owned(),
        last_seen,
        via,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_here_and_elsewhere_are_told_apart() {
        let here = json!({"peer_id": "alice", "online": true, "last_seen": null});
        assert_eq!(row(&here), ["alice", "", "online", "–", "here"]);
        let there = json!({
            "peer_id": "bob@b", "display_name": "Bob\u{1b}", "online": null, "last_seen": null,
            "heard_at": "2026-11-23T09:00:00Z", "transports": ["mesh", "htx"]
        });
        let there = row(&there);
        assert_eq!((there[1].as_str(), there[2].as_str()), ("Bob\\u{1b}", "–"));
        assert!(there[3].starts_with("gateway heard "), "{there:?}");
        assert_eq!(there[4], "mesh, htx");
        let away = json!({"peer_id": "carol@c", "transports": [], "heard_at": null});
        assert_eq!(row(&away)[4], "out of reach");
    }
}
