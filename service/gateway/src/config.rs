//! What an operator can set: one structure, from flags or environment, read once.

mod htx;

use std::{
    collections::BTreeSet, ffi::OsString, fmt, iter, net::SocketAddr, path::PathBuf, time::Duration,
};

use clap::{Args, Parser, ValueEnum};
use fieldpost_envelope::GatewayId;
use fieldpost_transport::{MeshError, MeshOptions, StreamAddress};
use secrecy::SecretString;

pub use self::htx::{Admitted, Country, HtxConfig, PaceChoice};
use crate::transports;

/// Options of `fieldpost serve`, by flag or environment.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Where clients reach the API.
    #[arg(long, env = "FIELDPOST_LISTEN", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,

    /// Where probes and metrics are served; keep it off the internet.
    #[arg(long, env = "FIELDPOST_ADMIN_LISTEN", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its own definition, which clap shows")]
    pub database: DatabaseConfig,

    /// Who a caller is: whom its token names, or (`open`, for one machine) whom it says it is.
    #[arg(long, env = "FIELDPOST_AUTH", value_enum, default_value = "token")]
    pub auth: Auth,

    /// Who may register: anybody, holders of an invite, or nobody. Default: `open` when listening
    /// on loopback, else `invite`.
    #[arg(long, env = "FIELDPOST_REGISTRATION", value_enum)]
    pub registration: Option<Registration>,

    /// The transports to use: `ble`, `htx`, which also needs `--directory`, and `mesh`; or `none`.
    #[arg(
        long,
        env = "FIELDPOST_TRANSPORTS",
        value_delimiter = ',',
        default_value = "ble,htx,mesh"
    )]
    transports: Vec<String>,

    /// The Bluetooth radio: `auto` for the first adapter, `hciN` for a certain one, `none`, or
    /// `air:ADDRESS#STATION` for a simulated one (see `fieldpost air`).
    #[arg(long, env = "FIELDPOST_BLE_RADIO", value_parser = ble_radio, default_value = "auto")]
    pub ble_radio: BleRadio,

    /// Where other programs come as neighbours on the BitChat mesh: `unix:PATH` or
    /// `tcp:127.0.0.1:PORT`. Each record is a packet of at most 512 bytes behind its length as four
    /// bytes, big-endian.
    #[arg(long, env = "FIELDPOST_BLE_STREAM_LISTEN", value_delimiter = ',', value_parser = stream_address)]
    pub ble_stream_listen: Vec<StreamAddress>,

    /// Neighbours of that kind to keep a link to.
    #[arg(long, env = "FIELDPOST_BLE_STREAM_LINK", value_delimiter = ',', value_parser = stream_address)]
    pub ble_stream_link: Vec<StreamAddress>,

    /// How many links of the BitChat mesh a message may cross; one less where a peer of this gateway
    /// says it.
    #[arg(long, env = "FIELDPOST_HOP_LIMIT", default_value_t = 7, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub hop_limit: u8,

    /// How many peers of this gateway can be BitChat peers for phones.
    #[arg(long, env = "FIELDPOST_MAX_PEERS", default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=200))]
    pub max_peers: u16,

    /// Gateways to join that are not found by themselves, as they name their own address at start:
    /// `NODE@HOST:PORT`, or `NODE@https://RELAY` for one behind a relay; with `--mesh-relay`, `NODE`
    /// alone.
    #[arg(long, env = "FIELDPOST_BOOTSTRAP", value_delimiter = ',')]
    pub bootstrap: Vec<String>,

    /// Where other gateways reach this one over QUIC (UDP). Default: all addresses, at a port that
    /// is free.
    #[arg(long, env = "FIELDPOST_MESH_LISTEN")]
    pub mesh_listen: Option<SocketAddr>,

    /// Relay servers of your own, such as `https://relay.example`, for gateways that cannot reach each
    /// other directly. No others are ever used.
    #[arg(long, env = "FIELDPOST_MESH_RELAY", value_delimiter = ',')]
    pub mesh_relay: Vec<String>,

    /// Whether gateways on the local network are found, and find this one, by mDNS.
    #[arg(long, env = "FIELDPOST_MESH_DISCOVERY", value_enum, default_value = "on")]
    pub mesh_discovery: Switch,

    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at its own definition, which clap shows")]
    pub htx: HtxConfig,

    /// The order of choice where nothing else decides.
    #[arg(
        long,
        env = "FIELDPOST_TRANSPORT_PRIORITY",
        value_delimiter = ',',
        default_value = "htx,ble,mesh"
    )]
    pub transport_priority: Vec<String>,

    /// At whose word a name without a gateway leads elsewhere: `lan` for gateways found on the local
    /// network, ids of gateways, or `none`. Default: `lan` with the embedded database, else `none`.
    #[arg(
        long,
        env = "FIELDPOST_TRUST",
        value_delimiter = ',',
        value_name = "lan|GATEWAY,…",
        value_parser = trusted
    )]
    pub trust: Vec<Trusted>,

    /// Whether a failed attempt moves on to the next transport.
    #[arg(long, env = "FIELDPOST_FAILOVER", value_enum, default_value = "on")]
    pub failover: Switch,

    /// How long a transport may be silent before the next is tried.
    #[arg(long, env = "FIELDPOST_FAILOVER_TIMEOUT", value_parser = positive, default_value = "10s")]
    pub failover_timeout: Duration,

    /// How long a message from elsewhere waits for a missing predecessor.
    #[arg(long, env = "FIELDPOST_ORDER_WAIT", value_parser = duration, default_value = "120s")]
    pub order_wait: Duration,

    /// How long messages are kept after they were accepted; at least a day (`1d`).
    #[arg(long, env = "FIELDPOST_RETENTION", value_parser = days, default_value = "30d")]
    pub retention: Duration,

    /// The share of a recipient's storage that one sender may fill, such as `10%`.
    #[arg(long, env = "FIELDPOST_SENDER_SHARE", value_parser = share, default_value = "10%")]
    pub sender_share: f64,

    /// How a replica wakes the others: `local`, `postgres` or `nats://…` (not built yet). Default:
    /// `local` with the embedded database, else `postgres`.
    #[arg(long, env = "FIELDPOST_BUS")]
    pub bus: Option<String>,

    /// A certificate chain in PEM; with `--tls-key` the API is served over TLS.
    #[arg(long, env = "FIELDPOST_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key in PEM.
    #[arg(long, env = "FIELDPOST_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Addresses or networks whose `X-Forwarded-For` is believed.
    #[arg(long, env = "FIELDPOST_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<String>,

    /// Origins whose pages may call the API, such as `https://chat.example`.
    #[arg(long, env = "FIELDPOST_CORS_ORIGINS", value_delimiter = ',')]
    pub cors_origins: Vec<String>,

    /// Where traces are sent over OTLP/HTTP, such as `http://127.0.0.1:4318`.
    #[arg(long, env = "FIELDPOST_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// Folder for secrets that must not outlive a reboot: the mixnet's keys of the current epochs. Use a
    /// tmpfs. Default: they are kept in memory alone, and a restart begins with new ones.
    #[arg(long, env = "FIELDPOST_SECRETS_DIR")]
    pub secrets_dir: Option<PathBuf>,

    /// Requests a second that one caller may make; bursts of twice as many pass.
    #[arg(long, env = "FIELDPOST_RATE_LIMIT", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(200..))]
    pub rate_limit: u32,

    /// Registrations a second from one address; bursts of twice as many pass.
    #[arg(long, env = "FIELDPOST_REGISTRATION_RATE_LIMIT", default_value_t = 500, value_parser = clap::value_parser!(u32).range(20..))]
    pub registration_rate_limit: u32,

    /// Envelopes and receipts a second that one gateway may send us, and twice as many from all that
    /// are not trusted together; bursts of twice as many pass.
    #[arg(long, env = "FIELDPOST_GATEWAY_RATE_LIMIT", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    pub gateway_rate_limit: u32,

    /// The most messages that one commit carries; 1 makes an INSERT of each request, to compare.
    #[arg(long, env = "FIELDPOST_ACCEPT_BATCH", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub accept_batch: u16,

    /// How long a stopping gateway may take to let its sockets go.
    #[arg(long, env = "FIELDPOST_DRAIN", value_parser = duration, default_value = "10s")]
    pub drain: Duration,
}

