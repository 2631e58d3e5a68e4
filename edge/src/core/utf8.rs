//! UTF-8 checked piece by piece, failing at the first byte that cannot be continued (RFC 6455 §8.1).

/// Not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InvalidUtf8;

/// What is known of a text whose end has not come yet: at most three bytes of a character that is not complete.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Utf8Checker {
    carry: [u8; 4],
    carried: u8,
}

impl Utf8Checker {
    /// Takes the next piece.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) -> Result<(), InvalidUtf8> {
        while self.carried > 0 {
            let Some((first, rest)) = piece.split_first() else { return Ok(()) };
            piece = rest;
            let length = usize::from(self.carried) + 1;
            // three bytes at most are carried: a fourth completes the character or is wrong
            let Some(slot) = self.carry.get_mut(length - 1) else { return Err(InvalidUtf8) };
            *slot = *first;
            self.carried = match std::str::from_utf8(&self.carry[..length]) {
                Ok(_) => 0,
                Err(error) if error.error_len().is_some() => return Err(InvalidUtf8),
                Err(_) => length as u8,
            };
        }
        let Err(error) = std::str::from_utf8(piece) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(InvalidUtf8);
        }
        let tail = &piece[error.valid_up_to()..];
        self.carry[..tail.len()].copy_from_slice(tail);
        self.carried = tail.len() as u8;
        Ok(())
    }

    /// The text ends here.
    pub(crate) fn finish(self) -> Result<(), InvalidUtf8> {
        if self.carried == 0 { Ok(()) } else { Err(InvalidUtf8) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pieces: &[&[u8]]) -> Result<(), InvalidUtf8> {
        let mut checker = Utf8Checker::default();
        for piece in pieces {
            checker.feed(piece)?;
        }
        checker.finish()
    }

    #[test]
    fn fails_at_the_first_hopeless_byte() {
        for hopeless in [&b"\xf4\x90"[..], b"\xed\xa0", b"\xc0", b"\xf5", b"\xe0\x80", b"\xff", b"a\x80"] {
            let mut checker = Utf8Checker::default();
            assert_eq!(checker.feed(hopeless), Err(InvalidUtf8), "{hopeless:x?}");
            let mut checker = Utf8Checker::default();
            let bytewise = hopeless.iter().try_for_each(|byte| checker.feed(&[*byte]));
            assert_eq!(bytewise, Err(InvalidUtf8), "{hopeless:x?}");
        }
    }

    #[test]
    fn unfinished_character_is_refused_at_the_end() {
        assert_eq!(check(&[b"\xf0\x9f\x98"]), Err(InvalidUtf8));
        assert_eq!(check(&[b"\xf0\x9f", b"", b"\x98", b"\x80"]), Ok(()));
    }

    proptest! {
        #[test]
        fn pieces_are_judged_as_the_whole(bytes in prop_oneof![any::<String>().prop_map(String::into_bytes), any::<Vec<u8>>()], cuts in any::<Vec<usize>>()) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let (mut pieces, mut at) = (Vec::new(), 0);
            for cut in cuts {
                pieces.push(&bytes[at..cut]);
                at = cut;
            }
            pieces.push(&bytes[at..]);
            prop_assert_eq!(check(&pieces).is_ok(), std::str::from_utf8(&bytes).is_ok());
        }
    }
}
