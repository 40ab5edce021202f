//! The command-line client for people and scripts: the HTTP API, spoken from a terminal (design,
//! section 3).
//!
//! It uses nothing but the public API, so whatever it does, any program can do. Exit codes:
//!
//! | Code | Means |
//! |---|---|
//! | 0 | done |
//! | 1 | the gateway refused, or this machine failed; the error says which |
//! | 2 | the command line is wrong |
//! | 3 | the message ended without arriving: `expired`, `failed` or `cancelled` |
//! | 4 | `--wait` ran out of time; the message is still on its way |
//! | 5 | the gateway could not be reached or could not work |

mod api;
mod credentials;
mod error;
mod files;
mod listen;
mod output;
mod peers;
mod send;
mod status;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fieldpost_envelope::PeerId;
use secrecy::{ExposeSecret, SecretString};

pub use self::error::ClientError;
use self::{api::Api, credentials::Credentials, output::Output};

/// Commands that talk to a running gateway.
#[derive(Clone, Debug, Subcommand)]
pub enum ClientCommand {
    /// Register a peer.
    ///
    /// Exit codes of this and of `peers` and `status`: 0 done, 1 refused, 2 wrong command line, 5
    /// gateway not reached. Those two try for 30 s; this one does not try again, as an answer that got
    /// lost held the only copy of the token.
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Send a message; with `--file`, upload a file first and send it along.
    ///
    /// Exit codes: 0 done, 1 refused, 2 wrong command line, 3 the message ended without arriving,
    /// 4 `--wait` ran out of time, 5 gateway not reached.
    Send(send::SendArgs),
    /// Print messages as they arrive, and confirm each once it is printed.
    ///
    /// Runs until Ctrl-C, reconnecting as often as needed. Exit codes: 0 done, 1 refused, 2 wrong
    /// command line, 5 gateway not reached (with `--no-retry`).
    Listen(listen::ListenArgs),
    /// List the peers of the gateway.
    Peers(peers::PeersArgs),
    /// Show the state of the gateway or of one message.
    Status(status::StatusArgs),
}

/// What can be done about a peer.
#[derive(Clone, Debug, Subcommand)]
pub enum PeerCommand {
    /// Register a peer; its token is printed once and kept in the credentials file.
    Register(peers::RegisterArgs),
}

/// Which gateway, and who is calling; the same for every command of the client.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// The gateway.
    #[arg(long, env = "FIELDPOST_URL", default_value = "http://127.0.0.1:8000")]
    url: String,

    /// The peer's token. Default: the one kept in the credentials file. Prefer the environment: a
    /// flag shows in the process list.
    #[arg(long, env = "FIELDPOST_TOKEN", hide_env_values = true)]
    token: Option<SecretString>,

    /// Where tokens are kept, accessible to their owner alone. Default: `credentials.json` in the
    /// user's configuration folder.
    #[arg(long, env = "FIELDPOST_CREDENTIALS", value_name = "PATH")]
    credentials: Option<PathBuf>,

    /// Write JSON, one object a line, instead of text for people.
    #[arg(long)]
    json: bool,
}

/// Runs one command against a gateway and writes its result to standard output.
///
/// # Errors
///
/// What went wrong, and by [`ClientError::exit_code`] of which kind.
pub async fn run(command: ClientCommand) -> Result<(), ClientError> {
    // Another part of the process may have chosen already; either choice is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
    match command {
        ClientCommand::Peer(PeerCommand::Register(args)) => peers::register(args).await,
        ClientCommand::Send(args) => send::run(args).await,
        ClientCommand::Listen(args) => listen::run(args).await,
        ClientCommand::Peers(args) => peers::list(args).await,
        ClientCommand::Status(args) => status::run(args).await,
    }
}

impl Connection {
    fn output(&self) -> Output {
        Output::new(self.json)
    }

    fn credentials(&self) -> Result<Credentials, ClientError> {
        Credentials::at(self.credentials.clone())
    }

    /// The gateway without a caller.
    fn anonymous(&self) -> Result<Api, ClientError> {
        Api::new(&self.url, self.output())
    }

    /// The gateway as seen by `peer`, or by the one peer whose token is known if none is named.
    ///
    /// A peer without a known token is only named: a gateway with `--auth open` believes it, any
    /// other says that a token is needed.
    fn caller(&self, peer: Option<&PeerId>) -> Result<Api, ClientError> {
        let api = self.anonymous()?;
        if let Some(token) = &self.token {
            if token.expose_secret().trim().is_empty() {
                return Err(ClientError::Usage(
                    "the token is empty: FIELDPOST_TOKEN or --token was given without a value"
                        .to_owned(),
                ));
            }
            return Ok(api.calling_as(peer.cloned(), Some(token.clone())));
        }
        let kept = self.credentials()?.of(api.base())?;
        let (peer, token) = match peer {
            Some(peer) => (Some(peer.clone()), kept.get(peer.as_str()).cloned()),
            None if kept.len() == 1 => {
                let (name, token) = kept.into_iter().next().expect("there is one");
                (name.parse().ok(), Some(token))
            }
            None => (None, None),
        };
        Ok(api.calling_as(peer, token))
    }

    /// As [`caller`](Self::caller), for what anybody may ask who has a token at all: any that is
    /// kept will do.
    fn anybody(&self, peer: Option<&PeerId>) -> Result<Api, ClientError> {
        let api = self.caller(peer)?;
        if api.has_caller() {
            return Ok(api);
        }
        let kept = self.credentials()?.of(api.base())?;
        Ok(match kept.into_iter().next() {
            Some((name, token)) => {
                self.output().note(&format!("asking as {name}; --as names another"));
                api.calling_as(name.parse().ok(), Some(token))
            }
            None => api,
        })
    }

    /// As [`caller`](Self::caller), for what needs to know who calls.
    fn known_caller(&self, peer: Option<&PeerId>) -> Result<Api, ClientError> {
        let api = self.caller(peer)?;
        if api.has_caller() {
            return Ok(api);
        }
        Err(ClientError::Usage(format!(
            "who is calling? name the peer with --as, or give --token; the peers kept in {} for {} \
             are {}",
            self.credentials()?.path().display(),
            api.base(),
            match self.credentials()?.of(api.base())?.keys().cloned().collect::<Vec<_>>() {
                names if names.is_empty() => "none: run fieldpost peer register NAME".to_owned(),
                names => names.join(", "),
            }
        )))
    }
}
