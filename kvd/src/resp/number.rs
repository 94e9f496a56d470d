//! Numbers as Redis reads and writes them.

/// The text of `value` as decimal, without an allocation beyond the string itself.
pub fn format_int(value: i64) -> String {
    itoa::Buffer::new().format(value).to_owned()
}

/// Reads an integer as strictly as Redis does: an optional `-`, then digits without a leading
/// zero, and nothing else.
///
/// `+1`, ` 1`, `01`, `-0` and whatever does not fit 64 bits are not integers.
pub fn parse_int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut magnitude = 0u64;
    for &digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        // Nineteen digits are below 10^19 and fit.
        magnitude = magnitude * 10 + u64::from(digit);
    }
    if negative {
        0i64.checked_sub_unsigned(magnitude)
    } else {
        i64::try_from(magnitude).ok()
    }
}

/// Reads a double as Redis does for scores: no blanks, no NaN, nothing beyond the range of
/// doubles; `inf` and `-inf` are doubles. Hexadecimal spellings are not accepted.
pub fn parse_double(text: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    // A finite spelling that overflows or vanishes is out of range; only a name may be infinite.
    let in_range = match value {
        v if v.is_nan() => false,
        v if v.is_infinite() => !text.iter().any(u8::is_ascii_digit),
        0.0 => !mantissa_is_nonzero(text),
        _ => true,
    };
    in_range.then_some(value)
}

fn mantissa_is_nonzero(text: &[u8]) -> bool {
    text.iter()
        .take_while(|byte| !matches!(byte, b'e' | b'E'))
        .any(|b| matches!(b, b'1'..=b'9'))
}

/// The shortest text that reads back as `value`, laid out as Redis 7.2 and later lay it out.
pub fn format_double(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let scientific = format!("{:e}", value.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits = mantissa.replace('.', "");
    let count = digits.len() as i32;
    // The value is `digits` * 10^scale.
    let scale = exponent + 1 - count;

    let mut text = String::with_capacity(32);
    if value < 0.0 {
        text.push('-');
    }
    if scale >= 0 && exponent < count + 7 {
        text.push_str(&digits);
        text.extend(std::iter::repeat_n('0', scale as usize));
    } else if scale < 0 && (scale > -7 || exponent.abs() < 4) {
        if exponent < 0 {
            text.push_str("0.");
            text.extend(std::iter::repeat_n('0', (-exponent - 1) as usize));
            text.push_str(&digits);
        } else {
            let (whole, fraction) = digits.split_at(exponent as usize + 1);
            text.push_str(whole);
            text.push('.');
            text.push_str(fraction);
        }
    } else {
        text.push_str(mantissa);
        text.push('e');
        text.push(if exponent < 0 { '-' } else { '+' });
        text.push_str(&exponent.abs().to_string());
    }
    text
}
