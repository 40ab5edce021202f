//! The database: reachable, of a version and schema that we know, durable, and of our time.

use std::{str::FromStr, time::Duration};

use chrono::TimeDelta;
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;

use super::Finding;
use crate::{
    accept,
    clock::Clock,
    config::DatabaseConfig,
    embedded::{self, OLDEST_MAJOR},
    secrets::{MasterKey, MasterKeySource},
    store::schema::{Durability, POOL_SIZE, ReachError, Schema, Server, WRITER_POOL_SIZE, Watch},
};

/// What leases and expiry still bear.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(1);

pub(super) async fn examine(config: &DatabaseConfig) -> Vec<Finding> {
    let options = match options(config).await {
        Ok(options) => options,
        Err(finding) => return vec![finding, master_key(config, None)],
    };
    let mut watch = match Watch::open(&options).await {
        Ok(watch) => watch,
        Err(error) => return vec![away(config, &error), master_key(config, None)],
    };
    match questions(config, &mut watch).await {
        Ok(findings) => findings,
        Err(error) => vec![away(config, &error), master_key(config, None)],
    }
}

/// How to connect, or why there is nothing to connect to.
async fn options(config: &DatabaseConfig) -> Result<PgConnectOptions, Finding> {
    if let Some(url) = &config.database_url {
        return PgConnectOptions::from_str(url.expose_secret()).map_err(|_| {
            Finding::failure(
                "database",
                "--database-url cannot be understood",
                "write it like postgres://user:password@host/database",
            )
        });
    }
    let folder = match config.data_dir.clone().map_or_else(embedded::default_data_dir, Ok) {
        Ok(folder) => folder,
        Err(error) => return Err(Finding::info("database", error.to_string())),
    };
    embedded::running(&folder).ok_or_else(|| {
        Finding::info(
            "database",
            format!("the embedded one in {} does not run; serve starts it", folder.display()),
        )
    })
}

fn away(config: &DatabaseConfig, error: &ReachError) -> Finding {
    let advice = if config.database_url.is_some() {
        "check --database-url, and that the server runs and lets us in; a gateway that is started \
         meanwhile waits for it"
    } else {
        "its log is postgres.log beside its data; serve starts it again"
    };
    Finding::failure("database", error.to_string(), advice)
}

async fn questions(config: &DatabaseConfig, watch: &mut Watch) -> Result<Vec<Finding>, ReachError> {
    let is_external = config.database_url.is_some();
    let server = watch.server().await?;
    let mut findings = vec![version(&server)];
    if is_external {
        findings.push(connections(&server));
    }
    findings.push(match watch.schema().await {
        Ok(schema) => migrations(schema),
        Err(error @ ReachError::OtherSchema(_)) => Finding::failure(
            "schema",
            error.to_string(),
            "use the program that made it, or another database",
        ),
        Err(error) => return Err(error),
    });
    findings.push(durability(&watch.durability().await?));
    if is_external {
        findings.push(replication(&server));
    }
    let clock = Clock::default();
    let asked = clock.instant();
    let theirs = watch.beat().await?;
    let round_trip = clock.instant().saturating_duration_since(asked);
    let half = TimeDelta::from_std(round_trip / 2).unwrap_or_default();
    findings.push(time(clock.now() - half - theirs, round_trip));
    findings.push(master_key(config, Some(watch.master_key_check().await?)));
    Ok(findings)
}

fn version(server: &Server) -> Finding {
    const NAME: &str = "database";
    let major = server.version_number / 10_000;
    if major < i32::try_from(OLDEST_MAJOR).unwrap_or(i32::MAX) {
        return Finding::failure(
            NAME,
            format!("Postgres {} is too old", server.version),
            format!("upgrade it to {OLDEST_MAJOR} or later"),
        );
    }
    if server.in_recovery {
        return Finding::failure(
            NAME,
            format!("Postgres {} is a standby and takes no writes", server.version),
            "name the primary in --database-url, for example with target_session_attrs",
        );
    }
    Finding::ok(NAME, format!("Postgres {} answers", server.version))
}

fn connections(server: &Server) -> Finding {
    const NAME: &str = "connections";
    let writers = accept::writers() as i64;
    let opened = i64::from(POOL_SIZE) + 1 + i64::from(WRITER_POOL_SIZE) * writers;
    let detail = format!(
        "the database accepts {}, each replica opens up to {opened}",
        server.max_connections
    );
    if i64::from(server.max_connections) < opened + 3 {
        return Finding::failure(NAME, detail, "raise max_connections in postgresql.conf");
    }
    Finding::ok(NAME, detail)
}

fn migrations(schema: Option<Schema>) -> Finding {
    const NAME: &str = "schema";
    match schema {
        Some(Schema::Current) => Finding::ok(NAME, "is up to date"),
        None => Finding::info(NAME, "will be migrated by the next serve or migrate"),
        Some(Schema::Newer) => Finding::warning(
            NAME,
            "was migrated by a newer gateway",
            "this one works with it; update it soon",
        ),
    }
}

