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
use tokio::{net::TcpListener, runtime::Builder, sync::watch};

/// Both sides' processor time for one link, in time and in floors: the medians of some runs of
/// twenty links each. Both sides and nothing else are on this thread.
pub(crate) fn processor_time(runs: usize) -> (Duration, f64) {
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
        let (front, mut links) = Front::new(FrontOptions {
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
        let (mut times, mut ratios) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let before = super::floor();
            let began = super::processor_time(&statistics);
            for _ in 0..EACH {
                let rng = StdRng::from_rng(&mut rng);
                let mut near = dialer.dial(&target, rng).await.expect("a link");
                let mut far = links.recv().await.expect("its other end");
                established(&mut near).await;
                established(&mut far).await;
                near.close().await;
                far.close().await;
            }
            let took = (super::processor_time(&statistics) - began) / EACH;
            times.push(took);
            ratios.push(took.as_secs_f64() / ((before + super::floor()) / 2).as_secs_f64());
        }
        stop.send_replace(true);
        times.sort();
        ratios.sort_by(f64::total_cmp);
        (times[times.len() / 2], ratios[ratios.len() / 2])
    })
}

async fn established(end: &mut LinkEnd) {
    let first = end.next().await;
    assert!(matches!(first, Some(Action::Established { .. })), "{first:?}");
}

const NAME: &str = "front.example";
const EACH: u32 = 20;
