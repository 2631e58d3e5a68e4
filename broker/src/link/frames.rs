//! Frames on a QUIC stream: reading without trusting a declared length, writing so that a cancelled write loses nothing.

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use trunkline_proto::link::{Frame, FrameError};

/// Chunks taken off a stream at once; each is at most a datagram's payload.
const CHUNKS: usize = 32;
/// A reader's buffer at the start; it grows with what arrives, never with what is declared.
const BUFFER_BYTES: usize = 16 << 10;

/// Why no frame can be read any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadFrameError {
    /// The peer broke the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame too long for this stream.
    #[error("frame of {bytes} bytes; this stream takes {limit}")]
    Limit {
        /// As declared.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The stream ended within a frame.
    #[error("stream ended within a frame")]
    Cut,
    /// The stream or its connection is gone.
    #[error("stream is gone: {0}")]
    Stream(#[from] ReadError),
}

impl ReadFrameError {
    /// Whether the peer is to blame.
    pub(super) fn is_invalid(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Limit { .. } | Self::Cut)
    }
}

/// Reads frames off one stream.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    /// Longest frame, without its length field.
    limit: usize,
}

impl FrameReader {
    /// Takes frames of at most `limit` bytes.
    pub(super) fn new(stream: RecvStream, limit: usize) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(BUFFER_BYTES), limit }
    }

    /// The next frame; `None` when the peer has finished the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
            let Some(count) = self.stream.read_chunks(&mut chunks).await? else {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadFrameError::Cut) };
            };
            for chunk in &chunks[..count] {
                self.buffer.extend_from_slice(chunk);
            }
        }
    }

    /// A frame that has arrived in full.
    fn buffered(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        let Some(header) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = Frame::length(*header)?;
        if length > self.limit {
            return Err(ReadFrameError::Limit { bytes: length, limit: self.limit });
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(Frame::decode(self.buffer.split_to(length).freeze())?))
    }

    /// Tells the peer to stop sending.
    pub(super) fn stop(&mut self) {
        // already finished: nothing to stop
        let _ = self.stream.stop(quinn::VarInt::from_u32(0));
    }
}

/// Writes frames to one stream. What a cancelled [`FrameWriter::flush`] has not written stays queued, so a frame is never torn.
#[derive(Debug)]
pub(super) struct FrameWriter {
    stream: SendStream,
    /// Encoded, not yet handed to QUIC.
    queued: BytesMut,
    /// Being handed to QUIC; written before `queued`.
    writing: [Bytes; 1],
}

impl FrameWriter {
    /// Writes to `stream`.
    pub(super) fn new(stream: SendStream) -> Self {
        Self { stream, queued: BytesMut::new(), writing: [Bytes::new()] }
    }

    /// Queues a frame. Who queues without flushing bounds what it queues.
    pub(super) fn queue(&mut self, frame: &Frame) {
        frame.encode(&mut self.queued);
    }

    /// Whether something queued has not been handed to QUIC yet.
    pub(super) fn is_pending(&self) -> bool {
        !self.queued.is_empty() || !self.writing[0].is_empty()
    }

    /// Hands everything queued to QUIC; waits while its flow control says so. Cancel safe.
    pub(super) async fn flush(&mut self) -> Result<(), WriteError> {
        loop {
            if self.writing[0].is_empty() {
                if self.queued.is_empty() {
                    return Ok(());
                }
                self.writing = [self.queued.split().freeze()];
            }
            // one poll writes and advances the slice, so cancelling between polls loses nothing
            self.stream.write_chunks(&mut self.writing).await?;
        }
    }

    /// Writes one frame at once.
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), WriteError> {
        self.queue(frame);
        self.flush().await
    }

    /// Ends the stream after what is queued and waits until the peer has it all.
    pub(super) async fn finish(&mut self) -> Result<(), WriteError> {
        self.flush().await?;
        // already finished or reset: nothing more to wait for
        let _ = self.stream.finish();
        let _ = self.stream.stopped().await;
        Ok(())
    }

    /// Gives up on the stream: the peer sees a reset.
    pub(super) fn reset(&mut self) {
        let _ = self.stream.reset(quinn::VarInt::from_u32(0));
    }
}
