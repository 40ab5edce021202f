//! `fieldpost serve`: puts the parts together, runs them, and takes them down in good order.

use std::{
    future::Future,
    io::{IsTerminal, Write, stdout},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use fieldpost_envelope::GatewayId;
use fieldpost_transport::Transport;
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::gethostname,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Gateway, Shared, accept,
    allowances::Allowances,
    bus,
    clock::Clock,
    config::{Auth, Config, Registration},
    connectivity,
    database::{Database, Keeper, Unusable},
    embedded::EmbeddedPostgres,
    fetch::{self, ServedFiles},
    http::{self, given::Pages, limits::Limits},
    inbox,
    mixnet::Mixnet,
    outbox::{self, Awaited, Errands, Learned, Openings},
    presence,
    readiness::Readiness,
    rosters::{self, Rosters},
    serve::{self, Server},
    store::{Quotas, Store, identity::IdentityError, schema},
    subscribers::Subscribers,
    sweep,
    telemetry::{self, traces::Traces},
    transports,
};

/// The most connections of clients at once, sockets included; one more gets 503 and is closed.
const CLIENT_CONNECTIONS: usize = 20_000;
/// Files that are no connections of clients: the database's, the log, transports.
const OTHER_FILES: usize = 256;
/// The most connections of probes and scrapers at once.
const ADMIN_CONNECTIONS: usize = 64;
/// How long the start waits for the database before the API says that it is away.
const FIRST_ATTEMPT: Duration = Duration::from_secs(6);
/// The longest that load balancers are given to see that this replica is about to stop.
const LONGEST_SPREAD: Duration = Duration::from_secs(5);
/// What requests and sockets get beyond `--drain`, which sockets use whole.
const DRAIN_MARGIN: Duration = Duration::from_secs(2);
/// How long background work may take to end.
const WORKERS_GRACE: Duration = Duration::from_secs(10);

/// Runs the gateway until it is told to stop.
///
/// # Errors
///
/// Says what keeps it from starting, or which part of it failed.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    check(&config)?;
    config.validate_transports().map_err(anyhow::Error::msg)?;
    let telemetry = telemetry::init(config.otlp_endpoint.as_deref())?;
    let outcome = serve_observed(config).await;
    telemetry.shutdown().await;
    outcome
}

async fn serve_observed(config: Config) -> anyhow::Result<()> {
    let mut running = start(config, None).await?;
    announce(&running)?;
    let outcome = tokio::select! {
        stopped = told_to_stop() => stopped,
        failed = running.failed() => Err(failed),
    };
    exit_at_next_signal();
    running.stop().await;
    outcome
}

/// Makes the transports of a gateway once it is known who the gateway is.
pub type Connect = Box<dyn FnOnce(GatewayId) -> Vec<Arc<dyn Transport>> + Send>;

/// A gateway that runs in this process until it is stopped.
pub struct Running {
    gateway: Gateway,
    addresses: (SocketAddr, SocketAddr),
    embedded: Option<EmbeddedPostgres>,
    workers: Workers,
    api: (JoinHandle<()>, CancellationToken),
    admin: (JoinHandle<()>, CancellationToken),
}