/// The options alone.
#[derive(Parser)]
struct Options {
    #[command(flatten)]
    config: Config,
}

/// Where the database is and what opens the secrets in it; shared by all administrative commands.
#[derive(Args, Clone, Debug)]
pub struct DatabaseConfig {
    /// A Postgres of your own, such as `postgres://user@host/fieldpost`. Default: an embedded one
    /// in the data folder.
    #[arg(long, env = "FIELDPOST_DATABASE_URL")]
    pub database_url: Option<SecretString>,

    /// Where the embedded database lives. Default: the user's data folder, for root
    /// `/var/lib/fieldpost`.
    #[arg(long, env = "FIELDPOST_DATA_DIR")]
    pub data_dir: Option<PathBuf>,

    /// A file with the master key, 64 hex digits, accessible to its owner alone.
    #[arg(long, env = "FIELDPOST_MASTER_KEY_FILE")]
    pub master_key_file: Option<PathBuf>,

    /// The master key itself; environment only, so that it shows in no process list.
    #[arg(skip)]
    pub master_key: Option<SecretString>,
}

/// Who a caller is taken for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Auth {
    /// Whom the bearer token names.
    Token,
    /// Whom the request names; loopback only.
    Open,
}

/// Who may register a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Registration {
    /// Anybody who reaches the listener.
    Open,
    /// Holders of an invite.
    Invite,
    /// Nobody; operators still may.
    Closed,
}

