//! The inner handshake: Noise XK with an ML-KEM-768 step (HTX reference, section 1.3).
//!
//! ```text
//! message   = u16 length || body                            all lengths and numbers big-endian
//! client 1  = hello || Noise(e, es;  encapsulation key 1184 || parameters || padding)
//! server    = Noise(e, ee;  ciphertext 1088 || parameters || padding)
//! client 2  = Noise(s, se;  padding)
//! hello     = u8 version 1 || u8 suite 1 || capabilities of the client
//! prologue  = "fieldpost-htx-v1" || version || suite || TLS exporter 32 || ticket key id 8
//!             || capabilities of the client || capabilities of the server
//! parameters = u32 window || u16 streams           capabilities = u8 count || u16 each, ascending
//! ```
//!
//! The client knows the server's capabilities from its descriptor. Whoever changes version, suite or
//! a list on the way changes the prologue, and the first message does not open.
//!
//! snow has no hybrid with ML-KEM-768, so the smallest sound route is taken: Noise runs as
//! published, both halves of ML-KEM travel inside its payloads and thereby stand in its transcript,
//! and its secret goes with both halves of the Noise split into the keys of the link (`keys`). An
//! attacker has to break X25519 **and** ML-KEM to read frames. The client's static key in the last
//! message is protected by X25519 (and TLS) alone, as it would be in any order of these steps.
//!
//! The padding of 0 to 255 bytes keeps the three messages from having three lengths that
//! give them away to whoever counts TLS records.

use std::mem;

use rand::{CryptoRng, RngExt};
use snow::{Builder, HandshakeState};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use super::{
    curve::{PublicKey, SecretKey},
    kem::{CIPHERTEXT_LEN, DecapsulationKey, EncapsulationKey},
    keys::SessionKeys,
    noise::Resolver,
};

/// Something that a side can do beyond the first version.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Capability(pub u16);

/// What a side can do beyond the first version: at most [`Self::MOST`], without repetition.
///
/// A link uses what both have.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// The longest list.
    pub const MOST: usize = 32;

    /// The list of these, in order.
    ///
    /// # Errors
    ///
    /// There are too many.
    pub fn new(capabilities: impl IntoIterator<Item = Capability>) -> Result<Self, HandshakeError> {
        let mut list: Vec<_> = capabilities.into_iter().take(1 << 16).collect();
        list.sort_unstable();
        list.dedup();
        if list.len() > Self::MOST {
            return Err(HandshakeError::TooManyCapabilities { count: list.len() });
        }
        Ok(Self(list))
    }

    /// Each of them, in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Capability> {
        self.0.iter().copied()
    }

    /// What both lists hold.
    pub fn common(&self, other: &Self) -> Self {
        Self(self.iter().filter(|capability| other.0.contains(capability)).collect())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.0.len() as u8);
        out.extend(self.iter().flat_map(|capability| capability.0.to_be_bytes()));
    }

    fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), HandshakeError> {
        let (count, rest) = bytes.split_first().ok_or(HandshakeError::Truncated)?;
        let count = usize::from(*count);
        if count > Self::MOST {
            return Err(HandshakeError::TooManyCapabilities { count });
        }
        let (list, rest) = rest.split_at_checked(2 * count).ok_or(HandshakeError::Truncated)?;
        let (numbers, _) = list.as_chunks();
        let list: Vec<_> =
            numbers.iter().map(|bytes| Capability(u16::from_be_bytes(*bytes))).collect();
        if !list.is_sorted_by(|one, next| one < next) {
            return Err(HandshakeError::CapabilityOrder);
        }
        Ok((Self(list), rest))
    }
}

/// What one side tells the other about the streams that it takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parameters {
    /// How many bytes it takes on a stream before it has consumed any: 65 535 to 16 MiB.
    ///
    /// 65 535, the window of Betanet 1.1, makes 5 Mbit/s at a round trip of 100 ms.
    pub window: u32,
    /// How many streams of the other it keeps at once: 1 to 1024.
    pub streams: u16,
}

impl Parameters {
    /// The smallest window.
    pub const LEAST_WINDOW: u32 = 65_535;
    /// The largest window.
    pub const MOST_WINDOW: u32 = 16 << 20;
    /// The most streams of one side.
    pub const MOST_STREAMS: u16 = 1024;
    const LEN: usize = 6;

