//! Expressions of the jq language, and the program that a route of a configuration makes of them.

use std::time::{Duration, SystemTime};

use buslane::Kind;
use jaq_core::load::{Arena, File, Loader};
use jaq_core::{Compiler, Ctx, Filter, Vars, data::JustLut, load};
use jaq_json::{Map, Num, Val};

use crate::error::Result;
use crate::format::Format;
use crate::passed::MAX_OUTPUTS;
use crate::route::{Draft, Incoming, Outgoing, Program};

/// What expressions know beside their input.
const ENVELOPE: &str = "$envelope";

/// A compiled expression.
pub struct Expression {
    filter: Filter<JustLut<Val>>,
    uses_envelope: bool,
}

/// What is wrong with an expression, and where, in bytes from its beginning.
#[derive(Debug)]
pub struct Wrong {
    pub at: usize,
    pub why: String,
}

impl Expression {
    pub fn compile(code: &str) -> Result<Self, Wrong> {
        let defs = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs());
        let funs = jaq_core::funs()
            .chain(jaq_std::funs())
            .chain(jaq_json::funs());
        let arena = Arena::default();
        let at = |part: &str| match part {
            "" => code.len(),
            part => load::span(code, part).start,
        };
        let modules = Loader::new(defs)
            .load(&arena, File { code, path: () })
            .map_err(|errors| {
                let first = errors.into_iter().map(|(_, error)| error).next();
                match first {
                    Some(load::Error::Lex(errors)) => first_of(errors, |(expected, found)| Wrong {
                        at: at(found),
                        why: format!("expected {}", expected.as_str()),
                    }),
                    Some(load::Error::Parse(errors)) => {
                        first_of(errors, |(expected, found)| Wrong {
                            at: at(found),
                            why: format!("expected {}{}", expected.as_str(), instead_of(found)),
                        })
                    }
                    Some(load::Error::Io(errors)) => first_of(errors, |(path, why)| Wrong {
                        at: at(path),
                        why: format!("modules can't be loaded here: {why}"),
                    }),
                    None => nothing_said(),
                }
            })?;
        let compiler = Compiler::default()
            .with_funs(funs)
            .with_global_vars([ENVELOPE]);
        let filter = compiler.compile(modules).map_err(|errors| {
            let errors = errors.into_iter().flat_map(|(_, errors)| errors).collect();
            first_of(errors, |(found, what)| Wrong {
                at: at(found),
                why: format!("there is no {} {found}", what.as_str()),
            })
        })?;
        Ok(Self {
            filter,
            uses_envelope: code.contains(ENVELOPE),
        })
    }

    /// All that it makes of a value, or why it can't.
    fn run(&self, input: Val, envelope: &Val) -> Result<Vec<Val>, String> {
        let ctx = Ctx::<JustLut<Val>>::new(&self.filter.lut, Vars::new([envelope.clone()]));
        let mut values = Vec::new();
        for value in self.filter.id.run((ctx, input)) {
            if values.len() == MAX_OUTPUTS {
                return Err(format!("it makes more than {MAX_OUTPUTS} values"));
            }
            values.push(value.map_err(|exception| match exception.get_err() {
                Ok(error) => error.to_string(),
                Err(_) => String::from("it halts"),
            })?);
        }
        Ok(values)
    }
}

/// At the first of what is said to be wrong, all of which are in one expression.
fn first_of<T>(errors: Vec<T>, wrong: impl Fn(T) -> Wrong) -> Wrong {
    errors
        .into_iter()
        .map(wrong)
        .min_by_key(|wrong| wrong.at)
        .unwrap_or_else(nothing_said)
}

fn nothing_said() -> Wrong {
    let why = String::from("it is no expression");
    Wrong { at: 0, why }
}

fn instead_of(found: &str) -> String {
    match found {
        "" => String::from(", and it ends"),
        found => format!(", and there is {found}"),
    }
}

/// What a route of a configuration does with each message.
#[derive(Default)]
pub struct Expressions {
    pub decode: Format,
    pub encode: Format,
    /// Whether the message is passed on.
    pub condition: Option<Expression>,
    /// The payloads that are sent.
    pub payload: Option<Expression>,
    /// Of each of these, what its envelope says.
    pub envelope: Option<Expression>,
    /// And the topics that it goes to.
    pub router: Option<Expression>,
}

impl Expressions {
    /// Whether a message needs not be looked at.
    pub fn are_none(&self) -> bool {
        self.all().next().is_none() && self.decode == self.encode
    }

    fn all(&self) -> impl Iterator<Item = &Expression> {
        [&self.condition, &self.payload, &self.envelope, &self.router]
            .into_iter()
            .flatten()
    }
}

