//! What the system has of Bluetooth, for whoever asks before anything is started.

/// One Bluetooth adapter as BlueZ shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BluetoothAdapter {
    /// Such as `hci0`.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Whether it is on.
    pub is_on: bool,
    /// How many programs may have it advertise; 0 if it cannot be found by others at all.
    pub advertisements: u8,
}

/// Asks BlueZ for its adapters.
///
/// # Errors
///
/// There is no D-Bus, or BlueZ does not answer; the text says which.
#[cfg(target_os = "linux")]
pub async fn bluetooth_adapters() -> Result<Vec<BluetoothAdapter>, String> {
    use bluer::Session;

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
    let asked = async {
        let session = Session::new().await.map_err(|error| format!("no D-Bus: {error}"))?;
        let told = |error: bluer::Error| format!("BlueZ does not answer: {error}");
        let mut names = session.adapter_names().await.map_err(told)?;
        names.sort();
        let mut adapters = Vec::new();
        for name in names {
            let adapter = session.adapter(&name).map_err(told)?;
            let free = adapter.supported_advertising_instances().await.unwrap_or(0);
            let used = adapter.active_advertising_instances().await.unwrap_or(0);
            adapters.push(BluetoothAdapter {
                name,
                address: adapter.address().await.map_err(told)?.to_string(),
                is_on: adapter.is_powered().await.map_err(told)?,
                advertisements: free.saturating_add(used),
            });
        }
        Ok(adapters)
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| Err("D-Bus does not answer".to_owned()))
}

/// Says that nobody asked: this system has no BlueZ.
///
/// # Errors
///
/// Always.
#[cfg(not(target_os = "linux"))]
pub async fn bluetooth_adapters() -> Result<Vec<BluetoothAdapter>, String> {
    Err("adapters are looked for on Linux alone".to_owned())
}
