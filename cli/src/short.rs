//! Figures and processes, for people, in few characters.

use std::time::Duration;

use buslane::Owner;
use bytesize::ByteSize;

/// Who it is.
pub fn owner(owner: &Owner) -> String {
    match owner {
        Owner { alive: true, .. } => format!("{} {}", owner.name, owner.pid),
        Owner { pid: 0, .. } => String::from("gone"),
        _ => format!("{} {} (dead)", owner.name, owner.pid),
    }
}

/// A number, in at most five characters: `999`, `12.3k`, `845M`.
pub fn count(number: f64) -> String {
    let mut number = number;
    for unit in ["", "k", "M", "G", "T", "P"] {
        let digits = usize::from(number < 99.95 && !unit.is_empty());
        if number < 999.5 {
            return format!("{number:.digits$}{unit}");
        }
        number /= 1000.0;
    }
    format!("{number:.0}E")
}

/// Bytes: `0`, `512B`, `1.2M`.
pub fn bytes(number: f64) -> String {
    if number < 1.0 {
        return String::from("0");
    }
    ByteSize(number as u64).display().iec_short().to_string()
}

/// A time, in at most six characters: `0`, `850ns`, `12.3µs`, `1.2s`, `3m`, `5h`.
pub fn span(time: Duration) -> String {
    if time.is_zero() {
        return String::from("0");
    }
    let seconds = time.as_secs_f64();
    for (end, factor, unit, has_fraction) in [
        (1e3, 1e9, "ns", false),
        (1e3, 1e6, "µs", true),
        (1e3, 1e3, "ms", true),
        (120.0, 1.0, "s", true),
        (120.0, 1.0 / 60.0, "m", false),
        (48.0, 1.0 / 3600.0, "h", false),
    ] {
        let number = seconds * factor;
        let digits = usize::from(has_fraction && number < 99.95);
        // As it is shown, it is below the end.
        if number < end - 0.5 {
            return format!("{number:.digits$}{unit}");
        }
    }
    format!("{:.0}d", seconds / 86400.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 9.6, 999.4, 999.6, 12_345.0, 99_960.0, 845e6, 1e17].map(count);
        assert_eq!(
            shown,
            ["0", "10", "999", "1.0k", "12.3k", "100k", "845M", "100P"]
        );
    }

    #[test]
    fn times_are_short() {
        let shown = [
            0,
            850,
            12_340,
            999_960,
            4_500_000,
            1_200_000_000,
            180_000_000_000,
        ];
        let shown = shown.map(|ns| span(Duration::from_nanos(ns)));
        assert_eq!(
            shown,
            ["0", "850ns", "12.3µs", "1.0ms", "4.5ms", "1.2s", "3m"]
        );
        assert_eq!(span(Duration::from_secs(7 * 86400)), "7d");
    }
}
