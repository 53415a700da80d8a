//! Names on the bus, and key expressions on the network.

use buslane::NamePattern;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use zenoh::key_expr::KeyExpr;

use crate::failure::Failure;

/// What a key expression may not hold, or gives a meaning of its own.
const FORBIDDEN: &[char] = &['*', '$', '?', '#', '@', '%'];
/// A state's key is one chunk, whatever bytes it has.
const CHUNK: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// The chunk below which bridges talk among themselves. Chunks with an `@` are not met by any wildcard.
const OWN: &str = "@buslane";

/// The key expressions of one bridged network: all that begin with its prefix.
#[derive(Clone, Debug)]
pub struct Space {
    prefix: String,
}

/// What a token of a bridge says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    /// It is there.
    Here,
    /// Others than bridges are connected to it.
    Plain,
    /// It has this state.
    State(String),
    /// It answers requests to this service.
    Serves(String),
}

impl Space {
    /// The one below `prefix`.
    pub fn new(prefix: &str) -> Result<Self, Failure> {
        let wrong = |why: String| {
            Failure::Usage(format!(
                "cannot use the prefix {prefix:?}: {why}; give segments of letters and digits, separated by '/'"
            ))
        };
        let key = KeyExpr::new(prefix).map_err(|e| wrong(e.to_string()))?;
        if key.is_wild() || prefix.contains('@') {
            return Err(wrong(String::from("it has a '*' or an '@'")));
        }
        Ok(Self {
            prefix: prefix.to_owned(),
        })
    }

    /// Its prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key expression of a topic, state or service.
    pub fn key(&self, name: &str) -> String {
        format!("{}/{}", self.prefix, escape(name))
    }

    /// The name behind a key expression without wildcards.
    pub fn name(&self, key: &str) -> Option<String> {
        unescape(key.strip_prefix(&self.prefix)?.strip_prefix('/')?)
    }

    /// The key expressions that match the same names as `pattern`.
    pub fn keys(&self, pattern: &str) -> Result<KeyExpr<'static>, Failure> {
        let chunks = pattern.split('/').map(|segment| match segment {
            "*" => String::from("*"),
            // One or more there, none or more here.
            "**" => String::from("*/**"),
            segment => escape(segment),
        });
        let text = format!("{}/{}", self.prefix, chunks.collect::<Vec<_>>().join("/"));
        KeyExpr::autocanonize(text)
            .map_err(|e| Failure::Usage(format!("cannot use the pattern {pattern:?}: {e}")))
    }

    /// The key expression of one key of a state.
    pub fn state_key(&self, state: &str, key: &[u8]) -> String {
        format!("{}/{}", self.key(state), chunk(key))
    }

    /// The key expression of something among bridges.
    pub fn own(&self, rest: &str) -> String {
        format!("{}/{OWN}/{rest}", self.prefix)
    }

    /// The key expression of a token.
    pub fn token(&self, bus: &str, session: &str, said: &Said) -> String {
        let mut key = self.own(&format!("{bus}/{session}"));
        let (what, name) = match said {
            Said::Here => return key,
            Said::Plain => ("plain", None),
            Said::State(name) => ("state", Some(name)),
            Said::Serves(name) => ("serves", Some(name)),
        };
        for part in [Some(what.to_owned()), name.map(|name| escape(name))]
            .into_iter()
            .flatten()
        {
            key.push('/');
            key.push_str(&part);
        }
        key
    }

    /// Whose token it is, in which session, and what it says.
    pub fn read_token<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str, Said)> {
        let rest = key.strip_prefix(&self.own(""))?;
        let mut parts = rest.splitn(4, '/');
        let (bus, session) = (parts.next()?, parts.next()?);
        let said = match (parts.next(), parts.next()) {
            (None, _) => Said::Here,
            (Some("plain"), None) => Said::Plain,
            (Some("state"), Some(name)) => Said::State(unescape(name)?),
            (Some("serves"), Some(name)) => Said::Serves(unescape(name)?),
            _ => return None,
        };
        Some((bus, session, said))
    }
}

