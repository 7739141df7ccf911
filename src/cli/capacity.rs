//! `fanfare capacity`: how many idle sockets this machine can carry with these settings, which limit is reached first,
//! and how to raise it. `server/sizing.rs` has the limits.

use std::num::NonZero;
use std::thread::available_parallelism;

use serde_json::{Value, json};

use super::{CommandError, print_result};
use crate::config::Config;
use crate::server::sizing::{SocketBound, find_bounds, first_bound};

/// Prints the bounds, as JSON or as lines.
/// `upstreams` is how many addresses the clients come from, as behind proxies: each has its own
/// range of ports, which is one of the bounds.
pub(super) fn print_bounds(
    config: &Config,
    upstreams: NonZero<u32>,
    as_json: bool,
) -> Result<(), CommandError> {
    let bounds = find_bounds(config, u64::from(upstreams.get()));
    let workers = config.server.workers;
    let cores = available_parallelism().map_or(1, NonZero::get);
    let value = as_value(&bounds, workers, cores);
    print_result(as_json, &value, || as_text(&bounds, workers, cores))
}

/// The form for programs. A bound that is not known has `"sockets": null`, and stays in the list.
fn as_value(bounds: &[SocketBound], workers: usize, cores: usize) -> Value {
    let first = first_bound(bounds);
    let all = bounds.iter().map(|bound| {
        let SocketBound { name, sockets, is_certain, reason, remedy } = bound;
        json!({ "name": name, "sockets": sockets, "certain": is_certain, "reason": reason, "remedy": remedy })
    });
    json!({
        "sockets": first.map(|(_, sockets)| sockets),
        "first": first.map(|(bound, _)| bound.name),
        "workers": workers,
        "cores": cores,
        "bounds": all.collect::<Value>(),
    })
}

/// A line for each bound, and at the end the one that is met first with what raises it.
fn as_text(bounds: &[SocketBound], workers: usize, cores: usize) -> String {
    let mut text = String::new();
    for SocketBound { name, sockets, reason, .. } in bounds {
        let sockets = sockets.map_or_else(|| "-".to_owned(), |sockets| sockets.to_string());
        text += &format!("{sockets:>12}  {name}: {reason}\n");
    }
    // Said because workers are the first thing that people raise, and it does not help here.
    text +=
        &format!("Workers: {workers} on {cores} cores. They bound events a second, not sockets.\n");
    text += &match first_bound(bounds) {
        Some((SocketBound { name, remedy, .. }, sockets)) => {
            format!("About {sockets} idle sockets: {name} comes first. For more: {remedy}.\n")
        }
        None => "Nothing known bounds the sockets.\n".to_owned(),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(name: &'static str, sockets: Option<u64>, is_certain: bool) -> SocketBound {
        SocketBound { name, sockets, is_certain, reason: "why".to_owned(), remedy: "do it" }
    }

    #[test]
    fn the_least_that_every_socket_meets_comes_first() {
        let bounds = [
            bound("memory", Some(3000), true),
            bound("open files", Some(2000), true),
            bound("proxy's ports", Some(1000), false),
            bound("limits.memory", None, true),
        ];
        let text = as_text(&bounds, 2, 4);
        assert!(text.contains("        2000  open files: why\n"), "{text}");
        assert!(text.contains("           -  limits.memory: why\n"), "{text}");
        assert!(
            text.ends_with("About 2000 idle sockets: open files comes first. For more: do it.\n")
        );
        let value = as_value(&bounds, 2, 4);
        assert_eq!((&value["sockets"], &value["first"]), (&json!(2000), &json!("open files")));
        assert_eq!(as_value(&bounds[3..], 1, 1)["sockets"], Value::Null);
    }
}
