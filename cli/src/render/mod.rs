//! What comes out: JSON for machines, tables and lines for people.

pub(crate) mod cluster;
pub(crate) mod escape;
pub(crate) mod json;
pub(crate) mod line;
pub(crate) mod out;
pub(crate) mod table;
