//! What a format of Sphinx packets is made of: group, key derivation, ciphers, commands.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::hop::HopError;

/// A group of prime order with elements and scalars of 32 bytes.
pub trait Group {
    /// A scalar that is ready for multiplications.
    type Secret;

    /// The scalar with these bytes; any 32 bytes are one. `None` if the library refuses.
    fn secret(bytes: &[u8; 32]) -> Option<Self::Secret>;

    /// The base point times `secret`.
    fn public(secret: &Self::Secret) -> Option<[u8; 32]>;

    /// `element` times `secret`; `None` where the product is the neutral element, which is so for
    /// elements of small order.
    fn multiply(secret: &Self::Secret, element: &[u8; 32]) -> Option<[u8; 32]>;

    /// The scalar that multiplies like `left` and then `right`.
    fn product(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32];
}

/// A suite: the group, the ciphers and the layout of commands.
///
/// [`Production`](super::Production) is on the wire. The tests have another one, which reproduces
/// the published vectors of Katzenpost.
pub trait Suite {
    /// The group.
    type Group: Group;
    /// What a hop is told.
    type Command: Copy;
    /// What a packet's keys are bound to beside its bytes.
    type Context;

    /// Bytes before the group element.
    const PREFIX: usize;
    /// Bytes of routing for each hop, the next MAC among them.
    const BLOCK: usize;
    /// Bytes of a MAC, at most 32.
    const MAC: usize;
    /// Bytes of a payload key that are in use, at most [`PAYLOAD_KEY_MAX`].
    const PAYLOAD_KEY: usize;

    /// Refuses a prefix that does not belong to a packet of this length and context.
    ///
    /// # Errors
    ///
    /// Says which part is wrong.
    fn check_prefix(
        prefix: &[u8],
        packet_len: usize,
        context: &Self::Context,
    ) -> Result<(), HopError>;

    /// The keys of a hop.
    fn derive(
        shared: &[u8; 32],
        prefix: &[u8],
        element: &[u8; 32],
        context: &Self::Context,
    ) -> HopKeys;

    /// The MAC over the whole header; the first [`MAC`](Self::MAC) bytes count.
    fn authenticate(keys: &HopKeys, prefix: &[u8], element: &[u8; 32], routing: &[u8]) -> [u8; 32];

    /// Adds the key stream of the header to `routing`, from the start of the stream.
    fn apply_header_stream(keys: &HopKeys, routing: &mut [u8]);

    /// Encrypts a payload in place as one wide block.
    fn encrypt_payload(key: &PayloadKey, role: Role, payload: &mut [u8]);

    /// Undoes [`encrypt_payload`](Self::encrypt_payload).
    fn decrypt_payload(key: &PayloadKey, role: Role, payload: &mut [u8]);

    /// Reads the command at the start of a decrypted block.
    ///
    /// # Errors
    ///
    /// The block holds no command.
    fn read(block: &[u8]) -> Result<Step<Self::Command>, HopError>;

    /// Writes a command into `block`, which holds random bytes; `next_mac` is that of the next
    /// header, or `None` at the last hop.
    fn write(command: &Self::Command, next_mac: Option<&[u8]>, block: &mut [u8]);

    /// What `command` makes of the payload.
    fn role(command: &Self::Command) -> Role;
}

/// A command as a hop reads it.
#[derive(Clone, Copy, Debug)]
pub struct Step<C> {
    /// The command.
    pub command: C,
    /// The MAC of the header to pass on; `None` at the last hop.
    pub next_mac: Option<[u8; 32]>,
}

/// What a payload key is for. The key derivation is bound to it, so that the payload of one
/// direction is noise in the other.
///
/// Only the two ends of a route know the direction; a relay between them must not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// A relay between the ends.
    Pass,
    /// The last hop of a message: the payload is for this gateway.
    Deliver,
    /// The last hop of a reply: the payload goes unopened to whoever made the SURB.
    Reply,
    /// The layer that the user of a SURB adds.
    Answer,
}

/// The keys of one hop; wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct HopKeys {
    /// Key of the MAC.
    pub mac: [u8; 32],
    /// Key of the header's stream.
    pub header: [u8; 32],
    /// Start of the header's stream, for suites that derive one.
    pub header_nonce: [u8; 16],
    /// Key of the payload.
    pub payload: PayloadKey,
    /// By which the group element is multiplied for the next hop.
    pub blinding: [u8; 32],
    /// What makes a second copy recognisable.
    #[zeroize(skip)]
    pub tag: ReplayTag,
}

/// A key of the payload cipher; the suite says how many of its bytes count.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PayloadKey(pub [u8; PAYLOAD_KEY_MAX]);

/// The most bytes that a payload key of any suite has.
pub const PAYLOAD_KEY_MAX: usize = 64;

/// What makes a second copy of a packet recognisable: bytes of the key derivation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ReplayTag(pub [u8; 16]);