/// Starts a gateway with the transports that `connect` makes for it.
///
/// Needs a TLS provider of this process, but neither logging nor signals.
///
/// # Errors
///
/// Says what keeps it from starting. With transports that is also a database that is away: without
/// it nobody knows who the gateway is.
pub async fn start(config: Config, connect: Option<Connect>) -> anyhow::Result<Running> {
    check(&config)?;
    if connect.is_none() {
        config.validate_transports().map_err(anyhow::Error::msg)?;
        transports::check_files(&config)?;
    }
    let metrics = telemetry::metrics::install()?;
    let connections = connections_allowed();
    let tls = serve::tls(&config)?;
    let limits = Limits::new(&config).map_err(anyhow::Error::msg)?;
    let listener = listen(config.listen, "--listen").await?;
    let admin_listener = listen(config.admin_listen, "--admin-listen").await?;
    let addresses = (listener.local_addr()?, admin_listener.local_addr()?);

    let Database { options, embedded, master_key } = Database::open(&config.database).await?;
    let clock = Clock::default();
    let store = Store::new(schema::pool(options.clone()), clock.clone(), master_key)
        .announcing(config.announces());
    let readiness = Readiness::starting();
    let mut workers = Workers::new();
    let replica = Uuid::new_v4();
    let keeper = Keeper::new(options, store.clone(), clock.clone(), readiness.clone())
        .showing_life_of(replica);
    let first = {
        let (first, attempted) = oneshot::channel();
        workers.spawn("database", keeper.run(first, workers.stop.clone()));
        timeout(FIRST_ATTEMPT, attempted).await
    };
    match first {
        Ok(Ok(Err(error))) if embedded.is_some() || connect.is_some() || is_final(&error) => {
            workers.end().await;
            return Err(error.into());
        }
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, "cannot work on the database; trying again until it can be used");
        }
        Ok(_) => {}
        Err(_) => tracing::warn!("the database takes long; the API answers once it is ready"),
    }
    let brings = connect.is_some();
    let (transports, late) = match connect {
        Some(connect) => {
            let identity = store.identity().context("the database does not answer in time")?;
            (connect(identity.gateway_id), Vec::new())
        }
        None => {
            let late = transports::chosen(&config);
            let all = late.iter().map(|one| one.clone() as Arc<dyn Transport>).collect();
            (all, late)
        }
    };

    let (acceptor, writers) = accept::queues();
    let (watcher, connectivity) = connectivity::Watcher::new();
    let gateway = Gateway::new(Shared {
        acceptor,
        subscribers: Subscribers::default(),
        pages: Pages::default(),
        limits,
        quotas: Quotas::new(store.clone(), config.sender_share),
        wake_outbox: Arc::default(),
        wake_files: Arc::default(),
        wake_air: Arc::default(),
        awaited: Awaited::default(),
        errands: Errands::default(),
        openings: Openings::new(outbox::rules(&config).lease()),
        transports,
        mixnet: Mixnet::new(&config, brings),
        learned: Learned::default(),
        connectivity,
        rosters: Rosters::new(config.trust()),
        allowances: Allowances::new(config.gateway_rate_limit),
        traces: Traces::new(config.otlp_endpoint.is_some()),
        replica,
        place: place(addresses.0),
        draining: CancellationToken::new(),
        cut_off: CancellationToken::new(),
        started_at: clock.instant(),
        readiness,
        clock,
        store,
        config,
    });
    workers.spawn("connectivity", workers.until_stop(watcher.run()));
    if embedded.is_some() {
        // Nobody else can be at work on this database, so nobody waits for claims to run out.
        match gateway.store.release_claims(gateway.clock.now()).await {
            Ok(0) => {}
            Ok(claims) => tracing::info!(claims, "took up deliveries that the last process left"),
            Err(error) => tracing::warn!(%error, "claims of the last process hold until they end"),
        }
    }
    spawn_workers(&mut workers, &gateway, writers);
    for transport in late {
        let stop = workers.stop.clone();
        let alone = embedded.is_some();
        workers.spawn("transport", transports::keep(gateway.clone(), transport, alone, stop));
    }
    let upkeep = metrics.clone();
    workers.spawn(
        "metrics",
        workers.until_stop(async move {
            loop {
                sleep(Duration::from_secs(5)).await;
                upkeep.run_upkeep();
            }
        }),
    );

    let admin = Server {
        listener: admin_listener,
        app: http::admin_router(&gateway, metrics),
        tls: None,
        connections: ADMIN_CONNECTIONS,
        cut_off: gateway.cut_off.clone(),
    };
    let stop_admin = CancellationToken::new();
    let admin = tokio::spawn(admin.run(stop_admin.clone(), Duration::from_secs(1)));
    let (app, cut_off) = (http::router(&gateway), gateway.cut_off.clone());
    let api = Server { listener, app, tls, connections, cut_off };
    let stop_api = CancellationToken::new();
    let grace = gateway.config.drain + DRAIN_MARGIN;
    let api = tokio::spawn(api.run(stop_api.clone(), grace));
    let (api, admin) = ((api, stop_api), (admin, stop_admin));
    Ok(Running { gateway, addresses, embedded, workers, api, admin })
}

