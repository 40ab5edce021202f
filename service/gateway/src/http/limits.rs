//! How much one caller may ask (design, section 6): requests a second, and registrations a second
//! from one address.
//!
//! A caller is the peer that its token or, with `--auth open`, its head names; until that is
//! known, the address it calls from. The numbers are each replica's own.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    str::FromStr,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request},
    http::{Extensions, HeaderMap, HeaderName, header},
};
use fieldpost_envelope::PeerId;
use governor::{DefaultKeyedRateLimiter, Quota, clock::Clock as _};

use crate::{
    Gateway,
    config::Config,
    http::{caller::Caller, error::ApiError},
};

/// Broadcasts a minute that one peer may send (design, section 5).
const BROADCASTS_A_MINUTE: NonZeroU32 = NonZeroU32::new(6).unwrap();

/// How much callers may ask.
#[derive(Debug)]
pub struct Limits {
    requests: DefaultKeyedRateLimiter<Key>,
    registrations: DefaultKeyedRateLimiter<IpAddr>,
    broadcasts: DefaultKeyedRateLimiter<PeerId>,
    proxies: Vec<Network>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Key {
    Peer(PeerId),
    Address(IpAddr),
}

impl Limits {
    /// Limits as the operator set them.
    ///
    /// # Errors
    ///
    /// Says which of the trusted proxies is no address or network.
    pub fn new(config: &Config) -> Result<Self, String> {
        let proxies = config
            .trusted_proxies
            .iter()
            .map(|text| text.parse().map_err(|error| format!("--trusted-proxies: {error}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            requests: DefaultKeyedRateLimiter::keyed(quota(config.rate_limit)),
            registrations: DefaultKeyedRateLimiter::keyed(quota(config.registration_rate_limit)),
            broadcasts: DefaultKeyedRateLimiter::keyed(
                Quota::per_minute(BROADCASTS_A_MINUTE).allow_burst(BROADCASTS_A_MINUTE),
            ),
            proxies,
        })
    }

    /// One more request or frame of `peer`.
    ///
    /// # Errors
    ///
    /// 429 when the peer is too fast.
    pub fn check_peer(&self, peer: &PeerId) -> Result<(), ApiError> {
        self.check(&Key::Peer(peer.clone()))
    }

    /// One more request from `address`, by whom is not known.
    ///
    /// # Errors
    ///
    /// 429 when requests from there come too fast.
    pub fn check_address(&self, address: IpAddr) -> Result<(), ApiError> {
        self.check(&Key::Address(network_of(address)))
    }

    /// One more registration from `address`.
    ///
    /// # Errors
    ///
    /// 429 when registrations from there come too fast.
    pub fn check_registration(&self, address: IpAddr) -> Result<(), ApiError> {
        self.registrations.check_key(&network_of(address)).map_err(|early| {
            let wait = early.wait_time_from(self.registrations.clock().now());
            too_fast("registrations from your address come too fast", wait)
        })
    }

    /// One more broadcast of `peer`.
    ///
    /// # Errors
    ///
    /// 429 after six in a minute.
    pub fn check_broadcast(&self, peer: &PeerId) -> Result<(), ApiError> {
        self.broadcasts.check_key(peer).map_err(|early| {
            let wait = early.wait_time_from(self.broadcasts.clock().now());
            too_fast("broadcasts come too fast: six a minute", wait)
        })
    }

    /// Forgets callers who have been quiet; call it now and then.
    pub fn forget_quiet(&self) {
        self.requests.retain_recent();
        self.requests.shrink_to_fit();
        self.registrations.retain_recent();
        self.registrations.shrink_to_fit();
        self.broadcasts.retain_recent();
        self.broadcasts.shrink_to_fit();
    }

    fn check(&self, key: &Key) -> Result<(), ApiError> {
        self.requests.check_key(key).map_err(|early| {
            too_fast("you are asking too fast", early.wait_time_from(self.requests.clock().now()))
        })
    }

    /// Where a request came from: whoever is connected or, if that is a trusted proxy, the last
    /// address in `X-Forwarded-For` that is not one.
    fn client_address(&self, connected: IpAddr, headers: &HeaderMap) -> IpAddr {
        let is_trusted = |address: IpAddr| self.proxies.iter().any(|proxy| proxy.contains(address));
        if !is_trusted(connected) {
            return connected;
        }
        let forwarded: Vec<&str> = headers
            .get_all(FORWARDED_FOR)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        let mut address = connected;
        for text in forwarded.into_iter().rev() {
            // What a proxy did not understand itself is no better than its own address.
            let Some(previous) = forwarded_address(text.trim()) else {
                break;
            };
            address = previous;
            if !is_trusted(address) {
                break;
            }
        }
        address
    }
}

/// Where a request came from; an extractor for handlers.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

impl FromRequestParts<Gateway> for ClientAddress {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        gateway: &Gateway,
    ) -> Result<Self, Self::Rejection> {
        Ok(client_address(gateway, &parts.extensions, &parts.headers))
    }
}

/// Counts a request to its caller.
///
/// Leaves what it found out about the caller for [`Caller`] to take.
///
/// # Errors
///
/// 429 when the caller is too fast.
pub async fn check_caller(gateway: &Gateway, request: &mut Request) -> Result<Known, ApiError> {
    let ClientAddress(address) = client_address(gateway, request.extensions(), request.headers());
    // To look up a token costs a query, so whoever brings a new one is counted before it.
    let is_stranger =
        token(request.headers()).is_some_and(|token| !gateway.store.remembers_token(token));
    if is_stranger {
        gateway.limits.check_address(address)?;
    }
    let caller = Caller::find(gateway, request.uri(), request.headers()).await;
    match caller.as_ref().ok().and_then(Caller::peer) {
        Some(peer) => gateway.limits.check_peer(peer)?,
        None if is_stranger => {}
        None => gateway.limits.check_address(address)?,
    }
    let known = match &caller {
        Ok(caller) if caller.is_open() || caller.is_operator() || caller.peer().is_some() => {
            Known::Yes
        }
        Ok(_) | Err(_) => Known::No,
    };
    request.extensions_mut().insert(Found(caller));
    Ok(known)
}

/// Whether a request comes from a peer or an operator, as far as its head tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// With `--auth open`, any does.
    Yes,
    /// From anybody.
    No,
}

