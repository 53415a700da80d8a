//! How messages stand in a byte stream.

use std::io::{self, Write};
use std::str::FromStr;

use crate::size;

/// What `--frame` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Each message followed by this byte, which is not part of it.
    Delimited(u8),
    /// Nothing between messages: what one read gives, at most this many bytes, is one.
    Chunk(usize),
    /// Each message preceded by its length: four bytes, little endian.
    Len32,
}

impl Framing {
    /// What `--frame` takes.
    pub const FORMS: &str = "line|null|chunk[=SIZE]|len32";

    /// Writes one message.
    pub fn write(self, out: &mut impl Write, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Delimited(delimiter) => {
                out.write_all(message)?;
                out.write_all(&[delimiter])
            }
            Self::Chunk(_) => out.write_all(message),
            Self::Len32 => {
                // A frame's length has 28 bits.
                let len = u32::try_from(message.len()).map_err(io::Error::other)?;
                out.write_all(&len.to_le_bytes())?;
                out.write_all(message)
            }
        }
    }
}

impl FromStr for Framing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "line" => Ok(Self::Delimited(b'\n')),
            "null" => Ok(Self::Delimited(0)),
            "chunk" => Ok(Self::Chunk(64 * 1024)),
            "len32" => Ok(Self::Len32),
            _ => match text.strip_prefix("chunk=").map(size::parse) {
                Some(Ok(0)) => Err("a chunk has at least one byte".into()),
                Some(result) => result.map(Self::Chunk),
                None => Err(format!("expected {}", Self::FORMS)),
            },
        }
    }
}