impl Running {
    /// The parts that run.
    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Where the API is, and where probes and metrics are.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.addresses
    }

    /// Waits for a part that ends though nobody told it to.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.workers.first_to_end().await
    }

    /// Takes the gateway down in good order, within its `--drain` and some seconds.
    pub async fn stop(self) {
        let Self { gateway, addresses: _, embedded, workers, api, admin } = self;
        tracing::info!("stopping: letting requests finish and sockets go");
        gateway.draining.cancel();
        sleep(spread(&gateway.config)).await;
        api.1.cancel();
        // Both end by themselves within their grace.
        let _ = api.0.await;
        gateway.cut_off.cancel();
        admin.1.cancel();
        let _ = admin.0.await;
        presence::finish(&gateway).await;
        // The writers end when nobody is left who could hand them a message.
        let store = gateway.store.clone();
        drop(gateway);
        workers.end().await;
        store.close().await;
        Database::close(embedded).await;
        tracing::info!("stopped");
    }
}

/// Starts what works in the background, each on its own. What holds the gateway ends at `stop`.
fn spawn_workers(workers: &mut Workers, gateway: &Gateway, writers: accept::Writers) {
    let Shared { store, clock, subscribers, quotas, openings, wake_outbox, .. } = &**gateway;
    workers.spawn(
        "accepting",
        accept::run(
            writers,
            accept::Writer {
                store: store.clone(),
                clock: clock.clone(),
                subscribers: subscribers.clone(),
                quotas: quotas.clone(),
                openings: openings.clone(),
                wake_outbox: wake_outbox.clone(),
                batch_messages: usize::from(gateway.config.accept_batch),
            },
        ),
    );
    workers.spawn("presence", workers.until_stop(presence::keep(gateway.clone())));
    workers.spawn("upkeep", workers.until_stop(sweep::run(gateway.clone())));
    if gateway.config.announces() {
        workers.spawn("bus", workers.until_stop(bus::listen(gateway.clone())));
    }
    let (awaited, stop) = (gateway.awaited.clone(), workers.stop.clone());
    workers.spawn("outbox", outbox::run(gateway.clone(), awaited.clone(), stop.clone()));
    workers.spawn("roster", workers.until_stop(rosters::tell(gateway.clone())));
    workers.spawn("names", workers.until_stop(rosters::lead_on(gateway.clone())));
    workers.spawn("fetching", fetch::run(gateway.clone(), stop.clone()));
    for transport in &gateway.transports {
        transport.serve_files(Arc::new(ServedFiles::new(store.clone(), transport)));
        workers.spawn("rosters", rosters::listen(gateway.clone(), transport.clone(), stop.clone()));
        workers.spawn(
            "inbox",
            inbox::run(gateway.clone(), transport.clone(), awaited.clone(), stop.clone()),
        );
    }
}

/// Background work: each piece runs until `stop`, and none may end before.
struct Workers {
    tasks: JoinSet<&'static str>,
    stop: CancellationToken,
}

impl Workers {
    fn new() -> Self {
        Self { tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    /// Makes endless work end at `stop`, at whatever it waits for then.
    fn until_stop(
        &self,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let stop = self.stop.clone();
        async move {
            stop.run_until_cancelled(work).await;
        }
    }

    /// Waits for a piece that ends though nobody told it to.
    async fn first_to_end(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(name)) => anyhow::anyhow!("the gateway's {name} work ended unexpectedly"),
            Some(Err(error)) => anyhow::anyhow!("the gateway's background work failed: {error}"),
            None => std::future::pending().await,
        }
    }

