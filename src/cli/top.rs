//! `fanfare top`: a screen of a server's activity, once a second, from the feed of its debug console. Without a
//! terminal it prints one page of text.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::Value;
use tokio::sync::mpsc;

use super::CommandError;
use super::feed::{ConsoleTarget, FeedLines, RETRY_AFTER, count, field, time_of};

/// Seconds that the busiest channels are counted over.
/// Long enough that a channel with an event a second stays in its place.
const BUSY_SECONDS: usize = 10;

/// Lines of the screen beside those that grow.
const ROWS: usize = 24;

/// SGR sequences of ECMA-48, which every terminal in use understands.
const BOLD: &str = "\u{1b}[1m";
/// Starts faint text (SGR of ECMA-48).
const FAINT: &str = "\u{1b}[2m";
/// Starts red text.
const RED: &str = "\u{1b}[31m";
/// Ends any style.
const PLAIN: &str = "\u{1b}[0m";

/// The state of the screen. Updated line by line from the feed, and drawn for each line with figures.
#[derive(Default)]
struct Board {
    /// As it was given.
    url: String,
    /// The feed's first line: version, node, workers.
    hello: Value,
    /// The last second's.
    figures: Value,
    /// Those of the second before.
    before: Value,
    /// Deliveries of each channel, by second.
    busy: VecDeque<HashMap<String, u64>>,
    /// The newest in front.
    wrong: VecDeque<String>,
    /// The feed has ended; another is tried for.
    is_gone: bool,
}

impl Board {
    /// Takes in one line of the feed; whether the screen is to be drawn again. Lines with figures
    /// come once a second, so that they are the clock of the screen, too.
    fn take(&mut self, line: Value) -> bool {
        match field(&line, "kind").as_str() {
            "hello" => self.hello = line,
            "figures" => {
                self.before = std::mem::replace(&mut self.figures, line);
                self.busy.push_front(HashMap::new());
                self.busy.truncate(BUSY_SECONDS);
                return true;
            }
            "published" | "whispered" => {
                // Two apps may have channels of one name.
                let app_and_channel =
                    format!("{} {}", field(&line, "app"), field(&line, "channel"));
                if let Some(second) = self.busy.front_mut() {
                    *second.entry(app_and_channel).or_default() += count(&line, "count");
                }
            }
            "refused" | "closed" | "webhook_failed" | "redis" => {
                let said = ["kind", "code", "app", "channel", "why"].map(|name| field(&line, name));
                let said: Vec<_> = said.into_iter().filter(|text| !text.is_empty()).collect();
                self.wrong.push_front(format!("{}  {}", time_of(&line), said.join(" ")));
                self.wrong.truncate(ROWS);
            }
            _ => {}
        }
        false
    }

    /// One of the last second's figures; 0 if the server is of a version without it.
    fn number(&self, name: &str) -> u64 {
        count(&self.figures, name)
    }

    /// The page, in so many lines; with colours for a terminal. The three lists share what the head
    /// leaves, a quarter of all rows each.
    fn page(&self, rows: usize, coloured: bool) -> String {
        let mut page = String::new();
        self.write_head(&mut page);
        self.write_workers(&mut page);
        self.write_apps(&mut page, rows / 4);
        self.write_busy(&mut page, rows / 4);
        self.write_wrong(&mut page, rows / 4);
        if coloured {
            return page;
        }
        // Text without colours is the same text.
        [BOLD, FAINT, RED, PLAIN].iter().fold(page, |page, mark| page.replace(mark, ""))
    }

    /// Totals and rates. The times are upper bounds of histogram buckets, hence `≤`.
    fn write_head(&self, page: &mut String) {
        let (hello, figures) = (&self.hello, &self.figures);
        let state = match (self.is_gone, figures.get("draining") == Some(&Value::Bool(true))) {
            (true, _) => format!("  {RED}gone, waiting for it{PLAIN}"),
            (false, true) => {
                format!("  {RED}draining: {} still connected{PLAIN}", self.number("connections"))
            }
            (false, false) => String::new(),
        };
        let (version, node) = (field(hello, "version"), field(hello, "node"));
        let url = &self.url;
        // Writing to a `String` cannot fail, here and below.
        let _ = writeln!(page, "{BOLD}Fanfare {version}{PLAIN}  {url}  node {node}{state}\n");
        let latency = figures.get("latency").unwrap_or(&Value::Null);
        let flush = match latency.get("p50") {
            Some(_) => {
                let (half, most) = (count(latency, "p50"), count(latency, "p99"));
                format!("≤ {half} µs (99 %: ≤ {most} µs)")
            }
            None => "–".to_owned(),
        };
        let redis = match figures.get("redis") {
            Some(Value::Bool(true)) => "   Redis up".to_owned(),
            Some(Value::Bool(false)) => format!("   {RED}Redis down{PLAIN}"),
            _ => String::new(),
        };
        let _ = writeln!(
            page,
            "Connections   {BOLD}{:>10}{PLAIN}   +{} −{} /s\nSubscriptions {:>10}   {} channels, {} members\n\
             Deliveries    {BOLD}{:>10}{PLAIN} /s   {} KiB/s\nEvents        {:>10} /s   {} messages in /s\n\
             Refused       {:>10} /s\nPublish to flush  {flush}   waiting {} KiB   memory {} MiB{redis}",
            self.number("connections"),
            self.number("connects"),
            self.number("disconnects"),
            self.number("subscriptions"),
            self.number("channels"),
            self.number("members"),
            self.number("deliveries"),
            self.number("sent_bytes") >> 10,
            self.number("published"),
            self.number("received"),
            self.number("refused"),
            self.number("waiting_bytes") >> 10,
            self.number("memory") >> 20,
        );
    }

