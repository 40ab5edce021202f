//! What can go wrong on the way to a gateway and back.

use std::{io, path::PathBuf, time::Duration};

use reqwest::StatusCode;
use thiserror::Error;
use uuid::Uuid;

/// Why a command of the client has no good end.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The gateway refused; `detail` is its own word.
    #[error("{} (HTTP {})", in_options(*status, detail), status.as_u16())]
    Refused {
        /// The status of the answer.
        status: StatusCode,
        /// What was wrong, as the gateway says it.
        detail: String,
        /// When the gateway asks to try again.
        retry_after: Option<Duration>,
    },
    /// The gateway asks for a token, and none of the peer's is known here.
    #[error(
        "no token of {peer} for {url} is kept here: run fieldpost peer register {peer}, or give its \
         token by --token or FIELDPOST_TOKEN (HTTP 401)"
    )]
    NoToken {
        /// Who was named.
        peer: String,
        /// The gateway.
        url: String,
    },
    /// A name that is to be registered is somebody's.
    #[error(
        "{peer} is registered at {url}: choose another name, or give its token by --token or \
         FIELDPOST_TOKEN (HTTP 401)"
    )]
    Taken {
        /// The name.
        peer: String,
        /// The gateway.
        url: String,
    },
    /// A name is to be registered by a token that the gateway does not know.
    #[error(
        "the token of {peer} that was given, or is kept in {} for {url}, is none that the gateway \
         knows; if that gateway began anew, take {peer} out of the file and register again (HTTP 401)",
        path.display()
    )]
    Stale {
        /// The name.
        peer: String,
        /// The gateway.
        url: String,
        /// Where tokens are kept.
        path: PathBuf,
    },
    /// Nobody answers.
    #[error("cannot reach {url}: {cause}; is `fieldpost serve` running there?")]
    Unreachable {
        /// The gateway.
        url: String,
        /// The innermost cause.
        cause: String,
    },
    /// Something answers that does not speak as a gateway does.
    #[error("{url} does not answer as a Fieldpost gateway: {cause}")]
    Unexpected {
        /// The gateway.
        url: String,
        /// What was odd.
        cause: String,
    },
    /// The message ended without arriving.
    #[error("message {id} is {status}{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Undelivered {
        /// The message.
        id: Uuid,
        /// How it ended.
        status: String,
        /// Why, if the gateway says so.
        reason: Option<String>,
    },
    /// The message had not got as far in time.
    #[error(
        "message {id} is still {status} after {} s; it stays on its way: \
         fieldpost status {id}{caller} --url {url}",
        waited.as_secs(),
        caller = caller.as_ref().map(|peer| format!(" --as {peer}")).unwrap_or_default()
    )]
    StillWaiting {
        /// The gateway.
        url: String,
        /// Whose message it is, if that was said.
        caller: Option<String>,
        /// The message.
        id: Uuid,
        /// How far it is.
        status: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A file of this machine cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The credentials file cannot be trusted or understood.
    #[error("{}: {problem}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// There is no folder to keep credentials in.
    #[error("this user has no home folder to keep tokens in: give --credentials PATH")]
    NoHome,
    /// Standard output is gone or full.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

/// The gateway speaks of fields and headers; whoever is at the command line has options.
fn in_options(status: StatusCode, detail: &str) -> String {
    let detail = detail.replace("allow_unknown", "--allow-unknown");
    match status {
        StatusCode::UNAUTHORIZED => {
            format!("{detail}; here: name a peer whose token is kept with --as, or give --token")
        }
        _ => detail,
    }
}

impl ClientError {
    /// The code to exit with; the module lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Undelivered { .. } => 3,
            Self::StillWaiting { .. } => 4,
            Self::Unreachable { .. } | Self::Unexpected { .. } => 5,
            Self::Refused { status, .. } if status.is_server_error() => 5,
            Self::Refused { .. }
            | Self::NoToken { .. }
            | Self::Taken { .. }
            | Self::Stale { .. }
            | Self::File { .. }
            | Self::Credentials { .. }
            | Self::NoHome
            | Self::Output(_) => 1,
        }
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(
                *status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            ),
            _ => false,
        }
    }

    /// When the gateway asked to be tried again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
