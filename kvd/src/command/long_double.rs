//! INCRBYFLOAT's numbers: Redis adds them in the 80-bit format of x86, with 64 bits of mantissa,
//! and shows 17 digits after the point. Rust has no such type, so it is made of integers here,
//! which also makes it the same on every machine.

use std::cmp::Ordering;

/// A number of 64 significant bits, or infinity, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LongDouble {
    /// `mantissa * 2^exponent`; the mantissa's highest bit is set, unless it is zero.
    Finite {
        negative: bool,
        mantissa: u64,
        exponent: i32,
    },
    Infinite {
        negative: bool,
    },
    NotANumber,
}

/// The exponent of the smallest number, and of the largest.
const EXPONENT_MIN: i32 = -16445;
const EXPONENT_MAX: i32 = 16320;

/// Redis reads no longer text than this.
const TEXT_BYTES_MAX: usize = 5 * 1024;

/// Beyond these powers of ten a number is infinite or zero, whatever its digits are.
const POWER_LIMIT: i64 = 5000 + TEXT_BYTES_MAX as i64;

/// Digits after the point.
const SHOWN_DIGITS: usize = 17;

impl LongDouble {
    pub(super) const ZERO: LongDouble = LongDouble::Finite {
        negative: false,
        mantissa: 0,
        exponent: 0,
    };

    /// Reads a number as `strtold` does: digits, decimal or hexadecimal, with an optional sign,
    /// point and exponent, or `inf`. No space, no NaN, nothing too large or too small.
    pub(super) fn parse(text: &[u8]) -> Option<LongDouble> {
        if text.len() >= TEXT_BYTES_MAX {
            return None;
        }
        let (negative, text) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        if text.eq_ignore_ascii_case(b"inf") || text.eq_ignore_ascii_case(b"infinity") {
            return Some(LongDouble::Infinite { negative });
        }
        match text {
            [b'0', b'x' | b'X', rest @ ..] => parse_hexadecimal(negative, rest),
            _ => parse_decimal(negative, text),
        }
    }

    /// The sum, rounded to the nearest number, on a tie to the even one.
    pub(super) fn add(self, other: LongDouble) -> LongDouble {
        use LongDouble::{Finite, Infinite, NotANumber};
        let (
            Finite {
                negative: a_negative,
                mantissa: a,
                exponent: a_exponent,
            },
            Finite {
                negative: b_negative,
                mantissa: b,
                exponent: b_exponent,
            },
        ) = (self, other)
        else {
            return match (self, other) {
                (NotANumber, _) | (_, NotANumber) => NotANumber,
                (Infinite { negative: a }, Infinite { negative: b }) if a != b => NotANumber,
                (Infinite { .. }, _) => self,
                _ => other,
            };
        };
        if a == 0 {
            return other;
        }
        if b == 0 {
            return self;
        }
        if (a_exponent, a) < (b_exponent, b) {
            return other.add(self);
        }
        // Both get 63 bits below the larger one's last; what the smaller has beneath them is only
        // remembered as being there.
        let large = u128::from(a) << 63;
        let distance = (a_exponent - b_exponent) as u32;
        let small = u128::from(b) << 63;
        let (small, rest) = match small.checked_shr(distance) {
            Some(shifted) => (shifted, (shifted << distance) != small),
            None => (0, true),
        };
        let exponent = a_exponent - 63;
        if a_negative == b_negative {
            rounded(a_negative, large + small, rest, exponent)
        } else {
            let difference = large - small - u128::from(rest);
            rounded(a_negative && difference != 0, difference, rest, exponent)
        }
    }

    /// The number with up to 17 digits after the point, none of them a useless zero; `None` unless
    /// it is finite.
    pub(super) fn to_text(self) -> Option<String> {
        let LongDouble::Finite {
            negative,
            mantissa,
            exponent,
        } = self
        else {
            return None;
        };
        let mut text = if exponent >= 0 {
            let mut whole = Natural::from(mantissa);
            whole.shift_left(exponent as u32);
            whole.into_decimal()
        } else {
            let scaled = u128::from(mantissa) * 10u128.pow(SHOWN_DIGITS as u32);
            let digits = half_even_shift(scaled, false, exponent.unsigned_abs());
            let text = format!("{digits:0>width$}", width = SHOWN_DIGITS + 1);
            let (whole, fraction) = text.split_at(text.len() - SHOWN_DIGITS);
            match fraction.trim_end_matches('0') {
                "" => whole.to_owned(),
                fraction => format!("{whole}.{fraction}"),
            }
        };
        if negative && text != "0" {
            text.insert(0, '-');
        }
        Some(text)
    }
}