    /// A bar of ten for each worker: how much of the last second it was not waiting.
    fn write_workers(&self, page: &mut String) {
        page.push_str("Workers  ");
        let workers = self.figures.get("workers").and_then(Value::as_array);
        for worker in workers.into_iter().flatten() {
            let (busy, connections) = (count(worker, "busy"), count(worker, "connections"));
            // `busy` is a percentage; ten marks are the whole bar.
            let filled = usize::try_from(busy / 10).unwrap_or_default().min(10);
            let bar: String = "▮".repeat(filled) + &"▯".repeat(10 - filled);
            let _ = write!(page, "  {bar} {busy} % ({connections})");
        }
        page.push('\n');
    }

    /// The server sorts apps by their connections, so the first rows are the ones that matter.
    /// Rates are differences of totals between two seconds.
    fn write_apps(&self, page: &mut String, rows: usize) {
        let _ = writeln!(
            page,
            "\n{FAINT}{:<24}{:>12}{:>12}{:>14}{:>14}{:>12}{PLAIN}",
            "APP", "CONNECTIONS", "CHANNELS", "SUBSCRIPTIONS", "DELIVERIES/S", "EVENTS/S"
        );
        let list = |line: &Value| line.get("apps").and_then(Value::as_array).cloned();
        // The first page has none before it, and a page without apps shows none.
        let before = list(&self.before).unwrap_or_default();
        for app in list(&self.figures).unwrap_or_default().iter().take(rows.max(1)) {
            let earlier = before.iter().find(|one| one.get("id") == app.get("id"));
            let rate = |name: &str| {
                earlier.map_or(0, |earlier| count(app, name).saturating_sub(count(earlier, name)))
            };
            let id = field(app, "id");
            let name: String = id.chars().take(23).collect();
            let _ = writeln!(
                page,
                "{name:<24}{:>12}{:>12}{:>14}{:>14}{:>12}",
                count(app, "connections"),
                count(app, "channels"),
                count(app, "subscriptions"),
                rate("deliveries_total"),
                rate("published_total"),
            );
        }
    }

