use std::{os::unix::fs::PermissionsExt, sync::Barrier, thread};

use proptest::prelude::*;

use super::*;

#[test]
fn opens_what_it_sealed() {
    let key = master(1);
    let sealed = key.seal("identity", b"peer alice", b"secret").unwrap();
    assert_eq!(sealed.len(), 6 + SEALED_OVERHEAD);
    assert_eq!(key.open("identity", b"peer alice", &sealed).unwrap().as_slice(), b"secret");
}

#[test]
fn refuses_another_purpose_another_row_and_another_key() {
    let key = master(1);
    let sealed = key.seal("identity", b"alice", b"secret").unwrap();
    assert_eq!(key.open("token", b"alice", &sealed).unwrap_err(), OpenError::Rejected);
    assert_eq!(key.open("identity", b"bob", &sealed).unwrap_err(), OpenError::Rejected);
    assert_eq!(master(2).open("identity", b"alice", &sealed).unwrap_err(), OpenError::Rejected);
}

#[test]
fn never_seals_the_same_way_twice() {
    let key = DataKey::generate().unwrap();
    assert_ne!(key.seal(b"", b"hello").unwrap(), key.seal(b"", b"hello").unwrap());
}

#[test]
fn says_how_sealed_bytes_are_broken() {
    let key = DataKey::generate().unwrap();
    let sealed = key.seal(b"", b"").unwrap();
    assert_eq!(key.open(b"", &[]), Err(OpenError::Truncated(0)));
    assert_eq!(key.open(b"", &sealed[..40]), Err(OpenError::Truncated(40)));
    assert_eq!(key.open(b"", &[7; 64]), Err(OpenError::UnknownVersion(7)));
}

#[test]
fn a_data_key_survives_wrapping_under_its_label_alone() {
    let master = master(3);
    let key = DataKey::generate().unwrap();
    let sealed = key.seal(b"message 1", b"content").unwrap();
    let wrapped = key.wrap(&master, "message_2026_11").unwrap();

    let again = DataKey::unwrap(&master, "message_2026_11", &wrapped).unwrap();
    assert_eq!(again.open(b"message 1", &sealed).unwrap(), b"content");
    assert_eq!(
        DataKey::unwrap(&master, "message_2026_12", &wrapped).unwrap_err(),
        OpenError::Rejected
    );
    let short = master.seal(DATA_KEY_PURPOSE, b"x", &[1; 31]).unwrap();
    assert_eq!(DataKey::unwrap(&master, "x", &short).unwrap_err(), OpenError::NotADataKey(31));
}

/// The cipher against the test vector of draft-irtf-cfrg-xchacha-03, appendix A.3.1, so that a
/// change of library or format cannot make stored content unreadable.
#[test]
fn opens_the_published_vector() {
    let key: [u8; 32] = std::array::from_fn(|i| 0x80 + i as u8);
    let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + i as u8);
    let aad = HEXLOWER.decode(b"50515253c0c1c2c3c4c5c6c7").unwrap();
    let body = HEXLOWER
        .decode(
            b"bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb\
              731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452\
              2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
              21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49",
        )
        .unwrap();
    let mut sealed = vec![VERSION];
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&body);
    let opened = open(&cipher(&key), &aad, &sealed).unwrap();
    assert_eq!(
        String::from_utf8(opened).unwrap(),
        "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
         future, sunscreen would be it."
    );
}

proptest! {
    #[test]
    fn any_content_comes_back_and_any_flipped_bit_is_noticed(
        content in prop::collection::vec(any::<u8>(), 0..300),
        aad in prop::collection::vec(any::<u8>(), 0..40),
        at in any::<prop::sample::Index>(),
        bit in 0..8u8,
    ) {
        let key = DataKey::generate().unwrap();
        let mut sealed = key.seal(&aad, &content).unwrap();
        prop_assert_eq!(key.open(&aad, &sealed).unwrap(), content);
        let at = at.index(sealed.len());
        sealed[at] ^= 1 << bit;
        prop_assert!(key.open(&aad, &sealed).is_err());
    }

    #[test]
    fn any_text_is_a_key_or_is_not(text in any::<String>()) {
        let _ = parse_key(&text);
    }
}

