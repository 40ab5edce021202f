//! Finding gateways on the local network by mDNS, as the service `_fieldpost._udp`.
//!
//! Each interface is asked and told by itself, so a machine without a default route finds its
//! neighbours too.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use data_encoding::HEXLOWER;
use fieldpost_peering::NodeId;
use iroh::Endpoint;
use mdns_sd::{Receiver, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent, ServiceInfo};

/// A node that made itself known on the local network.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) node: NodeId,
    pub(super) addresses: BTreeSet<SocketAddr>,
}

/// This node's word to the local network, and an ear for that of others.
pub(super) struct Discovery {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    own: NodeId,
}

impl Discovery {
    pub(super) fn start(endpoint: &Endpoint) -> Result<Self, String> {
        let node = HEXLOWER.encode(endpoint.id().as_bytes());
        let sockets = endpoint.bound_sockets();
        let port = |is_wanted: fn(&SocketAddr) -> bool| {
            sockets.iter().find(|socket| is_wanted(socket)).map(|socket| socket.port())
        };
        let (port_4, port_6) = (port(SocketAddr::is_ipv4), port(SocketAddr::is_ipv6));
        let Some(first) = port_4.or(port_6) else { return Err("nothing is bound".into()) };
        let mut properties = vec![("node", node.clone())];
        properties.extend(port_6.map(|port| ("port6", port.to_string())));
        // A bound address is the only one; otherwise it is all that the interfaces have.
        let fixed: Vec<IpAddr> =
            sockets.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
        let (short, host) = (&node[..32], format!("fieldpost-{}.local.", &node[..16]));
        let info = ServiceInfo::new(SERVICE, short, &host, &fixed[..], first, &properties[..]);
        let mut info = info.map_err(|error| error.to_string())?;
        if fixed.is_empty() {
            info = info.enable_addr_auto();
        }
        // The name is made of a key; nobody else has it.
        info.set_requires_probe(false);
        let begin = || {
            let daemon = ServiceDaemon::new()?;
            daemon.set_ip_check_interval(INTERFACES_LOOKED_AT_SECONDS)?;
            let events = daemon.browse(SERVICE)?;
            daemon.register(info)?;
            Ok::<_, mdns_sd::Error>((daemon, events))
        };
        let (daemon, events) = begin().map_err(|error| error.to_string())?;
        Ok(Self { daemon, events, own: NodeId(*endpoint.id().as_bytes()) })
    }

    /// Waits for the next node that makes itself known. Safe to give up.
    pub(super) async fn next(&self) -> Option<Found> {
        loop {
            if let ServiceEvent::ServiceResolved(service) = self.events.recv_async().await.ok()?
                && let Some(found) = read(&service)
                && found.node != self.own
            {
                return Some(found);
            }
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        // It says goodbye and ends its thread by itself.
        let _ = self.daemon.shutdown();
    }
}

/// What a stranger's record says; nothing if it makes no sense.
fn read(service: &ResolvedService) -> Option<Found> {
    let node = HEXLOWER.decode(service.get_property_val_str("node")?.as_bytes()).ok()?;
    let node = NodeId(node.try_into().ok()?);
    let port_6 = service.get_property_val_str("port6").and_then(|port| port.parse().ok());
    let place = |address: &ScopedIp| match address {
        ScopedIp::V4(v4) => Some(SocketAddr::new((*v4.addr()).into(), service.get_port())),
        ScopedIp::V6(v6) => {
            let is_link_local = v6.addr().is_unicast_link_local();
            let scope = if is_link_local { v6.scope_id().index } else { 0 };
            Some(SocketAddrV6::new(*v6.addr(), port_6?, 0, scope).into())
        }
        _ => None,
    };
    let addresses: BTreeSet<_> =
        service.get_addresses().iter().filter_map(place).take(MOST_ADDRESSES).collect();
    (!addresses.is_empty()).then_some(Found { node, addresses })
}

const SERVICE: &str = "_fieldpost._udp.local.";
const INTERFACES_LOOKED_AT_SECONDS: u32 = 1;
const MOST_ADDRESSES: usize = 16;
