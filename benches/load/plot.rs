//! A line plot as SVG: load from left to right, latency on a logarithmic scale from bottom to top. It
//! brings its own background, so that it can be read on a dark page too.

use std::fmt::Write;

/// One line of the plot.
#[derive(Debug)]
pub(crate) struct Series {
    pub label: String,
    pub dashed: bool,
    pub points: Vec<(f64, f64)>,
}

/// What is drawn.
#[derive(Debug)]
pub(crate) struct Plot {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;

/// Told apart by people who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// From values to places.
struct Scale {
    x_max: f64,
    /// Powers of ten.
    low: i32,
    high: i32,
}

impl Scale {
    fn of(series: &[Series]) -> Self {
        let points = || series.iter().flat_map(|one| &one.points);
        let x_max = points().map(|point| point.0).fold(1.0, f64::max);
        let ys = || points().map(|point| point.1).filter(|y| *y > 0.0);
        let low = ys().fold(f64::MAX, f64::min).min(1.0).log10().floor() as i32;
        let high = ys().fold(1.0, f64::max).log10().ceil() as i32;
        Self { x_max, low, high: high.max(low + 1) }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let part =
            (value.max(1e-9).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }

    /// A distance between marks that is 1, 2 or 5 times a power of ten, for about eight of them.
    fn step(&self) -> f64 {
        let rough = self.x_max / 8.0;
        let ten = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0];
        ten * steps.into_iter().find(|step| step * ten >= rough).unwrap_or(10.0)
    }
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let scale = Scale::of(&self.series);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
            escape(&self.title)
        );
        text(&mut out, (LEFT, 24.0), "start", &self.title);
        self.axes(&mut out, &scale);
        let labels: Vec<&str> = self.series.iter().map(Series::server).collect();
        for (index, series) in self.series.iter().enumerate() {
            let server = labels.iter().position(|label| *label == series.server()).unwrap_or(0);
            let colour = COLOURS[server % COLOURS.len()];
            let dash = if series.dashed { " stroke-dasharray=\"5 3\"" } else { "" };
            let places: Vec<String> = series
                .points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", scale.x(*x), scale.y(*y)))
                .collect();
            let style = format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"{dash}");
            let _ = writeln!(out, "<polyline points=\"{}\" {style}/>", places.join(" "));
            let (x, y) = (WIDTH - RIGHT + 14.0, TOP + 10.0 + 18.0 * index as f64);
            let _ = writeln!(out, "<path d=\"M{x} {y}h24\" {style}/>");
            text(&mut out, (x + 30.0, y + 4.0), "start", &series.label);
        }
        out.push_str("</svg>\n");
        out
    }

    fn axes(&self, out: &mut String, scale: &Scale) {
        let (left, right, bottom) = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM);
        for power in scale.low..=scale.high {
            let value = 10f64.powi(power);
            let y = scale.y(value);
            let _ = writeln!(out, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
            text(out, (left - 8.0, y + 4.0), "end", &value.to_string());
        }
        let step = scale.step();
        for mark in 0..=(scale.x_max / step) as usize {
            let value = mark as f64 * step;
            let x = scale.x(value);
            let _ = writeln!(out, "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#888\"/>");
            text(out, (x, bottom + 20.0), "middle", &value.to_string());
        }
        let _ = writeln!(
            out,
            "<path d=\"M{left} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>"
        );
        text(out, ((left + right) / 2.0, HEIGHT - 16.0), "middle", &self.x);
        let middle = (TOP + bottom) / 2.0;
        let _ = writeln!(
            out,
            "<text transform=\"translate(18 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(&self.y)
        );
    }
}

impl Series {
    /// The label without what tells the lines of one server apart.
    fn server(&self) -> &str {
        self.label.rsplit_once(", ").map_or(&self.label, |(server, _)| server)
    }
}

fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, content: &str) {
    let content = escape(content);
    let _ =
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
