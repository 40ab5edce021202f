//! The ports: free, ours already, or somebody else's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use reqwest::Client;

use super::Finding;
use crate::{config::Config, serve};

const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let tls = config.tls_cert.is_some();
    let mut findings = vec![
        port("listen", "--listen", config.listen, probe_url(config.listen, tls, "/")).await,
        port(
            "admin listen",
            "--admin-listen",
            config.admin_listen,
            probe_url(config.admin_listen, false, "/healthz"),
        )
        .await,
    ];
    findings.extend(match serve::tls(config) {
        Ok(None) => None,
        Ok(Some(_)) => Some(Finding::ok("TLS certificate", "it can be read, and its key fits")),
        Err(error) => Some(unusable("TLS certificate", &error)),
    });
    findings
}

async fn port(
    name: &'static str,
    option: &'static str,
    address: SocketAddr,
    url: String,
) -> Finding {
    let error = match TcpListener::bind(address) {
        Ok(_) => return Finding::ok(name, format!("{address} is free")),
        Err(error) => error,
    };
    if error.kind() == io::ErrorKind::AddrInUse && answers_as_gateway(&url).await {
        return Finding::ok(name, format!("{address} is served by a running gateway"));
    }
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("another program has it: end that (ss -ltnp shows which), or change {option}")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!(
                "this machine does not have that address: change {option} (ip addr shows which it has)"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need a right: change {option}, or give CAP_NET_BIND_SERVICE")
        }
        _ => format!("change {option}"),
    };
    Finding::failure(name, format!("cannot listen on {address}: {error}"), advice)
}

/// Where a server on `address` is reached from its own machine.
pub(super) fn probe_url(address: SocketAddr, tls: bool, path: &str) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}{path}", SocketAddr::new(ip, address.port()))
}

pub(super) async fn answers_as_gateway(url: &str) -> bool {
    // The certificate is for the public name, not for loopback; nothing secret is sent.
    let client = Client::builder().timeout(PROBE_TIMEOUT).danger_accept_invalid_certs(true).build();
    let Ok(client) = client else { return false };
    let Ok(response) = client.get(url).send().await else { return false };
    if url.ends_with("/healthz") {
        return response.text().await.is_ok_and(|text| text.trim() == "ok");
    }
    let welcome = response.json::<serde_json::Value>().await;
    welcome.is_ok_and(|welcome| welcome["name"] == "fieldpost")
}

/// What of files that options name keeps the gateway from starting.
pub(super) fn unusable(name: &'static str, error: &anyhow::Error) -> Finding {
    let advice = "correct the path or the file, and let the gateway's user read it";
    Finding::failure(name, format!("{error:#}"), advice)
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_server_on_all_addresses_is_probed_on_loopback() {
        let probe = |address: &str| probe_url(address.parse().unwrap(), false, "/");
        assert_eq!(probe("0.0.0.0:80"), "http://127.0.0.1:80/");
        assert_eq!(probe("[::]:80"), "http://[::1]:80/");
        assert_eq!(probe("10.0.0.1:80"), "http://10.0.0.1:80/");
    }

    #[tokio::test]
    async fn a_port_is_free_or_somebody_elses() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let url = probe_url(address, false, "/");
        // Whoever asks is sent away without an answer.
        let refuse = std::thread::spawn(move || drop(taken.accept().unwrap()));
        let finding = {
            let _still_taken = &refuse;
            port("listen", "--listen", address, url.clone()).await
        };
        assert_eq!(finding.verdict, Verdict::Failure, "{finding:?}");
        assert!(finding.advice.unwrap().contains("another program has it"));
        refuse.join().unwrap();
        assert_eq!(port("listen", "--listen", address, url).await.verdict, Verdict::Ok);
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_told() {
        let address = "192.0.2.1:8000".parse().unwrap();
        let finding = port("listen", "--listen", address, probe_url(address, false, "/")).await;
        assert_eq!(finding.verdict, Verdict::Failure);
        assert!(finding.advice.unwrap().contains("does not have that address"));
    }
}