    /// Checks both numbers.
    ///
    /// # Errors
    ///
    /// One is out of its range.
    pub fn check(self) -> Result<Self, HandshakeError> {
        let Self { window, streams } = self;
        if !(Self::LEAST_WINDOW..=Self::MOST_WINDOW).contains(&window) {
            return Err(HandshakeError::Window { window });
        }
        if !(1..=Self::MOST_STREAMS).contains(&streams) {
            return Err(HandshakeError::Streams { streams });
        }
        Ok(self)
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend(self.window.to_be_bytes());
        out.extend(self.streams.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, HandshakeError> {
        let ([a, b, c, d, e, f], _) =
            bytes.split_first_chunk::<{ Self::LEN }>().ok_or(HandshakeError::Truncated)?;
        let window = u32::from_be_bytes([*a, *b, *c, *d]);
        let streams = u16::from_be_bytes([*e, *f]);
        Self { window, streams }.check()
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Self { window: 1 << 20, streams: 16 }
    }
}

/// The part of the client's first message that is in clear (inside TLS).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// What the client can do.
    pub capabilities: Capabilities,
}

impl Hello {
    /// Reads a hello from the front of the first message: itself and the Noise message behind it.
    ///
    /// # Errors
    ///
    /// It is of another version or suite, or malformed.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), HandshakeError> {
        let ([version, suite], rest) =
            bytes.split_first_chunk().ok_or(HandshakeError::Truncated)?;
        if *version != VERSION {
            return Err(HandshakeError::Version(*version));
        }
        if *suite != SUITE {
            return Err(HandshakeError::Suite(*suite));
        }
        let (capabilities, rest) = Capabilities::decode(rest)?;
        Ok((Self { capabilities }, rest))
    }

    /// Appends the hello.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, SUITE]);
        self.capabilities.encode(out);
    }
}

/// What the client's first message carries inside.
#[derive(Clone, Debug)]
pub struct ClientOffer {
    encapsulation_key: EncapsulationKey,
    /// What the client takes.
    pub parameters: Parameters,
}

impl ClientOffer {
    /// Reads the decrypted payload.
    ///
    /// # Errors
    ///
    /// It is too short, the key is none, or a parameter is out of range.
    pub fn decode(payload: &[u8]) -> Result<Self, HandshakeError> {
        let (key, rest) = payload
            .split_first_chunk::<{ EncapsulationKey::LEN }>()
            .ok_or(HandshakeError::Truncated)?;
        let encapsulation_key = EncapsulationKey::from_bytes(key).ok_or(HandshakeError::KemKey)?;
        Ok(Self { encapsulation_key, parameters: Parameters::decode(rest)? })
    }
}

/// What the server's message carries inside.
#[derive(Clone, Debug)]
pub struct ServerOffer {
    ciphertext: [u8; CIPHERTEXT_LEN],
    /// What the server takes.
    pub parameters: Parameters,
}

impl ServerOffer {
    /// Reads the decrypted payload.
    ///
    /// # Errors
    ///
    /// It is too short, or a parameter is out of range.
    pub fn decode(payload: &[u8]) -> Result<Self, HandshakeError> {
        let (ciphertext, rest) =
            payload.split_first_chunk::<CIPHERTEXT_LEN>().ok_or(HandshakeError::Truncated)?;
        Ok(Self { ciphertext: *ciphertext, parameters: Parameters::decode(rest)? })
    }
}

/// What both sides must agree on before the first message.
pub(super) struct Context {
    pub(super) exporter: [u8; 32],
    pub(super) ticket_key_id: [u8; 8],
}

/// What the handshake comes to.
pub(super) struct Agreed {
    pub(super) keys: SessionKeys,
    /// The other's static key. A client without identity has a fresh one.
    pub(super) peer: PublicKey,
    pub(super) parameters: Parameters,
    pub(super) capabilities: Capabilities,
}

/// One message to send, and what was agreed on if that was the last step.
pub(super) struct Progress {
    pub(super) message: Option<Vec<u8>>,
    pub(super) agreed: Option<Agreed>,
}

/// The client's side.
pub(super) struct ClientHandshake {
    noise: HandshakeState,
    kem: DecapsulationKey,
    common: Capabilities,
    padding: Padding,
}

impl ClientHandshake {
    /// Begins, and returns the first message.
    pub(super) fn begin(
        rng: &mut impl CryptoRng,
        context: &Context,
        identity: &SecretKey,
        server: &PublicKey,
        capabilities: (&Capabilities, &Capabilities),
        parameters: Parameters,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let (ours, theirs) = capabilities;
        let prologue = prologue(context, ours, theirs);
        let mut noise = builder(rng, identity)
            .local_private_key(identity.as_bytes())
            .and_then(|builder| builder.remote_public_key(server))
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(Builder::build_initiator)
            .map_err(|_| HandshakeError::Noise)?;
        let mut seed = Zeroizing::new([0; 64]);
        rng.fill_bytes(seed.as_mut());
        let kem = DecapsulationKey::from_seed(&seed);
        let mut payload = kem.encapsulation_key().to_vec();
        parameters.encode(&mut payload);
        let mut padding = Padding::draw(rng);
        padding.append(&mut payload);
        let mut hello = Vec::new();
        Hello { capabilities: ours.clone() }.encode(&mut hello);
        let message = write(&mut noise, &hello, &payload)?;
        Ok((Self { noise, kem, common: ours.common(theirs), padding }, message))
    }

