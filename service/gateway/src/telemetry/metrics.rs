//! The gateway's metrics: their names, units and meaning, and how they are shown.

use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Time from a request's head to its response's, by `method`, `route` and `status`.
pub const HTTP_REQUEST_SECONDS: &str = "fieldpost_http_request_seconds";
/// Connections to the API that are open, sockets included.
pub const HTTP_CONNECTIONS: &str = "fieldpost_http_connections";
/// Connections refused at the limit.
pub const HTTP_CONNECTIONS_REFUSED_TOTAL: &str = "fieldpost_http_connections_refused_total";
/// TLS handshakes that failed or took too long.
pub const TLS_HANDSHAKES_FAILED_TOTAL: &str = "fieldpost_tls_handshakes_failed_total";
/// Handlers that panicked.
pub const PANICS_TOTAL: &str = "fieldpost_panics_total";
/// Open sockets of peers.
pub const SOCKETS: &str = "fieldpost_sockets";
/// Sockets that ended, by `reason`.
pub const SOCKETS_CLOSED_TOTAL: &str = "fieldpost_sockets_closed_total";
/// Messages in one commit.
pub const ACCEPT_BATCH_MESSAGES: &str = "fieldpost_accept_batch_messages";
/// Sends that wait for their commit.
pub const SENDS_WAITING: &str = "fieldpost_sends_waiting";
/// Deliveries to other gateways that are under way.
pub const DELIVERIES_UNDER_WAY: &str = "fieldpost_deliveries_under_way";
/// Attempts to send a message elsewhere, by `transport` and `result`.
pub const ATTEMPTS_TOTAL: &str = "fieldpost_attempts_total";
/// Receipts handed to transports, by `transport` and `result`.
pub const RECEIPTS_SENT_TOTAL: &str = "fieldpost_receipts_sent_total";
/// What came over transports, by `transport` and `outcome`.
pub const ENVELOPES_RECEIVED_TOTAL: &str = "fieldpost_envelopes_received_total";
/// Packets of the mixnet that were here, by `fate`.
pub const MIXNET_PACKETS_TOTAL: &str = "fieldpost_mixnet_packets_total";
/// Links of the mixnet that are up.
pub const MIXNET_LINKS: &str = "fieldpost_mixnet_links";
/// Relays in the relay directory's active document.
pub const MIXNET_RELAYS: &str = "fieldpost_mixnet_relays";
/// 1 while that document has this node's keys, else 0.
pub const MIXNET_LISTED: &str = "fieldpost_mixnet_listed";
/// Rosters of other gateways that came, by `transport` and `outcome`.
pub const ROSTERS_RECEIVED_TOTAL: &str = "fieldpost_rosters_received_total";
/// Peers in our own roster.
pub const ROSTER_PEERS: &str = "fieldpost_roster_peers";
/// Links to other gateways that `mesh` ended or refused, by `reason`; closing down and links that were
/// doubled are among them.
pub const MESH_LINKS_REFUSED_TOTAL: &str = "fieldpost_mesh_links_refused_total";
/// Links of `mesh` that said hello and were believed.
pub const MESH_LINKS_OPENED_TOTAL: &str = "fieldpost_mesh_links_opened_total";
/// Attempts of `mesh` to dial another gateway.
pub const MESH_DIALS_TOTAL: &str = "fieldpost_mesh_dials_total";
/// Envelopes that `mesh` had brought again later, since too many waited here.
pub const MESH_ENVELOPES_PUT_OFF_TOTAL: &str = "fieldpost_mesh_envelopes_put_off_total";
/// Frames on links of `ble`, by `direction`.
pub const BLE_FRAMES_TOTAL: &str = "fieldpost_ble_frames_total";
/// Bytes in the frames that `ble` sent.
pub const BLE_SENT_BYTES_TOTAL: &str = "fieldpost_ble_sent_bytes_total";
/// What `ble` turned away, by `reason`: frames, packets, links, and what was asked of it.
pub const BLE_REFUSED_TOTAL: &str = "fieldpost_ble_refused_total";
/// Packets that `ble` had seen before.
pub const BLE_DUPLICATES_TOTAL: &str = "fieldpost_ble_duplicates_total";
/// Packets of others that `ble` passed on.
pub const BLE_RELAYED_TOTAL: &str = "fieldpost_ble_relayed_total";
/// Packets that `ble` did not pass on, since a neighbour was faster.
pub const BLE_RELAYS_CANCELLED_TOTAL: &str = "fieldpost_ble_relays_cancelled_total";
/// Sets of fragments that came to no packet, by `reason`.
pub const BLE_SETS_LOST_TOTAL: &str = "fieldpost_ble_sets_lost_total";
/// Noise sessions of `ble` that have stood.
pub const BLE_SESSIONS_TOTAL: &str = "fieldpost_ble_sessions_total";
/// Links of `ble` that are up.
pub const BLE_LINKS: &str = "fieldpost_ble_links";
/// Deliveries that ended because their time was over.
pub const DELIVERIES_EXPIRED_TOTAL: &str = "fieldpost_deliveries_expired_total";
/// Rows that wait, by `queue`, counted up to 100 000.
pub const QUEUE_ROWS: &str = "fieldpost_queue_rows";
/// Peers with at least one open socket.
pub const CONNECTED_PEERS: &str = "fieldpost_connected_peers";
/// 1 while the gateway can do its work, else 0.
pub const READY: &str = "fieldpost_ready";
/// Database connections in the pool, by `state`.
pub const DATABASE_CONNECTIONS: &str = "fieldpost_database_connections";
/// Memory of the process that is in RAM.
pub const RESIDENT_MEMORY_BYTES: &str = "process_resident_memory_bytes";
/// When the process began, in seconds of Unix time.
pub const START_TIME_SECONDS: &str = "process_start_time_seconds";
/// Always 1; the label `version` says what runs.
pub const BUILD_INFO: &str = "fieldpost_build_info";

