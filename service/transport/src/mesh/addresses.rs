//! Where nodes are.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
};

use fieldpost_peering::NodeId;
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayUrl, TransportAddr};
use tokio::net::lookup_host;

use super::{MeshError, parse_relay};

/// An entry of `--bootstrap`.
#[derive(Clone, Debug)]
pub(super) struct Bootstrap {
    pub(super) node: NodeId,
    place: Place,
}

/// Where a node may be found.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Place {
    /// `HOST:PORT`, looked up at each attempt.
    Host(String),
    Relays(Vec<RelayUrl>),
}

impl Bootstrap {
    pub(super) fn parse(entry: &str, relays: &[RelayUrl]) -> Result<Self, MeshError> {
        let misfit = || MeshError::Bootstrap { entry: entry.to_owned() };
        let (node, place) = match entry.split_once('@') {
            Some((node, place)) => (node, Some(place)),
            None => (entry, None),
        };
        let node: EndpointId = node.parse().map_err(|_| misfit())?;
        let place = match place {
            Some(url) if url.contains("://") => {
                Place::Relays(vec![parse_relay(url).map_err(|_| misfit())?])
            }
            Some(host) => {
                let (name, port) = host.rsplit_once(':').ok_or_else(misfit)?;
                let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
                // An address of version 6 has brackets, or its last part would be taken for a port.
                let is_name = !name.is_empty() && (name.starts_with('[') || !name.contains(':'));
                if !is_port || !is_name || name.contains(char::is_whitespace) {
                    return Err(misfit());
                }
                Place::Host(host.to_owned())
            }
            None if relays.is_empty() => return Err(misfit()),
            None => Place::Relays(relays.to_vec()),
        };
        Ok(Self { node: NodeId(*node.as_bytes()), place })
    }
}

impl fmt::Display for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Host(host) => f.write_str(host),
            Place::Relays(relays) => {
                let relays: Vec<&str> = relays.iter().map(|relay| relay.as_str()).collect();
                f.write_str(&relays.join(", "))
            }
        }
    }
}

/// What is known of where nodes are; the core says whom to forget.
#[derive(Debug, Default)]
pub(super) struct AddressBook(HashMap<NodeId, Places>);

#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    nearby: BTreeSet<SocketAddr>,
    bootstrap: Vec<Place>,
}

impl AddressBook {
    pub(super) fn add_bootstrap(&mut self, entry: Bootstrap) {
        let places = self.0.entry(entry.node).or_default();
        if !places.bootstrap.contains(&entry.place) {
            places.bootstrap.push(entry.place);
        }
    }

    /// Takes in where a node says on the local network that it is.
    pub(super) fn set_nearby(&mut self, node: NodeId, addresses: BTreeSet<SocketAddr>) {
        self.0.entry(node).or_default().nearby = addresses;
    }

    pub(super) fn places(&self, node: NodeId) -> Places {
        self.0.get(&node).cloned().unwrap_or_default()
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

impl Places {
    /// Looks up the names among them; says why if nothing is known of any.
    pub(super) async fn resolve(self, node: EndpointId) -> Result<EndpointAddr, String> {
        let mut addresses: Vec<TransportAddr> =
            self.nearby.into_iter().map(TransportAddr::Ip).collect();
        let mut problem = None;
        for place in self.bootstrap {
            match place {
                Place::Host(host) => match lookup_host(&host).await {
                    Ok(found) => {
                        addresses.extend(found.take(MOST_OF_A_HOST).map(TransportAddr::Ip));
                    }
                    Err(error) => problem = Some(format!("{host} is not found: {error}")),
                },
                Place::Relays(relays) => {
                    addresses.extend(relays.into_iter().map(TransportAddr::Relay));
                }
            }
        }
        match problem {
            Some(problem) if addresses.is_empty() => Err(problem),
            _ => Ok(EndpointAddr::from_parts(node, addresses)),
        }
    }
}

/// Bootstrap entries that lead to this endpoint.
pub(super) fn own_addresses(endpoint: &Endpoint) -> Vec<String> {
    let (id, address) = (endpoint.id(), endpoint.addr());
    let bound = endpoint.bound_sockets().into_iter().filter(|socket| !socket.ip().is_unspecified());
    let sockets: BTreeSet<SocketAddr> = address.ip_addrs().copied().chain(bound).collect();
    let relays = address.relay_urls().map(|relay| format!("{id}@{relay}"));
    sockets.iter().map(|socket| format!("{id}@{socket}")).chain(relays).collect()
}

const MOST_OF_A_HOST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

    #[test]
    fn entries_name_a_node_and_where_it_is() {
        let relay: RelayUrl = "https://relay.example".parse().unwrap();
        let place = |entry: &str, relays: &[RelayUrl]| {
            Bootstrap::parse(entry, relays).ok().map(|entry| entry.place)
        };
        let host = |text: &str| Some(Place::Host(text.into()));
        assert_eq!(place(&format!("{NODE}@10.0.0.1:4000"), &[]), host("10.0.0.1:4000"));
        assert_eq!(place(&format!("{NODE}@[fe80::1]:4000"), &[]), host("[fe80::1]:4000"));
        assert_eq!(place(&format!("{NODE}@post.example:4000"), &[]), host("post.example:4000"));
        let at_relay = Some(Place::Relays(vec![relay.clone()]));
        assert_eq!(place(&format!("{NODE}@https://relay.example"), &[]), at_relay);
        assert_eq!(place(NODE, &[relay]), at_relay);
    }

    #[test]
    fn entries_without_a_node_or_a_place_are_refused_with_what_was_expected() {
        let at = |place: &str| format!("{NODE}@{place}");
        for entry in [
            "10.0.0.1:4000",
            "",
            NODE,
            "@10.0.0.1:1",
            &at("host"),
            &at(":1"),
            &at("host:0"),
            &at("host:99999"),
            &at("fe80::1:4000"),
            &at("ftp://relay.example"),
        ] {
            let error = Bootstrap::parse(entry, &[]).unwrap_err().to_string();
            assert!(error.contains("NODE@HOST:PORT"), "{error}");
        }
    }
}