    /// Takes the server's message; returns the last one, after which the link is up.
    pub(super) fn finish(mut self, body: &[u8]) -> Result<Progress, HandshakeError> {
        let payload = read(&mut self.noise, body)?;
        let offer = ServerOffer::decode(&payload)?;
        let secret = self.kem.decapsulate(&offer.ciphertext);
        let mut payload = Vec::new();
        self.padding.append(&mut payload);
        let message = write(&mut self.noise, &[], &payload)?;
        let agreed = agree(self.noise, &secret, offer.parameters, self.common)?;
        Ok(Progress { message: Some(message), agreed: Some(agreed) })
    }
}

/// The server's side.
pub(super) struct ServerHandshake(ServerStep);

enum ServerStep {
    First {
        context: Context,
        key: SecretKey,
        capabilities: Capabilities,
        parameters: Parameters,
    },
    Last {
        noise: Box<HandshakeState>,
        secret: Zeroizing<[u8; 32]>,
        parameters: Parameters,
        common: Capabilities,
    },
    Over,
}

impl ServerHandshake {
    pub(super) fn new(
        context: Context,
        key: SecretKey,
        capabilities: Capabilities,
        parameters: Parameters,
    ) -> Self {
        Self(ServerStep::First { context, key, capabilities, parameters })
    }

    /// Takes the client's next message.
    pub(super) fn handle(
        &mut self,
        rng: &mut impl CryptoRng,
        body: &[u8],
    ) -> Result<Progress, HandshakeError> {
        match mem::replace(&mut self.0, ServerStep::Over) {
            ServerStep::First { context, key, capabilities, parameters } => {
                self.answer(rng, body, &context, &key, &capabilities, parameters)
            }
            ServerStep::Last { mut noise, secret, parameters, common } => {
                read(&mut noise, body)?;
                let agreed = agree(*noise, &secret, parameters, common)?;
                Ok(Progress { message: None, agreed: Some(agreed) })
            }
            ServerStep::Over => Err(HandshakeError::Order),
        }
    }

    fn answer(
        &mut self,
        rng: &mut impl CryptoRng,
        body: &[u8],
        context: &Context,
        key: &SecretKey,
        ours: &Capabilities,
        parameters: Parameters,
    ) -> Result<Progress, HandshakeError> {
        let (hello, message) = Hello::decode(body)?;
        let prologue = prologue(context, &hello.capabilities, ours);
        let mut noise = builder(rng, key)
            .local_private_key(key.as_bytes())
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(Builder::build_responder)
            .map_err(|_| HandshakeError::Noise)?;
        let payload = read(&mut noise, message)?;
        let offer = ClientOffer::decode(&payload)?;
        let mut entropy = Zeroizing::new([0; 32]);
        rng.fill_bytes(entropy.as_mut());
        let (ciphertext, secret) = offer.encapsulation_key.encapsulate(&entropy);
        let mut payload = ciphertext.to_vec();
        parameters.encode(&mut payload);
        Padding::draw(rng).append(&mut payload);
        let message = write(&mut noise, &[], &payload)?;
        let common = ours.common(&hello.capabilities);
        let parameters = offer.parameters;
        self.0 = ServerStep::Last { noise: noise.into(), secret, parameters, common };
        Ok(Progress { message: Some(message), agreed: None })
    }
}

/// Cuts the next message from the front of received bytes: its body and the length of all of it.
pub(super) fn next_message(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, HandshakeError> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > MAX_BODY {
        return Err(HandshakeError::TooLong { length });
    }
    Ok(rest.get(..length).map(|body| (body, 2 + length)))
}

