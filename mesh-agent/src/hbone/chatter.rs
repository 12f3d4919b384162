//! CORE: a tunnel whose peer asks for answers and little else.
//!
//! h2 answers every PING and every SETTINGS, as it must (RFC 9113, 10.5 leaves it to us when it is too much). It holds one
//! answer at a time, so this costs no memory, but some twenty times the work of as many bytes of DATA.

use std::time::{Duration, Instant};

/// So many are answered within a time; peers send one in some seconds, or one a round trip while they measure.
const MOST: (u32, Duration) = (1000, Duration::from_secs(1));

/// Length of a frame's header (RFC 9113, 4.1), types and flag.
const HEAD: usize = 9;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// Follows the frames that come in, by their headers alone.
pub(super) struct Chatter {
    head: [u8; HEAD],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes until the next header.
    skip: usize,
    wanted: u32,
    since: Option<Instant>,
}

/// The peer asked for too many answers.
#[derive(Debug, thiserror::Error)]
#[error(
    "the peer sent more than {} PINGs and SETTINGS within {} s",
    MOST.0,
    MOST.1.as_secs()
)]
pub(super) struct TooMuch;

impl Chatter {
    /// Of a connection whose frames begin behind so many bytes.
    pub(super) fn behind(preface: usize) -> Self {
        Self {
            head: [0; HEAD],
            have: 0,
            skip: preface,
            wanted: 0,
            since: None,
        }
    }

    /// Takes the next bytes, which have come at an instant.
    pub(super) fn hear(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), TooMuch> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            bytes = &bytes[skipped..];
            self.skip -= skipped;
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.have += taken;
            if self.have == HEAD {
                self.have = 0;
                self.frame(now)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, now: Instant) -> Result<(), TooMuch> {
        let [a, b, c, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
        if !matches!(kind, SETTINGS | PING) || flags & ACK != 0 {
            return Ok(());
        }
        let (most, within) = MOST;
        if self.since.is_none_or(|it| now >= it + within) {
            (self.since, self.wanted) = (Some(now), 0);
        }
        self.wanted += 1;
        if self.wanted > most {
            return Err(TooMuch);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_wants_an_answer_counts_however_it_is_cut() {
        let ping = [0, 0, 8, PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let answer = [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];
        let data = [0, 0, 3, 0, 0, 0, 0, 0, 1, 9, 9, 9];
        let bytes = [b"PRI".as_slice(), &ping, &answer, &data, &answer, &ping].concat();
        let now = crate::clock::now();
        for length in 1..bytes.len() {
            let mut chatter = Chatter::behind(3);
            for part in bytes.chunks(length) {
                chatter.hear(part, now).unwrap();
            }
            assert_eq!((chatter.wanted, chatter.have, chatter.skip), (2, 0, 0));
        }
    }

    #[test]
    fn too_many_at_once_are_too_much() {
        let settings = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0].repeat(MOST.0 as usize);
        let (mut chatter, now) = (Chatter::behind(0), crate::clock::now());
        for later in 0..3 {
            chatter.hear(&settings, now + MOST.1 * later).unwrap();
        }
        chatter.hear(&settings[..9], now + MOST.1 * 2).unwrap_err();
    }
}