/// One entry of `--trust`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trusted {
    /// No gateway.
    Nobody,
    /// Gateways found on the local network.
    Lan,
    /// This one.
    Gateway(GatewayId),
}

/// Whose rosters resolve names (design, section 4).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trust {
    /// Those of gateways found on the local network.
    pub lan: bool,
    /// Those of these gateways, wherever they are.
    pub gateways: BTreeSet<GatewayId>,
}

/// What `--ble-radio` chooses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BleRadio {
    /// The first Bluetooth adapter, if there is one.
    Auto,
    /// None.
    None,
    /// The Bluetooth adapter of this name.
    Adapter(String),
    /// A station of a simulated air.
    Air {
        /// Where the air is.
        address: StreamAddress,
        /// The station's name in its scenario.
        station: String,
    },
}

impl fmt::Display for BleRadio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Adapter(name) => f.write_str(name),
            Self::Air { address, station } => write!(f, "air:{address}#{station}"),
        }
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Config {
    /// Reads options as `fieldpost serve` would, without the program's name; for gateways that are
    /// started inside another program.
    ///
    /// # Errors
    ///
    /// What clap says of them.
    pub fn from_options<O: Into<OsString> + Clone>(
        options: impl IntoIterator<Item = O>,
    ) -> Result<Self, clap::Error> {
        let name = OsString::from("fieldpost");
        let all = iter::once(name).chain(options.into_iter().map(Into::into));
        Options::try_parse_from(all).map(|options| options.config)
    }

    /// The transports to use, each once.
    pub fn transports(&self) -> impl Iterator<Item = &str> {
        let names = self.transports.iter().map(String::as_str);
        let chosen: BTreeSet<&str> = match self.transports.as_slice() {
            [only] if only == "none" => BTreeSet::new(),
            _ => names.collect(),
        };
        chosen.into_iter()
    }

    /// The rule for registrations, given or by default.
    pub fn registration(&self) -> Registration {
        self.registration.unwrap_or(if self.listen.ip().is_loopback() {
            Registration::Open
        } else {
            Registration::Invite
        })
    }

    /// Whose rosters resolve names, given or by default.
    pub fn trust(&self) -> Trust {
        let mut trust = Trust {
            lan: self.trust.is_empty() && self.database.database_url.is_none(),
            gateways: BTreeSet::new(),
        };
        for entry in &self.trust {
            match entry {
                Trusted::Nobody => {}
                Trusted::Lan => trust.lan = true,
                Trusted::Gateway(gateway) => drop(trust.gateways.insert(*gateway)),
            }
        }
        trust
    }

    /// Whether commits are announced to other replicas over Postgres.
    pub fn announces(&self) -> bool {
        match self.bus.as_deref() {
            Some(bus) => bus == "postgres",
            None => self.database.database_url.is_some(),
        }
    }

    /// What clap cannot check: combinations that are unsafe or not built.
    ///
    /// # Errors
    ///
    /// Says which option is wrong and what would be right.
    pub fn validate(&self) -> Result<(), String> {
        if self.auth == Auth::Open && !self.listen.ip().is_loopback() {
            return Err(format!(
                "--auth open believes whatever a caller says of itself, so it accepts only a \
                 loopback listener; --listen is {}: use --auth token, or --listen 127.0.0.1:{}",
                self.listen,
                self.listen.port()
            ));
        }
        match self.bus.as_deref() {
            None | Some("local" | "postgres") => {}
            Some(other) if other.starts_with("nats://") => {
                return Err("--bus nats://… is not built yet: use --bus postgres".to_owned());
            }
            Some(other) => {
                return Err(format!("--bus {other} is unknown: use local or postgres"));
            }
        }
        if self.trust.contains(&Trusted::Nobody) && self.trust.len() > 1 {
            return Err(
                "--trust none stands alone: leave it out, or leave the others out".to_owned()
            );
        }
        for name in self.transports() {
            match name {
                "memory" => {
                    return Err("--transports memory: that one joins gateways inside a test and \
                                cannot be chosen; the names are ble, htx and mesh"
                        .to_owned());
                }
                _ if transports::BUILT.contains(&name) => {}
                _ => {
                    return Err(format!(
                        "--transports {name} is unknown: the names are ble, htx and mesh, or none"
                    ));
                }
            }
        }
        self.htx.validate(self.transports().any(|name| name == "htx"))
    }

    /// What clap cannot check of options that speak of the transports of `--transports`; a program
    /// that brings transports of its own has names of its own.
    ///
    /// # Errors
    ///
    /// Says which option is wrong and what would be right.
    pub fn validate_transports(&self) -> Result<(), String> {
        for name in &self.transport_priority {
            if !PRIORITIES.contains(&name.as_str()) {
                return Err(format!(
                    "--transport-priority {name:?} is unknown: the names are ble, htx and mesh, in the \
                     order of choice, such as htx,ble,mesh"
                ));
            }
        }
        self.mesh().check().map_err(|error| match error {
            MeshError::Relay { .. } => format!("--mesh-relay: {error}"),
            _ => format!("--bootstrap: {error}"),
        })
    }

    /// The options of the transport `mesh`.
    pub fn mesh(&self) -> MeshOptions {
        MeshOptions {
            listen: self.mesh_listen,
            bootstrap: self.bootstrap.clone(),
            relays: self.mesh_relay.clone(),
            discovers: self.mesh_discovery == Switch::On,
        }
    }
}