/// From a cache hit to the longest request.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// From an empty frame to the largest file chunk.
const BYTES: [f64; 9] =
    [64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];
/// Messages in one commit.
const MESSAGES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// The recorder of this process, for all gateways in it.
static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// Makes this process record metrics, unless it does already.
///
/// # Errors
///
/// If somebody else's recorder was installed before.
pub fn install() -> anyhow::Result<PrometheusHandle> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)
        })
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_messages".to_owned()), &MESSAGES)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .context("cannot install the metrics recorder")?;
    describe();
    *installed = Some(handle.clone());
    Ok(handle)
}

fn describe() {
    describe_histogram!(
        HTTP_REQUEST_SECONDS,
        Unit::Seconds,
        "Time from a request's head to its response's"
    );
    describe_gauge!(HTTP_CONNECTIONS, Unit::Count, "Open connections to the API, sockets included");
    describe_counter!(
        HTTP_CONNECTIONS_REFUSED_TOTAL,
        Unit::Count,
        "Connections refused at the limit"
    );
    describe_counter!(
        TLS_HANDSHAKES_FAILED_TOTAL,
        Unit::Count,
        "TLS handshakes that failed or took too long"
    );
    describe_counter!(PANICS_TOTAL, Unit::Count, "Handlers that panicked: each is a bug");
    describe_gauge!(SOCKETS, Unit::Count, "Open sockets of peers");
    describe_counter!(SOCKETS_CLOSED_TOTAL, Unit::Count, "Sockets that ended, by reason");
    describe_histogram!(ACCEPT_BATCH_MESSAGES, Unit::Count, "Messages in one commit");
    describe_gauge!(SENDS_WAITING, Unit::Count, "Sends that wait for their commit");
    describe_gauge!(DELIVERIES_UNDER_WAY, Unit::Count, "Deliveries to other gateways under way");
    describe_counter!(ATTEMPTS_TOTAL, Unit::Count, "Attempts to send a message elsewhere");
    describe_counter!(RECEIPTS_SENT_TOTAL, Unit::Count, "Receipts handed to transports");
    describe_counter!(ENVELOPES_RECEIVED_TOTAL, Unit::Count, "What came over transports");
    describe_counter!(MIXNET_PACKETS_TOTAL, Unit::Count, "Packets of the mixnet, by fate");
    describe_gauge!(MIXNET_LINKS, Unit::Count, "Links of the mixnet that are up");
    describe_gauge!(MIXNET_RELAYS, Unit::Count, "Relays in the directory's active document");
    describe_gauge!(MIXNET_LISTED, Unit::Count, "1 while that document has this node's keys");
    describe_counter!(ROSTERS_RECEIVED_TOTAL, Unit::Count, "Rosters of other gateways that came");
    describe_gauge!(ROSTER_PEERS, Unit::Count, "Peers in our own roster");
    describe_counter!(
        MESH_LINKS_REFUSED_TOTAL,
        Unit::Count,
        "Links that mesh ended or refused, by reason"
    );
    describe_counter!(MESH_LINKS_OPENED_TOTAL, Unit::Count, "Links of mesh that were believed");
    describe_counter!(MESH_DIALS_TOTAL, Unit::Count, "Attempts of mesh to dial another gateway");
    describe_counter!(BLE_FRAMES_TOTAL, Unit::Count, "Frames on links of ble, by direction");
    describe_counter!(BLE_SENT_BYTES_TOTAL, Unit::Bytes, "Bytes in frames that ble sent");
    describe_counter!(BLE_REFUSED_TOTAL, Unit::Count, "What ble turned away, by reason");
    describe_counter!(BLE_DUPLICATES_TOTAL, Unit::Count, "Packets that ble had seen before");
    describe_counter!(BLE_RELAYED_TOTAL, Unit::Count, "Packets of others that ble passed on");
    describe_counter!(
        BLE_RELAYS_CANCELLED_TOTAL,
        Unit::Count,
        "Packets that ble did not pass on, since a neighbour was faster"
    );
    describe_counter!(
        BLE_SETS_LOST_TOTAL,
        Unit::Count,
        "Sets of fragments that came to no packet, by reason"
    );
    describe_counter!(BLE_SESSIONS_TOTAL, Unit::Count, "Noise sessions of ble that have stood");
    describe_gauge!(BLE_LINKS, Unit::Count, "Links of ble that are up");
    describe_counter!(
        MESH_ENVELOPES_PUT_OFF_TOTAL,
        Unit::Count,
        "Envelopes that mesh had brought again later, since too many waited"
    );
    describe_counter!(DELIVERIES_EXPIRED_TOTAL, Unit::Count, "Deliveries whose time was over");
    describe_gauge!(QUEUE_ROWS, Unit::Count, "Rows that wait, by queue, counted up to 100 000");
    describe_gauge!(CONNECTED_PEERS, Unit::Count, "Peers with at least one open socket");
    describe_gauge!(READY, Unit::Count, "1 while the gateway can do its work, else 0");
    describe_gauge!(DATABASE_CONNECTIONS, Unit::Count, "Database connections in the pool");
    describe_gauge!(RESIDENT_MEMORY_BYTES, Unit::Bytes, "Memory of the process that is in RAM");
    describe_gauge!(START_TIME_SECONDS, Unit::Seconds, "When the process began, in Unix time");
    describe_gauge!(BUILD_INFO, Unit::Count, "Always 1; the label version says what runs");
}

/// Resident memory of this process, where the system tells.
pub fn resident_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