#[test]
fn the_check_value_tells_keys_apart() {
    let stored = master(1).check_value();
    master(1).verify_check_value(&stored).unwrap();
    let error = master(2).verify_check_value(&stored).unwrap_err();
    assert!(matches!(error, MasterKeyError::Wrong(Origin::Environment)), "{error}");
    assert!(error.to_string().contains("FIELDPOST_MASTER_KEY"), "{error}");
    master(1).verify_check_value(&stored[..31]).unwrap_err();
}

#[test]
fn debug_shows_no_key() {
    let key = master(0xAB);
    let shown = format!("{key:?} {:?} {:?}", DataKey::new(key.derive("x", "y")), source(0xAB));
    for leak in ["ab", "AB", "171"] {
        assert!(!shown.contains(leak), "{shown}");
    }
}

#[test]
fn reads_hex_and_both_kinds_of_base64() {
    let hex = "fb".repeat(32);
    let expected = parse_key(&hex).unwrap();
    assert_eq!(**expected, [0xFB; 32]);
    for text in [
        format!("  {}\n", hex.to_uppercase()),
        format!("# a comment\n\n{hex}\n# another\n"),
        "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=".to_owned(),
        "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s".to_owned(),
        "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s=".to_owned(),
    ] {
        assert_eq!(parse_key(&text), Some(expected.clone()), "{text}");
    }
}

#[test]
fn refuses_what_is_no_key() {
    let short = "ab".repeat(31);
    let long = "ab".repeat(33);
    let two = format!("{0}\n{0}", "ab".repeat(32));
    let not_hex = "zz".repeat(32);
    for text in ["", "# only a comment", "password", &short, &long, &two, &not_hex] {
        assert_eq!(parse_key(text), None, "{text}");
    }
    let error = MasterKey::load(MasterKeySource::Environment("password".into())).unwrap_err();
    assert!(error.to_string().contains("openssl rand -hex 32"), "{error}");
}

#[test]
fn takes_a_key_file_and_refuses_one_that_others_may_read() {
    let folder = TempFolder::new();
    let path = folder.0.join("master.key");
    fs::write(&path, "ab".repeat(32)).unwrap();

    for mode in [0o644, 0o640, 0o602, 0o610] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = MasterKey::load(MasterKeySource::File(path.clone())).unwrap_err();
        assert!(matches!(error, MasterKeyError::OpenToOthers { .. }), "{mode:o}: {error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let key = MasterKey::load(MasterKeySource::File(path.clone())).unwrap();
    key.verify_check_value(&master(0xAB).check_value()).unwrap();
    assert_eq!(key.origin(), &Origin::File(path));
}

#[test]
fn refuses_a_missing_file_and_a_folder() {
    let folder = TempFolder::new();
    let missing = MasterKey::load(MasterKeySource::File(folder.0.join("none"))).unwrap_err();
    assert!(matches!(missing, MasterKeyError::Unreadable { .. }), "{missing}");
    let error = MasterKey::load(MasterKeySource::File(folder.0.clone())).unwrap_err();
    assert!(matches!(error, MasterKeyError::Malformed(_)), "{error}");
}

#[test]
fn makes_one_key_for_each_data_folder_outside_of_it() {
    let folder = TempFolder::new();
    let (one, two) = (folder.0.join("one"), folder.0.join("two"));
    let config = folder.0.join("config");

    let made = managed(&one, &config).unwrap();
    let Origin::Made(path) = made.origin().clone() else { panic!("{made:?}") };
    assert_eq!(path.parent(), Some(config.as_path()));
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&config), 0o700);
    assert_eq!(fs::read_dir(&one).unwrap().count(), 0);

    let other = managed(&two, &config).unwrap();
    assert_ne!(other.check_value(), made.check_value());
    let kept = managed(&folder.0.join("two/../one"), &config).unwrap();
    assert_eq!(kept.check_value(), made.check_value());
    assert_eq!(kept.origin(), &Origin::Kept(path));
    assert_eq!(fs::read_dir(&config).unwrap().count(), 2);
}

#[test]
fn starts_that_race_agree_on_one_key() {
    for _ in 0..10 {
        let folder = TempFolder::new();
        let (data, config) = (folder.0.join("data"), folder.0.join("config"));
        let barrier = Barrier::new(8);
        let checks: Vec<_> = thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        managed(&data, &config).unwrap().check_value()
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        assert!(checks.iter().all(|check| *check == checks[0]));
        assert_eq!(fs::read_dir(&config).unwrap().count(), 1);
    }
}

