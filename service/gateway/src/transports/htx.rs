//! The `htx` transport of a replica: its node key under a lease, its options, and what passes between it
//! and the relay directory in a folder, on disk and in the database.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use chrono::TimeDelta;
use ed25519_dalek::SigningKey;
use fieldpost_envelope::Timestamp;
use fieldpost_transport::{
    HtxOptions, HtxTransport,
    htx::{
        Decoy, HtxTls,
        directory::{Admission, Certificate, SignedDescriptor, SignedDocument},
    },
};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{HTX, LateTransport, hold_key, let_go, renew, until_started};
use crate::{
    Gateway,
    config::{Admitted, HtxConfig},
    directory::{self, Documents, Folder, LOOK_AGAIN, Outcome, Round},
    embedded,
    telemetry::metrics as names,
    tls_files::TlsFiles,
};

/// The longest time between two attempts to start: a folder may be long in coming.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two attempts to keep documents in a database that is away.
const KEEP_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks at the node's figures.
const FIGURES_PAUSE: Duration = Duration::from_secs(5);
/// How long a certificate holds; the network takes none of more than a day, and clocks differ.
const CERTIFICATE_LIFETIME: TimeDelta = TimeDelta::hours(23);

/// Starts it as soon as that can be done, if there is a directory, and keeps its key, certificate and
/// documents, until `stop`.
///
/// `alone` says that no other replica can run on the database.
pub(super) async fn keep(
    gateway: Gateway,
    late: Arc<LateTransport>,
    alone: bool,
    stop: CancellationToken,
) {
    let Some(path) = gateway.config.htx.directory.clone() else { return stop.cancelled().await };
    let start = until_started(&gateway, HTX, LONGEST_PAUSE, || async {
        let started = start(&gateway, &path, alone).await;
        started.inspect_err(|error| gateway.mixnet.is_delayed(error.clone()))
    });
    if let Some(node) = stop.run_until_cancelled(start).await {
        let Node { htx, key, folder, cache } = node;
        gateway.mixnet.runs(htx.clone(), folder.authority().clock());
        tokio::select! {
            () = stop.cancelled() => {}
            () = late.run(htx.clone()) => {}
            () = renew(&gateway, HTX, CERTIFICATE_LIFETIME, |_| async {
                let certified = htx.certify(certify(&gateway, &key)?).await;
                certified.map_err(|_| "the node has shut".to_owned())
            }) => {}
            () = keep_documents(&gateway, &htx, &folder, &cache) => {}
            () = exchange(&gateway, &htx, &folder) => {}
            () = count(&htx) => {}
        }
        stop.cancelled().await;
        let_go(&gateway, HTX).await;
    }
}

/// The web site that strangers see where links come in.
#[derive(Debug)]
pub(crate) struct Site {
    tls: Option<HtxTls>,
    decoy: Decoy,
}

impl Site {
    /// Reads its certificate, key and pages, or takes those that need no files.
    ///
    /// # Errors
    ///
    /// Says which option names what cannot be used, and why.
    pub(crate) fn read(config: &HtxConfig) -> anyhow::Result<Self> {
        let (certificate, key) = (config.relay_cert.as_deref(), config.relay_key.as_deref());
        let tls = match TlsFiles::given("--relay", certificate, key) {
            Some(files) => {
                let (certificates, key) = files.read()?;
                Some(HtxTls { certificates, key })
            }
            None => None,
        };
        let decoy = match &config.decoy {
            Some(folder) => Decoy::folder(folder).context("--decoy cannot be shown")?,
            None => Decoy::built_in(&config.relay_name),
        };
        Ok(Self { tls, decoy })
    }
}

/// A node that runs.
struct Node {
    htx: Arc<HtxTransport>,
    key: SigningKey,
    folder: Folder,
    cache: Documents,
}

async fn start(gateway: &Gateway, path: &Path, alone: bool) -> Result<Node, String> {
    let says = |error: &dyn Display| format!("the transport htx does not start: {error:#}");
    let folder = Folder::open(path).map_err(|error| says(&format!("{error:#}")))?;
    // A key that is none is found out before the node runs.
    directory_keys(&gateway.config.htx, &folder).map_err(|error| says(&format!("{error:#}")))?;
    let network = folder.authority().id();
    let cache = Documents::at(cache_folder(gateway, network).map_err(|error| says(&error))?);
    let kept = gateway.store.mixnet_documents(network).await.map_err(|error| says(&error))?;
    let documents = newest_run([folder.documents().load(), cache.load(), kept].concat());
    if documents.is_empty() && gateway.config.htx.listen().is_none() {
        return Err(format!(
            "the transport htx waits for the first document in {}: a gateway that listens nowhere is \
             reached through relays, and no document names any yet",
            folder.path().display()
        ));
    }
    let options = options(gateway, &folder, &documents).map_err(|error| says(&error))?;
    let key = hold_key(gateway, HTX, alone).await.map_err(|error| says(&error))?;
    let certificate = certify(gateway, &key)?;
    let clock = gateway.clock.clone();
    let clock = Arc::new(move || clock.now().into());
    let htx = HtxTransport::start(options, key.clone(), Some(certificate), clock)
        .await
        .map_err(|error| says(&error))?;
    let addresses = htx.descriptor().borrow().verify().map(|it| it.addresses.clone());
    tracing::info!(
        relay.id = %htx.id(),
        relay.relays = gateway.config.htx.relay,
        relay.addresses = ?addresses.unwrap_or_default(),
        "the node of the mixnet runs"
    );
    Ok(Node { htx, key, folder, cache })
}

