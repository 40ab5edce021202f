//! Whatever comes in, the gateway answers that the request is wrong, or does what it asks: it never
//! fails, never shows SQL, and goes on (design, section 12).
//!
//! The routes and their fields are those of `openapi/gateway.json`, so a new route is tried as soon
//! as it is documented. The seed of the random part is printed; `FIELDPOST_PROVE_SEED` repeats it.

use std::{fs, time::Duration};

use futures_util::{SinkExt, StreamExt, stream};
use harness::{Client, Gateway, Options, client::Draft, seed, setting};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::{Method, RequestBuilder, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{
        Bytes, Message,
        client::IntoClientRequest,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};
use uuid::Uuid;

/// Larger than any body or frame may be.
const OVERSIZED: usize = 3 << 20;
/// Requests under way at once.
const AT_ONCE: usize = 16;
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Below the number of malformed frames that a socket forgives.
const FRAMES_A_SOCKET: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_bad_fields_and_parameters() {
    let stage = Stage::set().await;
    let mut requests = Vec::new();
    for route in &stage.routes {
        for parameter in &route.parameters {
            for text in bad_texts() {
                requests.push(route.request(&[(parameter, &text)], route.body.clone()));
            }
        }
        for field in &route.fields {
            for value in bad_values() {
                let body = route.body_with(&[(field, value)]);
                requests.push(route.request(&[], Some(body)));
            }
        }
    }
    println!("{} requests on {} routes", requests.len(), stage.routes.len());
    stage.try_all(requests).await;
    stage.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_refuses_bad_bodies() {
    let stage = Stage::set().await;
    let mut requests = Vec::new();
    for route in &stage.routes {
        for body in bad_bodies() {
            // Those that take none read none, whatever it says it is.
            let kinds = if route.takes_body { &BODY_KINDS[..] } else { &BODY_KINDS[..1] };
            for kind in kinds {
                let request = route.request(&[], None);
                requests.push(Request { raw: Some((*kind, body.clone())), ..request });
            }
        }
    }
    println!("{} requests on {} routes", requests.len(), stage.routes.len());
    stage.try_all(requests).await;
    stage.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_body_is_refused_by_every_route_that_takes_one() {
    let stage = Stage::set().await;
    for route in stage.routes.iter().filter(|route| !route.fields.is_empty()) {
        for field in route.fields.iter().take(2) {
            let body = route.body_with(&[(field, json!("x".repeat(OVERSIZED)))]);
            let request = route.request(&[], Some(body));
            let (status, answer) = stage.answer(&request).await;
            // A route may refuse its caller before it reads what the caller says.
            assert!(matches!(status, 400..=499), "{request:?}: {status}: {answer}");
        }
    }
    stage.is_well().await;
}

/// Several fields and parameters at once, which no list foresees.
#[tokio::test(flavor = "multi_thread")]
async fn random_mixtures_are_answered() {
    let stage = Stage::set().await;
    let seed = seed();
    println!("FIELDPOST_PROVE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let requests = (0..setting("CASES", 1000)).map(|_| {
        let route = stage.routes.choose(&mut rng).expect("there are routes");
        let texts: Vec<_> = (route.parameters.iter())
            .filter_map(|parameter| match rng.random_bool(0.3) {
                true => Some((parameter, noise(&mut rng))),
                false => None,
            })
            .collect();
        let texts: Vec<_> = texts.iter().map(|(name, text)| (*name, text)).collect();
        let values = bad_values();
        let fields: Vec<_> = (route.fields.iter())
            .filter_map(|field| {
                let value = match rng.random_range(0..6) {
                    0 => json!(noise(&mut rng)),
                    1 | 2 => values.choose(&mut rng)?.clone(),
                    _ => return None,
                };
                Some((field, value))
            })
            .collect();
        let body = (!fields.is_empty()).then(|| route.body_with(&fields));
        route.request(&texts, body.or_else(|| route.body.clone()))
    });
    stage.try_all(requests.collect()).await;
    stage.is_well().await;
}

/// What no HTTP library would send.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_do_no_harm() {
    let stage = Stage::set().await;
    let address = stage.gateway.url().trim_start_matches("http://").to_owned();
    let host = format!("Host: {address}\r\n");
    let requests: [&[u8]; 12] = [
        b"\0\0\0\0\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"GET /v1/peers/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/peers?peer=\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/inbox HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        b"GET /v1/inbox HTTP/1.1\r\nHost: \0\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\0\r\n",
        b"POST /v1/messages HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for request in requests {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let text = String::from_utf8_lossy(request).into_owned();
        let text = text.replace("Host: x\r\n", &host);
        let sent = if text.contains('\u{fffd}') { request.to_vec() } else { text.into_bytes() };
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The connection may be cut while we write.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends in time");
        let line = String::from_utf8_lossy(answer.split(|byte| *byte == b'\r').next().unwrap());
        let status = line.split(' ').nth(1).unwrap_or("400");
        // 505 is the answer to a version that nobody speaks.
        assert!(status.starts_with('4') || status == "505", "{sent:?}: {line}");
    }
    stage.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_frame_refuses_bad_fields() {
    let stage = Stage::set().await;
    for (path, dialect) in
        [("/v1/ws", &V1_FRAMES[..]), ("/api/bitchat/ws/alice", &BITCHAT_FRAMES[..])]
    {
        let mut frames: Vec<Message> = bad_bodies()
            .into_iter()
            .filter(|body| body.len() < OVERSIZED)
            .flat_map(|body| {
                let text = String::from_utf8(body.clone()).ok().map(Message::text);
                text.into_iter().chain([Message::binary(body)])
            })
            .collect();
        for frame in dialect {
            let frame: Value = serde_json::from_str(frame).unwrap();
            for field in frame.as_object().unwrap().keys() {
                for value in bad_values() {
                    let mut frame = frame.clone();
                    frame[field] = value;
                    frames.push(Message::text(frame.to_string()));
                }
            }
        }
        println!("{} frames on {path}", frames.len());
        for frames in frames.chunks(FRAMES_A_SOCKET) {
            let mut socket = Wire::open(&stage, path).await;
            for frame in frames {
                if socket.tell(frame.clone()).await.is_some() {
                    // It took the frame for no client's; that is an answer.
                    socket = Wire::open(&stage, path).await;
                }
            }
        }
    }
    stage.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_too_large_or_no_text_closes_its_socket() {
    let stage = Stage::set().await;
    for path in ["/v1/ws", "/api/bitchat/ws/alice"] {
        let large = Message::text(format!(r#"{{"type":"{}"}}"#, "x".repeat(OVERSIZED)));
        let code = Wire::open(&stage, path).await.tell(large).await;
        // The connection may be cut before the code is read.
        assert!(matches!(code, Some(None | Some(1009))), "{path}: {code:?}");

        let broken = Bytes::from_static(b"{\"type\":\"\xff\xfe\"}");
        let broken = Frame::message(broken, OpCode::Data(Data::Text), true);
        let code = Wire::open(&stage, path).await.tell(Message::Frame(broken)).await;
        assert!(matches!(code, Some(None | Some(1002 | 1003 | 1007 | 1008))), "{path}: {code:?}");
    }
    stage.is_well().await;
}

const V1_FRAMES: [&str; 4] = [
    r#"{"type":"send","ref":1,"to":"bob","content":"x","content_base64":null,"message_id":null,
        "from":"alice","content_type":"text/plain","message_type":"note","metadata":{"a":1},
        "file_ids":[],"ttl":60,"priority":"normal","requires_privacy":false,"min_anonymity":0,
        "transport_preference":null,"transport_required":null,"parallel":false,
        "allow_unknown":false}"#,
    r#"{"type":"ack","ref":1,"up_to":1}"#,
    r#"{"type":"read","message_ids":["0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12"]}"#,
    r#"{"type":"ping","ref":{"deep":[1]}}"#,
];
const BITCHAT_FRAMES: [&str; 2] = [
    r#"{"type":"ack","message_id":"0199f6a2-7c1e-7b3a-9d55-0a4b6c8d0e12"}"#,
    r#"{"type":"ping","timestamp":"2026-11-23T09:00:00Z"}"#,
];

const BODY_KINDS: [&str; 4] =
    ["application/json", "multipart/form-data; boundary=x", "text/plain", ""];

/// Texts for a path or a query, as they stand in the URL.
fn bad_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        "%00",
        "a%00b",
        "%FF%FE",
        "%C3%28",
        "%F0%9F%92%A5",
        "-1",
        "0",
        "1.5",
        "1e308",
        "NaN",
        "99999999999999999999",
        "-9223372036854775809",
        "9223372036854775807",
        "null",
        "true",
        "'%20or%201=1--",
        "%2e%2e%2f",
        "%0d%0aX:%20y",
        "group:",
        "group:nobody",
        "broadcast",
        "alice@",
        "@",
        "0123456789abcdef",
        "nobody-here",
        "[]",
        "{}",
        "AAAAAAAAAAAAAAAA",
        "________________________________",
        "f__________AAAAAAAAAAAAAAAAAAAAA",
    ]
    .map(str::to_owned)
    .into();
    texts.extend([
        // A cursor of a time that Postgres does not know.
        "0".repeat(32),
        Uuid::new_v4().to_string(),
        Uuid::new_v4().simple().to_string(),
        Uuid::nil().to_string(),
        "a".repeat(129),
        "7".repeat(400),
        "%F0%9F%92%A5".repeat(300),
    ]);
    texts
}

/// Values for a field.
fn bad_values() -> Vec<Value> {
    let mut deep = json!(0);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(12.0),
        json!(1e308),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(""),
        json!("\0"),
        json!("a\0b"),
        json!("\u{202e}\u{feff}💥"),
        json!("' or 1=1 --"),
        json!("../../etc"),
        json!("broadcast"),
        json!("group:\0"),
        json!("nobody-here"),
        json!("bob@"),
        json!("AA=A"),
        json!(Uuid::new_v4()),
        json!(Uuid::new_v4().simple().to_string()),
        json!("é".repeat(3000)),
        json!([]),
        json!([null]),
        json!(["\0", "", -1, {}]),
        json!(vec!["bob"; 2000]),
        json!({}),
        json!({ "\0": "\0", "": null }),
        deep,
    ]
}

/// Bodies and frames that are no JSON object, or hardly one.
fn bad_bodies() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = [
        "",
        " ",
        "\0",
        "null",
        "true",
        "0",
        "-0",
        "1e999",
        "\"text\"",
        "[]",
        "{}",
        "{",
        "}",
        "{\"",
        "{\"a\":}",
        "{\"a\":1,}",
        "[1,2",
        "{\"a\":1}{\"a\":2}",
        "{\"type\":\"\\ud800\"}",
        "{\"\\u0000\":\"\\u0000\"}",
        "\u{feff}{}",
        "--x\r\n\r\n\0\r\n--x--\r\n",
        "--x--",
        "--x\r\nContent-Disposition: form-data; name=\"chunk_data\"\r\n\r\n\r\n--x--\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    bodies.push(b"\xff\xfe\x00".to_vec());
    bodies.push(b"{\"content\":\"\xff\xfe\",\"to\":\"bob\"}".to_vec());
    bodies.push([b"[".repeat(20_000), b"]".repeat(20_000)].concat());
    bodies.push(b"{\"a\":".repeat(20_000));
    bodies
}

/// Text of all kinds of characters, escaped for a URL where it has to be.
fn noise(rng: &mut StdRng) -> String {
    let length = rng.random_range(0..40);
    let mut noise = String::new();
    for _ in 0..length {
        match rng.random_range(0..4) {
            0 => noise.push_str(&format!("%{:02X}", rng.random::<u8>())),
            1 => noise.push(rng.random_range('0'..='9')),
            2 => noise.push(rng.random_range('a'..='z')),
            _ => noise.push(*b"-_.:@~!$'()*+,;="[..].choose(rng).expect("not empty") as char),
        }
    }
    noise
}

/// One operation of the document.
struct Route {
    method: Method,
    path: String,
    parameters: Vec<Parameter>,
    takes_body: bool,
    /// A body that is as it should be, if the operation takes JSON.
    body: Option<Value>,
    /// Where its fields are, two levels deep.
    fields: Vec<Vec<String>>,
}

struct Parameter {
    name: String,
    place: String,
    /// What is right.
    good: Option<String>,
}

#[derive(Clone, Debug)]
struct Request {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Value>,
    raw: Option<(&'static str, Vec<u8>)>,
}

impl Route {
    /// A request with these parameters as they are given, and good ones where a path needs them.
    fn request(&self, given: &[(&Parameter, &String)], body: Option<Value>) -> Request {
        let mut path = self.path.clone();
        let mut query = Vec::new();
        let mut headers = Vec::new();
        for parameter in &self.parameters {
            let given = given.iter().find(|(other, _)| std::ptr::eq(*other, parameter));
            let text = given.map(|(_, text)| (*text).clone());
            match parameter.place.as_str() {
                "path" => {
                    let text = text.or_else(|| parameter.good.clone()).unwrap_or_default();
                    path = path.replace(&format!("{{{}}}", parameter.name), &text);
                }
                "query" => query.extend(text.map(|text| format!("{}={text}", parameter.name))),
                _ => headers.extend(text.map(|text| (parameter.name.clone(), text))),
            }
        }
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
        Request { method: self.method.clone(), path, headers, body, raw: None }
    }

    /// The good body with these fields changed.
    fn body_with(&self, fields: &[(&Vec<String>, Value)]) -> Value {
        let mut body = self.body.clone().unwrap_or_else(|| json!({}));
        for (field, value) in fields {
            let mut place = &mut body;
            for name in *field {
                if !place.is_object() {
                    *place = json!({});
                }
                place = &mut place[name.as_str()];
            }
            *place = value.clone();
        }
        body
    }
}

/// A gateway with two peers who know each other, and what the document says about it.
struct Stage {
    gateway: Gateway,
    alice: Client,
    routes: Vec<Route>,
}

impl Stage {
    async fn set() -> Self {
        // What a test finds must not depend on how fast it is.
        let options = Options::shared().argument("--rate-limit=1000000");
        let gateway = options.argument("--registration-rate-limit=1000000").start().await;
        let alice = gateway.register("alice").await;
        let bob = gateway.register("bob").await;
        let sent = bob.send(&Draft::text("alice", "hello")).await.unwrap();
        let made = |path: &str, body: Value| alice.request(Method::POST, path).json(&body);
        let group = made("/v1/groups", json!({ "name": "bridge", "members": ["bob"] }));
        let group: Value = alice.call(group).await.unwrap();
        let file = made("/v1/files", json!({ "filename": "map.txt", "size_bytes": 3 }));
        let file: Value = alice.call(file).await.unwrap();
        let good = |name: &str| match name {
            "message_id" => Some(sent.message_id.to_string()),
            "group_id" => group["id"].as_str().map(str::to_owned),
            "file_id" => file["id"].as_str().map(str::to_owned),
            "peer_id" | "node_id" | "mixnode_id" => Some("alice".to_owned()),
            "peer" | "other_peer_id" | "name" => Some("bob".to_owned()),
            "index" | "chunk_index" => Some("0".to_owned()),
            _ => None,
        };
        let routes = read_routes(good);
        assert!(routes.len() > 50, "the document has {} operations", routes.len());
        Self { gateway, alice, routes }
    }

    fn build(&self, request: &Request) -> RequestBuilder {
        let mut built = self.alice.request(request.method.clone(), &request.path);
        built = built.timeout(PATIENCE);
        for (name, value) in &request.headers {
            built = built.header(name, value);
        }
        if let Some((kind, body)) = &request.raw {
            if !kind.is_empty() {
                built = built.header(header::CONTENT_TYPE, *kind);
            }
            return built.body(body.clone());
        }
        match &request.body {
            Some(body) => built.json(body),
            None => built,
        }
    }

    async fn answer(&self, request: &Request) -> (u16, String) {
        let answer = self.build(request).send().await;
        let answer = answer.unwrap_or_else(|error| panic!("{request:?}: no answer: {error:?}"));
        let status = answer.status().as_u16();
        let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
        let body = answer.bytes().await.expect("an answer has a body");
        let body = String::from_utf8_lossy(&body).into_owned();
        judge(&format!("{request:.400?}"), status, &body);
        if status >= 400 {
            let expected = match request.path.starts_with("/api/") {
                true => "application/json",
                false => "application/problem+json",
            };
            assert_eq!(kind.unwrap(), expected, "{request:.400?}: {body}");
            let answer: Value = serde_json::from_str(&body).expect("refusals are JSON");
            assert!(!answer["detail"].is_null(), "{request:.400?}: {body}");
        }
        (status, body)
    }

    async fn try_all(&self, requests: Vec<Request>) {
        let answers = stream::iter(requests)
            .map(|request| async move { self.answer(&request).await.0 })
            .buffer_unordered(AT_ONCE);
        let statuses: Vec<u16> = answers.collect().await;
        let refused = statuses.iter().filter(|status| **status >= 400).count();
        println!("{refused} of {} were refused", statuses.len());
        // Else nothing bad was sent.
        assert!(refused * 2 > statuses.len(), "{refused} of {} were refused", statuses.len());
    }

    /// The gateway still does its work, and nothing in its log says that it failed.
    async fn is_well(&self) {
        let carol = self.gateway.register("carol").await;
        carol.send(&Draft::text("carol", "to myself")).await.unwrap();
        let page = carol.poll(None, 5).await.unwrap();
        assert_eq!(page.messages[0].content.as_deref(), Some("to myself"));
        let ready = reqwest::get(format!("{}/readyz", self.gateway.admin_url())).await.unwrap();
        assert!(ready.status().is_success(), "{}", ready.status());
        let log = fs::read_to_string(self.gateway.log_file()).unwrap();
        let wrong = |line: &&str| line.contains("panicked") || line.contains("query failed");
        let wrong: Vec<&str> = log.lines().filter(wrong).take(5).collect();
        assert!(wrong.is_empty(), "the log says: {}", wrong.join("\n"));
    }
}

/// Nothing of what the gateway is made of may show.
fn judge(request: &str, status: u16, body: &str) {
    assert!(status < 500 || matches!(status, 503 | 507), "{request}: {status}: {body}");
    let words =
        ["panicked", "SQLSTATE", "sqlx", "syntax error at", "insert into", "byte sequence for"];
    for word in words {
        assert!(!body.contains(word), "{request}: {status}: {body}");
    }
}

/// A socket and its answers.
struct Wire {
    stream: tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>,
}

impl Wire {
    async fn open(stage: &Stage, path: &str) -> Self {
        let url = format!("{}{path}", stage.gateway.url().replacen("http", "ws", 1));
        let mut request = url.into_client_request().unwrap();
        let token = format!("Bearer {}", stage.alice.token().unwrap());
        request.headers_mut().insert("authorization", token.parse().unwrap());
        Self { stream: connect_async(request).await.unwrap().0 }
    }

    /// Writes a frame and a ping, and reads on to its pong; what comes between must be in order.
    /// `Some` if the socket was closed instead, with the code if it was read.
    async fn tell(&mut self, frame: Message) -> Option<Option<u16>> {
        let told = frame.to_string();
        let told: String = told.chars().take(400).collect();
        // If it is closed meanwhile, that is read below.
        let _ = self.stream.send(frame).await;
        let _ = self.stream.send(Message::text(r#"{"type":"ping","ref":"probe"}"#)).await;
        loop {
            let next = timeout(PATIENCE, self.stream.next()).await;
            match next.unwrap_or_else(|_| panic!("{told}: nothing comes")) {
                Some(Ok(Message::Text(text))) => {
                    let answer: Value = serde_json::from_str(text.as_str()).expect("JSON");
                    if answer["type"] == "pong"
                        && (answer["ref"] == "probe" || answer["ref"].is_null())
                    {
                        return None;
                    }
                    let status = answer["status"].as_u64().unwrap_or(200);
                    judge(&told, u16::try_from(status).unwrap(), text.as_str());
                }
                Some(Ok(Message::Close(close))) => {
                    let code = close.map(|close| close.code.into());
                    assert_ne!(code, Some(1011), "{told}: the gateway failed");
                    return Some(code);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Some(None),
            }
        }
    }
}

fn read_routes(good: impl Fn(&str) -> Option<String>) -> Vec<Route> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../openapi/gateway.json");
    let document: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut routes = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse() else { continue };
            let mut parameters = Vec::new();
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap().to_owned();
                let place = parameter["in"].as_str().unwrap().to_owned();
                let good = good(&name);
                assert!(place != "path" || good.is_some(), "{path}: what is a good {name}?");
                parameters.push(Parameter { name, place, good });
            }
            let content = &operation["requestBody"]["content"]["application/json"];
            let schema = content.get("schema");
            let mut fields = Vec::new();
            if let Some(schema) = schema {
                find_fields(&document, schema, &[], &mut fields);
            }
            let body = schema.map(|schema| match content.get("example") {
                Some(example) => example.clone(),
                None => sample(&document, schema),
            });
            let takes_body = operation.get("requestBody").is_some();
            routes.push(Route { method, path: path.clone(), parameters, takes_body, body, fields });
        }
    }
    routes
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

fn find_fields(document: &Value, schema: &Value, at: &[String], fields: &mut Vec<Vec<String>>) {
    let schema = resolve(document, schema);
    for many in ["allOf", "oneOf", "anyOf"] {
        for part in schema[many].as_array().into_iter().flatten() {
            find_fields(document, part, at, fields);
        }
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let place = [at, std::slice::from_ref(name)].concat();
        if place.len() < 2 {
            find_fields(document, field, &place, fields);
        }
        if !fields.contains(&place) {
            fields.push(place);
        }
    }
}

/// Something that the schema admits: its example, or the least that it asks for.
fn sample(document: &Value, schema: &Value) -> Value {
    let schema = resolve(document, schema);
    if let Some(example) = schema.get("example") {
        return example.clone();
    }
    for many in ["oneOf", "anyOf", "allOf"] {
        if let Some(first) = schema[many].get(0) {
            return sample(document, first);
        }
    }
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind.unwrap_or("object") {
        "object" => {
            let required: Vec<&str> = schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let properties = schema["properties"].as_object().into_iter().flatten();
            properties
                .filter(|(name, _)| required.contains(&name.as_str()))
                .map(|(name, field)| (name.clone(), sample(document, field)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or_else(|| json!(1)),
        "boolean" => json!(true),
        "array" => json!([]),
        _ if schema["format"] == "uuid" => json!(Uuid::new_v4()),
        _ => json!("bob"),
    }
}
