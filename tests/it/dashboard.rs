//! The pages of operators: the dashboard for Grafana and the alerts for Prometheus speak of metrics, and of
//! labels, that a server at work has. Whether Prometheus understands them is asked by `tests/run alerts`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use fanfare::app::App;
use fanfare::config::{MemoryLimit, TlsFiles};
use serde_json::Value;

use crate::metrics::{scrape, with_port};
use crate::support::eventually;
use crate::support::fixture::{Fixture, ID, KEY, SECRET, config, subscribe, webhook};
use crate::support::http::Http;
use crate::support::redis::Redis;
use crate::support::websocket::Client;

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["instance", "job"];

fn dashboard() -> Value {
    let text = std::fs::read_to_string("docs/grafana/fanfare.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    let text = value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"));
    assert!(!text.is_empty(), "an empty {key} in {value}");
    text
}

/// Everything but the rows.
fn panels(dashboard: &Value) -> Vec<&Value> {
    list(dashboard, "panels").iter().filter(|panel| panel["type"] != "row").collect()
}

/// What the panels and variables ask of Prometheus.
fn questions(dashboard: &Value) -> Vec<String> {
    let panels = panels(dashboard);
    let targets = panels.iter().flat_map(|panel| list(panel, "targets"));
    let mut all: Vec<String> = targets.map(|target| text(target, "expr").to_owned()).collect();
    let variables = list(&dashboard["templating"], "list").iter();
    let variables = variables.filter(|variable| variable["type"] == "query");
    all.extend(variables.map(|variable| text(&variable["query"], "query").to_owned()));
    all
}

/// Each metric of ours that a question names, with the labels that it selects by.
fn metrics(question: &str) -> Vec<(String, Vec<String>)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = question;
    while let Some(start) = rest.find(word) {
        rest = &rest[start..];
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        rest = behind;
        if ["fanfare_", "process_"].iter().any(|prefix| name.starts_with(prefix)) {
            let selector = behind.strip_prefix('{').and_then(|inner| inner.split('}').next());
            let label = |part: &str| part.trim().split(|c| !word(c)).next().unwrap().to_owned();
            let labels = selector.map(|inner| inner.split(',').map(label).collect());
            found.push((name.to_owned(), labels.unwrap_or_default()));
        }
    }
    found
}

#[test]
fn the_dashboard_is_one_that_grafana_can_show() {
    let dashboard = dashboard();
    assert!(text(&dashboard, "uid").len() <= 40);
    text(&dashboard, "title");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard, "panels") {
        let title = text(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "the id of {title:?} is another's too");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        let (x, y, width, height) = (place("x"), place("y"), place("w"), place("h"));
        assert!(width > 0 && height > 0 && x + width <= 24, "{title:?} is not on the page");
        for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "{title:?} lies upon another panel");
        }
    }
    let questions: Vec<&str> = list(&dashboard, "panels")
        .iter()
        .filter(|panel| panel["type"] == "row")
        .map(|row| text(row, "title"))
        .collect();
    assert!(questions.len() >= 4 && questions.iter().all(|title| title.ends_with('?')));
    for panel in panels(&dashboard) {
        assert!(["stat", "timeseries"].contains(&text(panel, "type")), "{panel}");
        text(panel, "description");
        text(&panel["fieldConfig"]["defaults"], "unit");
        let targets = list(panel, "targets");
        assert!(!targets.is_empty(), "{panel}");
        let mut names = BTreeSet::new();
        for target in targets {
            assert!(names.insert(text(target, "refId")), "{panel}");
            assert_eq!(text(&target["datasource"], "uid"), "${datasource}");
            let expression = text(target, "expr");
            assert!(expression.contains(r#"instance=~"$instance""#), "{expression}");
        }
    }
    let variables = list(&dashboard["templating"], "list").iter();
    let names: Vec<&str> = variables.map(|variable| text(variable, "name")).collect();
    assert_eq!(names, ["datasource", "instance", "app"]);
}

/// A server that has done a little of everything; what is named must be there without having gone wrong.
fn at_work() -> (Fixture, Vec<Client>) {
    let mut app = App::new(ID, KEY, SECRET);
    // Nobody listens on the port of the discard service.
    app.webhooks = vec![webhook("http://127.0.0.1:9/")];
    let fixture = Fixture::with_config(vec![app], |config| {
        config.metrics.enabled = true;
        config.metrics.port = 0;
        config.limits.memory = MemoryLimit::Share(90);
    });
    let mut clients: Vec<_> = (0..8).map(|_| fixture.subscribed("room")).collect();
    for number in 0..20 {
        subscribe(&mut clients[0], &format!("room-{number}"));
    }
    for number in 0..20 {
        fixture.publish("room", "e", &number.to_string());
    }
    for client in &mut clients {
        (0..20).for_each(|_| assert!(client.hear_text().contains("room")));
    }
    Http::connect(fixture.addr).ask("GET", "/nowhere", "", b"").error(404);
    (fixture, clients)
}

#[test]
fn dashboard_and_alerts_speak_of_metrics_that_exist() {
    let alerts = std::fs::read_to_string("docs/prometheus/alerts.yml").unwrap();
    let mut named = metrics(&alerts);
    assert!(named.len() >= 10, "{named:?}");
    let questions = questions(&dashboard());
    let asked: Vec<_> = questions.iter().flat_map(|question| metrics(question)).collect();
    assert!(asked.len() >= questions.len() - 1, "only `up` is another's");
    named.extend(asked);
    let (fixture, _clients) = at_work();
    let redis = Redis::start();
    let clustered = redis.as_ref().map(|redis| {
        let mut config = config(vec![App::new(ID, KEY, SECRET)]);
        config.metrics.enabled = true;
        config.cluster = redis.cluster();
        Fixture::of(config)
    });
    if clustered.is_none() {
        named.retain(|(name, _)| !name.starts_with("fanfare_cluster_"));
    }
    let (_secure, secure) = with_port(|config| {
        config.metrics.enabled = true;
        let file = |end| PathBuf::from(format!("tests/it/certificates/one.{end}"));
        config.server.tls = Some(TlsFiles { cert: file("crt"), key: file("key") });
    });
    let all_there = eventually(|| {
        let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let servers = [Some(&fixture), clustered.as_ref()].into_iter().flatten();
        let addresses = servers.map(|server| server.addr).chain([secure]);
        for sample in addresses.flat_map(|addr| scrape(addr).into_keys()) {
            let (name, labels) = sample.split_once('{').unwrap_or((&sample, ""));
            let labels = labels.split("\",").filter_map(|pair| Some(pair.split_once('=')?.0));
            told.entry(name.to_owned()).or_default().extend(labels.map(str::to_owned));
        }
        let unknown = named.iter().filter(|(name, labels)| match told.get(name) {
            None => true,
            Some(there) => {
                let is_there =
                    |label: &&String| there.contains(*label) || ADDED.contains(&label.as_str());
                labels.iter().filter(is_there).count() != labels.len()
            }
        });
        let unknown: Vec<_> = unknown.collect();
        if unknown.is_empty() { Ok(()) } else { Err(format!("{unknown:?}")) }
    });
    assert_eq!(all_there, Ok(()));
}