impl Program for Expressions {
    fn run(&mut self, message: &Incoming<'_>, out: &mut Outgoing) -> Result<(), String> {
        let input = self.decode.decode(message.payload)?;
        let uses_envelope = self.all().any(|expression| expression.uses_envelope);
        let facts = match uses_envelope {
            true => facts(message),
            false => Val::Null,
        };
        let run = |expression: &Expression, input: &Val, name: &str| {
            let values = expression.run(input.clone(), &facts);
            values.map_err(|why| format!("{name}: {why}"))
        };
        if let Some(condition) = &self.condition {
            let values = run(condition, &input, "where")?;
            let is_met = |value: &Val| !matches!(value, Val::Null | Val::Bool(false));
            if !values.first().is_some_and(is_met) {
                return Ok(());
            }
        }
        let values = match &self.payload {
            Some(payload) => run(payload, &input, "payload")?,
            None => vec![input],
        };
        for value in &values {
            let is_same = self.payload.is_none() && self.decode == self.encode;
            let draft = match is_same {
                true => out.pass(),
                false => out.send(self.encode.encode(value)?),
            };
            if let Some(envelope) = &self.envelope {
                for said in run(envelope, value, "envelope")? {
                    say(draft, &said).map_err(|why| format!("envelope: {why}"))?;
                }
            }
            if let Some(router) = &self.router {
                draft.to_nobody();
                for name in run(router, value, "router")? {
                    draft.to(text(&name).ok_or("router: a topic's name is a string")?);
                }
            }
        }
        Ok(())
    }
}

/// What tells a message from others, as bytes: that of equal values are equal.
pub fn key(
    expression: &Expression,
    decode: Format,
    message: &Incoming<'_>,
) -> Result<Vec<u8>, String> {
    let input = decode.decode(message.payload)?;
    let facts = match expression.uses_envelope {
        true => facts(message),
        false => Val::Null,
    };
    let values = expression
        .run(input, &facts)
        .map_err(|why| format!("unique: {why}"))?;
    Ok(values
        .iter()
        .map(|value| format!("{value}\n"))
        .collect::<String>()
        .into_bytes())
}

/// A message's envelope, and where it came from, as expressions see it.
fn facts(message: &Incoming<'_>) -> Val {
    let mut all = Map::default();
    let mut say = |name: &str, value: Val| all.insert(Val::from(name.to_owned()), value);
    let string = |text: &str| Val::from(text.to_owned());
    say("topic", string(message.topic));
    say("lane", Val::Num(Num::from_integral(message.lane)));
    say("sequence", Val::Num(Num::from_integral(message.sequence)));
    say("sender", string(message.sender));
    if let Some(envelope) = message.envelope {
        say("kind", string(envelope.kind().name()));
        if let Some(name) = envelope.type_name() {
            say("type", string(name));
        }
        say(
            "correlation",
            Val::Num(Num::from_integral(envelope.correlation())),
        );
        if let Some(sent) = envelope.sent() {
            let since = sent
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or(Duration::ZERO);
            say("sent", Val::from(since.as_secs_f64()));
        }
        if let Some(parent) = envelope.trace_parent() {
            say("traceparent", string(&parent.to_string()));
        }
        say("trace", envelope.trace().map(string).collect());
    }
    Val::obj(all)
}

/// Has a message say what an object says.
fn say(draft: &mut Draft, said: &Val) -> Result<(), String> {
    let Val::Obj(entries) = said else {
        return Err(format!("it is to make an object, and made {said}"));
    };
    for (key, value) in entries.iter() {
        let not = |what: &str| format!("{key} is to be {what}, and is {value}");
        match text(key) {
            Some("kind") => {
                let name = text(value).ok_or_else(|| not("a string"))?;
                let kind = kind_of(name).ok_or_else(|| not("event, command, document or reply"))?;
                draft.kind(kind);
            }
            Some("type") => {
                draft.of_type(text(value).ok_or_else(|| not("a string"))?);
            }
            Some("correlation") => {
                let number = match value {
                    Val::Num(number) => number.to_string().parse().ok(),
                    _ => None,
                };
                draft.correlated(number.ok_or_else(|| not("a number from 0 to 2^64 - 1"))?);
            }
            _ => {
                return Err(format!(
                    "an envelope says kind, type and correlation, not {key}"
                ));
            }
        }
    }
    Ok(())
}

/// What a name stands for.
pub fn kind_of(name: &str) -> Option<Kind> {
    let all = [Kind::Event, Kind::Command, Kind::Document, Kind::Reply];
    all.into_iter().find(|kind| kind.name() == name)
}

fn text(value: &Val) -> Option<&str> {
    match value {
        Val::TStr(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}
