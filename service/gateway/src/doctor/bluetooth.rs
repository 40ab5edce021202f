//! Bluetooth: the adapter, what it can do, BlueZ and its settings.
//!
//! The gateway runs without any of it, so nothing here is a failure.

use std::{fs, path::Path, time::Duration};

use fieldpost_transport::{BLE_EVIDENCE, BluetoothAdapter, bluetooth_adapters};
use tokio::{process::Command, time::timeout};

use super::Finding;
use crate::config::{BleRadio, Config};

const NAME: &str = "Bluetooth";
const SETTINGS: &str = "BlueZ settings";
const RANGE: &str = "Bluetooth range";
const MAIN_CONF: &str = "/etc/bluetooth/main.conf";
const PATIENCE: Duration = Duration::from_secs(3);
/// From this version on, BlueZ opens one ATT channel unless told otherwise.
const ONE_CHANNEL: (u32, u32) = (5, 82);
/// From this version on, BlueZ switches adapters on by itself unless told otherwise.
const AUTO_ENABLE: (u32, u32) = (5, 65);
/// Where distributions put the daemon, which alone knows its version for sure.
const DAEMONS: [&str; 3] =
    ["/usr/libexec/bluetooth/bluetoothd", "/usr/lib/bluetooth/bluetoothd", "/usr/sbin/bluetoothd"];

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    if !config.transports().any(|name| name == "ble") {
        return vec![Finding::info(NAME, "the transport ble is not used (--transports)")];
    }
    let wanted = match &config.ble_radio {
        BleRadio::Adapter(name) => Some(name.as_str()),
        BleRadio::Auto => None,
        other @ (BleRadio::None | BleRadio::Air { .. }) => {
            let detail = format!("--ble-radio {other} uses no adapter");
            return vec![Finding::info(NAME, detail)];
        }
    };
    let adapters = bluetooth_adapters().await;
    let version = version().await;
    let is_blocked = is_blocked(Path::new("/sys/class/rfkill"));
    let mut findings = vec![adapter(wanted, adapters, version, is_blocked)];
    if let Some(version) = version {
        let text = fs::read_to_string(MAIN_CONF).unwrap_or_default();
        findings.push(settings(version, &text));
    }
    findings.push(untried());
    findings
}

/// What nobody should take for shown.
fn untried() -> Finding {
    Finding::info(RANGE, format!("{}: try yours before you rely on it", BLE_EVIDENCE))
}

fn adapter(
    wanted: Option<&str>,
    adapters: Result<Vec<BluetoothAdapter>, String>,
    version: Option<(u32, u32)>,
    is_blocked: bool,
) -> Finding {
    let bluez = match version {
        Some((major, minor)) => format!("BlueZ {major}.{minor}"),
        None => "BlueZ of unknown version".to_owned(),
    };
    let adapters = match adapters {
        Ok(adapters) => adapters,
        Err(problem) => {
            return Finding::warning(
                NAME,
                problem,
                "no phone will be reached; install bluez and dbus and start bluetooth.service, or say \
                 --ble-radio none",
            );
        }
    };
    let among: Vec<_> =
        adapters.iter().filter(|each| wanted.is_none_or(|name| name == each.name)).collect();
    let Some(chosen) = among.iter().find(|each| each.is_on).or(among.first()) else {
        let there: Vec<_> = adapters.iter().map(|each| each.name.as_str()).collect();
        let detail = match (wanted, there.as_slice()) {
            (_, []) => format!("{bluez}, but no adapter"),
            (Some(name), _) => {
                format!("{bluez}, but no adapter {name}: there is {}", there.join(", "))
            }
            (None, _) => format!("{bluez}, but no adapter that fits"),
        };
        return Finding::warning(
            NAME,
            detail,
            "no phone will be reached; plug one in (Bluetooth 4.2 or later), or say --ble-radio none",
        );
    };
    let BluetoothAdapter { name, address, is_on, advertisements } = chosen;
    let roles = match advertisements {
        0 => "central role alone: neighbours cannot find it".to_owned(),
        count => format!("central and peripheral role, {count} advertisements at once"),
    };
    let detail = format!("{name} ({address}), {bluez}; {roles}");
    if is_blocked {
        let detail = format!("{detail}; blocked by rfkill");
        Finding::warning(NAME, detail, "no phone will be reached; run rfkill unblock bluetooth")
    } else if !is_on {
        let detail = format!("{detail}; switched off");
        Finding::warning(NAME, detail, "no phone will be reached; run bluetoothctl power on")
    } else if *advertisements == 0 {
        Finding::warning(NAME, detail, "use an adapter that can advertise")
    } else {
        Finding::ok(NAME, detail)
    }
}

