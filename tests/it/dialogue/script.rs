//! A file of scripts, taken apart. A script begins with a line `# P15: what it shows` and ends before
//! the next; other lines that begin with `#` are remarks.

use super::step::Step;

#[derive(Debug)]
pub struct Script {
    /// The first line: the cases' numbers and what the script shows.
    pub title: String,
    /// Whether any server of the protocol should pass: marked `# any server`.
    pub any_server: bool,
    /// Whether it shows what a node of several does otherwise: marked `# a lone server`.
    pub lone_server: bool,
    /// With the numbers of their lines in the file.
    pub steps: Vec<(usize, Step)>,
}

impl Script {
    pub fn parse_all(text: &str) -> Vec<Self> {
        let mut scripts: Vec<Self> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if let Some(remark) = line.strip_prefix('#') {
                let remark = remark.trim();
                if cases(remark).next().is_some() {
                    let title = remark.to_owned();
                    let (any_server, lone_server) = (false, false);
                    scripts.push(Self { title, any_server, lone_server, steps: Vec::new() });
                } else if let Some(script) = scripts.last_mut() {
                    script.any_server |= remark == "any server";
                    script.lone_server |= remark == "a lone server";
                }
            } else if !line.is_empty() {
                let step = Step::parse(line)
                    .unwrap_or_else(|error| panic!("line {}: {error}: {line}", index + 1));
                let script = scripts.last_mut().expect("a script's title comes first");
                script.steps.push((index + 1, step));
            }
        }
        for script in &scripts {
            let expects = script.steps.iter().any(|(_, step)| step.expects());
            assert!(expects, "{:?} expects nothing, so it cannot fail", script.title);
        }
        scripts
    }

    /// The numbers of the cases it shows, such as P15.
    pub fn cases(&self) -> impl Iterator<Item = &str> {
        cases(&self.title)
    }
}

/// The numbers in front of a title's colon; none if it is no title.
fn cases(title: &str) -> impl Iterator<Item = &str> {
    let numbers = title.split_once(": ").map_or("", |(numbers, _)| numbers);
    let is_case = |number: &&str| {
        number.len() == 3
            && number.starts_with(|c: char| c.is_ascii_uppercase())
            && number[1..].bytes().all(|byte| byte.is_ascii_digit())
    };
    let all = !numbers.is_empty() && numbers.split(", ").all(|number| is_case(&number));
    numbers.split(", ").filter(move |_| all)
}