/// What `--transport-priority` may name, built or not.
const PRIORITIES: [&str; 3] = ["ble", "htx", "mesh"];

/// Parses `250ms`, `10s`, `5m`, `2h`, `30d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a duration: write for example 10s, 5m, 2h or 30d"))?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        "d" => seconds(86_400),
        _ => None,
    }
    .filter(|duration| *duration <= Duration::from_secs(366 * 86_400))
    .ok_or_else(|| {
        format!("{text:?} is not a duration up to a year: write for example 10s, 5m, 2h or 30d")
    })
}

/// Parses what `--ble-radio` says.
fn ble_radio(text: &str) -> Result<BleRadio, String> {
    let is_adapter = text
        .strip_prefix("hci")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    match text {
        "auto" => Ok(BleRadio::Auto),
        "none" => Ok(BleRadio::None),
        _ if is_adapter => Ok(BleRadio::Adapter(text.to_owned())),
        _ => match text.strip_prefix("air:").map(|rest| rest.rsplit_once('#')) {
            Some(Some((address, station))) if !station.is_empty() => {
                Ok(BleRadio::Air { address: stream_address(address)?, station: station.to_owned() })
            }
            Some(_) => Err(format!(
                "{text:?} names no station of its air: write for example air:unix:/tmp/air#a, where a \
                 is a station of the scenario"
            )),
            None => Err(format!(
                "{text:?} is no radio: use auto, none, the name of an adapter such as hci0, or \
                 air:ADDRESS#STATION"
            )),
        },
    }
}

/// Parses an end of a stream on this machine.
fn stream_address(text: &str) -> Result<StreamAddress, String> {
    text.parse().map_err(|error: fieldpost_transport::ParseAddressError| {
        format!("{error}: streams are not encrypted, so write unix:PATH or tcp:127.0.0.1:PORT")
    })
}