fn options(
    gateway: &Gateway,
    folder: &Folder,
    documents: &[SignedDocument],
) -> Result<HtxOptions, String> {
    let config = &gateway.config.htx;
    let Site { tls, decoy } = Site::read(config).map_err(|error| format!("{error:#}"))?;
    let operator = match &config.operator {
        Some(operator) => operator.clone(),
        None => gateway.store.identity().map_err(|error| error.to_string())?.gateway_id.to_string(),
    };
    Ok(HtxOptions {
        listen: config.listen(),
        advertise: config.relay_advertise.clone(),
        server_name: config.relay_name.clone(),
        tls,
        decoy,
        relays: config.relay,
        operator,
        autonomous_system: config.relay_as,
        country: config.relay_country.map(|country| country.0),
        capacity: if config.relay { config.relay_capacity } else { 0 },
        through: Vec::new(),
        max_hops: usize::from(config.max_hops),
        pace: config.pace(),
        lab: config.lab,
        secrets_dir: gateway.config.secrets_dir.clone(),
        authority: folder.authority().clone(),
        documents: documents.iter().map(SignedDocument::to_bytes).collect(),
    })
}

fn certify(gateway: &Gateway, key: &SigningKey) -> Result<Certificate, String> {
    let identity = gateway.store.identity().map_err(|error| error.to_string())?;
    let not_after = (gateway.clock.now() + CERTIFICATE_LIFETIME).into();
    Ok(Certificate::issue(&identity.signing_key, &key.verifying_key(), not_after))
}

/// The newest documents of all that follow each other without a gap, oldest first.
fn newest_run(mut all: Vec<SignedDocument>) -> Vec<SignedDocument> {
    all.sort_by_key(|document| document.document().number);
    let mut run: Vec<SignedDocument> = Vec::new();
    for document in all {
        let follows = run.last().is_some_and(|last| {
            document.document().predecessor == Some(last.digest())
                && document.document().number == last.document().number + 1
        });
        let is_copy = run.last().is_some_and(|last| last.digest() == document.digest());
        if is_copy {
            continue;
        }
        if !follows {
            run.clear();
        }
        run.push(document);
    }
    run.drain(..run.len().saturating_sub(8));
    run
}

fn directory_keys(config: &HtxConfig, folder: &Folder) -> anyhow::Result<Vec<SigningKey>> {
    match config.directory_key.as_slice() {
        [] => Ok(Vec::new()),
        files => directory::keys(folder, files),
    }
}

/// Where documents are cached, beside the embedded database or where that would be.
fn cache_folder(gateway: &Gateway, network: [u8; 32]) -> anyhow::Result<PathBuf> {
    let data_dir = match &gateway.config.database.data_dir {
        Some(folder) => folder.clone(),
        None => embedded::default_data_dir()?,
    };
    let name = data_encoding::HEXLOWER.encode(&network[..16]);
    Ok(data_dir.join("mixnet").join(name))
}

/// Shows the node's figures among the metrics, for ever.
async fn count(htx: &HtxTransport) {
    loop {
        let figures = htx.figures();
        for (fate, packets) in [
            ("forwarded", figures.packets_forwarded),
            ("delivered", figures.packets_delivered),
            ("sent", figures.packets_sent),
            ("refused", figures.packets_refused),
            ("dropped", figures.packets_dropped),
        ] {
            metrics::counter!(names::MIXNET_PACKETS_TOTAL, "fate" => fate).absolute(packets);
        }
        metrics::gauge!(names::MIXNET_LINKS).set(figures.links as f64);
        metrics::gauge!(names::MIXNET_RELAYS).set(figures.relays as f64);
        metrics::gauge!(names::MIXNET_LISTED).set(if figures.is_listed { 1.0 } else { 0.0 });
        sleep(FIGURES_PAUSE).await;
    }
}

/// Keeps what the node believes, on disk and in the database, until the node has shut.
async fn keep_documents(gateway: &Gateway, htx: &HtxTransport, folder: &Folder, cache: &Documents) {
    let network = folder.authority().id();
    let mut documents = htx.documents();
    let mut unkept = true;
    loop {
        if unkept {
            let believed = documents.borrow_and_update().clone();
            let (cache, for_disk) = (cache.clone(), believed.clone());
            let kept = spawn_blocking(move || {
                for_disk.iter().try_for_each(|document| cache.keep(document).map(drop))
            });
            if let Ok(Err(error)) = kept.await {
                tracing::warn!("a document of the relay directory was not cached: {error:#}");
            }
            match gateway.store.keep_mixnet_documents(network, &believed).await {
                Ok(()) => unkept = false,
                // The database is away; the cache on disk does.
                Err(error) => tracing::debug!(%error, "documents are not in the database yet"),
            }
        }
        tokio::select! {
            changed = documents.changed() => match changed {
                Ok(()) => unkept = true,
                Err(_) => return std::future::pending().await,
            },
            () = sleep(KEEP_PAUSE), if unkept => {}
        }
    }
}

