//! What an operator can set about the mixnet.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use fieldpost_transport::htx::{
    Pace,
    directory::{RelayId, descriptor_limits},
};

use crate::directory::relay_id;

/// Where a relay listens that was told nothing.
const RELAY_LISTEN: &str = "0.0.0.0:8443";
const LAB_LISTEN: &str = "127.0.0.1:0";

/// Options of the transport `htx`.
#[derive(Args, Clone, Debug)]
pub struct HtxConfig {
    /// The folder of the network's relay directory: with `authority.json` in it, and signed documents.
    /// Without it the transport `htx` is not used.
    #[arg(long, env = "FIELDPOST_DIRECTORY", value_name = "FOLDER")]
    pub directory: Option<PathBuf>,

    /// Keys of the directory's signers that this gateway signs each epoch's document with.
    #[arg(
        long,
        env = "FIELDPOST_DIRECTORY_KEY",
        value_name = "FILE",
        value_delimiter = ',',
        requires = "directory"
    )]
    pub directory_key: Vec<PathBuf>,

    /// Relays and gateways that are new to the directory, to be admitted when they are heard of: their
    /// ids, or `anyone`. Default: those whose descriptors are in the directory's folder; with `--lab`
    /// anyone.
    #[arg(
        long,
        env = "FIELDPOST_DIRECTORY_ADMIT",
        value_name = "ID,…|anyone",
        value_delimiter = ',',
        value_parser = admitted
    )]
    pub directory_admit: Vec<Admitted>,

    /// Relay packets for others in the mixnet. Needs no peers.
    #[arg(long, env = "FIELDPOST_RELAY")]
    pub relay: bool,

    /// Where links of the mixnet come in (TCP); who has no ticket sees a web site there. Default: with
    /// `--relay` 0.0.0.0:8443, in a lab a free port of 127.0.0.1; without, nowhere: the gateway keeps
    /// links to relays and is reached through them.
    #[arg(long, env = "FIELDPOST_RELAY_LISTEN", value_name = "ADDRESS")]
    pub relay_listen: Option<SocketAddr>,

    /// Where others reach that, if it is not the same, such as a public address.
    #[arg(
        long,
        env = "FIELDPOST_RELAY_ADVERTISE",
        value_name = "ADDRESS,…",
        value_delimiter = ','
    )]
    pub relay_advertise: Vec<SocketAddr>,

    /// The name that the web site there goes by, in lower case.
    #[arg(long, env = "FIELDPOST_RELAY_NAME", default_value = "localhost")]
    pub relay_name: String,

    /// The web site's certificate chain in PEM. Default: one that nobody vouches for.
    #[arg(long, env = "FIELDPOST_RELAY_CERT", requires = "relay_key")]
    pub relay_cert: Option<PathBuf>,

    /// The private key of that certificate in PEM.
    #[arg(long, env = "FIELDPOST_RELAY_KEY", requires = "relay_cert")]
    pub relay_key: Option<PathBuf>,

    /// The web site's files; without, a small page that is the same everywhere and thus known.
    #[arg(long, env = "FIELDPOST_DECOY", value_name = "FOLDER")]
    pub decoy: Option<PathBuf>,

    /// Whose relay this is: relays with one name are one operator's, and no route has two of these.
    /// Default: the gateway's id.
    #[arg(long, env = "FIELDPOST_OPERATOR", value_parser = operator)]
    pub operator: Option<String>,

    /// The autonomous system that it is in, so that routes pass several.
    #[arg(long, env = "FIELDPOST_RELAY_AS")]
    pub relay_as: Option<u32>,

    /// The country that it is in, two letters, so that routes pass several.
    #[arg(long, env = "FIELDPOST_RELAY_COUNTRY", value_parser = country)]
    pub relay_country: Option<Country>,

    /// How many packets a second it wants to relay.
    #[arg(long, env = "FIELDPOST_RELAY_CAPACITY", default_value_t = 8_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub relay_capacity: u32,

    /// The longest route, the receiving gateway counted in: 2 to 5.
    #[arg(long, env = "FIELDPOST_MAX_HOPS", default_value_t = 5, value_parser = hops)]
    pub max_hops: u8,

    /// How long relays hold packets and how these are spaced. Default: `interactive`, in a lab `none`.
    #[arg(long, env = "FIELDPOST_PACE", value_enum)]
    pub pace: Option<PaceChoice>,

    /// For tests on one machine: the mixnet is taken to hide senders, whatever its relays, and nodes may
    /// share an address. Shown in every attempt.
    #[arg(long, env = "FIELDPOST_LAB")]
    pub lab: bool,
}

/// One entry of `--directory-admit`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Admitted {
    /// Whoever asks.
    Anyone,
    /// This one.
    Relay(RelayId),
}