/// The zero of either sign.
fn zero(negative: bool) -> LongDouble {
    LongDouble::Finite {
        negative,
        mantissa: 0,
        exponent: 0,
    }
}

/// The digits and how many of them stand after the point; `None` if there is none, or what is no
/// digit.
fn parse_digits(text: &[u8], base: u32) -> Option<(Natural, i64)> {
    let (whole, fraction) = match memchr::memchr(b'.', text) {
        None => (text, &[][..]),
        Some(at) => (&text[..at], &text[at + 1..]),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut digits = Natural::default();
    for byte in whole.iter().chain(fraction) {
        digits.multiply_add(base, char::from(*byte).to_digit(base)?);
    }
    Some((digits, fraction.len() as i64))
}

/// Splits off the exponent after `mark`, which is 0 when there is none.
fn split_power(text: &[u8], mark: u8) -> Option<(&[u8], i64)> {
    match text
        .iter()
        .position(|byte| byte.to_ascii_lowercase() == mark)
    {
        None => Some((text, 0)),
        Some(at) => Some((&text[..at], parse_power(&text[at + 1..])?)),
    }
}

/// A number whose text is not zero, unless it came out as zero or as infinite.
fn in_range(number: LongDouble) -> Option<LongDouble> {
    match number {
        LongDouble::Finite { mantissa: 0, .. } | LongDouble::Infinite { .. } => None,
        number => Some(number),
    }
}

fn parse_decimal(negative: bool, text: &[u8]) -> Option<LongDouble> {
    let (mantissa, power) = split_power(text, b'e')?;
    let (mut digits, fraction) = parse_digits(mantissa, 10)?;
    if digits.is_zero() {
        return Some(zero(negative));
    }
    let power = power - fraction;
    if power.abs() > POWER_LIMIT {
        return None;
    }
    let mut divisor = Natural::from(1);
    let scaled = if power < 0 { &mut divisor } else { &mut digits };
    scaled.scale(power.unsigned_abs());
    in_range(quotient(negative, digits, divisor, 0))
}

fn parse_hexadecimal(negative: bool, text: &[u8]) -> Option<LongDouble> {
    let (mantissa, power) = split_power(text, b'p')?;
    let (digits, fraction) = parse_digits(mantissa, 16)?;
    if digits.is_zero() {
        return Some(zero(negative));
    }
    let power = i32::try_from(power - 4 * fraction).ok()?;
    if power.unsigned_abs() > 1 << 20 {
        return None;
    }
    in_range(quotient(negative, digits, Natural::from(1), power))
}

/// The exponent after its mark: digits with an optional sign, kept within what matters.
fn parse_power(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut power: i64 = 0;
    for byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        power = (power * 10 + i64::from(byte - b'0')).min(1 << 40);
    }
    Some(if negative { -power } else { power })
}

/// `value / 2^shift` to the nearest integer, on a tie to the even one; `rest` says that the true
/// value is a little more than `value`.
fn half_even_shift(value: u128, rest: bool, shift: u32) -> u128 {
    if shift == 0 {
        return value;
    }
    if shift > 128 {
        return 0;
    }
    let quotient = value.checked_shr(shift).unwrap_or(0);
    let lost = if shift == 128 {
        value
    } else {
        value & ((1 << shift) - 1)
    };
    let round_up = match lost.cmp(&(1 << (shift - 1))) {
        Ordering::Less => false,
        Ordering::Equal => rest || quotient & 1 == 1,
        Ordering::Greater => true,
    };
    quotient + u128::from(round_up)
}

/// The number nearest to `value * 2^exponent`, or to a little more when there is a `rest`.
fn rounded(negative: bool, value: u128, rest: bool, exponent: i32) -> LongDouble {
    let bits = 128 - value.leading_zeros() as i32;
    let drop = (bits - 64).max(EXPONENT_MIN - exponent).max(0);
    let mut mantissa = half_even_shift(value, rest, drop as u32);
    let mut exponent = exponent + drop;
    if mantissa == 0 {
        return LongDouble::Finite {
            negative,
            mantissa: 0,
            exponent: 0,
        };
    }
    if mantissa >> 64 != 0 {
        mantissa >>= 1;
        exponent += 1;
    }
    if exponent > EXPONENT_MAX {
        return LongDouble::Infinite { negative };
    }
    let mantissa = mantissa as u64;
    let shift = mantissa.leading_zeros();
    LongDouble::Finite {
        negative,
        mantissa: mantissa << shift,
        exponent: exponent - shift as i32,
    }
}