    /// The channels with the most deliveries of late, and by name among equals, so that rows do not
    /// jump. By a sample where the feed leaves facts out, which the heading then says.
    fn write_busy(&self, page: &mut String, rows: usize) {
        let mut sums: HashMap<&str, u64> = HashMap::new();
        for (channel, deliveries) in self.busy.iter().flatten() {
            *sums.entry(channel).or_default() += deliveries;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by_key(|(channel, deliveries)| (std::cmp::Reverse(*deliveries), *channel));
        let unseen = self.number("unseen");
        let sampled = if unseen > 0 { ", by a sample" } else { "" };
        let _ = writeln!(
            page,
            "\n{FAINT}BUSIEST CHANNELS, deliveries in the last {BUSY_SECONDS} s{sampled}{PLAIN}"
        );
        for (channel, deliveries) in sums.into_iter().take(rows.max(1)) {
            let _ = writeln!(page, "{deliveries:>12}  {channel}");
        }
    }

    /// Refusals, ends, failed webhooks and Redis, the newest first.
    fn write_wrong(&self, page: &mut String, rows: usize) {
        let _ = writeln!(page, "\n{FAINT}WHAT WENT WRONG{PLAIN}");
        for line in self.wrong.iter().take(rows.max(1)) {
            let _ = writeln!(page, "{line}");
        }
    }
}

/// Shows the screen until `q`, or one page where the output is no terminal.
/// A server that goes away is waited for: a deployment is when people look. Not one that was never
/// there, which is an error at once.
pub(super) async fn top(console: &ConsoleTarget) -> Result<(), CommandError> {
    let mut board = Board { url: console.url(), ..Board::default() };
    let query = vec![("rate", "2000".to_owned())];
    let mut feed = console.open(&query).await?;
    if !io::stdout().is_terminal() {
        return page_once(&mut board, &mut feed).await;
    }
    let screen = Screen::enter()?;
    let mut keys = keys();
    loop {
        let next = tokio::select! {
            next = feed.next() => next?,
            key = keys.recv() => match key {
                // 3 is Ctrl-C where the terminal does not turn it into a signal.
                Some(b'q' | b'Q' | 3) => return Ok(()),
                _ => continue,
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        match next {
            Some(line) => {
                if board.take(line) {
                    screen.draw(&board);
                }
            }
            None => {
                board.is_gone = true;
                screen.draw(&board);
                feed = loop {
                    tokio::select! {
                        () = tokio::time::sleep(RETRY_AFTER) => {}
                        key = keys.recv() => if matches!(key, Some(b'q' | b'Q' | 3)) { return Ok(()) },
                        _ = tokio::signal::ctrl_c() => return Ok(()),
                    }
                    if let Ok(feed) = console.open(&query).await {
                        break feed;
                    }
                };
                board = Board { url: console.url(), ..Board::default() };
            }
        }
    }
}

/// For a pipe: once there are rates.
async fn page_once(board: &mut Board, feed: &mut FeedLines) -> Result<(), CommandError> {
    let mut seconds = 0;
    while let Some(line) = feed.next().await? {
        seconds += u32::from(board.take(line));
        if seconds == 2 {
            // Two seconds make one difference, which a pipe gets as a plain page.
            let _ = io::stdout().write_all(board.page(4 * ROWS, false).as_bytes());
            return Ok(());
        }
    }
    Err(CommandError("the server has ended the feed".to_owned()))
}

/// The keys that are pressed. The thread that reads them ends with the program.
fn keys() -> mpsc::UnboundedReceiver<u8> {
    // A blocking read of the terminal cannot be cancelled, so it has a thread and not a task.
    let (pressed, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut key = [0];
        while io::stdin().read(&mut key).is_ok_and(|read| read > 0) {
            if pressed.send(key[0]).is_err() {
                return;
            }
        }
    });
    keys
}

/// A terminal that shows the board, as it was before once this is dropped.
struct Screen(Option<Termios>);

impl Screen {
    /// Keys come without Enter and are not echoed; the alternate screen keeps what was there
    /// before.
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut direct = before.clone();
            direct.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(io::stdin(), OptionalActions::Now, &direct)?;
        }
        let screen = Self(before);
        io::stdout().write_all(b"\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    /// Overwrites line by line and erases the rest of each, which flickers less than clearing the
    /// screen.
    fn draw(&self, board: &Board) {
        // Asked each time, so that a resized window needs no signal.
        let size = tcgetwinsize(io::stdout()).ok();
        let (rows, columns) = size.map_or((40, 120), |size| (size.ws_row, size.ws_col));
        let rows = usize::from(rows);
        let spare = rows.saturating_sub(18);
        let page = board.page(spare * 4 / 3, true);
        let mut out = String::from("\u{1b}[H");
        for line in page.lines().take(rows.saturating_sub(2)) {
            out.push_str(&cut(line, usize::from(columns)));
            out.push_str("\u{1b}[K\r\n");
        }
        // `K` clears the rest of the line, `J` the rest of the screen (ECMA-48), so nothing of a longer page stays.
        let _ = write!(out, "{FAINT}q quits{PLAIN}\u{1b}[K\u{1b}[J");
        let _ = io::stdout().write_all(out.as_bytes()).and_then(|()| io::stdout().flush());
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Restored also after a panic: otherwise the user's shell has no echo and no cursor.
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| io::stdout().flush());
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// A line cut to the columns of a terminal; what colours it takes none.
fn cut(line: &str, columns: usize) -> String {
    let (mut shown, mut taken, mut is_mark) = (String::new(), 0, false);
    for character in line.chars() {
        if character == '\u{1b}' {
            is_mark = true;
        }
        if is_mark {
            shown.push(character);
            is_mark = character != 'm';
        } else if taken < columns {
            shown.push(character);
            taken += 1;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_is_cut_without_what_colours_it() {
        assert_eq!(cut("\u{1b}[1mabc\u{1b}[0mdef", 4), "\u{1b}[1mabc\u{1b}[0md");
        assert_eq!(cut("abc", 10), "abc");
    }

    #[test]
    fn the_page_has_what_is_busy_and_what_went_wrong() {
        let mut board = Board::default();
        let figures = |published: u64| {
            json!({
                "kind": "figures", "connections": 3, "unseen": 0, "draining": false,
                "apps": [{ "id": "shop", "connections": 3, "published_total": published }],
                "workers": [{ "busy": 40, "connections": 3 }],
            })
        };
        assert!(board.take(figures(1)));
        board.take(json!({ "kind": "published", "app": "shop", "channel": "orders", "count": 3 }));
        board.take(json!({ "kind": "refused", "code": 4009, "why": "no\u{1b}[2J" }));
        assert!(board.take(figures(3)));
        let page = board.page(40, false);
        assert!(!page.contains('\u{1b}'), "{page:?}");
        for part in ["▮▮▮▮▯", "shop orders", "4009 no", "           3  shop orders"] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        let app = page.lines().find(|line| line.starts_with("shop ")).unwrap();
        assert!(app.ends_with('2'), "events in a second: {app}");
    }
}