/// A name, or a segment of one, as chunks of a key expression: as it is, but for what has a meaning there.
fn escape(name: &str) -> String {
    let mut chunks = String::with_capacity(name.len());
    for character in name.chars() {
        match FORBIDDEN.contains(&character) {
            true => chunks.push_str(&format!("%{:02X}", character as u32)),
            false => chunks.push(character),
        }
    }
    chunks
}

fn unescape(key: &str) -> Option<String> {
    let name = percent_decode_str(key).decode_utf8().ok()?;
    Some(name.into_owned())
}

/// A state's key as one chunk.
pub fn chunk(key: &[u8]) -> String {
    percent_encode(key, CHUNK).to_string()
}

/// The state's key in a chunk.
pub fn unchunk(chunk: &str) -> Vec<u8> {
    percent_decode_str(chunk).collect()
}

/// Patterns of names.
#[derive(Clone, Debug)]
pub struct Patterns(Vec<NamePattern>);

impl Patterns {
    /// Reads them.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a String>) -> Result<Self, Failure> {
        let parsed = texts.into_iter().map(|text| NamePattern::parse(text));
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// Whether one of them means `name`.
    pub fn match_any(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> Space {
        Space::new("shop/north").unwrap()
    }

    #[test]
    fn names_that_key_expressions_forbid_come_back() {
        for name in ["orders/new", "a$b/c?d", "@x/50%", "h\u{e9}/#1", "a b"] {
            let key = space().key(name);
            assert!(!KeyExpr::new(key.clone()).unwrap().is_wild(), "{key}");
            assert_eq!(space().name(&key).as_deref(), Some(name));
        }
        assert_eq!(space().name("shop/south/orders"), None);
        assert_eq!(space().name("shop/northern"), None);
    }

    #[test]
    fn patterns_mean_the_same_names_on_both_sides() {
        for (pattern, name) in [
            ("orders/*", "orders/eu"),
            ("orders/*", "orders/eu/new"),
            ("orders/**", "orders"),
            ("orders/**", "orders/eu/new"),
            ("**", "orders"),
            ("**/new", "new"),
            ("*/**/*", "a/b/c"),
            ("*/**/*", "a/b"),
            ("@a/*", "@a/b"),
        ] {
            let here = Patterns::parse([&pattern.to_owned()]).unwrap();
            let key = KeyExpr::new(space().key(name)).unwrap();
            let there = space().keys(pattern).unwrap().intersects(&key);
            assert_eq!(here.match_any(name), there, "{pattern} {name}");
        }
        assert!(
            !space()
                .keys("**")
                .unwrap()
                .intersects(&KeyExpr::new(space().own("x/y")).unwrap())
        );
    }

    #[test]
    fn tokens_come_back() {
        let name = String::from("prices/@eu");
        for said in [
            Said::Here,
            Said::Plain,
            Said::State(name.clone()),
            Said::Serves(name),
        ] {
            let key = space().token("bus", "zid", &said);
            assert_eq!(space().read_token(&key), Some(("bus", "zid", said)));
        }
        assert_eq!(space().read_token(&space().own("bus/zid/what")), None);
    }

    #[test]
    fn a_prefix_is_a_key_expression_without_wildcards() {
        for wrong in ["", "a*", "a/**", "/a", "a//b", "@a", "a#"] {
            assert!(Space::new(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn keys_of_states_come_back(key: Vec<u8>) {
            let chunk = chunk(&key);
            prop_assert!(!chunk.contains('/'));
            prop_assert_eq!(unchunk(&chunk), key);
        }

        #[test]
        fn any_name_comes_back(name in "[^\\*/\\p{Cc}]{1,9}(/[^\\*/\\p{Cc}]{1,9}){0,3}") {
            let key = space().key(&name);
            prop_assert!(KeyExpr::new(key.clone()).is_ok(), "{}", key);
            prop_assert_eq!(space().name(&key), Some(name));
        }
    }
}
