//! A load generator that costs little: prepared requests over plain sockets, answers read only as
//! far as their length.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};

use crate::measure::{Cpu, Measured, cpu_of};

/// What a run came to.
pub(crate) struct Outcome {
    pub(crate) answered: u64,
    pub(crate) refused: u64,
    pub(crate) elapsed: Duration,
    /// The server's processor time in between.
    pub(crate) server: Cpu,
    /// This process's.
    pub(crate) generator: Duration,
    pub(crate) latency: Measured,
}

impl Outcome {
    pub(crate) fn rate(&self) -> f64 {
        self.answered as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds of the server's processor time for one answer.
    pub(crate) fn cpu_micros(&self) -> f64 {
        self.server.all().as_secs_f64() * 1e6 / self.answered.max(1) as f64
    }

    /// Which side was busier.
    pub(crate) fn bottleneck(&self) -> String {
        let share = |time: Duration| 100.0 * time.as_secs_f64() / self.elapsed.as_secs_f64();
        format!(
            "gateway {:.0} %, database {:.0} %, load {:.0} % of a core",
            share(self.server.own),
            share(self.server.descendants),
            share(self.generator),
        )
    }
}

/// Posts over `connections` for `duration`, one request at a time on each. `requests` makes those of
/// a connection, which it sends in turn.
pub(crate) async fn post(
    address: SocketAddr,
    server_pid: u32,
    connections: usize,
    duration: Duration,
    requests: impl Fn(usize) -> Vec<Vec<u8>>,
) -> Outcome {
    let mut streams = Vec::new();
    for number in 0..connections {
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a socket option");
        streams.push((stream, requests(number)));
    }
    let (server, generator) = (cpu_of(server_pid), cpu_of(std::process::id()).own);
    let begin = Instant::now();
    let end = begin + duration;
    let mut tasks = JoinSet::new();
    for (stream, requests) in streams {
        tasks.spawn(one_connection(stream, requests, end));
    }
    let mut outcome = Outcome {
        answered: 0,
        refused: 0,
        elapsed: Duration::ZERO,
        server: Cpu::default(),
        generator: Duration::ZERO,
        latency: Measured::default(),
    };
    while let Some(connection) = tasks.join_next().await {
        let (latencies, refused) = connection.expect("no connection panics");
        outcome.answered += latencies.len() as u64;
        outcome.refused += refused;
        latencies.into_iter().for_each(|latency| outcome.latency.add(latency));
    }
    outcome.elapsed = begin.elapsed();
    outcome.server = cpu_of(server_pid).since(server);
    outcome.generator = cpu_of(std::process::id()).own.saturating_sub(generator);
    outcome
}

/// One connection for requests one after the other.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, buffer: vec![0; 8192] }
    }

    /// Posts a prepared request that has to succeed.
    pub(crate) async fn post(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.expect("the gateway reads");
        let status = read_answer(&mut self.stream, &mut self.buffer).await;
        assert!((200..300).contains(&status), "answered {status}");
    }
}

async fn one_connection(
    mut stream: TcpStream,
    requests: Vec<Vec<u8>>,
    end: Instant,
) -> (Vec<Duration>, u64) {
    let (mut latencies, mut refused) = (Vec::new(), 0);
    let mut buffer = vec![0; 8192];
    for request in requests.iter().cycle() {
        let begin = Instant::now();
        if begin >= end {
            break;
        }
        stream.write_all(request).await.expect("the gateway reads");
        let status = read_answer(&mut stream, &mut buffer).await;
        match status {
            200..300 => latencies.push(begin.elapsed()),
            _ => refused += 1,
        }
    }
    (latencies, refused)
}

/// Reads one answer and returns its status.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> u16 {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).await.expect("the gateway answers");
        assert!(read > 0, "the gateway closed the connection");
        filled += read;
        let Some(head) = find(&buffer[..filled], b"\r\n\r\n") else { continue };
        let length = find(&buffer[..head], b"content-length: ").map_or(0, |at| {
            buffer[at + 16..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .fold(0, |length, digit| length * 10 + usize::from(digit - b'0'))
        });
        while filled < head + 4 + length {
            let read = stream.read(&mut buffer[filled..]).await.expect("the gateway answers");
            assert!(read > 0, "the gateway closed the connection");
            filled += read;
        }
        let digits = std::str::from_utf8(&buffer[9..12]).expect("a status line");
        return digits.parse().expect("a status");
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// One POST with a bearer token.
pub(crate) fn request(path: &str, token: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
