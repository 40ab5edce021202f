//! Who may reach a gateway that believes its callers: with `--auth open`, programs on this machine
//! and no foreign web page (design, section 3).
//!
//! A page of any site can make a browser send requests to loopback. Two headers that pages cannot
//! forge give them away: `Origin` names the page's site, and `Host` the name by which the browser
//! found us, which is not a loopback name when an attacker's domain was pointed here.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::{
    extract::Request,
    http::{HeaderMap, Uri, header, uri::Authority},
};

use crate::{Gateway, config::Auth, http::error::ApiError};

/// With `--auth open`, finds requests by other than loopback names and from foreign pages; sockets
/// too. Finds nothing otherwise.
///
/// # Errors
///
/// 403 for these.
pub fn check_open_mode(gateway: &Gateway, request: &Request) -> Result<(), ApiError> {
    match gateway.config.auth {
        Auth::Open => check(request.uri(), request.headers(), &gateway.config.cors_origins),
        Auth::Token => Ok(()),
    }
}

fn check(uri: &Uri, headers: &HeaderMap, cors_origins: &[String]) -> Result<(), ApiError> {
    let hosts: Option<Vec<Authority>> = headers
        .get_all(header::HOST)
        .iter()
        .map(|value| value.to_str().ok()?.parse().ok())
        .chain(uri.authority().cloned().map(Some))
        .collect();
    let Some(hosts) = hosts.filter(|hosts| !hosts.is_empty() && hosts.iter().all(is_loopback))
    else {
        return Err(ApiError::forbidden(
            "with --auth open the gateway answers to loopback names alone: use \
             http://127.0.0.1:<port> or http://localhost:<port>, or start it with --auth token",
        ));
    };
    let port = hosts.first().and_then(Authority::port_u16);
    for origin in headers.get_all(header::ORIGIN) {
        let is_ours = origin.to_str().is_ok_and(|origin| {
            is_own_origin(origin, port) || cors_origins.iter().any(|known| known == origin)
        });
        if !is_ours {
            return Err(ApiError::forbidden(
                "with --auth open, pages of other origins are refused: name this one in \
                 --cors-origins, or start the gateway with --auth token",
            ));
        }
    }
    Ok(())
}

/// `localhost`, `127.0.0.0/8` or `[::1]`, with any port. Other spellings of these addresses that
/// some resolvers know, such as `127.1`, are refused: clients do not need them.
fn is_loopback(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    if let Some(v6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return v6.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a page comes from the gateway itself, by whichever loopback name.
fn is_own_origin(origin: &str, port: Option<u16>) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    authority.parse::<Authority>().is_ok_and(|authority| {
        is_loopback(&authority)
            && authority.port_u16().unwrap_or(default_port) == port.unwrap_or(default_port)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, StatusCode};

    use super::*;

    #[test]
    fn loopback_names_pass_with_any_port() {
        for host in ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"] {
            assert_eq!(refusal(&[("host", host)]), None, "{host}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for host in [
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example@127.0.0.1",
            "192.168.0.1:8000",
            "[::2]",
            "0.0.0.0:8000",
            "",
        ] {
            assert_eq!(refusal(&[("host", host)]), Some(StatusCode::FORBIDDEN), "{host}");
        }
        assert_eq!(refusal(&[]), Some(StatusCode::FORBIDDEN));
        let two = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(refusal(&two), Some(StatusCode::FORBIDDEN));
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        for origin in ["http://localhost:8000", "http://127.0.0.1:8000", "https://chat.example"] {
            let headers = [("host", "127.0.0.1:8000"), ("origin", origin)];
            assert_eq!(refusal(&headers), None, "{origin}");
        }
        for origin in [
            "null",
            "",
            "https://evil.example",
            "http://evil.example:8000",
            "http://localhost:3000",
            "http://localhost",
            "file://",
            "https://chat.example.evil.example",
        ] {
            let headers = [("host", "127.0.0.1:8000"), ("origin", origin)];
            assert_eq!(refusal(&headers), Some(StatusCode::FORBIDDEN), "{origin}");
        }
    }

    #[test]
    fn a_whole_uri_in_the_request_line_is_held_to_the_same() {
        let headers = HeaderMap::from_iter([(header::HOST, "localhost".parse().unwrap())]);
        let uri = Uri::from_static("http://evil.example/v1/peers");
        assert!(check(&uri, &headers, &[]).is_err());
    }

    fn refusal(headers: &[(&'static str, &str)]) -> Option<StatusCode> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let known = ["https://chat.example".to_owned()];
        check(&Uri::from_static("/v1/peers"), &map, &known).err().map(|error| error.status())
    }
}