fn durability(durability: &Durability) -> Finding {
    const NAME: &str = "durability";
    match durability.shortcoming() {
        None => Finding::ok(
            NAME,
            format!(
                "fsync and full_page_writes are on, synchronous_commit is {}",
                durability.synchronous_commit
            ),
        ),
        Some(shortcoming) => Finding::failure(
            NAME,
            format!("{shortcoming}: what was accepted may be lost when the machine fails"),
            "turn it on in postgresql.conf and reload the server; accepted must mean delivered or \
             reported",
        ),
    }
}

/// Promise 1 cannot be better than the database's own.
fn replication(server: &Server) -> Finding {
    const NAME: &str = "replication";
    let rule = "accepted means delivered or reported is as good as this database's replication";
    if !server.synchronous_standbys.is_empty() {
        return Finding::ok(
            NAME,
            format!("{rule}: commits wait for {}", server.synchronous_standbys),
        );
    }
    let seen = match server.standbys {
        0 => "no standby is seen, so a lost disk loses messages".to_owned(),
        standbys => format!(
            "{standbys} standbys follow, but commits do not wait for them: a failover may lose \
             the last messages"
        ),
    };
    Finding::warning(
        NAME,
        format!("{rule}: {seen}"),
        "set synchronous_standby_names if that is not enough; a managed database may replicate \
         below what can be seen from here",
    )
}

/// `ahead` is the system's clock minus the database's.
fn time(ahead: TimeDelta, round_trip: Duration) -> Finding {
    const NAME: &str = "clock";
    let detail = format!(
        "the system's clock is {} ms {} the database's (measured within {} ms)",
        ahead.num_milliseconds().abs(),
        if ahead < TimeDelta::zero() { "behind" } else { "ahead of" },
        round_trip.as_millis()
    );
    if ahead.abs() <= CLOCK_TOLERANCE + TimeDelta::from_std(round_trip).unwrap_or_default() {
        return Finding::ok(NAME, detail);
    }
    Finding::warning(
        NAME,
        detail,
        "the gateway goes by the database's, but logs, certificates and other gateways do not: \
         run NTP on both machines (timedatectl set-ntp true)",
    )
}

/// Judges the key by the database's check value: `None` if the database cannot be asked, and in it
/// `None` if it has none yet.
fn master_key(config: &DatabaseConfig, check: Option<Option<Vec<u8>>>) -> Finding {
    const NAME: &str = "master key";
    let folder = config.data_dir.clone().map_or_else(embedded::default_data_dir, Ok);
    let folder = folder.ok().filter(|_| config.database_url.is_none());
    let key = MasterKeySource::choose(
        config.master_key_file.clone(),
        config.master_key.clone(),
        folder.as_deref(),
    )
    .and_then(MasterKey::find);
    let verified = key.and_then(|key| match (key, check) {
        (None, _) => Ok("will be made at the first start"),
        (Some(_), None) => Ok("is well formed; the database was not asked whether it is the one"),
        (Some(_), Some(None)) => Ok("is well formed; this database has no secrets yet"),
        (Some(key), Some(Some(check))) => {
            key.verify_check_value(&check).map(|()| "opens this database's secrets")
        }
    });
    match verified {
        Ok(detail) => Finding::ok(NAME, detail),
        Err(error) => Finding::failure(
            NAME,
            error.to_string(),
            "every replica of a deployment needs the key that it was begun with",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn an_unreplicated_database_is_said_to_limit_the_first_promise() {
        let finding = replication(&server());
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.detail.contains("as good as this database's replication"));
        let waiting = Server { synchronous_standbys: "ANY 1 (a, b)".to_owned(), ..server() };
        assert_eq!(replication(&waiting).verdict, Verdict::Ok);
    }

    #[test]
    fn old_servers_and_standbys_fail() {
        assert_eq!(version(&server()).verdict, Verdict::Ok);
        let old = Server { version_number: 140_010, ..server() };
        assert_eq!(version(&old).verdict, Verdict::Failure);
        let standby = Server { in_recovery: true, ..server() };
        assert_eq!(version(&standby).verdict, Verdict::Failure);
    }

    #[test]
    fn settings_that_lose_commits_fail() {
        let safe =
            Durability { fsync: true, synchronous_commit: "on".to_owned(), full_page_writes: true };
        assert_eq!(durability(&safe).verdict, Verdict::Ok);
        for risky in [
            Durability { fsync: false, ..safe.clone() },
            Durability { full_page_writes: false, ..safe.clone() },
            Durability { synchronous_commit: "off".to_owned(), ..safe },
        ] {
            assert_eq!(durability(&risky).verdict, Verdict::Failure);
        }
    }

    #[test]
    fn clocks_apart_are_told_by_how_much_and_which_way() {
        let near = Duration::from_millis(2);
        assert_eq!(time(TimeDelta::milliseconds(-400), near).verdict, Verdict::Ok);
        let finding = time(TimeDelta::seconds(-90), near);
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.detail.contains("90000 ms behind"), "{}", finding.detail);
    }

    fn server() -> Server {
        Server {
            version: "17.2".to_owned(),
            version_number: 170_002,
            in_recovery: false,
            max_connections: 100,
            synchronous_standbys: String::new(),
            standbys: 0,
        }
    }
}
