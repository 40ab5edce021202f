//! The document of the API: checked in as it is served, and complete.

#![expect(clippy::unwrap_used, reason = "what a test cannot go on without")]

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

#[test]
fn the_document_checked_in_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/gateway.json");
    let kept = fs::read_to_string(&path).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert!(kept == document(), "openapi/gateway.json is stale: run ./dev fix");
}

#[test]
fn every_operation_has_a_name_of_its_own_a_known_tag_and_words_for_failure() {
    let document = document();
    let tags: BTreeSet<&str> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| tag["name"].as_str().unwrap())
        .collect();
    let mut names = BTreeSet::new();
    for (path, method, operation) in operations(&document) {
        let name = operation["operationId"].as_str().unwrap_or_default();
        assert!(!name.is_empty(), "{method} {path} has no name");
        assert!(names.insert(name), "two operations are called {name}");
        for tag in operation["tags"].as_array().unwrap() {
            assert!(tags.contains(tag.as_str().unwrap()), "{name} has the unknown tag {tag}");
        }
        let responses = operation["responses"].as_object().unwrap();
        let speaks_for_itself = ["/", "/health", "/api/betanet/health"].contains(&path.as_str());
        for range in ["4XX", "5XX"] {
            let told =
                speaks_for_itself || responses.keys().any(|status| status.starts_with(&range[..1]));
            assert!(told, "{name} does not say how it answers {range}");
        }
    }
    assert!(names.len() > 10, "{names:?}");
}

#[test]
fn errors_look_as_their_surface_has_them() {
    let document = document();
    for (path, method, operation) in operations(&document) {
        let (media, schema) = if path.starts_with("/api/") {
            ("application/json", "#/components/schemas/Detail")
        } else {
            ("application/problem+json", "#/components/schemas/Problem")
        };
        for (status, response) in operation["responses"].as_object().unwrap() {
            if !status.starts_with(['4', '5']) {
                continue;
            }
            let shown = response["content"][media]["schema"]["$ref"].as_str();
            assert_eq!(shown, Some(schema), "{method} {path} {status}");
        }
    }
}

fn document() -> Value {
    serde_json::to_value(fieldpost_gateway::http::openapi()).unwrap()
}

fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    document["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods
            .filter(|(method, _)| *method != "parameters")
            .map(move |(method, operation)| (path, method, operation))
    })
}
