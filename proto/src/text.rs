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
    fn a_bearer_says_so() {
        assert_eq!(bearer("bearer  a b "), Some("a b"));
        assert_eq!(bearer("Bearer "), Some(""));
        for wrong in ["Bearer", "Basic x", "x", ""] {
            assert_eq!(bearer(wrong), None, "{wrong}");
        }
    }
}
