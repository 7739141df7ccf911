//! Events as Laravel apps broadcast them, in four sizes: what compression gains depends on what stands in them.
//! Every event differs from the one before, as it does in an app.

use clap::ValueEnum;

/// A kind of event.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Somebody types: about 180 bytes as a frame.
    Typing,
    /// A message in a chat: about 420.
    Chat,
    /// An order with its lines: about 1,500.
    Order,
    /// The figures of a dashboard: about 13,000.
    Dashboard,
}

/// Numbers that differ from event to event, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn uuid(&mut self) -> String {
        let mut hex = |digits: usize| {
            let number = self.below(1 << 28) << 20 | self.below(1 << 20);
            format!("{number:012x}")[12 - digits..].to_owned()
        };
        format!("{}-{}-4{}-a{}-{}", hex(8), hex(4), hex(3), hex(3), hex(12))
    }

    fn time(&mut self) -> String {
        let (hour, minute) = (self.below(24), self.below(60));
        format!(
            "2026-11-{:02}T{hour:02}:{minute:02}:{:02}.000000Z",
            1 + self.below(28),
            self.below(60)
        )
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }
}

const NAMES: [&str; 6] = [
    "Ada Lovelace",
    "Grace Hopper",
    "Alan Turing",
    "Edsger Dijkstra",
    "Barbara Liskov",
    "Ken Thompson",
];
const WORDS: [&str; 16] = [
    "the", "order", "should", "arrive", "before", "noon", "tomorrow", "if", "nobody", "minds",
    "please", "call", "when", "it", "is", "there",
];
const GOODS: [&str; 5] =
    ["Espresso beans 1 kg", "Paper filters", "Hand grinder", "Kettle, 0.9 l", "Cup, white"];

impl Shape {
    /// The class of the event, as Laravel writes it.
    pub(crate) fn event(self) -> &'static str {
        match self {
            Self::Typing => r"App\\Events\\UserTyping",
            Self::Chat => r"App\\Events\\MessageSent",
            Self::Order => r"App\\Events\\OrderUpdated",
            Self::Dashboard => r"App\\Events\\DashboardRefreshed",
        }
    }

    /// The data of an event that was due then: JSON with nothing to escape but its quotes.
    pub(crate) fn data(self, due: u64) -> String {
        let mut some = Numbers(due);
        let mark = format!("\"due\":\"~{due:016x}~\"");
        match self {
            Self::Typing => {
                format!("{{\"user_id\":{},{mark},\"typing\":true}}", some.below(90_000))
            }
            Self::Chat => {
                let text: Vec<&str> = (0..22).map(|_| some.of(&WORDS)).collect();
                format!(
                    "{{{mark},\"message\":{{\"id\":{},\"room_id\":{},\"body\":\"{}\",\"user\":{{\"id\":{},\"name\":\"{}\"}},\"created_at\":\"{}\"}}}}",
                    some.below(9_000_000),
                    some.below(9_000),
                    text.join(" "),
                    some.below(90_000),
                    some.of(&NAMES),
                    some.time(),
                )
            }
            Self::Order => order(&mut some, &mark),
            Self::Dashboard => {
                let rows: Vec<String> = (0..72).map(|id| row(&mut some, id)).collect();
                format!(
                    "{{{mark},\"generated_at\":\"{}\",\"rows\":[{}]}}",
                    some.time(),
                    rows.join(",")
                )
            }
        }
    }
}

fn order(some: &mut Numbers, mark: &str) -> String {
    let line = |some: &mut Numbers| {
        let (price, count) = (some.below(9_000), 1 + some.below(5));
        format!(
            "{{\"id\":{},\"sku\":\"{}\",\"name\":\"{}\",\"quantity\":{count},\"unit_price\":\"{}.{:02}\",\"total\":\"{}.{:02}\"}}",
            some.below(900_000),
            &some.uuid()[..8],
            some.of(&GOODS),
            price / 100,
            price % 100,
            price * count / 100,
            price * count % 100,
        )
    };
    let address = |some: &mut Numbers| {
        format!(
            "{{\"name\":\"{}\",\"street\":\"{} Market Street\",\"city\":\"Springfield\",\"postcode\":\"{:05}\",\"country\":\"US\"}}",
            some.of(&NAMES),
            some.below(900),
            some.below(99_999),
        )
    };
    let lines: Vec<String> = (0..5).map(|_| line(some)).collect();
    // Most orders go to where they are paid, and have just been placed.
    let (home, at) = (address(some), some.time());
    format!(
        "{{{mark},\"order\":{{\"id\":{},\"uuid\":\"{}\",\"status\":\"shipped\",\"currency\":\"USD\",\"created_at\":\"{}\",\"updated_at\":\"{}\",\"billing_address\":{},\"shipping_address\":{},\"items\":[{}],\"customer\":{{\"id\":{},\"email\":\"customer{}@example.test\"}}}}}}",
        some.below(9_000_000),
        some.uuid(),
        at,
        at,
        home,
        home,
        lines.join(","),
        some.below(90_000),
        some.below(90_000),
    )
}

fn row(some: &mut Numbers, id: usize) -> String {
    format!(
        "{{\"id\":{id},\"name\":\"{}\",\"region\":\"eu-west-{}\",\"requests\":{},\"errors\":{},\"latency_ms\":{}.{},\"status\":\"ok\",\"updated_at\":\"{}\"}}",
        some.of(&["checkout", "search", "catalogue", "payments", "sessions"]),
        1 + some.below(3),
        some.below(100_000),
        some.below(100),
        some.below(400),
        some.below(10),
        some.time(),
    )
}
