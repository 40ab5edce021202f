//! One spell on the air on macOS and Windows: the central role alone, until something ends it.

use std::sync::Arc;

use btleplug::{
    api::{Central as _, CentralState, Manager as _},
    platform::Manager,
};
use tokio::sync::Notify;

use super::{central::Central, links::Links};

/// Runs the central role on the adapter whose description begins with that name, or the first that
/// is on, and says what ended it.
pub(super) async fn run(
    name: Option<&str>,
    manager: &mut Option<Manager>,
    links: &Links,
    seed: u64,
) -> String {
    let told = |error: btleplug::Error| format!("Bluetooth does not answer: {error}");
    let found = async {
        let manager = match manager {
            Some(manager) => manager,
            none => none.insert(Manager::new().await.map_err(told)?),
        };
        for adapter in manager.adapters().await.map_err(told)? {
            let info = adapter.adapter_info().await.map_err(told)?;
            let is_on = adapter.adapter_state().await.map_err(told)? == CentralState::PoweredOn;
            if is_on && name.is_none_or(|name| info.starts_with(name)) {
                return Ok((adapter, info));
            }
        }
        Err("there is no Bluetooth adapter that is on".to_owned())
    };
    match found.await {
        Ok((adapter, info)) => {
            links.status().send_modify(|status| {
                (status.adapter, status.problem) = (Some(info), None);
                status.peripheral_problem =
                    Some("on this system nobody can find it: it has the central role alone".into());
            });
            Central::new(adapter, links.clone(), Arc::new(Notify::new()), seed).run().await
        }
        Err(problem) => problem,
    }
}