/// Puts the node's descriptor into the directory's folder, takes the documents that come there, and,
/// with keys of signers, signs what is due.
async fn exchange(gateway: &Gateway, htx: &HtxTransport, folder: &Folder) {
    let config = &gateway.config.htx;
    let admission = match config.lab || config.directory_admit.contains(&Admitted::Anyone) {
        true => Admission::Anybody,
        false => Admission::Named,
    };
    let keys = directory_keys(config, folder).unwrap_or_default();
    let mut round = (!keys.is_empty()).then(|| {
        let mut round = Round::new(folder.clone(), keys, admission);
        for admitted in &config.directory_admit {
            if let Admitted::Relay(relay) = admitted {
                round.name(*relay);
            }
        }
        round
    });
    let mut descriptor = htx.descriptor();
    let (mut told, mut complaint) = (None, None);
    loop {
        let own = descriptor.borrow_and_update().clone();
        if told.as_ref() != Some(&own) {
            // A copy of the folder may be one that only its owner writes to.
            match folder.put_descriptor(&own) {
                Ok(()) => {}
                Err(error) => tracing::debug!("the descriptor goes over links alone: {error:#}"),
            }
            told = Some(own);
        }
        let believed = htx.documents().borrow().clone();
        let newest = believed.last().map(|document| document.document().number);
        let mut news = folder.documents().after(newest);
        if let Some(signing) = round.take() {
            let heard = htx.descriptors().borrow().clone();
            let signed = sign(signing, gateway.clock.now().into(), believed, heard).await;
            let (signing, signed, problem) = signed;
            if let Some(problem) = problem.as_ref().filter(|_| complaint != problem) {
                tracing::warn!("no document was signed: {problem}");
            }
            (round, complaint) = (signing, problem);
            news.extend(signed);
        }
        for document in news {
            if htx.learn(document.to_bytes()).await.is_err() {
                return std::future::pending().await;
            }
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// One step of a signer, off the threads that serve: what it signed, or why it cannot.
async fn sign(
    mut round: Round,
    now: Timestamp,
    believed: Arc<Vec<SignedDocument>>,
    heard: Arc<Vec<SignedDescriptor>>,
) -> (Option<Round>, Vec<SignedDocument>, Option<String>) {
    let step = spawn_blocking(move || {
        let outcomes = round.step(now, &believed, &heard);
        (round, outcomes)
    });
    match step.await {
        Ok((round, Ok(outcomes))) => {
            let mut signed = Vec::new();
            for outcome in outcomes {
                match outcome {
                    Outcome::Signed(document) => {
                        let it = document.document();
                        tracing::info!(
                            document.number = it.number,
                            document.epoch = it.epoch,
                            document.nodes = it.relays().len(),
                            "signed a document of the relay directory"
                        );
                        signed.push(*document);
                    }
                    Outcome::Proposed(document) => tracing::debug!(
                        document.number = document.document().number,
                        "a document waits for the other signers"
                    ),
                    Outcome::NoDescriptors => {}
                }
            }
            (Some(round), signed, None)
        }
        Ok((round, Err(error))) => (Some(round), Vec::new(), Some(format!("{error:#}"))),
        Err(error) => {
            tracing::error!(%error, "signing has ended");
            (None, Vec::new(), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_transport::htx::directory::{Authority, Document, EpochClock};

    use super::*;

    #[test]
    fn of_all_copies_the_newest_that_follow_each_other_are_taken() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let clock = EpochClock::HOUR;
        let authority = Authority::new(1, [key.verifying_key()], clock).unwrap();
        let sign = |document: Document| {
            let mut signed = document.unsigned();
            signed.sign(&key);
            signed
        };
        let now = clock.start(500_000);
        let mut chain = vec![sign(Document::genesis(&authority, now, Vec::new()).unwrap())];
        for _ in 0..9 {
            let last = chain.last().unwrap();
            let epoch = last.document().epoch + 1;
            let next = Document::successor(&authority, last, epoch, now, Vec::new(), Vec::new());
            chain.push(sign(next.unwrap()));
        }
        let numbers = |documents: Vec<SignedDocument>| -> Vec<u64> {
            newest_run(documents).iter().map(|document| document.document().number).collect()
        };
        assert_eq!(numbers(Vec::new()), [0; 0]);
        assert_eq!(numbers([&chain[..2], &chain[..3], &chain[1..2]].concat()), [0, 1, 2]);
        assert_eq!(numbers([&chain[..3], &chain[5..7]].concat()), [5, 6], "after a gap");
        assert_eq!(numbers(chain), [2, 3, 4, 5, 6, 7, 8, 9], "at most eight");
    }
}
