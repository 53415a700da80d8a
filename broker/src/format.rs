//! Payloads as values, and values as payloads: JSON, MessagePack, CBOR.

use std::fmt;

use jaq_json::{Map, Num, Val};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// How a value lies in a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    #[default]
    Json,
    MsgPack,
    Cbor,
    /// The text itself, as a string.
    Text,
}

impl Format {
    /// The value of a payload, or why it has none. What is nested too deeply is refused, as serde_json, rmp-serde and ciborium do.
    pub fn decode(self, payload: &[u8]) -> Result<Val, String> {
        let decoded = match self {
            Self::Json => serde_json::from_slice(payload)
                .map(|Read(val)| val)
                .map_err(|e| e.to_string()),
            Self::MsgPack => {
                let mut rest = payload;
                let mut reader = rmp_serde::Deserializer::new(&mut rest);
                // Each level is a frame on the stack.
                reader.set_max_depth(MAX_DEPTH);
                let decoded = Read::deserialize(&mut reader).map_err(|e| e.to_string());
                decoded.and_then(|Read(val)| alone(val, rest))
            }
            Self::Cbor => {
                let mut rest = payload;
                ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
                    .map_err(|e| e.to_string())
                    .and_then(|Read(val)| alone(val, rest))
            }
            Self::Text => match std::str::from_utf8(payload) {
                Ok(text) => Ok(Val::from(text.to_owned())),
                Err(e) => Err(e.to_string()),
            },
        };
        decoded.map_err(|why| format!("the payload is not {self}: {why}"))
    }

    /// A value as a payload, or why it can't be one.
    pub fn encode(self, val: &Val) -> Result<Vec<u8>, String> {
        let is_json = self == Self::Json;
        let write = Write { val, is_json };
        let encoded = match self {
            Self::Json => serde_json::to_vec(&write).map_err(|e| e.to_string()),
            Self::MsgPack => rmp_serde::to_vec(&write).map_err(|e| e.to_string()),
            Self::Cbor => {
                let mut bytes = Vec::new();
                let written = ciborium::into_writer(&write, &mut bytes);
                written.map(|()| bytes).map_err(|e| e.to_string())
            }
            Self::Text => match val {
                Val::TStr(text) | Val::BStr(text) => Ok(text.to_vec()),
                _ => Err(String::from("it is no string")),
            },
        };
        encoded.map_err(|why| format!("the result can't be {self}: {why}"))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::MsgPack => "MessagePack",
            Self::Cbor => "CBOR",
            Self::Text => "text in UTF-8",
        })
    }
}

/// Levels of what is nested; serde_json has as many.
const MAX_DEPTH: usize = 128;

/// A value that has its payload for itself.
fn alone(val: Val, rest: &[u8]) -> Result<Val, String> {
    match rest {
        [] => Ok(val),
        _ => Err(format!("{} bytes follow it", rest.len())),
    }
}

/// A value that is read.
struct Read(Val);

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values).map(Self)
    }
}

struct Values;

impl<'de> DeserializeSeed<'de> for Values {
    type Value = Val;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Val, E> {
        Ok(Val::Null)
    }

