//! Bytes per connection (at most 250), by accounting: there is no allocator to ask without unsafe code.

use super::{super::connections::CONNECTION_BYTES, *};

/// What the allocator really takes for a block: 16-byte steps and an 8-byte header (glibc).
fn block(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
}

#[test]
fn a_connection_takes_at_most_250_bytes() {
    // a B-tree leaf has room for 11; keys that come in random order fill it to ln 2 in the long run
    let fill = std::f64::consts::LN_2;
    let leaf = |element: usize| block(11 * element + 16) as f64 / (11.0 * fill);
    let in_map = leaf(CONNECTION_BYTES);
    let at_edge = leaf(size_of::<ConnectionId>());
    // inner nodes: one in about 8 leaves, the size of a leaf and 12 pointers
    let inner = 1.2;
    let peer = block("255.255.255.255:65535".len()) as f64;
    let total = (in_map + at_edge) * inner + peer;
    assert!(total <= 250.0, "{total:.0} bytes");
}