    async fn end(mut self) {
        self.stop.cancel();
        let ended = timeout(WORKERS_GRACE, async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "background work failed while it ended");
                }
            }
        });
        if ended.await.is_err() {
            tracing::warn!("background work did not end in time and was cut off");
        }
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    config.validate().map_err(anyhow::Error::msg)?;
    for origin in &config.cors_origins {
        let page = origin.split_once("://").filter(|(scheme, host)| {
            matches!(*scheme, "http" | "https")
                && !host.is_empty()
                && !host.contains(['/', '*', ' '])
        });
        if page.is_none() || !origin.is_ascii() {
            bail!(
                "--cors-origins {origin}: an origin reads like https://chat.example, without a path or wildcard"
            );
        }
    }
    Ok(())
}

async fn listen(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; free that port or choose another by {option}")
    })
}

/// This machine, and the address that nobody else there listens on.
fn place(api: SocketAddr) -> String {
    match gethostname() {
        Ok(name) => format!("{} {api}", name.to_string_lossy()),
        Err(error) => {
            tracing::warn!(%error, "this machine has no name; another process is never taken for it");
            format!("{} {api}", Uuid::new_v4())
        }
    }
}

/// Whether no time and no restart of the database will mend it.
fn is_final(error: &Unusable) -> bool {
    matches!(
        error,
        Unusable::Identity(
            IdentityError::WrongMasterKey(_)
                | IdentityError::Damaged(_)
                | IdentityError::Mismatch(_)
        )
    )
}

/// Raises the limit of open files and returns how many connections of clients fit below it: every
/// socket is a file, and the usual soft limit of 1024 is for programs that use `select`.
fn connections_allowed() -> usize {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(1 << 20).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).map(|()| wanted)
    });
    let limit = raised.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        1024
    });
    let allowed = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    if allowed < CLIENT_CONNECTIONS {
        tracing::info!(
            connections.limit = allowed,
            "the limit of open files (ulimit -n) bounds connections"
        );
    }
    allowed.clamp(64, CLIENT_CONNECTIONS)
}

/// How long to go on serving while load balancers notice; nobody balances loopback.
fn spread(config: &Config) -> Duration {
    if config.listen.ip().is_loopback() {
        Duration::ZERO
    } else {
        (config.drain / 4).min(LONGEST_SPREAD)
    }
}

async fn told_to_stop() -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Whoever asks twice does not want to wait. What was accepted is safe in the database.
fn exit_at_next_signal() {
    tokio::spawn(async {
        if told_to_stop().await.is_ok() {
            tracing::warn!("told to stop again: ending at once");
            std::process::exit(1);
        }
    });
}

/// Says where the gateway is: in the log and, to a person, in words that can be pasted.
fn announce(running: &Running) -> anyhow::Result<()> {
    let (api, admin) = running.addresses;
    let embedded = running.embedded.is_some();
    let config = &running.gateway.config;
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{api}");
    tracing::info!(api.url = %url, admin.url = %format_args!("http://{admin}"), "listening");
    if config.auth == Auth::Open {
        tracing::warn!(
            "--auth open: every program on this machine may speak for every peer; it is meant for \
             one machine and for trying out"
        );
    }
    if !(embedded || stdout().is_terminal()) {
        return Ok(());
    }
    let mut out = stdout().lock();
    let (how, invite) = match config.registration() {
        Registration::Open => ("", ""),
        Registration::Invite => {
            (" with what `fieldpost invite create` prints", ", \"invite\": \"INVITE\"")
        }
        Registration::Closed => (" by what `fieldpost operator token` prints, as bearer", ""),
    };
    writeln!(
        out,
        "\nFieldpost {version} is running.\n\n  \
         API      {url}\n  \
         Docs     {url}/docs\n  \
         Metrics  http://{admin}/metrics\n\n\
         Register a peer{how}; the answer holds its token:\n\n  \
         curl -s {url}/v1/peers -H 'Content-Type: application/json' \\\n    \
         -d '{{\"peer_id\": \"alice\", \"public_key\": \"none\"{invite}}}'\n",
        version = env!("CARGO_PKG_VERSION"),
    )
    .and_then(|()| out.flush())
    .context("cannot write to standard output")
}