/// What [`check_caller`] found out about the caller.
#[derive(Clone, Debug)]
pub(super) struct Found(pub(super) Result<Caller, ApiError>);

/// The bearer token of a request, whatever it is worth.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let (_, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    Some(token.trim())
}

fn client_address(
    gateway: &Gateway,
    extensions: &Extensions,
    headers: &HeaderMap,
) -> ClientAddress {
    let connected = extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip());
    ClientAddress(gateway.limits.client_address(connected.to_canonical(), headers))
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// So many a second, and bursts of twice as many.
fn quota(a_second: u32) -> Quota {
    let a_second = NonZeroU32::new(a_second).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(a_second).allow_burst(a_second.saturating_mul(TWO))
}

const TWO: NonZeroU32 = NonZeroU32::MIN.saturating_add(1);

fn too_fast(what: &str, wait: std::time::Duration) -> ApiError {
    let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    ApiError::too_fast(format!("{what}; try again in {seconds} s"), seconds)
}

/// The part of an address that one household cannot change at will.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// Reads `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn forwarded_address(text: &str) -> Option<IpAddr> {
    let unbracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address: Option<IpAddr> = unbracketed.unwrap_or(text).parse().ok();
    address
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .map(|address| address.to_canonical())
}

/// An address, or all that share its first bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= self.prefix
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.leading_zeros() >= self.prefix
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let misread = || {
            format!("{text:?} is no address or network: write for example 10.0.0.7 or 10.0.0.0/8")
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| misread())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => {
                prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(misread)?
            }
            None => bits,
        };
        Ok(Self { address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_twice_the_rate_passes_and_then_the_wait_is_told() {
        let limits = limits(&[]);
        let [alice, bob]: [PeerId; 2] = ["alice", "bob"].map(|name| name.parse().unwrap());
        let refused = (0..100_000).find_map(|_| limits.check_peer(&alice).err()).unwrap();
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.retry_after_seconds(), Some(1));
        limits.check_peer(&bob).unwrap();
        let home: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..40 {
            limits.check_registration(home).unwrap();
        }
        assert!((0..100_000).any(|_| limits.check_registration(home).is_err()));
    }

    #[test]
    fn neighbours_of_one_ipv6_network_share_a_limit() {
        let near: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        let nearer: IpAddr = "2001:db8:0:1:ffff::2".parse().unwrap();
        let far: IpAddr = "2001:db8:0:2::1".parse().unwrap();
        assert_eq!(network_of(near), network_of(nearer));
        assert_ne!(network_of(near), network_of(far));
        assert_eq!(network_of("::ffff:192.0.2.1".parse().unwrap()), IpAddr::from([192, 0, 2, 1]));
    }

    #[test]
    fn forwarded_addresses_are_believed_from_trusted_proxies_alone() {
        let limits = limits(&["10.0.0.0/8", "2001:db8::7"]);
        let headers =
            |value: &'static str| HeaderMap::from_iter([(FORWARDED_FOR, value.parse().unwrap())]);
        for (connected, forwarded, client) in [
            ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
            ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
            // The client wrote the first one itself.
            ("10.0.0.1", "127.0.0.1, 203.0.113.9", "203.0.113.9"),
            ("10.0.0.1", "203.0.113.9, 10.9.9.9", "203.0.113.9"),
            ("10.0.0.1", "10.1.1.1, 10.9.9.9", "10.1.1.1"),
            ("10.0.0.1", "203.0.113.9, nonsense", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("2001:db8::7", "[2001:db8::8]:1234", "2001:db8::8"),
            ("10.0.0.1", "203.0.113.9:5555", "203.0.113.9"),
        ] {
            let found = limits.client_address(connected.parse().unwrap(), &headers(forwarded));
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{connected}, {forwarded}");
        }
    }

    #[test]
    fn networks_are_read_and_misreadings_told() {
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!(!all.contains("2001:db8::1".parse().unwrap()));
        let one: Network = "192.0.2.1".parse().unwrap();
        assert!(!one.contains("192.0.2.2".parse().unwrap()));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0/8", "proxy.example", "::1/129"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    fn limits(proxies: &[&str]) -> Limits {
        Limits {
            requests: DefaultKeyedRateLimiter::keyed(quota(200)),
            registrations: DefaultKeyedRateLimiter::keyed(quota(20)),
            broadcasts: DefaultKeyedRateLimiter::keyed(Quota::per_minute(BROADCASTS_A_MINUTE)),
            proxies: proxies.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }
}
