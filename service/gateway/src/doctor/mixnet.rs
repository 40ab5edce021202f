//! The mixnet: the relay directory, signers' keys, epoch secrets, and where links come in.

use std::{fs, net::TcpListener, os::unix::fs::MetadataExt, path::Path};

use fieldpost_envelope::Timestamp;

use super::{Finding, network};
use crate::{
    clock::Clock,
    config::Config,
    directory::{self, Folder},
    transports::Site,
};

pub(super) fn examine(config: &Config) -> Vec<Finding> {
    let htx = &config.htx;
    if !config.transports().any(|name| name == "htx") {
        return vec![Finding::info("relays", "--transports leaves out htx: no relay is used")];
    }
    let Some(path) = &htx.directory else {
        return vec![Finding::info(
            "relays",
            "no relay directory is given (--directory): the mixnet is not used",
        )];
    };
    let mut findings = match Folder::open(path) {
        Ok(folder) => {
            let mut findings = vec![relays(&folder, Clock::default().now().into())];
            if !htx.directory_key.is_empty() {
                findings.push(match directory::keys(&folder, &htx.directory_key) {
                    Ok(keys) => Finding::ok("directory keys", format!("{} can sign", keys.len())),
                    Err(error) => Finding::failure(
                        "directory keys",
                        format!("{error:#}"),
                        "give the keys that `fieldpost directory init` made for this directory",
                    ),
                });
            }
            findings
        }
        Err(error) => vec![Finding::failure(
            "relays",
            format!("{error:#}"),
            "correct --directory: the htx transport waits until it is there",
        )],
    };
    findings.extend(htx.listen().map(|listen| match TcpListener::bind(listen) {
        Ok(_) => Finding::ok("relay listen", format!("{listen} is free")),
        Err(error) => Finding::warning(
            "relay listen",
            format!("cannot listen on {listen}: {error}"),
            "well if this gateway runs already, else end who has it or change --relay-listen",
        ),
    }));
    if htx.listen().is_some() {
        findings.push(match Site::read(htx) {
            Ok(_) => Finding::ok("relay site", "its certificate, key and pages can be used"),
            Err(error) => network::unusable("relay site", &error),
        });
    }
    findings.extend(config.secrets_dir.as_deref().map(secrets));
    findings
}

/// What the newest document says, and whether it is believed.
fn relays(folder: &Folder, now: Timestamp) -> Finding {
    let Some(newest) = folder.documents().load().pop() else {
        return Finding::warning(
            "relays",
            format!("{} has no document yet", folder.path().display()),
            "start relays with --directory, and see that a signer runs: fieldpost directory sign",
        );
    };
    let authority = folder.authority();
    let document = match newest.verify(authority) {
        Ok(document) => document,
        Err(error) => {
            return Finding::failure(
                "relays",
                format!("the newest document is not believed: {error}"),
                "take documents/ anew from whoever runs the network",
            );
        }
    };
    let relaying = document.relays().iter().filter(|it| it.descriptor().relays).count();
    let shown = format!("{relaying} in document {}, for epoch {}", document.number, document.epoch);
    let current = authority.clock().epoch_at(now);
    if document.epoch < current {
        return Finding::warning(
            "relays",
            format!("{shown}, which is over: it is {current} now"),
            "a gateway takes newer ones from its relays; where that does not help, see that a signer \
             runs",
        );
    }
    Finding::ok("relays", shown)
}

fn secrets(path: &Path) -> Finding {
    match fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => Finding::failure(
            "secrets",
            format!("{} is open to others (mode {:o})", path.display(), metadata.mode() & 0o777),
            "chmod 700 it",
        ),
        Ok(_) => Finding::ok("secrets", format!("{} is ours alone", path.display())),
        Err(_) => Finding::info("secrets", format!("{} will be made", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_directory_that_is_not_there_is_a_failure_and_none_is_no_matter() {
        let verdicts = |options: &[&str]| -> Vec<_> {
            let config = Config::from_options(options).unwrap();
            examine(&config).into_iter().map(|finding| (finding.name, finding.verdict)).collect()
        };
        assert_eq!(verdicts(&[]), [("relays", Verdict::Info)]);
        assert_eq!(verdicts(&["--transports=mesh"]), [("relays", Verdict::Info)]);
        let nowhere = ["--directory=/nowhere/net", "--relay-listen=127.0.0.1:0"];
        assert_eq!(
            verdicts(&nowhere),
            [
                ("relays", Verdict::Failure),
                ("relay listen", Verdict::Ok),
                ("relay site", Verdict::Ok)
            ]
        );
    }

    #[test]
    fn files_of_the_web_site_are_looked_at() {
        let options = ["--directory=/nowhere/net", "--relay-listen=127.0.0.1:0"];
        for (files, said) in [
            (&["--decoy=/nowhere/site"][..], "--decoy cannot be shown: /nowhere/site"),
            (&["--relay-cert=/nowhere/c", "--relay-key=/nowhere/k"], "--relay-cert /nowhere/c"),
        ] {
            let config = Config::from_options([&options[..], files].concat()).unwrap();
            let finding = examine(&config).pop().unwrap();
            assert_eq!((finding.name, finding.verdict), ("relay site", Verdict::Failure));
            assert!(finding.detail.contains(said), "{finding:?}");
        }
    }
}
