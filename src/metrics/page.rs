//! Writes a metrics page: families with help and type, in Prometheus's text format 0.0.4. The callers provide the
//! content.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as Buckets, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{TEXT_FORMAT, TextEncoder};

use super::Histogram;

/// Labels of one sample, in the order they are shown.
pub type SampleLabels<'a> = &'a [(&'a str, &'a str)];

/// Families, added one after the other.
#[derive(Debug)]
pub struct MetricsPage {
    /// Stands in front of every name.
    prefix: String,
    families: Vec<MetricFamily>,
}

impl MetricsPage {
    /// `text/plain` with the version of the format, by which Prometheus chooses its parser.
    pub const CONTENT_TYPE: &'static str = TEXT_FORMAT;

    /// A page on which all names begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), families: Vec::new() }
    }

    /// `fanfare_`, or what the settings have.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Changes what the names of the families to come begin with.
    pub fn set_prefix(&mut self, prefix: &str) {
        prefix.clone_into(&mut self.prefix);
    }

    /// A name, a sentence, a type and the samples of it.
    fn add_family(&mut self, name: String, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        // A family without samples is no family.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name);
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.families.push(family);
    }

    /// The name as Prometheus sees it.
    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A counter, which only grows. By Prometheus' convention its name ends in `_total`.
    pub fn add_counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (SampleLabels<'a>, f64)>,
    ) {
        let counter = |(labels, value)| {
            let mut counter = Counter::default();
            counter.set_value(value);
            let mut metric = Metric::from_label(label_pairs(labels));
            metric.set_counter(counter);
            metric
        };
        let metrics = samples.into_iter().map(counter).collect();
        self.add_family(self.full_name(name), help, MetricType::COUNTER, metrics);
    }

    /// A gauge, which goes up and down.
    pub fn add_gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (SampleLabels<'a>, f64)>,
    ) {
        let gauge = |(labels, value)| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            let mut metric = Metric::from_label(label_pairs(labels));
            metric.set_gauge(gauge);
            metric
        };
        let metrics = samples.into_iter().map(gauge).collect();
        self.add_family(self.full_name(name), help, MetricType::GAUGE, metrics);
    }

    /// Durations, in seconds.
    pub fn add_histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (SampleLabels<'a>, Vec<&'a Histogram>)>,
    ) {
        let histogram = |(labels, all)| {
            let (counts, sum) = Histogram::read_all::<'a>(all);
            let bound = |(count, micros): (&u64, &u64)| {
                let mut bucket = Bucket::default();
                bucket.set_cumulative_count(*count);
                bucket.set_upper_bound(*micros as f64 / 1e6);
                bucket
            };
            let mut buckets = Buckets::default();
            buckets.set_bucket(counts.iter().zip(&Histogram::BOUNDS).map(bound).collect());
            // The last count is cumulative: it includes all buckets.
            buckets.set_sample_count(counts.last().copied().unwrap_or_default());
            buckets.set_sample_sum(sum);
            let mut metric = Metric::from_label(label_pairs(labels));
            metric.set_histogram(buckets);
            metric
        };
        let metrics = samples.into_iter().map(histogram).collect();
        self.add_family(self.full_name(name), help, MetricType::HISTOGRAM, metrics);
    }

    /// The page as it is sent.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(32 << 10);
        // It fails on families that have no name or no samples, and here are none.
        let _ = TextEncoder::new().encode_utf8(&self.families, &mut text);
        text
    }
}

/// The library's form of the same.
fn label_pairs(labels: SampleLabels<'_>) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_the_format_has_it() {
        let mut page = MetricsPage::new("x_");
        let labels: SampleLabels<'_> = &[("app", "a\"b\\c\nd")];
        page.add_counters("things_total", "Things.", [(labels, 3.0)]);
        page.add_gauges("none", "Nothing.", Vec::<(SampleLabels<'_>, f64)>::new());
        let histogram = Histogram::default();
        histogram.observe(std::time::Duration::from_micros(60));
        page.add_histograms("took_seconds", "How long.", [(&[][..], vec![&histogram])]);
        let text = page.text();
        let begin = "# HELP x_things_total Things.\n# TYPE x_things_total counter\n\
                     x_things_total{app=\"a\\\"b\\\\c\\nd\"} 3\n# HELP x_took_seconds";
        assert!(text.starts_with(begin), "{text}");
        for line in [
            "x_took_seconds_bucket{le=\"0.00005\"} 0",
            "x_took_seconds_bucket{le=\"0.0001\"} 1",
            "x_took_seconds_bucket{le=\"+Inf\"} 1",
            "x_took_seconds_sum 0.00006",
            "x_took_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("none"), "{text}");
    }
}
