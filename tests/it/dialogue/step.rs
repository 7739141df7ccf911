//! One line of a script as what it asks for. Placeholders stay as they are here: they are filled in
//! when the line's turn comes.

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `app client_events=members`, `app other id=4 key=k secret=s`: before the server starts.
    App { name: String, settings: Vec<(String, String)> },
    /// `server path=/ws`: before the server starts.
    Server { settings: Vec<(String, String)> },
    /// `let data = {"user_id":10}`: later `$data`.
    Let { name: String, value: String },
    /// `a connects`, `a connects ?protocol=5 with Origin: http://x`: reads `connection_established`.
    Connects { who: String, door: Door },
    /// `a opens …`: a WebSocket of which nothing was read; `-> 404` if the server is to refuse.
    Opens { who: String, door: Door, refused: Option<u16> },
    /// `a was answered with NAME: value` and `a was answered without NAME`, of the handshake.
    Answered { who: String, header: String, value: Option<String> },
    /// `a > …`, or `a >> …` to be sent in one piece with what follows.
    Says { who: String, what: String, held: bool },
    /// `a < …`
    Hears { who: String, what: String },
    /// `a hears nothing`, though it would have by now.
    HearsNothing { who: String },
    /// `a closes`: as a browser that leaves the page does.
    Closes { who: String },
    /// `a vanishes`: the TCP stream ends without a word.
    Vanishes { who: String },
    /// `api POST events {…} -> 200 {}`, signed; `http GET /up -> 200 {…}` is not. `eventually api …`
    /// asks until the answer is right.
    Api(Box<Api>),
}

/// Where and how a socket is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Door {
    pub target: String,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Api {
    pub eventually: bool,
    pub signed: bool,
    /// What is unusual about the signature: `api(timestamp=-601, without=auth_key) …`.
    pub flags: Vec<(String, String)>,
    pub method: String,
    pub target: String,
    pub body: String,
    pub status: u16,
    pub answer: String,
    /// The line up to the arrow.
    pub question: String,
}

impl Step {
    pub fn parse(line: &str) -> Result<Self, String> {
        let (first, rest) = line.split_once(' ').ok_or("a line of one word")?;
        match first {
            "app" => {
                let (name, settings) = match rest.split_once(' ') {
                    Some((name, rest)) if !name.contains('=') => (name, rest),
                    _ => ("", rest),
                };
                return Ok(Self::App { name: name.to_owned(), settings: pairs(settings)? });
            }
            "server" => return Ok(Self::Server { settings: pairs(rest)? }),
            "let" => {
                let (name, value) = rest.split_once(" = ").ok_or("let NAME = value")?;
                return Ok(Self::Let { name: name.to_owned(), value: value.to_owned() });
            }
            _ => {}
        }
        if matches!(first, "eventually" | "http" | "api") || first.starts_with("api(") {
            return Api::parse(line).map(|api| Self::Api(Box::new(api)));
        }
        let who = first.to_owned();
        let (verb, what) = rest.split_once(' ').unwrap_or((rest, ""));
        let text = what.to_owned();
        Ok(match verb {
            ">" => Self::Says { who, what: text, held: false },
            ">>" => Self::Says { who, what: text, held: true },
            "<" => Self::Hears { who, what: text },
            "connects" => Self::Connects { who, door: Door::parse(what)? },
            "opens" => {
                let (door, status) = match what.rsplit_once("-> ") {
                    Some((door, status)) => (door, Some(status.parse().map_err(|_| "no status")?)),
                    None => (what, None),
                };
                Self::Opens { who, door: Door::parse(door.trim())?, refused: status }
            }
            "closes" => Self::Closes { who },
            "vanishes" => Self::Vanishes { who },
            "hears" if what == "nothing" => Self::HearsNothing { who },
            "was" => {
                if let Some(header) = what.strip_prefix("answered without ") {
                    Self::Answered { who, header: header.to_lowercase(), value: None }
                } else {
                    let header =
                        what.strip_prefix("answered with ").ok_or("answered with what?")?;
                    let (header, value) = header.split_once(": ").ok_or("NAME: value")?;
                    let value = Some(value.to_owned());
                    Self::Answered { who, header: header.to_lowercase(), value }
                }
            }
            _ => return Err(format!("{verb:?} is no verb")),
        })
    }

    /// Whether the line can be wrong about the server.
    pub fn expects(&self) -> bool {
        !matches!(
            self,
            Self::App { .. } | Self::Server { .. } | Self::Let { .. } | Self::Says { .. }
        )
    }
}

impl Door {
    /// `TARGET with NAME: value | NAME: value`, both parts optional.
    fn parse(text: &str) -> Result<Self, String> {
        let (target, headers) = match text.strip_prefix("with ") {
            Some(headers) => ("", headers),
            None => text.split_once(" with ").unwrap_or((text, "")),
        };
        let header = |text: &str| {
            let (name, value) = text.split_once(':').ok_or("NAME: value")?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        };
        let headers = headers.split(" | ").filter(|text| !text.is_empty()).map(header);
        Ok(Self { target: target.to_owned(), headers: headers.collect::<Result<_, String>>()? })
    }
}

impl Api {
    fn parse(line: &str) -> Result<Self, String> {
        let arrows = line.match_indices(" -> ").filter(|(at, _)| {
            let status = &line.as_bytes()[at + 4..];
            status.len() >= 3 && status[..3].iter().all(u8::is_ascii_digit)
        });
        let (arrow, _) = arrows.last().ok_or("no `-> STATUS`")?;
        let (question, answer) = (&line[..arrow], &line[arrow + 4..]);
        let mut api = Self { question: question.to_owned(), ..Self::default() };
        api.status = answer[..3].parse().map_err(|_| "no status")?;
        api.answer = answer[3..].trim().to_owned();
        let rest = match question.strip_prefix("eventually ") {
            Some(rest) => {
                api.eventually = true;
                rest
            }
            None => question,
        };
        let rest = if let Some(rest) = rest.strip_prefix("http ") {
            rest
        } else {
            api.signed = true;
            let rest = rest.strip_prefix("api").ok_or("api or http")?;
            match rest.strip_prefix('(') {
                Some(rest) => {
                    let (flags, rest) = rest.split_once(") ").ok_or("an open parenthesis")?;
                    api.flags = flags.split(", ").map(pair).collect::<Result<_, _>>()?;
                    rest
                }
                None => rest.trim_start(),
            }
        };
        let mut words = rest.splitn(3, ' ');
        api.method = words.next().unwrap_or_default().to_owned();
        api.target = words.next().ok_or("no target")?.to_owned();
        api.body = words.next().unwrap_or_default().to_owned();
        Ok(api)
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split_whitespace().map(pair).collect()
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[test]
fn lines_are_taken_apart() {
    assert!(Step::parse("a sings loudly").is_err());
    assert!(Step::parse("api GET channels").is_err());
    let Ok(Step::Api(api)) = Step::parse(
        r#"eventually api(timestamp=-601, key=k) POST events {"data":"a -> b"} -> 401 Time …"#,
    ) else {
        panic!("not a request");
    };
    assert!(api.eventually && api.signed);
    assert_eq!(api.flags.len(), 2);
    assert_eq!((&*api.method, &*api.target), ("POST", "events"));
    assert_eq!(api.body, r#"{"data":"a -> b"}"#);
    assert_eq!((api.status, &*api.answer), (401, "Time …"));
}
