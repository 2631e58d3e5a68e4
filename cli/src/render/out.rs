//! Standard output. A reader that goes away (`| head`) ends the command quietly.

use std::io::{self, BufWriter, Stdout, Write};

use serde::Serialize;

use crate::exit::Failure;

/// Buffered standard output; flushed by [`Out::flush`] and at the end.
pub(crate) struct Out {
    writer: BufWriter<Stdout>,
}

impl Out {
    pub(crate) fn new() -> Self {
        Self { writer: BufWriter::new(io::stdout()) }
    }

    /// One line.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> Result<(), Failure> {
        writeln!(self.writer, "{line}").map_err(Failure::output)
    }

    /// One JSON object, on a line of its own.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|error| Failure::Other(error.into()))?;
        self.line(text)
    }

    /// Makes everything visible.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.writer.flush().map_err(Failure::output)
    }
}
