//! Patterns as KEYS, SCAN and CONFIG GET know them.

/// Whether `text` as a whole matches `pattern`, byte by byte.
///
/// `*` stands for any bytes, `?` for one, `[a-z]` and `[^a-z]` for one of or not of a class, and
/// `\` takes the next byte as it is. A class that is not closed ends with the pattern.
/// With `nocase`, ASCII letters match either case, except those escaped inside a class.
/// Unlike in Redis's matcher, `*` also matches the empty text.
///
/// It neither recurses nor allocates: only the last star is ever tried again, so the time is at
/// most the product of the two lengths.
pub fn matches(pattern: &[u8], text: &[u8], nocase: bool) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to go on when the way since the last star has failed.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            if at == pattern.len() {
                return true;
            }
            star = Some((at, from));
            continue;
        }
        match text.get(from) {
            None => {
                // More text cannot come, so trying a later start for the star cannot help.
                return at == pattern.len();
            }
            Some(&byte) => match one(&pattern[at..], byte, nocase) {
                Some(taken) => {
                    at += taken;
                    from += 1;
                }
                None => match &mut star {
                    None => return false,
                    Some((after, start)) => {
                        *start += 1;
                        (at, from) = (*after, *start);
                    }
                },
            },
        }
    }
}

/// How much of the pattern's front matches `byte`, if it does.
fn one(pattern: &[u8], byte: u8, nocase: bool) -> Option<usize> {
    let (matched, taken) = match pattern {
        [] => return None,
        [b'?', ..] => (true, 1),
        [b'[', ..] => class(pattern, byte, nocase),
        [b'\\', escaped, ..] => (same(*escaped, byte, nocase), 2),
        [plain, ..] => (same(*plain, byte, nocase), 1),
    };
    matched.then_some(taken)
}

/// Whether the class at the pattern's front has `byte`, and how long it is.
fn class(pattern: &[u8], byte: u8, nocase: bool) -> (bool, usize) {
    let fold = |byte: u8| {
        if nocase {
            byte.to_ascii_lowercase()
        } else {
            byte
        }
    };
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= *escaped == byte;
                at += 2;
            }
            [b']', ..] => {
                at += 1;
                break;
            }
            [first, b'-', last, ..] => {
                let (low, high) = (*first.min(last), *first.max(last));
                found |= (fold(low)..=fold(high)).contains(&fold(byte));
                at += 3;
            }
            [plain, ..] => {
                found |= same(*plain, byte, nocase);
                at += 1;
            }
        }
    }
    (found != negated, at)
}

fn same(a: u8, b: u8, nocase: bool) -> bool {
    a == b || nocase && a.eq_ignore_ascii_case(&b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by recursion.
    fn model(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| model(rest, &text[skip..])),
            ([], _) => text.is_empty(),
            (_, []) => false,
            (_, [byte, rest @ ..]) => {
                one(pattern, *byte, false).is_some_and(|taken| model(&pattern[taken..], rest))
            }
        }
    }

    #[test]
    fn patterns_match_as_in_redis() {
        let table = [
            ("*", "", true),
            ("*", "abc", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("h[a-b]llo", "hcllo", false),
            ("h\\?llo", "h?llo", true),
            ("h\\?llo", "hello", false),
            ("a[\\]]b", "a]b", true),
            ("a[b", "ab", true),
            ("a[]", "a", false),
            ("a[]", "ax", false),
            ("a[^]", "ax", true),
            ("a\\", "a\\", true),
            ("a*b*c", "aXXbYYc", true),
            ("a*b*c", "aXXbYY", false),
            ("a*", "a", true),
            ("", "", true),
            ("", "a", false),
            ("ABC", "abc", false),
        ];
        for (pattern, text, expected) in table {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes(), false),
                expected,
                "{pattern} {text}"
            );
        }
        assert!(matches(b"MAX*[A-C]", b"maxmemorb", true));
    }

    #[test]
    fn many_stars_take_bounded_time() {
        let pattern = b"*a".repeat(2000);
        let text = [vec![b'a'; 1999], vec![b'b'; 2000]].concat();
        assert!(!matches(&pattern, &text, false));
    }

    proptest! {
        #[test]
        fn agrees_with_its_definition(
            pattern in prop::collection::vec(prop::sample::select(b"ab*?[]^-\\".to_vec()), 0..9),
            text in prop::collection::vec(prop::sample::select(b"abc]-".to_vec()), 0..9),
        ) {
            prop_assert_eq!(matches(&pattern, &text, false), model(&pattern, &text));
        }
    }
}