/// Bits of a quotient before it is rounded: a mantissa's, one that may be needed because the first
/// is zero, and one to round by.
const QUOTIENT_BITS: i32 = 66;

/// `dividend / divisor * 2^power`, rounded. Neither is zero.
fn quotient(negative: bool, mut dividend: Natural, mut divisor: Natural, power: i32) -> LongDouble {
    let shift = dividend.bits() - divisor.bits();
    if shift >= 0 {
        divisor.shift_left(shift as u32);
    } else {
        dividend.shift_left(shift.unsigned_abs());
    }
    // Now their highest bits stand at the same place: the quotient is between a half and two.
    let mut bits: u128 = 0;
    for _ in 0..QUOTIENT_BITS {
        bits <<= 1;
        if dividend.compare(&divisor) != Ordering::Less {
            dividend.subtract(&divisor);
            bits |= 1;
        }
        dividend.shift_left(1);
    }
    let exponent = power + shift - (QUOTIENT_BITS - 1);
    rounded(negative, bits, !dividend.is_zero(), exponent)
}

/// An integer of any size: digits of 32 bits, the lowest first, no zeros at the end.
#[derive(Debug, Clone, Default)]
struct Natural(Vec<u32>);

impl From<u64> for Natural {
    fn from(value: u64) -> Self {
        let mut natural = Natural(vec![value as u32, (value >> 32) as u32]);
        natural.trim();
        natural
    }
}

impl Natural {
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> i32 {
        self.0.last().map_or(0, |last| {
            self.0.len() as i32 * 32 - last.leading_zeros() as i32
        })
    }

    fn multiply_add(&mut self, factor: u32, summand: u32) {
        let mut carry = u64::from(summand);
        for digit in &mut self.0 {
            carry += u64::from(*digit) * u64::from(factor);
            *digit = carry as u32;
            carry >>= 32;
        }
        if carry != 0 {
            self.0.push(carry as u32);
        }
    }

    fn shift_left(&mut self, shift: u32) {
        let (digits, bits) = (shift as usize / 32, shift % 32);
        if bits != 0 {
            self.multiply_add(1 << bits, 0);
        }
        if !self.is_zero() {
            self.0.splice(0..0, std::iter::repeat_n(0, digits));
        }
    }