#[test]
fn refuses_a_folder_of_keys_that_others_may_change() {
    let folder = TempFolder::new();
    let config = folder.0.join("config");
    fs::create_dir(&config).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o770)).unwrap();
    let error = managed(&folder.0.join("data"), &config).unwrap_err();
    assert!(matches!(error, MasterKeyError::FolderOpenToOthers { .. }), "{error}");
}

#[test]
fn chooses_the_source_or_says_what_is_missing() {
    let choose = MasterKeySource::choose;
    let file = || Some(PathBuf::from("/k"));
    assert!(matches!(choose(file(), None, None), Ok(MasterKeySource::File(_))));
    assert!(matches!(choose(None, Some("x".into()), None), Ok(MasterKeySource::Environment(_))));
    assert!(matches!(
        choose(None, None, Some(Path::new("/data"))),
        Ok(MasterKeySource::Managed { .. })
    ));
    assert!(matches!(choose(file(), Some("x".into()), None), Err(MasterKeyError::GivenTwice)));
    let missing = choose(None, None, None).unwrap_err();
    assert!(missing.to_string().contains("openssl rand -hex 32 > master.key"), "{missing}");
}

#[test]
fn no_second_key_is_made_for_a_database_that_has_one_somewhere() {
    let folder = TempFolder::new();
    let (data, config) = (folder.0.join("data"), folder.0.join("config"));
    let begun = managed(&data, &config).unwrap();
    fs::create_dir_all(data.join("database/data")).unwrap();
    fs::write(data.join("database/data/PG_VERSION"), "15\n").unwrap();
    assert_eq!(managed(&data, &config).unwrap().check_value(), begun.check_value());

    let moved = folder.0.join("moved");
    fs::rename(&data, &moved).unwrap();
    let lost = managed(&moved, &config).unwrap_err();
    assert!(matches!(lost, MasterKeyError::Lost { .. }), "{lost}");
    assert!(lost.to_string().contains("--master-key-file"), "{lost}");
    assert_eq!(fs::read_dir(&config).unwrap().count(), 1);
}

#[test]
fn a_successor_waits_beside_the_key_until_it_takes_its_place() {
    let folder = TempFolder::new();
    let (data_dir, config_dir) = (folder.0.join("data"), folder.0.join("config"));
    let key = managed(&data_dir, &config_dir).unwrap();
    assert!(key.successor().unwrap().is_none());
    let next = key.prepare_successor(&data_dir).unwrap();
    assert!(next.verify_check_value(&key.check_value()).is_err());
    // Until then the old key is the one that is loaded, and a discarded successor leaves it so.
    let loaded = managed(&data_dir, &config_dir).unwrap();
    loaded.verify_check_value(&key.check_value()).unwrap();
    loaded.successor().unwrap().unwrap().discard().unwrap();
    assert!(loaded.successor().unwrap().is_none());

    let next = key.prepare_successor(&data_dir).unwrap().check_value();
    key.successor().unwrap().unwrap().succeed().unwrap();
    managed(&data_dir, &config_dir).unwrap().verify_check_value(&next).unwrap();
    assert!(key.successor().unwrap().is_none());
}

#[test]
fn an_operators_own_key_has_no_successor_of_ours() {
    let refused = master(1).prepare_successor(Path::new("/"));
    assert!(matches!(refused, Err(MasterKeyError::NotManaged)));
    assert!(master(1).successor().unwrap().is_none());
}

#[test]
fn no_two_messages_share_a_nonce() {
    let key = DataKey::generate().unwrap();
    let mut nonces = std::collections::HashSet::new();
    for number in 0..1_000u32 {
        let sealed = key.seal(&number.to_be_bytes(), &[7; 256]).unwrap();
        assert!(nonces.insert(sealed[1..=NONCE_LENGTH].to_vec()));
    }
}

fn master(byte: u8) -> MasterKey {
    MasterKey::load(source(byte)).unwrap()
}

fn source(byte: u8) -> MasterKeySource {
    MasterKeySource::Environment(format!("{byte:02x}").repeat(32).into())
}

fn managed(data_dir: &Path, config_dir: &Path) -> Result<MasterKey, MasterKeyError> {
    MasterKey::load(MasterKeySource::Managed {
        data_dir: data_dir.to_owned(),
        config_dir: config_dir.to_owned(),
    })
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Self {
        let mut name = [0; 8];
        fill_random(&mut name).unwrap();
        let path = env::temp_dir().join(format!("fieldpost-test-{}", HEXLOWER.encode(&name)));
        fs::create_dir(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
