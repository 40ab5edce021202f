//! A program that hides itself even from its gateway's store: builds finished Sphinx packets from the relay
//! directory's document, and has a gateway pass them on.
//!
//! ```sh
//! cargo run -p fieldpost-transport --example send_packets -- \
//!     http://127.0.0.1:8000 net/authority.json alice bob@GATEWAY 'hello over three relays'
//! ```
//!
//! The gateway at the address runs with `--auth open` here; elsewhere the token of `alice` goes into
//! FIELDPOST_TOKEN. The message's sender is a gateway of one message: a key that is made here.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]
#![expect(clippy::disallowed_methods, reason = "here is no Clock to ask")]

use std::{env, error::Error, fs, time::Duration, time::SystemTime};

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{SigningKey, VerifyingKey};
use fieldpost_envelope::{
    AnonymityLevel, Content, Envelope, MessageId, PeerAddress, PeerId, Priority, Timestamp,
};
use fieldpost_transport::htx::{
    client::{Way, build_packets},
    directory::{Authority, EpochClock, SignedDocument},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rand::rngs::{StdRng, SysRng};
use rand::{SeedableRng, TryRng};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

type Failure = Box<dyn Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url, authority, from, to, text] = arguments.as_slice() else {
        return Err("expected: URL AUTHORITY.JSON FROM PEER@GATEWAY TEXT".into());
    };
    let to: PeerAddress = to.parse()?;
    let gateway = to.gateway.ok_or("the recipient needs its gateway: peer@gateway")?;

    // Any gateway may hand out the document: it is believed by the signatures on it alone.
    let authority = read_authority(authority)?;
    let said = call(url, Method::GET, "/api/betanet/directory", None).await?;
    let document = said["document"].as_str().ok_or("the gateway has no document yet")?;
    let document = SignedDocument::decode(&BASE64.decode(document.as_bytes())?)?;
    let document = document.verify(&authority)?;
    println!("document {} for epoch {}", document.number, document.epoch);

    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed)?;
    let mut rng = StdRng::from_seed(seed);
    let envelope = envelope(from, &to, text)?;
    let (clock, way) =
        (authority.clock(), Way { delay: Duration::from_millis(5), ..Way::default() });
    let packets = build_packets(&mut rng, now(), (document, clock), gateway, &envelope, way)?;
    for finished in packets {
        let body = json!({
            "from_node": from,
            "sphinx_packet": BASE64.encode(finished.packet.as_bytes()),
            "route": [finished.first.to_string()],
        });
        let answer = call(url, Method::POST, "/api/betanet/send", Some(&body)).await?;
        println!("{} by {}", answer["status"], answer["destination"]);
    }
    Ok(())
}

/// The message, signed by a key that lives as long as this process.
fn envelope(from: &str, to: &PeerAddress, text: &str) -> Result<Vec<u8>, Failure> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed)?;
    let key = SigningKey::from_bytes(&seed);
    let sent_at = now();
    let envelope = Envelope {
        sender: PeerAddress::remote(from.parse::<PeerId>()?, key.verifying_key().into()),
        recipient: to.clone().into(),
        to: to.clone().into(),
        message_id: MessageId(Uuid::new_v4()),
        sent_at,
        expires_at: Timestamp::try_from(sent_at.as_millis() + 3_600_000)?,
        // Only what is critical has no place in a lane.
        priority: Priority::Critical,
        level: AnonymityLevel::HIGHEST,
        lane_seq: None,
        after: None,
        content: Content { bytes: text.as_bytes().to_vec(), is_text: true, ..Content::default() },
    };
    Ok(envelope.sign(&key)?.as_bytes().to_vec())
}

fn read_authority(path: &str) -> Result<Authority, Failure> {
    let file: Value = serde_json::from_slice(&fs::read(path)?)?;
    let signers = file["signers"].as_array().ok_or("no signers")?.iter().map(|signer| {
        let bytes = HEXLOWER.decode(signer.as_str().unwrap_or_default().as_bytes())?;
        Ok(VerifyingKey::try_from(bytes.as_slice())?)
    });
    let signers = signers.collect::<Result<Vec<_>, Failure>>()?;
    let threshold = file["threshold"].as_u64().ok_or("no threshold")?.try_into()?;
    let seconds = file["epoch_seconds"].as_u64().ok_or("no epoch_seconds")?;
    Ok(Authority::new(threshold, signers, EpochClock::new(Duration::from_secs(seconds))?)?)
}

/// One call of the gateway's API over plain HTTP.
async fn call(
    url: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, Failure> {
    let host = url.strip_prefix("http://").ok_or("expected a URL such as http://127.0.0.1:8000")?;
    let host = host.trim_end_matches('/');
    let stream = TcpStream::connect(host).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(HOST, host);
    if let Ok(token) = env::var("FIELDPOST_TOKEN") {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let request =
        request.header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let bytes = answer.into_body().collect().await?.to_bytes();
    match status.is_success() {
        true => Ok(serde_json::from_slice(&bytes)?),
        false => Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&bytes)).into()),
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::try_from(since.as_millis() as u64).unwrap_or(Timestamp::MAX)
}
