//! Frames between brokers on a QUIC stream (`proto/src/peer.rs`), read without trusting a declared length.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quinn::{RecvStream, SendStream, VarInt};
use trunkline_proto::{
    PartitionId,
    peer::{ANSWER_ERROR, ANSWER_OK, PEER_FRAME_BYTES_MAX, Stream},
};

/// A buffer's first size; it grows with what arrives.
const BUFFER_BYTES: usize = 16 << 10;
/// Longest text of an error.
const ERROR_BYTES_MAX: usize = 4 << 10;

/// Why an exchange with a peer came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    /// The stream or its connection is gone.
    #[error("the stream is gone: {0}")]
    Stream(String),
    /// The stream ended within a frame, or before one that was due.
    #[error("the stream ended within a frame")]
    Cut,
    /// Longer than it may be.
    #[error("{what} of {bytes} bytes; at most {limit} are taken")]
    Limit {
        /// What is.
        what: &'static str,
        /// As declared.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// Bytes that are not what they should be.
    #[error("{0}")]
    Invalid(String),
    /// The other side says no.
    #[error("refused: {0}")]
    Refused(String),
    /// A follower needs what is trimmed, and that was kept for it long enough.
    #[error("it needs entries that are trimmed, and has for long: it gets a snapshot")]
    Trimmed,
    /// Nothing came in time.
    #[error("no answer in time")]
    Slow,
}

impl From<quinn::WriteError> for WireError {
    fn from(error: quinn::WriteError) -> Self {
        Self::Stream(error.to_string())
    }
}

impl From<quinn::ConnectionError> for WireError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Stream(error.to_string())
    }
}

pub(super) fn too_long(what: &'static str, bytes: usize, limit: usize) -> WireError {
    WireError::Limit { what, bytes: bytes as u64, limit: limit as u64 }
}

/// A message that does not decode.
pub(super) fn decode<M: Message + Default>(frame: Bytes) -> Result<M, WireError> {
    M::decode(frame).map_err(|error| WireError::Invalid(format!("message does not decode: {error}")))
}

/// A message as a frame, after `before`.
pub(super) fn encode(before: &[u8], message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(before.len() + 4 + length);
    bytes.extend_from_slice(before);
    bytes.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    // a BytesMut has room for everything
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// Raw bytes as a frame, after `before`.
pub(super) fn encode_raw(before: &[u8], parts: &[&[u8]]) -> Bytes {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = BytesMut::with_capacity(before.len() + 4 + length);
    bytes.extend_from_slice(before);
    bytes.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.freeze()
}

/// What a stream opens with.
pub(super) fn opening(stream: Stream, partition: PartitionId) -> [u8; 3] {
    let [low, high] = partition.0.to_le_bytes();
    [stream as u8, low, high]
}

/// The sending half. Dropped before [`Sender::finish`] the stream is reset: what is under way is of no use to the other side.
#[derive(Debug)]
pub(super) struct Sender {
    stream: SendStream,
    finished: bool,
}

impl Sender {
    pub(super) fn new(stream: SendStream, priority: i32) -> Self {
        // fails only on a stream that is gone, which the next write says
        let _ = stream.set_priority(priority);
        Self { stream, finished: false }
    }

    pub(super) async fn send(&mut self, bytes: Bytes) -> Result<(), WireError> {
        Ok(self.stream.write_all_chunks(&mut [bytes]).await?)
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
        // already reset by the peer: nothing to end
        let _ = self.stream.finish();
    }

    /// An answer, and the end.
    pub(super) async fn answer(mut self, answer: Result<Bytes, WireError>) {
        let bytes = answer.unwrap_or_else(|error| error_answer(&error));
        if self.send(bytes).await.is_ok() {
            self.finish();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(VarInt::from_u32(0));
        }
    }
}

/// A good answer as it goes out.
pub(super) fn ok_answer(message: &impl Message) -> Bytes {
    encode(&[ANSWER_OK], message)
}

/// An error as it goes out.
pub(super) fn error_answer(error: &WireError) -> Bytes {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    encode_raw(&[ANSWER_ERROR], &[text.as_bytes()])
}

/// The receiving half.
#[derive(Debug)]
pub(super) struct Receiver(RecvStream);

impl Receiver {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self(stream)
    }

    async fn exact(&mut self, bytes: &mut [u8]) -> Result<bool, WireError> {
        match self.0.read_exact(bytes).await {
            Ok(()) => Ok(true),
            Err(quinn::ReadExactError::FinishedEarly(0)) => Ok(false),
            Err(quinn::ReadExactError::FinishedEarly(_)) => Err(WireError::Cut),
            Err(quinn::ReadExactError::ReadError(error)) => Err(WireError::Stream(error.to_string())),
        }
    }

    /// What the stream is for.
    pub(super) async fn opening(&mut self) -> Result<(Stream, PartitionId), WireError> {
        let mut opening = [0; 3];
        if !self.exact(&mut opening).await? {
            return Err(WireError::Cut);
        }
        let [kind, low, high] = opening;
        let kind = Stream::from_u8(kind).ok_or_else(|| WireError::Invalid(format!("stream of unknown kind {kind}")))?;
        Ok((kind, PartitionId(u16::from_le_bytes([low, high]))))
    }

    /// The next frame of at most `limit` bytes; `None` at the end. Not cancel safe.
    pub(super) async fn frame(&mut self, limit: usize) -> Result<Option<Bytes>, WireError> {
        let mut length = [0; 4];
        if !self.exact(&mut length).await? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > limit {
            return Err(too_long("a frame", length, limit));
        }
        let mut frame = BytesMut::with_capacity(length.min(BUFFER_BYTES));
        while frame.len() < length {
            let chunk = self.0.read_chunk(length - frame.len(), true).await;
            let chunk = chunk.map_err(|error| WireError::Stream(error.to_string()))?.ok_or(WireError::Cut)?;
            frame.extend_from_slice(&chunk.bytes);
        }
        Ok(Some(frame.freeze()))
    }

    /// A frame that must come.
    pub(super) async fn expect(&mut self, limit: usize) -> Result<Bytes, WireError> {
        self.frame(limit).await?.ok_or(WireError::Cut)
    }

    /// An answer; `None` at the end. Not cancel safe.
    pub(super) async fn answer(&mut self) -> Result<Option<Bytes>, WireError> {
        let mut kind = [0];
        if !self.exact(&mut kind).await? {
            return Ok(None);
        }
        match kind {
            [ANSWER_OK] => Ok(Some(self.expect(PEER_FRAME_BYTES_MAX).await?)),
            [ANSWER_ERROR] => {
                let text = self.expect(ERROR_BYTES_MAX).await?;
                Err(WireError::Refused(String::from_utf8_lossy(&text).into_owned()))
            }
            [other] => Err(WireError::Invalid(format!("answer of unknown kind {other}"))),
        }
    }
}
