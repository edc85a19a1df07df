//! `key=value` options, sizes and booleans, read the way moby reads them (`research`: 20.10 `parsers`, `go-units`, `strconv`).

use super::{Error, Result};

/// Splits `key=value` at the first `=`; both are trimmed and the key is lower-cased.
///
/// # Errors
/// [`Error::InvalidOption`] without a `=` or without a key.
pub fn parse_key_value(option: &str) -> Result<(String, &str)> {
    let invalid = |why: &str| Error::InvalidOption {
        key: option.to_owned(),
        why: why.to_owned(),
    };
    let (key, value) = option
        .split_once('=')
        .ok_or_else(|| invalid("expected key=value"))?;
    let key = key.trim().to_lowercase();
    if key.is_empty() {
        return Err(invalid("the key is empty"));
    }
    Ok((key, value.trim()))
}

/// A size in bytes: a decimal number, optional decimals, an optional space, an optional `k m g t p` (powers of 1024, any case)
/// that may be followed by `i`, and an optional `b`. Decimals of a byte are dropped.
///
/// # Errors
/// [`Error::InvalidOption`] naming `key`.
pub fn parse_size(key: &str, text: &str) -> Result<u64> {
    let invalid = |why: &str| Error::InvalidOption {
        key: key.to_owned(),
        why: format!("{text:?} {why}"),
    };
    let not_a_size = || invalid("is not a size, such as 50M or 1.5g");
    let lower = text.to_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let shift = match unit {
        "" => 0,
        "k" | "ki" => 10,
        "m" | "mi" => 20,
        "g" | "gi" => 30,
        "t" | "ti" => 40,
        "p" | "pi" => 50,
        _ => return Err(not_a_size()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(fraction) || fraction.len() > 18 || number.ends_with('.') {
        return Err(not_a_size());
    }
    let whole: u128 = whole.parse().map_err(|_| not_a_size())?;
    let part: u128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| not_a_size())?
    };
    let scale = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    whole
        .checked_mul(1 << shift)
        .map(|bytes| bytes + (part << shift) / scale)
        .and_then(|bytes| u64::try_from(bytes).ok())
        .filter(|bytes| *bytes <= i64::MAX.unsigned_abs())
        .ok_or_else(|| invalid("is too large"))
}

/// A boolean in one of the spellings of Go's `strconv.ParseBool`.
///
/// # Errors
/// [`Error::InvalidOption`] naming `key`.
pub fn parse_bool(key: &str, text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Error::InvalidOption {
            key: key.to_owned(),
            why: format!("{text:?} is not a boolean (true or false)"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("k=v", "k", "v")]
    #[case(" K = v ", "k", "v")]
    #[case("k=v1=v2", "k", "v1=v2")]
    #[case("k=", "k", "")]
    fn options(#[case] text: &str, #[case] key: &str, #[case] value: &str) {
        assert_eq!(parse_key_value(text).unwrap(), (key.to_owned(), value));
    }

    #[rstest]
    #[case("")]
    #[case("key")]
    #[case("=v")]
    #[case("  = v")]
    fn not_options(#[case] text: &str) {
        assert!(matches!(
            parse_key_value(text),
            Err(Error::InvalidOption { .. })
        ));
    }

    #[rstest]
    #[case("0", 0)]
    #[case("32", 32)]
    #[case("32b", 32)]
    #[case("50M", 50 << 20)]
    #[case("50 MiB", 50 << 20)]
    #[case("1.5k", 1536)]
    #[case("0.0001k", 0)]
    #[case("3Tb", 3 << 40)]
    #[case("2p", 2 << 50)]
    #[case("9223372036854775807", i64::MAX as u64)]
    fn sizes(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(parse_size("size", text).unwrap(), bytes);
    }

    #[rstest]
    #[case("")]
    #[case("M")]
    #[case("-1")]
    #[case("1.")]
    #[case(".5k")]
    #[case("1..5k")]
    #[case("1.2.3")]
    #[case("1  k")]
    #[case("1kk")]
    #[case("1ib")]
    #[case("1e")]
    #[case("9223372036854775808")]
    #[case("99999999999p")]
    #[case("340282366920938463463374607431768211455p")]
    fn not_sizes(#[case] text: &str) {
        assert!(
            matches!(parse_size("size", text), Err(Error::InvalidOption { .. })),
            "{text}"
        );
    }

    #[rstest]
    #[case("true", Some(true))]
    #[case("0", Some(false))]
    #[case("tRUE", None)]
    #[case("", None)]
    fn booleans(#[case] text: &str, #[case] value: Option<bool>) {
        assert_eq!(parse_bool("k", text).ok(), value);
    }
}
