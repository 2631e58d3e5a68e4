//! Small decodings of what callers write, for edges and brokers alike.

/// The token of `Bearer TOKEN`, which may be empty.
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Bytes written as pairs of hexadecimal digits, in lower case as signatures are.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).filter(|_| !byte.is_ascii_uppercase());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::try_from(digit(pair.first()?)? * 16 + digit(pair.get(1)?)?).ok()).collect()
}

/// A name or a value of a query, percent-decoded; `+` is a space. What is no UTF-8 gets replacement characters, and so is nobody's
/// token.
pub fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let escaped = (*byte == b'%').then(|| hex_pair(after)).flatten();
        bytes.push(escaped.unwrap_or(if *byte == b'+' { b' ' } else { *byte }));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Names and values of a query in order, percent-decoded; what has no `=` is a name.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decoded(name), percent_decoded(value))
    })
}

fn hex_pair(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pairs_in_lower_case_are_bytes() {
        assert_eq!(unhex("00ff7a"), Some(vec![0, 255, 0x7a]));
        assert_eq!(unhex(""), Some(Vec::new()));
        for wrong in ["0", "0g", "FF", "+1", " 1", "é"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        for (text, decoded) in [
            ("a+b%20c", "a b c"),
            ("%C3%a9", "é"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%ff", "\u{fffd}"),
            ("", ""),
        ] {
            assert_eq!(percent_decoded(text), decoded, "{text}");
        }
        let pairs: Vec<_> = query_pairs("&a=1&%61=x%3Dy=&b&=c").collect();
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        assert_eq!(pairs, [("a", "1"), ("a", "x=y="), ("b", ""), ("", "c")].map(owned));
    }

    #[test]
    fn a_bearer_says_so() {
        assert_eq!(bearer("bearer  a b "), Some("a b"));
        assert_eq!(bearer("Bearer "), Some(""));
        for wrong in ["Bearer", "Basic x", "x", ""] {
            assert_eq!(bearer(wrong), None, "{wrong}");
        }
    }
}