/// Which settings of BlueZ are worth changing.
fn settings(version: (u32, u32), text: &str) -> Finding {
    let channels = setting(text, "GATT", "Channels");
    let auto_enable = setting(text, "Policy", "AutoEnable");
    let mut wrong = Vec::new();
    // Several channels let notifications overtake each other, and each costs throughput.
    if channels.is_some_and(|count| count != "1") || channels.is_none() && version < ONE_CHANNEL {
        wrong.push("Channels = 1 under [GATT], so that frames arrive in order and faster");
    }
    if auto_enable == Some("false") || auto_enable.is_none() && version < AUTO_ENABLE {
        wrong.push("AutoEnable = true under [Policy], so that the adapter is on after a restart");
    }
    match wrong.as_slice() {
        [] => Finding::ok(SETTINGS, "nothing in them is worth changing"),
        _ => Finding::warning(
            SETTINGS,
            format!("{} of {MAIN_CONF} could be better", wrong.len()),
            format!("set {}; then restart bluetooth.service", wrong.join(", and ")),
        ),
    }
}

/// The value of a key in a section of a file in the style of desktop entries.
fn setting<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut within = "";
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            within = name;
        } else if let Some((name, value)) = line.split_once('=')
            && within == section
            && name.trim() == key
        {
            found = Some(value.trim());
        }
    }
    found
}

async fn version() -> Option<(u32, u32)> {
    for program in DAEMONS.into_iter().filter(|path| Path::new(path).exists()) {
        let asked = Command::new(program).arg("--version").kill_on_drop(true).output();
        if let Ok(Ok(output)) = timeout(PATIENCE, asked).await
            && let Some(version) = parse_version(&String::from_utf8_lossy(&output.stdout))
        {
            return Some(version);
        }
    }
    None
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_whitespace().last()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn is_blocked(switches: &Path) -> bool {
    let entries = fs::read_dir(switches).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|switch| {
        let read = |file: &str| fs::read_to_string(switch.join(file)).unwrap_or_default();
        read("type").trim() == "bluetooth"
            && ["soft", "hard"].iter().any(|kind| read(kind).trim() == "1")
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn an_adapter_is_named_with_its_roles_and_its_bluez() {
        let found = adapter(None, Ok(vec![hci0(true, 4)]), Some((5, 82)), false);
        assert_eq!(found.verdict, Verdict::Ok);
        assert_eq!(
            found.detail,
            "hci0 (00:11:22:33:44:55), BlueZ 5.82; central and peripheral role, 4 advertisements \
             at once"
        );
    }

    #[test]
    fn whatever_keeps_phones_away_is_a_warning_with_advice() {
        for (wanted, adapters, is_blocked, says) in [
            (None, Err("no D-Bus".to_owned()), false, "no D-Bus"),
            (None, Ok(vec![]), false, "no adapter"),
            (Some("hci7"), Ok(vec![hci0(true, 4)]), false, "no adapter hci7: there is hci0"),
            (None, Ok(vec![hci0(false, 4)]), false, "switched off"),
            (None, Ok(vec![hci0(false, 4)]), true, "blocked by rfkill"),
            (None, Ok(vec![hci0(true, 0)]), false, "cannot find it"),
        ] {
            let found = adapter(wanted, adapters, Some((5, 66)), is_blocked);
            assert_eq!(found.verdict, Verdict::Warning);
            assert!(found.detail.contains(says) && found.advice.is_some(), "{found:?}");
        }
    }

    #[test]
    fn what_was_not_tried_is_said_and_counts_as_no_failure() {
        let found = untried();
        assert_eq!(found.verdict, Verdict::Info);
        assert!(["range", "adapters", "handsets"].iter().all(|word| found.detail.contains(word)));
    }

    #[test]
    fn settings_are_judged_by_what_the_version_does_by_itself() {
        for (version, text, verdict) in [
            ((5, 82), "", Verdict::Ok),
            ((5, 66), "", Verdict::Warning),
            ((5, 66), "[GATT]\nChannels = 1\n", Verdict::Ok),
            ((5, 66), "[GATT]\n#Channels = 1\n", Verdict::Warning),
            ((5, 66), "[General]\nChannels=1\n", Verdict::Warning),
            ((5, 82), "[GATT]\nChannels = 3\n", Verdict::Warning),
            ((5, 82), "[Policy]\nAutoEnable=false\n", Verdict::Warning),
            ((5, 60), "[GATT]\nChannels=1\n[Policy]\nAutoEnable=true\n", Verdict::Ok),
        ] {
            assert_eq!(settings(version, text).verdict, verdict, "{version:?} {text}");
        }
    }

    #[test]
    fn versions_are_read_as_the_daemon_writes_them() {
        assert_eq!(parse_version("5.66\n"), Some((5, 66)));
        assert_eq!(parse_version("bluetoothd 5.82"), Some((5, 82)));
        assert_eq!(parse_version("none"), None);
    }

    fn hci0(is_on: bool, advertisements: u8) -> BluetoothAdapter {
        let (name, address) = ("hci0".to_owned(), "00:11:22:33:44:55".to_owned());
        BluetoothAdapter { name, address, is_on, advertisements }
    }
}
