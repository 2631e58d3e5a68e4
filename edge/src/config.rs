//! Typed configuration of an edge.