    fn compare(&self, other: &Natural) -> Ordering {
        self.0
            .len()
            .cmp(&other.0.len())
            .then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    /// Takes away `other`, which is not larger.
    fn subtract(&mut self, other: &Natural) {
        let mut borrow = false;
        for (at, digit) in self.0.iter_mut().enumerate() {
            let subtrahend = other.0.get(at).copied().unwrap_or(0);
            let (difference, first) = digit.overflowing_sub(subtrahend);
            let (difference, second) = difference.overflowing_sub(u32::from(borrow));
            *digit = difference;
            borrow = first || second;
        }
        assert!(!borrow, "the subtrahend is not larger");
        self.trim();
    }

    /// Multiplies by a power of ten.
    fn scale(&mut self, power: u64) {
        for _ in 0..power / 9 {
            self.multiply_add(Self::STEP as u32, 0);
        }
        self.multiply_add(10u32.pow((power % 9) as u32), 0);
    }

    /// Nine decimal digits at a time.
    const STEP: u64 = 1_000_000_000;

    fn into_decimal(mut self) -> String {
        let mut groups = Vec::new();
        while !self.is_zero() {
            let mut rest: u64 = 0;
            for digit in self.0.iter_mut().rev() {
                rest = (rest << 32) | u64::from(*digit);
                *digit = (rest / Self::STEP) as u32;
                rest %= Self::STEP;
            }
            self.trim();
            groups.push(rest);
        }
        let Some(first) = groups.pop() else {
            return "0".to_owned();
        };
        let mut text = first.to_string();
        for group in groups.iter().rev() {
            text.push_str(&format!("{group:09}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> Option<String> {
        let parse = |text: &str| LongDouble::parse(text.as_bytes()).expect(text);
        parse(a).add(parse(b)).to_text()
    }

    #[test]
    fn sums_are_those_of_80_bits() {
        for (a, b, expected) in [
            ("10.50", "0.1", "10.6"),
            ("10.6", "-5", "5.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("0.1", "0.2", "0.3"),
            ("3", "1.123456789", "4.123456789"),
            ("1e17", "1", "100000000000000001"),
            ("18446744073709551615", "1", "18446744073709551616"),
            ("18446744073709551616", "1", "18446744073709551616"),
            ("18446744073709551616", "3", "18446744073709551620"),
            ("-1", "1", "0"),
            ("-0", "0", "0"),
            ("1e-17", "0", "0.00000000000000001"),
            ("1e-18", "0", "0"),
            ("-1e-18", "0", "0"),
            (".5", "5.", "5.5"),
            ("+1", "1E0", "2"),
            ("0x10", "0X.8p1", "17"),
            ("-0xFfp-4", "0", "-15.9375"),
            ("0x0", "0x10000000000000001", "18446744073709551616"),
        ] {
            assert_eq!(sum(a, b).as_deref(), Some(expected), "{a} + {b}");
        }
    }

    #[test]
    fn what_is_infinite_has_no_text() {
        assert_eq!(sum("inf", "1"), None);
        assert_eq!(sum("-Infinity", "inf"), None);
        assert_eq!(sum("1.18e4932", "1.18e4932"), None);
        assert_eq!(sum("1.18e4932", "-1.18e4932").as_deref(), Some("0"));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let long = "1".repeat(TEXT_BYTES_MAX);
        for text in [
            "",
            " 1",
            "1 ",
            "1e",
            "e1",
            ".",
            "-",
            "nan",
            "1.2.3",
            "1e5000",
            "1e-5000",
            "abc",
            "1e99999999999999999999",
            "\0",
            "0x",
            "0x.",
            "0xg",
            "0x1p",
            "0x1p16384",
            "0x1p-16500",
            "0x1p99999999999999999999",
            "1\0",
            &long,
        ] {
            assert_eq!(LongDouble::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn the_smallest_numbers_are_read() {
        let smallest = LongDouble::parse(b"3.7e-4951").expect("not zero");
        assert_eq!(
            smallest,
            LongDouble::Finite {
                negative: false,
                mantissa: 1 << 63,
                exponent: EXPONENT_MIN - 63,
            }
        );
        assert_eq!(LongDouble::parse(b"1e-4952"), None);
    }

    /// Reads the shortest text of a double, which lies within half a unit of the double's last
    /// place. Rounding what was read to a double again would round twice, and a text that lies
    /// close to the middle between two doubles would come out as the other one.
    fn assert_reads_as_itself(double: f64) {
        let text = format!("{double:e}");
        let Some(LongDouble::Finite {
            negative,
            mantissa,
            exponent,
        }) = LongDouble::parse(text.as_bytes())
        else {
            panic!("{text} is a number");
        };
        assert_eq!(negative, double.is_sign_negative(), "{text}");
        let again = rounded(negative, u128::from(mantissa), false, exponent);
        assert_eq!(LongDouble::parse(text.as_bytes()), Some(again), "{text}");
        // The double in the same form: 53 bits at the top of the 64.
        let bits = double.to_bits();
        let exact = ((bits & ((1 << 52) - 1)) | 1 << 52) << 11;
        let exact_exponent = (bits >> 52 & 0x7ff) as i32 - 1086;
        // Just below a power of two the text has one bit more than the double.
        let unit = exact_exponent - 1;
        let scaled = |mantissa: u64, exponent: i32| u128::from(mantissa) << (exponent - unit);
        let distance = scaled(mantissa, exponent).abs_diff(scaled(exact, exact_exponent));
        assert!(
            distance <= 1 << 11,
            "{text}: {distance} half units of 64 bits"
        );
    }

    #[test]
    fn a_double_whose_text_is_near_the_middle_of_two_reads_as_itself() {
        assert_reads_as_itself(f64::from_bits(2_457_492_900_009_076_673));
    }

    proptest::proptest! {
        #[test]
        fn sums_of_integers_are_exact(a in -(1i64 << 62)..(1 << 62), b in -(1i64 << 62)..(1 << 62)) {
            let text = sum(&a.to_string(), &b.to_string());
            proptest::prop_assert_eq!(text, Some((a + b).to_string()));
        }

        #[test]
        fn doubles_read_as_themselves(bits: u64) {
            proptest::prop_assume!(f64::from_bits(bits).is_normal());
            assert_reads_as_itself(f64::from_bits(bits));
        }
    }
}
