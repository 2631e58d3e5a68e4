//! Text from outside never reaches a terminal as it is: control characters move cursors, change colours and rename windows,
//! direction marks turn text around.

/// The text with everything escaped that is not plainly visible; at most `chars_max` characters, then `…`.
pub(crate) fn escape(text: &str, chars_max: usize) -> String {
    let mut escaped = String::with_capacity(text.len().min(chars_max));
    let mut count = 0;
    for character in text.chars() {
        let piece = if is_plain(character) { character.to_string() } else { character.escape_default().to_string() };
        count += piece.chars().count();
        if count > chars_max {
            escaped.push('…');
            return escaped;
        }
        escaped.push_str(&piece);
    }
    escaped
}

/// Bytes of a binary payload, as hex.
pub(crate) fn hex(bytes: &[u8], chars_max: usize) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("0x");
    for byte in bytes {
        if text.len() + 2 > chars_max {
            text.push('…');
            break;
        }
        // a String takes everything
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn is_plain(character: char) -> bool {
    let turns_text_around = matches!(character,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    !character.is_control() && !turns_text_around
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_lose_their_power() {
        assert_eq!(escape("\x1b[31mred\r\n", 99), "\\u{1b}[31mred\\r\\n");
        assert_eq!(escape("\u{9b}2J", 99), "\\u{9b}2J");
        assert_eq!(escape("a\u{202e}b", 99), "a\\u{202e}b");
    }

    #[test]
    fn letters_of_every_script_stay() {
        assert_eq!(escape("Größe 漢字 🚀", 99), "Größe 漢字 🚀");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(escape("abcdef", 3), "abc…");
        assert_eq!(escape("abc", 3), "abc");
        assert_eq!(hex(&[1, 2, 255], 6), "0x0102…");
    }
}
