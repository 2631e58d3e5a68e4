//! Asked for while a connection is open, after it, after restarts, and after retention.

use trunkline_proto::{Batch, ConnectionId, Offset, PartitionId, Record, RecordKind, Source, v1};

use super::*;
use crate::testing::{attach, connection, edge, message, node, opened};

fn closed(id: ConnectionId) -> Record {
    Record::new(RecordKind::ConnectionClosed, id, "chat", &v1::ConnectionClosed { code: 1000, ..Default::default() })
}

async fn put(node: &Node, batch: Batch) -> Offset {
    node.partition(PartitionId(0)).unwrap().append.append(batch).await.unwrap().offset(0)
}

/// Of the connection, by one of its events.
async fn told(node: &Node, id: ConnectionId, event: Offset) -> Option<v1::Opening> {
    node.opening(id, event).await.unwrap()
}

#[tokio::test]
async fn how_a_connection_came_to_be_is_told_while_it_is_open_after_it_and_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (gone, open, nobody) = (connection(0, 1), connection(0, 2), connection(0, 3));
    let first = node(&dir).await;
    put(&first, attach(0)).await;
    let at = put(&first, edge(1, &[opened(gone), opened(open)])).await;
    let said = put(&first, edge(2, &[message(gone, b"x")])).await;
    let before = told(&first, gone, said).await.unwrap();
    let record = before.opened.clone().unwrap();
    assert_eq!((before.offset, before.api.as_str(), before.trimmed), (at.0, "chat", false));
    assert_eq!((record.path.as_str(), record.edge.as_str()), ("/chat", "e1"), "as it stands in the log");
    put(&first, edge(3, &[closed(gone)])).await;
    assert_eq!(told(&first, gone, said).await, Some(before.clone()));
    assert_eq!(told(&first, nobody, Offset::ZERO).await, None);
    first.shutdown().await;

    let again = node(&dir).await;
    let end = put(&again, edge(4, &[message(open, b"y")])).await;
    assert_eq!(told(&again, gone, said).await, Some(before.clone()));
    assert_eq!(told(&again, gone, Offset::ZERO).await, Some(before.clone()));
    let still = told(&again, open, said).await.unwrap();
    assert_eq!((still.offset, still.trimmed), (at.0 + 1, false));

    // retention takes the openings: what the state knew of them stays
    let trimmed = v1::Trimmed { through: Offset::end_of(trunkline_proto::LogIndex(said.index().0 - 1)).0 };
    let trim = Record::new(RecordKind::Trimmed, ConnectionId::NONE, "", &trimmed);
    put(&again, Batch::new(Source::Leader, &[trim])).await;
    for (id, opening) in [(gone, before), (open, still)] {
        let left = told(&again, id, end).await.unwrap();
        assert_eq!((left.offset, left.time, left.api, left.trimmed), (opening.offset, opening.time, opening.api, true));
        assert_eq!(left.opened.unwrap().path, "");
    }
    again.shutdown().await;
}