/// How packets are spaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum PaceChoice {
    /// For people who wait for an answer: 20 ms at each relay on average.
    Interactive,
    /// For people who would rather not be found: 200 ms.
    Strong,
    /// As fast as it goes, for tests: times give everything away.
    None,
}

/// Two capital letters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Country(pub [u8; 2]);

impl HtxConfig {
    /// Where links come in.
    pub fn listen(&self) -> Option<SocketAddr> {
        let default = || {
            let text = if self.lab { LAB_LISTEN } else { RELAY_LISTEN };
            self.relay.then(|| text.parse().ok()).flatten()
        };
        self.relay_listen.or_else(default)
    }

    /// How packets are spaced.
    pub fn pace(&self) -> Pace {
        let zero = std::time::Duration::ZERO;
        match self.pace {
            Some(PaceChoice::Interactive) => Pace::INTERACTIVE,
            Some(PaceChoice::Strong) => Pace::STRONG,
            None if !self.lab => Pace::INTERACTIVE,
            Some(PaceChoice::None) | None => {
                Pace { delay: zero, payload: zero, sender_loop: zero, relay_loop: zero }
            }
        }
    }

    /// What clap cannot check. `is_chosen` says that `--transports` has `htx`.
    ///
    /// # Errors
    ///
    /// Says which option is wrong and what would be right.
    pub fn validate(&self, is_chosen: bool) -> Result<(), String> {
        if self.relay && !is_chosen {
            return Err("--relay needs the transport htx: add it to --transports".to_owned());
        }
        if self.directory.is_none() {
            let given = [
                ("--relay", self.relay),
                ("--relay-listen", self.relay_listen.is_some()),
                ("--directory-admit", !self.directory_admit.is_empty()),
            ];
            if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
                return Err(format!(
                    "{option} needs --directory FOLDER: make a relay directory by `fieldpost directory \
                     init FOLDER`, or take authority.json and documents/ from whoever runs the network"
                ));
            }
        }
        if let Some(listen) = self.listen()
            && listen.ip().is_unspecified()
            && self.relay_advertise.is_empty()
        {
            return Err(format!(
                "--relay-listen {listen} is every address of this machine: say by --relay-advertise \
                 which one others reach, such as 198.51.100.7:{}",
                listen.port()
            ));
        }
        if self.relay_advertise.len() > descriptor_limits::ADDRESSES {
            return Err(format!(
                "--relay-advertise has {} addresses: at most {}",
                self.relay_advertise.len(),
                descriptor_limits::ADDRESSES
            ));
        }
        if !self.relay_advertise.is_empty() && self.listen().is_none() {
            return Err("--relay-advertise needs --relay-listen".to_owned());
        }
        Ok(())
    }
}

fn admitted(text: &str) -> Result<Admitted, String> {
    match text {
        "anyone" => Ok(Admitted::Anyone),
        id => relay_id(id).map(Admitted::Relay),
    }
}

fn operator(text: &str) -> Result<String, String> {
    let most = descriptor_limits::OPERATOR;
    match (1..=most).contains(&text.len()) && !text.contains(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not 1 to {most} bytes without control characters")),
    }
}

fn country(text: &str) -> Result<Country, String> {
    match text.to_ascii_uppercase().as_bytes() {
        letters @ [a, b] if letters.iter().all(u8::is_ascii_uppercase) => Ok(Country([*a, *b])),
        _ => Err(format!("{text:?} is not a country: write two letters, such as DE")),
    }
}

fn hops(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(hops @ 2..=5) => Ok(hops),
        Ok(1) => {
            Err("the only hop would be the receiving gateway, which hides nobody: write 2 to 5, \
                      or use --transports mesh"
                .to_owned())
        }
        _ => Err(format!("{text:?} is not a number of hops: write 2 to 5")),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn says(options: &[&str]) -> String {
        match Config::from_options(options) {
            Ok(config) => config.validate().err().unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn options_of_the_mixnet_say_what_would_be_right() {
        assert_eq!(says(&[]), "");
        assert_eq!(says(&["--directory=net"]), "");
        assert_eq!(says(&["--directory=net", "--relay", "--lab"]), "");
        assert!(says(&["--relay", "--lab"]).contains("fieldpost directory init"));
        let relay = ["--directory=net", "--relay"];
        assert!(says(&relay).contains("--relay-advertise"));
        assert_eq!(says(&[&relay[..], &["--relay-listen=192.0.2.1:443"]].concat()), "");
        assert!(says(&[&relay[..], &["--transports=mesh"]].concat()).contains("--transports"));
        for (option, right) in [
            ("--max-hops=1", "write 2 to 5"),
            ("--max-hops=6", "write 2 to 5"),
            ("--operator=", "1 to 64 bytes"),
            ("--relay-country=Germany", "such as DE"),
            ("--directory-admit=me", "expected 64 hex digits"),
        ] {
            let said = says(&[option]);
            assert!(said.contains(right), "{said}");
        }
    }
}