/// Why a handshake comes to nothing.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HandshakeError {
    /// No message is that long.
    #[error("a handshake message of {length} bytes: expected at most {MAX_BODY}")]
    TooLong {
        /// What its head says.
        length: usize,
    },
    /// A message ends before what it must hold.
    #[error("the message ends before what it must hold")]
    Truncated,
    /// We speak version 1.
    #[error("unsupported version {0}: expected {VERSION}")]
    Version(u8),
    /// There is one suite: Noise XK with X25519, ML-KEM-768, ChaCha20-Poly1305 and SHA-256.
    #[error("unsupported suite {0}: expected {SUITE}")]
    Suite(u8),
    /// A list of capabilities is too long.
    #[error("{count} capabilities are too many: expected at most {most}", most = Capabilities::MOST)]
    TooManyCapabilities {
        /// How many there are.
        count: usize,
    },
    /// Capabilities come in ascending order, each once.
    #[error("the capabilities are not in ascending order")]
    CapabilityOrder,
    /// The message is not of the other side, or not for this channel.
    #[error("the Noise message does not open: wrong key, wrong channel or altered bytes")]
    Noise,
    /// The client's ML-KEM key is none (FIPS 203, section 7.2).
    #[error("the ML-KEM encapsulation key is malformed")]
    KemKey,
    /// A window out of its range.
    #[error(
        "window {window} is out of range: expected {least} to {most}",
        least = Parameters::LEAST_WINDOW, most = Parameters::MOST_WINDOW
    )]
    Window {
        /// The window.
        window: u32,
    },
    /// A number of streams out of its range.
    #[error("{streams} streams are out of range: expected 1 to {most}", most = Parameters::MOST_STREAMS)]
    Streams {
        /// The number.
        streams: u16,
    },
    /// A message after the last.
    #[error("a handshake message came after the last")]
    Order,
}

/// The padding of both of the client's messages, or of the server's one.
///
/// Drawn at the start, so that finishing needs no generator.
struct Padding {
    lengths: [u8; 2],
    next: usize,
}

impl Padding {
    fn draw(rng: &mut impl CryptoRng) -> Self {
        Self { lengths: [rng.random(), rng.random()], next: 0 }
    }

    /// Appends zeros: they are encrypted, so they need not be random.
    fn append(&mut self, payload: &mut Vec<u8>) {
        let length = self.lengths[self.next % 2];
        self.next += 1;
        payload.resize(payload.len() + usize::from(length), 0);
    }
}

fn builder<'a>(rng: &mut impl CryptoRng, own: &SecretKey) -> Builder<'a> {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let parameters = NOISE.parse().expect("the name of the pattern is one");
    Builder::with_resolver(parameters, Box::new(Resolver::new(seed, own.clone())))
}

fn prologue(context: &Context, client: &Capabilities, server: &Capabilities) -> Vec<u8> {
    let mut bytes = PROLOGUE.to_vec();
    bytes.extend([VERSION, SUITE]);
    bytes.extend(context.exporter);
    bytes.extend(context.ticket_key_id);
    client.encode(&mut bytes);
    server.encode(&mut bytes);
    bytes
}

fn write(
    noise: &mut HandshakeState,
    head: &[u8],
    payload: &[u8],
) -> Result<Vec<u8>, HandshakeError> {
    let mut message = vec![0; 2 + head.len() + payload.len() + NOISE_OVERHEAD];
    let begin = 2 + head.len();
    message[2..begin].copy_from_slice(head);
    let length =
        noise.write_message(payload, &mut message[begin..]).map_err(|_| HandshakeError::Noise)?;
    message.truncate(begin + length);
    let body = u16::try_from(message.len() - 2).expect("a handshake message is short");
    message[..2].copy_from_slice(&body.to_be_bytes());
    Ok(message)
}

fn read(noise: &mut HandshakeState, message: &[u8]) -> Result<Zeroizing<Vec<u8>>, HandshakeError> {
    let mut payload = Zeroizing::new(vec![0; message.len()]);
    let length = noise.read_message(message, &mut payload).map_err(|_| HandshakeError::Noise)?;
    payload.truncate(length);
    Ok(payload)
}

fn agree(
    mut noise: HandshakeState,
    kem_secret: &[u8; 32],
    parameters: Parameters,
    capabilities: Capabilities,
) -> Result<Agreed, HandshakeError> {
    let fixed = |bytes: &[u8]| bytes.try_into().map_err(|_| HandshakeError::Noise);
    let transcript = fixed(noise.get_handshake_hash())?;
    let peer = fixed(noise.get_remote_static().ok_or(HandshakeError::Noise)?)?;
    let (mut client, mut server) = noise.dangerously_get_raw_split();
    let keys = SessionKeys::derive(&transcript, (&client, &server), kem_secret);
    client.zeroize();
    server.zeroize();
    Ok(Agreed { keys, peer, parameters, capabilities })
}

const NOISE: &str = "Noise_XK_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"fieldpost-htx-v1";
const VERSION: u8 = 1;
const SUITE: u8 = 1;
/// A public key or an encrypted one, and the payload's tag.
const NOISE_OVERHEAD: usize = 32 + 16 + 16;
const MAX_BODY: usize = 2048;