/// Parses a duration that is not zero.
fn positive(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration.is_zero() {
        return Err(format!("{text:?} leaves no time at all: write for example 10s"));
    }
    Ok(duration)
}

/// Parses an entry of `--trust`.
fn trusted(text: &str) -> Result<Trusted, String> {
    match text {
        "none" => Ok(Trusted::Nobody),
        "lan" => Ok(Trusted::Lan),
        id => id.parse().map(Trusted::Gateway).map_err(|error| {
            format!(
                "{error}; write lan, none or the id of a gateway, which its /v1/status and `fieldpost \
                 status` show"
            )
        }),
    }
}

/// Parses a duration that is counted in days.
fn days(text: &str) -> Result<Duration, String> {
    let retention = duration(text)?;
    if retention < Duration::from_secs(86_400) {
        return Err(format!(
            "{text:?} is less than a day ({} s): write for example 30d",
            retention.as_secs()
        ));
    }
    Ok(retention)
}

/// Parses `10%` or `0.1`.
fn share(text: &str) -> Result<f64, String> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse::<f64>(),
    };
    match value {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err(format!(
            "{text:?} is not a share: write for example 10% (more than 0, at most 100%)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_the_local_network_with_the_embedded_database_unless_said_otherwise() {
        let gateway = GatewayId::from_bytes([1; 32]);
        let config = |options: &[&str]| Config::from_options(options);
        let trust = |options: &[&str]| config(options).unwrap().trust();
        let elsewhere = "--database-url=postgres://host/name";
        let lan = Trust { lan: true, gateways: BTreeSet::new() };
        assert_eq!(trust(&[]), lan);
        assert_eq!(trust(&[elsewhere]), Trust::default());
        assert_eq!(trust(&[elsewhere, "--trust=lan"]), lan);
        assert_eq!(trust(&["--trust=none"]), Trust::default());
        let both = Trust { lan: true, gateways: [gateway].into() };
        assert_eq!(trust(&[&format!("--trust=lan,{gateway}")]), both);
        assert_eq!(trust(&[&format!("--trust={gateway}")]), Trust { lan: false, ..both });
        let said = config(&["--trust=LAN"]).unwrap_err().to_string();
        assert!(said.contains("write lan, none or the id of a gateway"), "{said}");
        assert!(config(&["--trust=none,lan"]).unwrap().validate().is_err());
    }

    #[test]
    fn what_speaks_of_transports_is_refused_before_anything_starts() {
        const NODE: &str = "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c";
        let judge = |option: &str| {
            Config::from_options([option])
                .map_err(|error| error.to_string())
                .and_then(|config| config.validate_transports())
        };
        for good in [
            format!("--bootstrap={NODE}@post.example:4000,{NODE}@[::1]:4000"),
            "--mesh-relay=https://relay.example".to_owned(),
            "--transport-priority=mesh".to_owned(),
            "--failover-timeout=1ms".to_owned(),
        ] {
            assert_eq!(judge(&good), Ok(()), "{good}");
        }
        for (bad, said) in [
            ("--bootstrap=post.example:4000", "NODE@HOST:PORT"),
            ("--bootstrap=", "NODE@HOST:PORT"),
            (&format!("--bootstrap={NODE}"), "where relays are named"),
            ("--mesh-relay=relay.example", "https://relay.example"),
            ("--mesh-relay=file:///relay", "https://relay.example"),
            ("--transport-priority=foo", "ble, htx and mesh"),
            ("--failover-timeout=0s", "10s"),
        ] {
            let refusal = judge(bad).expect_err(bad);
            assert!(refusal.contains(said), "{bad}: {refusal}");
            let option = bad.split_once('=').unwrap().0;
            assert!(refusal.contains(option), "{bad}: {refusal}");
        }
    }

    #[test]
    fn durations_and_shares_say_what_would_be_right() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for bad in ["", "s", "-1s", "1w", "99999999999999999999s", "400d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(days("5d"), Ok(Duration::from_secs(5 * 86_400)));
        assert!(days("5").unwrap_err().contains("5 s"));
        assert_eq!(share("10%"), Ok(0.1));
        assert_eq!(share("1"), Ok(1.0));
        for bad in ["0", "101%", "NaN", "ten"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
