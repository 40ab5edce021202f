//! The direct mesh: its port, what was named to it, and the local network.

use std::{
    error::Error,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use fieldpost_transport::MeshOptions;
use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
    },
};
use reqwest::Client;

use super::{Finding, network};
use crate::config::Config;

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Where multicast DNS is spoken.
const MDNS: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 251), 5353);

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    if !config.transports().any(|name| name == "mesh") {
        return vec![Finding::info(
            "mesh",
            "not among --transports: no other gateway is reached by it",
        )];
    }
    let options = config.mesh();
    let api = network::probe_url(config.listen, config.tls_cert.is_some(), "/");
    let mut findings = vec![port(options.listen, &api).await];
    findings.extend(bootstraps(&options).await);
    findings.extend(relays(&options.relays).await);
    findings.push(discovery(options.discovers));
    findings
}

async fn port(listen: Option<SocketAddr>, api: &str) -> Finding {
    const NAME: &str = "mesh port";
    let address = listen.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into());
    let error = match UdpSocket::bind(address) {
        Ok(_) if listen.is_none() => {
            return Finding::ok(
                NAME,
                "a free UDP port is taken at each start; for --bootstrap elsewhere, fix it by \
                 --mesh-listen",
            );
        }
        Ok(_) => return Finding::ok(NAME, format!("UDP {address} is free")),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::AddrInUse && network::answers_as_gateway(api).await {
        return Finding::ok(NAME, format!("UDP {address} is in use, and a gateway runs at {api}"));
    }
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program has it: end that (ss -lunp shows which), or change --mesh-listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that address: change --mesh-listen (ip addr shows which it has)"
        }
        _ => "change --mesh-listen",
    };
    Finding::failure(NAME, format!("cannot take UDP {address}: {error}"), advice)
}

/// One finding for each entry. Those that are not understood are among the options' failures, too.
async fn bootstraps(options: &MeshOptions) -> Vec<Finding> {
    const NAME: &str = "bootstrap";
    if options.bootstrap.is_empty() {
        return Vec::new();
    }
    match options.probe().await {
        Ok(answers) => {
            let judge = |(entry, answer): (String, Result<(), String>)| match answer {
                Ok(()) => Finding::ok(NAME, format!("{entry} answers")),
                Err(reason) => Finding::warning(
                    NAME,
                    format!("{entry} does not answer: {reason}"),
                    "see that the gateway there runs, that its UDP port is open from here, and that \
                     the address is the one it prints at its start; this one tries on and on",
                ),
            };
            answers.into_iter().map(judge).collect()
        }
        Err(error) => {
            vec![Finding::failure(NAME, error.to_string(), "correct the options of the mesh")]
        }
    }
}

async fn relays(relays: &[String]) -> Vec<Finding> {
    const NAME: &str = "mesh relays";
    if relays.is_empty() {
        return vec![Finding::info(
            NAME,
            "none: gateways that cannot send each other UDP do not meet (--mesh-relay)",
        )];
    }
    let client = match Client::builder().timeout(PROBE_TIMEOUT).build() {
        Ok(client) => client,
        Err(error) => return vec![Finding::warning(NAME, chain(&error), "report this")],
    };
    let mut findings = Vec::new();
    for relay in relays {
        // Any answer will do: it is there, and its certificate holds.
        findings.push(match client.get(relay).send().await {
            Ok(answer) => Finding::ok(NAME, format!("{relay} answers ({})", answer.status())),
            Err(error) => Finding::warning(
                NAME,
                format!("{relay} does not answer: {}", chain(&error)),
                "see that the relay runs and is open from here, and that its certificate is for \
                 that name; without it, gateways that need it do not meet",
            ),
        });
    }
    findings
}

/// An error with its causes, which alone say what is wrong.
fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

fn discovery(is_on: bool) -> Finding {
    const NAME: &str = "local network";
    const ADVICE: &str =
        "turn it off by --mesh-discovery off, and name other gateways by --bootstrap";
    if !is_on {
        return Finding::info(NAME, "not looked at (--mesh-discovery off)");
    }
    match interfaces_with_mdns() {
        Ok(names) if names.is_empty() => Finding::warning(
            NAME,
            "no interface that is up takes part in multicast, so no gateway is found by mDNS",
            ADVICE,
        ),
        Ok(names) => Finding::ok(NAME, format!("mDNS can be spoken on {}", names.join(", "))),
        Err(error) => Finding::warning(NAME, format!("mDNS is not possible: {error}"), ADVICE),
    }
}

/// The interfaces on which multicast DNS can be heard beside others who do so.
fn interfaces_with_mdns() -> io::Result<Vec<String>> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, MDNS.1));
    bind(socket.as_raw_fd(), &SockaddrStorage::from(everywhere))?;
    let socket = UdpSocket::from(socket);
    let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST;
    let mut names = Vec::new();
    for interface in getifaddrs()? {
        let address = interface.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in);
        let Some(address) = address.filter(|_| interface.flags.contains(wanted)) else { continue };
        let is_own = IpAddr::from(address.ip()).is_loopback();
        if !is_own && socket.join_multicast_v4(&MDNS.0, &address.ip()).is_ok() {
            names.push(interface.interface_name);
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    const NODE: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";

    #[tokio::test]
    async fn a_port_of_the_mesh_is_free_or_somebody_elses() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap();
        let finding = port(Some(listen), "http://127.0.0.1:1/").await;
        assert_eq!(finding.verdict, Verdict::Failure);
        assert!(finding.advice.unwrap().contains("--mesh-listen"));
        drop(taken);
        // A process that another test forks holds the socket until it runs a program.
        let free = async {
            while port(Some(listen), "http://127.0.0.1:1/").await.verdict != Verdict::Ok {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), free).await.expect("it becomes free");
        assert_eq!(port(None, "http://127.0.0.1:1/").await.verdict, Verdict::Ok);
    }

    #[tokio::test]
    async fn bootstraps_and_relays_that_do_not_answer_are_told_with_what_to_check() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let nobody = format!("{NODE}@a.invalid:4433");
        let options = MeshOptions { bootstrap: vec![nobody.clone()], ..Default::default() };
        let findings = bootstraps(&options).await;
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(finding.verdict, Verdict::Warning, "{finding:?}");
        assert!(finding.detail.contains(&nobody), "{finding:?}");
        let malformed = MeshOptions { bootstrap: vec!["a:1".into()], ..Default::default() };
        assert_eq!(bootstraps(&malformed).await[0].verdict, Verdict::Failure);

        let silent = relays(&["http://127.0.0.1:1".into()]).await;
        assert_eq!(silent[0].verdict, Verdict::Warning, "{silent:?}");
        assert_eq!(relays(&[]).await[0].verdict, Verdict::Info);
    }
}
