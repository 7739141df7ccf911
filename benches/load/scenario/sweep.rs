//! Fan-out at one rate after the other: where latency begins to rise, as lines and as a plot. Each rate is
//! a run of its own.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::plot::{Plot, Series};
use crate::scenario::fan_out::FanOut;
use crate::target::Target;

#[derive(Args, Clone, Debug)]
pub(crate) struct Sweep {
    /// Events a second, one run each
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10,20,50,100,200,300,400,500,600,700,800,900,1000"
    )]
    rates: Vec<f64>,
    /// Seconds that the server is given between runs
    #[arg(long, default_value_t = 1.0)]
    pause: f64,
    /// Where to write the plot
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Lines of earlier sweeps that the plot is to show too
    #[arg(long)]
    with: Vec<PathBuf>,
    /// Stop once the median is above so many milliseconds
    #[arg(long, default_value_t = 500.0)]
    enough_ms: f64,
    #[command(flatten)]
    fan_out: FanOut,
}

/// Draws what earlier sweeps have printed.
#[derive(Args, Clone, Debug)]
pub(crate) struct Draw {
    /// Files of lines that `sweep` printed
    lines: Vec<PathBuf>,
    /// Where to write the plot
    #[arg(long)]
    svg: PathBuf,
}

impl Sweep {
    pub(crate) fn run(&self, target: &Target) -> io::Result<()> {
        let mut reports = read(&self.with)?;
        for rate in &self.rates {
            let fan_out = FanOut { rate: *rate, ..self.fan_out.clone() };
            let report = fan_out.run(target)?;
            let median = number(&report, "p50_us");
            reports.push(report);
            if median > self.enough_ms * 1e3 {
                break;
            }
            crate::crowd::Crowd::new(target, 0)?.listen(self.pause, |_| {})?;
        }
        match &self.svg {
            Some(svg) => fs::write(svg, draw(&reports)),
            None => Ok(()),
        }
    }
}

impl Draw {
    pub(crate) fn run(&self) -> io::Result<()> {
        fs::write(&self.svg, draw(&read(&self.lines)?))
    }
}

fn read(files: &[PathBuf]) -> io::Result<Vec<Value>> {
    let mut reports = Vec::new();
    for file in files {
        for line in fs::read_to_string(file)?.lines().filter(|line| line.starts_with('{')) {
            reports.push(serde_json::from_str(line)?);
        }
    }
    Ok(reports)
}

fn number(report: &Value, name: &str) -> f64 {
    report.get(name).and_then(Value::as_f64).unwrap_or(0.0)
}

/// Two lines a server: the median and the 99th percentile, over deliveries a second that were asked for.
fn draw(reports: &[Value]) -> String {
    let mut series: Vec<Series> = Vec::new();
    for (name, quantile) in [("p50_us", "median"), ("p99_us", "p99")] {
        for report in reports {
            let label = report.get("label").and_then(Value::as_str).unwrap_or("server");
            let label = format!("{label}, {quantile}");
            let each = number(report, "conns") * number(report, "subscriptions");
            let load = number(report, "rate") * each / number(report, "channels").max(1.0);
            let point = (load / 1e3, number(report, name) / 1e3);
            match series.iter_mut().find(|one| one.label == label) {
                Some(one) => one.points.push(point),
                None => {
                    let dashed = quantile == "p99";
                    series.push(Series { label, dashed, points: vec![point] });
                }
            }
        }
    }
    let plot = Plot {
        title: "Latency by load".to_owned(),
        x: "thousand deliveries a second".to_owned(),
        y: "milliseconds from due to delivered".to_owned(),
        series,
    };
    plot.svg()
}
