//! What making a link costs: TCP, TLS 1.3, HTTP/2, the ticket, the page, Noise and ML-KEM.

use std::{sync::Arc, time::Duration};

use fieldpost_envelope::Timestamp;
use fieldpost_mixnet::htx::{
    Action, BucketLimits, Capabilities, CarrierPolicy, Gate, SecretKey, Settings, TicketKey,
};
use fieldpost_transport::htx::{
    Clock, Decoy, Dialer, ForgetfulRng, Front, FrontOptions, LinkEnd, Target, Template,
    client_tls_of_relays, server_tls,
};
use rand::{SeedableRng, rngs::StdRng};
use rustls::pki_types::PrivateKeyDer;
use tokio::{net::TcpListener, runtime::Builder, sync::watch, time::sleep};

/// Both sides' processor time for one link, until it is up and until it is closed again, each in time
/// and in floors: the medians of some runs of twenty links each. Both sides and nothing else are on
/// this thread.
pub(crate) fn processor_time(runs: usize) -> [(Duration, f64); 2] {
    let own = std::fs::read_link("/proc/thread-self").expect("Linux");
    let statistics = format!("/proc/{}/schedstat", own.display());
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let certificate = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("one");
        let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).expect("a key");
        let chain = vec![certificate.cert.der().clone()];
        let mut rng = StdRng::seed_from_u64(1);
        let limits = BucketLimits { burst: 1_000_000, ..BucketLimits::default() };
        let (secret, noise) = (SecretKey::from_bytes(&[7; 32]), SecretKey::from_bytes(&[3; 32]));
        let ticket = TicketKey { id: *b"frontkey", public: *secret.public() };
        let mut gate = Gate::new(&mut rng, limits);
        gate.add_key(ticket.id, secret);
        let carriers = CarrierPolicy::draw(&mut rng);
        let clock: Clock = Arc::new(|| Timestamp::try_from(1_800_000_000_000).expect("a time"));
        let settings = || Settings { cover: false, ..Settings::default() };
        let (front, mut links_of_front) = Front::new(FrontOptions {
            tls: server_tls(chain, key).expect("a good key"),
            decoy: Decoy::built_in("Site"),
            gate,
            carriers: carriers.clone(),
            key: noise.clone(),
            settings: settings(),
            clock: Arc::clone(&clock),
            rng: ForgetfulRng::from_rng(&mut rng),
            connections: 64,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = Target {
            address: listener.local_addr().expect("it is bound"),
            server_name: NAME.into(),
            noise: *noise.public(),
            ticket,
            carriers,
            capabilities: Capabilities::default(),
        };
        let stop = watch::Sender::new(false);
        tokio::spawn(front.serve(listener, stop.subscribe()));
        let dialer = Dialer {
            tls: client_tls_of_relays().expect("ring"),
            template: Template::default(),
            settings: settings(),
            identity: Some(SecretKey::from_bytes(&[4; 32])),
            clock,
        };
        let mut up = Times::default();
        let mut closed = Times::default();
        for _ in 0..runs {
            let before = super::floor();
            let began = super::processor_time(&statistics);
            let mut links = Vec::new();
            for _ in 0..EACH {
                let rng = StdRng::from_rng(&mut rng);
                let mut near = dialer.dial(&target, rng).await.expect("a link");
                let mut far = links_of_front.recv().await.expect("its other end");
                established(&mut near).await;
                established(&mut far).await;
                links.push((near, far));
            }
            let took = super::processor_time(&statistics) - began;
            for (near, far) in links {
                near.close().await;
                far.close().await;
            }
            // The connections below the links end after them.
            sleep(Duration::from_millis(20)).await;
            let and_closed = super::processor_time(&statistics) - began;
            let floor = (before + super::floor()) / 2;
            up.add(took / EACH, floor);
            closed.add(and_closed / EACH, floor);
        }
        stop.send_replace(true);
        [up.median(), closed.median()]
    })
}

#[derive(Default)]
struct Times {
    times: Vec<Duration>,
    ratios: Vec<f64>,
}

impl Times {
    fn add(&mut self, time: Duration, floor: Duration) {
        self.times.push(time);
        self.ratios.push(time.as_secs_f64() / floor.as_secs_f64());
    }

    fn median(mut self) -> (Duration, f64) {
        self.times.sort();
        self.ratios.sort_by(f64::total_cmp);
        (self.times[self.times.len() / 2], self.ratios[self.ratios.len() / 2])
    }
}

async fn established(end: &mut LinkEnd) {
    let first = end.next().await;
    assert!(matches!(first, Some(Action::Established { .. })), "{first:?}");
}

const NAME: &str = "front.example";
const EACH: u32 = 20;
