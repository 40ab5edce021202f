//! Carries one envelope from one gateway to another over the direct mesh, without a gateway around it.
//!
//! ```sh
//! cargo run -p fieldpost-transport --example send_over_mesh
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it does")]
#![expect(clippy::disallowed_methods, reason = "here is no Clock to ask")]

use std::{error::Error, sync::Arc, time::SystemTime};

use ed25519_dalek::SigningKey;
use fieldpost_envelope::{
    AnonymityLevel, Certificate, Content, Envelope, GatewayId, MessageId, NodePurpose, PeerAddress,
    Priority, Said, SignedEnvelope, Timestamp,
};
use fieldpost_transport::{MeshOptions, MeshTransport, Transport};
use uuid::Uuid;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A gateway's key signs its peers' messages; a node key is what its endpoint proves to hold. Real
    // ones come from a generator and are kept; see `secrets` in the gateway.
    let (home, away) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
    let listener = start(&away, [12; 32], vec![]).await?;
    let sender = start(&home, [11; 32], listener.own_addresses()).await?;

    // What is in reach changes by itself; whoever sends waits for it.
    let away = GatewayId::from(away.verifying_key());
    let mut reachable = sender.reachable();
    reachable.wait_for(|names| names.contains(&away.to_string())).await?;
    println!("{away} is in reach");

    sender.send(&away.to_string(), letter(&home, away)?).await?;
    println!("the other gateway has taken the envelope");

    // What comes in is not verified: anybody may have put it together.
    let bytes = listener.receive().await.ok_or("the transport was shut")?;
    let verified = SignedEnvelope::decode(&bytes)?.verify()?;
    if let Said::Message(message) = verified.said {
        println!("{} wrote {:?}", message.sender, String::from_utf8_lossy(&message.content.bytes));
    }

    sender.shutdown().await;
    listener.shutdown().await;
    Ok(())
}

async fn start(
    gateway: &SigningKey,
    node_key: [u8; 32],
    bootstrap: Vec<String>,
) -> Result<Arc<MeshTransport>, Box<dyn Error>> {
    let begins = now().as_millis();
    let certificate = Certificate {
        gateway: gateway.verifying_key().into(),
        purpose: NodePurpose::Mesh,
        node: SigningKey::from_bytes(&node_key).verifying_key().to_bytes(),
        not_before: begins.try_into()?,
        not_after: (begins + 24 * 3_600_000).try_into()?,
    };
    let listen = Some(([127, 0, 0, 1], 0).into());
    let options = MeshOptions { listen, bootstrap, ..MeshOptions::default() };
    Ok(MeshTransport::start(options, node_key, certificate.sign(gateway)?, Arc::new(now)).await?)
}

fn letter(home: &SigningKey, away: GatewayId) -> Result<SignedEnvelope, Box<dyn Error>> {
    let bob = PeerAddress::remote("bob".parse()?, away);
    let envelope = Envelope {
        sender: PeerAddress::remote("alice".parse()?, home.verifying_key().into()),
        recipient: bob.clone().into(),
        to: bob.into(),
        message_id: MessageId(Uuid::from_u128(1)),
        sent_at: now(),
        expires_at: (now().as_millis() + 3_600_000).try_into()?,
        priority: Priority::Normal,
        level: AnonymityLevel::NONE,
        lane_seq: None,
        after: None,
        content: Content::text("Good morning, Bob"),
    };
    Ok(envelope.sign(home)?)
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    Timestamp::try_from(millis).unwrap_or(Timestamp::MAX)
}