    fn visit_none<E>(self) -> Result<Val, E> {
        Ok(Val::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Val, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Val, E> {
        Ok(Val::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Val, E> {
        Ok(Val::Num(Num::from_integral(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Val, E> {
        Ok(Val::Num(Num::from_integral(value)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Val, E> {
        Ok(Val::Num(Num::from_integral(value)))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Val, E> {
        Ok(Val::Num(Num::from_integral(value)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Val, E> {
        Ok(Val::Num(Num::Float(value)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Val, E> {
        Ok(Val::utf8_str(text.as_bytes().to_vec()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Val, E> {
        Ok(Val::byte_str(bytes.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Val, A::Error> {
        std::iter::from_fn(|| seq.next_element_seed(Self).transpose()).collect()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Val, A::Error> {
        let mut all = Map::default();
        while let Some((key, value)) = map.next_entry_seed(Self, Self)? {
            if all.insert(key, value).is_some() {
                return Err(A::Error::custom("a key is there twice"));
            }
        }
        Ok(Val::obj(all))
    }
}

/// A value that is written.
struct Write<'a> {
    val: &'a Val,
    /// Then what has no form in it is an error, instead of something else.
    is_json: bool,
}

impl Serialize for Write<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_json = self.is_json;
        let text = |bytes: &'_ [u8]| {
            let text = std::str::from_utf8(bytes).map(str::to_owned);
            text.map_err(|_| S::Error::custom("a string is no UTF-8"))
        };
        match self.val {
            Val::Null => serializer.serialize_unit(),
            Val::Bool(value) => serializer.serialize_bool(*value),
            Val::Num(number) => match (number, number.as_isize()) {
                (_, Some(value)) => serializer.serialize_i64(value as i64),
                (Num::BigInt(big), None) => match big.to_string().parse() {
                    Ok(value) => serializer.serialize_u64(value),
                    Err(_) => Err(S::Error::custom("an integer has more than 64 bits")),
                },
                (number, None) => match number.to_string().parse::<f64>() {
                    Ok(value) if value.is_finite() || !is_json => serializer.serialize_f64(value),
                    _ => Err(S::Error::custom(format!("{number} has no form in it"))),
                },
            },
            Val::BStr(_) if is_json => Err(S::Error::custom("bytes have no form in it")),
            Val::BStr(bytes) => serializer.serialize_bytes(bytes),
            Val::TStr(bytes) => serializer.serialize_str(&text(bytes)?),
            Val::Arr(values) => {
                let mut seq = serializer.serialize_seq(Some(values.len()))?;
                for val in values.iter() {
                    seq.serialize_element(&Self { val, is_json })?;
                }
                seq.end()
            }
            Val::Obj(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, val) in entries.iter() {
                    let key = Self { val: key, is_json };
                    map.serialize_entry(&key, &Self { val, is_json })?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Format; 3] = [Format::Json, Format::MsgPack, Format::Cbor];

    #[test]
    fn a_value_is_the_same_in_every_format() {
        let json = br#"{"a":[1,-2,2.5,"\u00e9",null,true,{"b":18446744073709551615}],"e":{}}"#;
        let val = Format::Json.decode(json).unwrap();
        for from in ALL {
            let bytes = from.encode(&val).unwrap();
            assert_eq!(from.decode(&bytes).unwrap(), val, "{from}");
        }
    }

    #[test]
    fn bytes_go_through_what_has_them_and_are_an_error_in_json() {
        let val = Val::byte_str(vec![0, 255]);
        for format in [Format::MsgPack, Format::Cbor] {
            let bytes = format.encode(&val).unwrap();
            assert!(matches!(format.decode(&bytes).unwrap(), Val::BStr(_)));
        }
        assert!(Format::Json.encode(&val).unwrap_err().contains("bytes"));
        let nan = Val::Num(Num::Float(f64::NAN));
        assert!(Format::Json.encode(&nan).is_err());
    }

    #[test]
    fn what_is_no_value_is_an_error_however_deep_it_is() {
        for format in ALL {
            for bad in [
                &b""[..],
                b"\xc1",
                &[0xff, 0xff],
                &vec![b'['; 1 << 20],
                &vec![0x91; 1 << 20],
                &vec![0x81; 1 << 20],
            ] {
                let why = format.decode(bad).unwrap_err();
                assert!(why.starts_with("the payload is not"), "{why}");
            }
        }
        assert!(Format::Json.decode(b"1 2").is_err());
        assert!(Format::Cbor.decode(&[1, 2]).is_err());
        assert!(Format::MsgPack.decode(&[1, 2]).is_err());
        assert!(Format::Text.decode(b"\xff").is_err());
    }
}
