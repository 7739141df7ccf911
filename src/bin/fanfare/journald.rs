//! The log format for journald, if standard error leads there (systemd.exec(5), `JOURNAL_STREAM`): a priority in front
//! of each line (sd-daemon(3)), so that `journalctl -p warning` works, and no time, since journald adds its own.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The priority prefix of an error that is printed before the log has started.
pub(crate) const ERROR: &str = "<3>";

/// Whether standard error still leads to the journal. `JOURNAL_STREAM` names the journal's stream by device and
/// inode, and standard error may have been redirected since.
pub(crate) fn is_listening() -> bool {
    // Without the variable no journal reads this, so an empty value means the same.
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    !named.is_empty() && own_stream().is_ok_and(|own| own == named)
}

/// Device and inode of standard error, in the form of `JOURNAL_STREAM`.
fn own_stream() -> io::Result<String> {
    let data = File::from(io::stderr().as_fd().try_clone_to_owned()?).metadata()?;
    Ok(format!("{}:{}", data.dev(), data.ino()))
}

/// A format with the number in front.
pub(crate) struct PriorityFormat<F>(pub(crate) F);

impl<S, N, F> FormatEvent<S, N> for PriorityFormat<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let number = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{number}>")?;
        self.0.format_event(context, writer, event)
    }
}
