//! The workspace keeps the shape that `service/ARCHITECTURE.md` promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// Protocol cores and the words they share: no I/O, no clock, no database, not each other.
const CORES: [&str; 5] = [
    "fieldpost-bitchat",
    "fieldpost-delivery",
    "fieldpost-envelope",
    "fieldpost-mixnet",
    "fieldpost-peering",
];
/// What would bring I/O into a core.
const IO: [&str; 7] = ["tokio", "mio", "socket2", "async-std", "smol", "sqlx", "sqlx-core"];
/// Who may depend on whom inside the workspace, at most.
const ARROWS: [(&str, &[&str]); 7] = [
    ("fieldpost-bitchat", &["fieldpost-envelope"]),
    ("fieldpost-delivery", &["fieldpost-envelope"]),
    ("fieldpost-envelope", &[]),
    ("fieldpost-mixnet", &["fieldpost-envelope"]),
    ("fieldpost-peering", &["fieldpost-envelope"]),
    (
        "fieldpost-transport",
        &["fieldpost-bitchat", "fieldpost-envelope", "fieldpost-mixnet", "fieldpost-peering"],
    ),
    ("fieldpost-gateway", &["fieldpost-delivery", "fieldpost-envelope", "fieldpost-transport"]),
];

#[test]
fn cores_are_free_of_io_and_of_each_other() {
    let graph = dependencies();
    for core in CORES {
        let tree = reachable(&graph, core);
        assert!(tree.len() > 3, "{core} has a dependency tree");
        for banned in IO {
            assert!(!tree.contains(banned), "{core} must not depend on {banned}");
        }
        for other in CORES.iter().filter(|other| **other != core && **other != "fieldpost-envelope")
        {
            assert!(!tree.contains(*other), "{core} must not depend on {other}");
        }
    }
}

#[test]
fn crates_import_each_other_only_along_the_arrows() {
    let graph = dependencies();
    for (name, allowed) in ARROWS {
        let ours = graph[name].iter().filter(|other| other.starts_with("fieldpost-"));
        for other in ours {
            assert!(allowed.contains(&other.as_str()), "{name} must not depend on {other}");
        }
    }
    let known: BTreeSet<&str> =
        ARROWS.iter().map(|(name, _)| *name).chain(["fieldpost-tests"]).collect();
    let members = graph.keys().filter(|name| name.starts_with("fieldpost-"));
    for member in members {
        assert!(known.contains(member.as_str()), "{member} is new: say here what it may import");
    }
}

/// Each package with what it needs to run; what only its tests or its build need is left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let names: BTreeMap<String, String> = list(&metadata["packages"])
        .iter()
        .map(|package| (text(&package["id"]), text(&package["name"])))
        .collect();
    list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let needed = list(&node["deps"])
                .iter()
                .filter(|dependency| {
                    list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null())
                })
                .map(|dependency| names[&text(&dependency["pkg"])].clone())
                .collect();
            (names[&text(&node["id"])].clone(), needed)
        })
        .collect()
}

fn reachable<'a>(
    graph: &'a BTreeMap<String, BTreeSet<String>>,
    from: &'a str,
) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::from([from]);
    let mut waiting = vec![from];
    while let Some(name) = waiting.pop() {
        for next in graph.get(name).into_iter().flatten() {
            if seen.insert(next) {
                waiting.push(next);
            }
        }
    }
    seen
}
