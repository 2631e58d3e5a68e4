//! Frames on a QUIC stream: reading never trusts a declared length.

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use trunkline_proto::link::{Frame, FrameError, UplinkBatch};

/// Chunks taken off a stream at once; each is at most a datagram's payload.
const CHUNKS: usize = 32;

/// Why no frame can be read any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFrameError {
    #[error("broker broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("stream ended within a frame")]
    Cut,
    #[error("stream ended")]
    End,
    #[error("stream is gone: {0}")]
    Stream(#[from] ReadError),
}

/// Reads frames off one stream.
pub(crate) struct FrameReader {
    stream: RecvStream,
    /// Grows with what arrives, never with what is declared.
    buffer: BytesMut,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next frame. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Frame, ReadFrameError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
            let Some(count) = self.stream.read_chunks(&mut chunks).await? else {
                return Err(if self.buffer.is_empty() { ReadFrameError::End } else { ReadFrameError::Cut });
            };
            for chunk in &chunks[..count] {
                self.buffer.extend_from_slice(chunk);
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        let Some(header) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = Frame::length(*header)?;
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(Frame::decode(self.buffer.split_to(length).freeze())?))
    }
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        // already finished: nothing to stop
        let _ = self.stream.stop(VarInt::from_u32(0));
    }
}

/// Records of a batch from which on they are handed to QUIC as they are; smaller ones are copied behind their header.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Writes frames to one stream, which is reset when this is dropped: a write that is cancelled tears its frame.
pub(crate) struct FrameWriter {
    stream: SendStream,
    buffer: BytesMut,
}

impl FrameWriter {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Hands a frame to QUIC; waits while its flow control says so.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<(), WriteError> {
        frame.encode(&mut self.buffer);
        self.stream.write_chunk(self.buffer.split().freeze()).await
    }

    /// As [`FrameWriter::send`] with a batch, whose records are not copied if they are many.
    pub(crate) async fn send_batch(&mut self, batch: UplinkBatch) -> Result<(), WriteError> {
        if batch.records.len() <= COPY_BYTES_MAX {
            return self.send(&Frame::Batch(batch)).await;
        }
        let UplinkBatch { sequence, count, records } = batch;
        Frame::Batch(UplinkBatch { sequence, count, records: Bytes::new() }).encode(&mut self.buffer);
        let mut header = self.buffer.split();
        if let Some(length) = header.first_chunk_mut::<4>() {
            // records and their envelope are far below 4 GiB (limits::FRAME_BYTES_MAX)
            *length = (u32::from_le_bytes(*length) + records.len() as u32).to_le_bytes();
        }
        self.stream.write_all_chunks(&mut [header.freeze(), records]).await
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        // already reset by the peer's wish: nothing to reset
        let _ = self.stream.reset(VarInt::from_u32(0));
    }
}
