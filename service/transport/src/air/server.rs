//! The process that holds the field.

use std::{collections::BTreeMap, io, sync::Arc};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Scenario,
    medium::Medium,
    protocol::{MAX_RECORD, ToField, ToRadio},
};
use crate::streams::{Connection, Listener, StreamAddress, read, write};

/// Records that wait for one radio; who is behind by more is cut off.
const TO_RADIO: usize = 1024;
/// Records that wait for the field; radios are not read while they are so many.
const TO_FIELD: usize = 1024;
/// Radios at once.
const RADIOS: usize = 1000;

/// A field that radios join over a stream on this machine.
pub struct AirServer {
    address: StreamAddress,
    counters: watch::Receiver<AirCounters>,
    tasks: JoinSet<()>,
}

/// What the air has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AirCounters {
    /// Links that stand.
    pub links: usize,
    /// Frames that arrived.
    pub carried: u64,
    /// Frames that did not: lost by chance, too large, too many, or their link went.
    pub lost: u64,
}

enum Said {
    /// A radio has connected and given its name.
    Joined {
        name: String,
        records: mpsc::Sender<ToRadio>,
        number: u64,
    },
    Record {
        name: String,
        record: ToField,
    },
    Gone {
        name: String,
        number: u64,
    },
}

impl AirServer {
    /// Opens a field; its time begins now.
    ///
    /// # Errors
    ///
    /// The address is in use or may not be bound.
    pub async fn open(address: &StreamAddress, scenario: Scenario) -> io::Result<Self> {
        let listener = address.listen().await?;
        let address = listener.address()?;
        let (said, hear) = mpsc::channel(TO_FIELD);
        let (report, counters) = watch::channel(AirCounters::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, said));
        tasks.spawn(run(Medium::new(scenario), hear, report));
        Ok(Self { address, counters, tasks })
    }

    /// Where radios join, with the port that the system chose.
    pub fn address(&self) -> &StreamAddress {
        &self.address
    }

    /// What the air has done so far.
    pub fn counters(&self) -> AirCounters {
        *self.counters.borrow()
    }

    /// Ends the field; all radios lose their links.
    pub async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}

/// The loop that owns the field: feeds it and passes on what it says.
async fn run(
    mut medium: Medium,
    mut hear: mpsc::Receiver<Said>,
    report: watch::Sender<AirCounters>,
) {
    let start = Instant::now();
    let mut radios: BTreeMap<String, (u64, mpsc::Sender<ToRadio>)> = BTreeMap::new();
    loop {
        let said = tokio::select! {
            said = hear.recv() => match said {
                Some(said) => Some(said),
                None => return,
            },
            () = sleep_until(start + medium.next_deadline()) => None,
        };
        let now = start.elapsed();
        match said {
            Some(Said::Joined { name, records, number }) => {
                // Whoever is refused is told why, and sees its stream end.
                match medium.join(&name) {
                    Ok(()) => {
                        let _ = records.try_send(ToRadio::Joined);
                        radios.insert(name, (number, records));
                    }
                    Err(reason) => drop(records.try_send(ToRadio::Refused { reason })),
                }
            }
            Some(Said::Record { name, record: ToField::Frame { link, bytes } }) => {
                medium.frame(now, &name, link, bytes);
            }
            Some(Said::Record { name, record: ToField::Close { link } }) => {
                medium.disconnect(now, &name, link);
            }
            Some(Said::Gone { name, number }) => {
                if radios.get(&name).is_some_and(|(other, _)| *other == number) {
                    radios.remove(&name);
                    medium.leave(&name);
                }
            }
            Some(Said::Record { record: ToField::Join { .. }, .. }) | None => {}
        }
        let out: Vec<_> = medium.advance(now).collect();
        for (name, record) in out {
            let behind = radios.get(&name).is_some_and(|(_, to)| to.try_send(record).is_err());
            if behind {
                radios.remove(&name);
                medium.leave(&name);
            }
        }
        report.send_replace(medium.counters());
    }
}

async fn accept(listener: Listener, said: mpsc::Sender<Said>) {
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(RADIOS));
    for number in 0.. {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let Ok(connection) = listener.accept().await else { continue };
        let said = said.clone();
        connections.spawn(async move {
            serve(connection, said, number).await;
            drop(permit);
        });
    }
}

/// One radio: its name first, then records both ways.
async fn serve(connection: Connection, said: mpsc::Sender<Said>, number: u64) {
    let (mut reader, mut writer) = connection.split();
    let first = read(&mut reader, MAX_RECORD).await.ok();
    let Some(ToField::Join { name }) = first.and_then(|record| ToField::decode(&record)) else {
        return;
    };
    let (records, mut waiting) = mpsc::channel(TO_RADIO);
    if said.send(Said::Joined { name: name.clone(), records, number }).await.is_err() {
        return;
    }
    let read = async {
        while let Ok(record) = read(&mut reader, MAX_RECORD).await {
            let Some(record) = ToField::decode(&record) else { return };
            if said.send(Said::Record { name: name.clone(), record }).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some(record) = waiting.recv().await {
            if write(&mut writer, &record.encode()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
    // The field may have ended first.
    let _ = said.send(Said::Gone { name, number }).await;
}
