//! Sizes such as `512MiB` and durations such as `10m`, as operators write them.

use std::time::Duration;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// A number of bytes: digits, and one of the units B, KiB, MiB, GiB, TiB, KB, MB, GB, TB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write a whole number and a unit, as in 512MiB");
    let text = text.trim();
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit = if unit.is_empty() { "B" } else { unit.trim() };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let factor = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|(_, factor)| *factor);
    let factor = factor.ok_or_else(|| {
        let names: Vec<&str> = SIZE_UNITS.iter().map(|(name, _)| *name).collect();
        format!(
            "{text:?} is not a size: the unit {unit:?} is none of {}",
            names.join(", ")
        )
    })?;
    number
        .checked_mul(factor)
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// What to say of a size that is less than `min_bytes`, after how much it is. Who leaves the unit out mostly means MiB, and the
/// number that was understood shows it.
pub(crate) fn too_little(text: &str, min_bytes: u64) -> String {
    let text = text.trim();
    let Ok(number) = text.parse::<u64>() else {
        return String::new();
    };
    let meant = number
        .checked_mul(1 << 20)
        .filter(|bytes| (min_bytes..1 << 50).contains(bytes));
    let example = meant.unwrap_or_else(|| min_bytes.max(512 << 20));
    format!(
        "; {text} without a unit is read as {text} bytes: write the unit too, as in {}",
        display_size_in_mib(example)
    )
}

fn display_size_in_mib(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// A duration: one or more of digits and unit (ms, s, m, h, d), as in `90s` or `1h30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is not a duration: write whole numbers with ms, s, m, h or d, as in 10m or 1h30m"
        )
    };
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits_end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(digits_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let factor = DURATION_UNITS
            .iter()
            .find(|(name, _)| *name == unit.trim())
            .map(|(_, factor)| *factor);
        let part = number.checked_mul(factor.ok_or_else(wrong)?);
        total_ms = part
            .and_then(|part| total_ms.checked_add(part))
            .ok_or_else(|| format!("{text:?} is too long"))?;
        rest = tail.trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

/// The size with the largest binary unit that divides it, so that it reads back as the same number.
pub(crate) fn display_size(bytes: u64) -> String {
    let fits = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes.is_multiple_of(*factor);
    match SIZE_UNITS[..5].iter().rev().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_known_unit() {
        assert_eq!(parse_size("512MiB"), Ok(512 << 20));
        assert_eq!(parse_size("1 GB"), Ok(1_000_000_000));
        assert_eq!(parse_size("64kib"), Ok(64 << 10));
        assert_eq!(parse_size("4096"), Ok(4096));
        for bad in ["", "MiB", "12Q", "1.5GiB", "-1", "99999999999TiB", "512M"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    /// `memory = "512"` used to be refused for being too little, without a word on how little it was taken for.
    #[test]
    fn who_forgot_the_unit_is_told_what_was_understood() {
        let told = too_little("512", 256 << 20);
        assert!(
            told.contains("512 without a unit is read as 512 bytes") && told.ends_with(" 512MiB"),
            "{told}"
        );
        let told = too_little("12", 256 << 20);
        assert!(
            told.contains("read as 12 bytes") && told.ends_with(" 512MiB"),
            "{told}"
        );
        assert_eq!(
            too_little("128MiB", 256 << 20),
            "",
            "it is clear what was meant"
        );
    }

    #[test]
    fn durations_add_up_and_need_a_unit() {
        assert_eq!(parse_duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "10", "m", "1.5h", "10M", "10 minutes", "-3s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for bytes in [0, 1, 1023, 1 << 20, 3 << 29, (1 << 30) + 1] {
            assert_eq!(parse_size(&display_size(bytes)), Ok(bytes));
        }
        assert_eq!(display_size(512 << 20), "512MiB");
    }
}
