//! Sizes on the command line: `64KiB`, `1MiB`, or plain bytes.

use bytesize::ByteSize;

/// Parses a size into bytes.
pub fn parse(text: &str) -> Result<usize, String> {
    let size: ByteSize = text
        .parse()
        .map_err(|_| format!("`{text}` is no size: write bytes, 64KiB or 1MiB"))?;
    usize::try_from(size.as_u64())
        .map_err(|_| format!("`{text}` is more than this machine can address"))
}

/// A number of bytes for people.
pub fn human(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}
