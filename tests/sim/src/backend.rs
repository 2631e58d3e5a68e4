//! A backend that submits commands with idempotency keys to any broker, and again until it has an answer.

use std::collections::BTreeMap;

use trunkline_proto::{Batch, ConnectionId, PartitionId, Record, RecordKind, Source, v1};

use crate::{
    CHANNELS, Invariant, Time, Violation,
    context::Context,
    millis,
    net::{Body, Node},
    raft::BROKERS,
};

/// Commands without an answer at once.
const OPEN_MAX: usize = 6;

#[derive(Debug)]
struct Open {
    partition: PartitionId,
    batch: Batch,
    payload: Vec<u8>,
    again: Time,
}

#[derive(Default, Debug)]
pub(crate) struct Backend {
    open: BTreeMap<u64, Open>,
}

impl Backend {
    pub(crate) fn tick(&mut self, context: &mut Context) {
        if self.open.len() < OPEN_MAX && !context.hushed && context.random.chance(200) {
            let id = context.serial();
            let channel = CHANNELS[context.random.below(CHANNELS.len() as u64) as usize];
            let payload = format!("submit {channel} {id}").into_bytes();
            let body = v1::Published {
                channel: channel.to_owned(),
                kind: v1::MessageKind::Text.into(),
                payload: payload.clone().into(),
                ..Default::default()
            };
            let source = v1::SubmitSource { principal: "backend".to_owned(), key: id.to_string(), first_command: 0 };
            let record = Record::new(RecordKind::Published, ConnectionId::NONE, "", &body);
            let batch = Batch::new(Source::Submit(source), &[record]);
            self.open.insert(id, Open { partition: context.count.of_name(channel), batch, payload, again: 0 });
        }
        let now = context.now;
        for (id, open) in self.open.iter_mut().filter(|(_, open)| open.again <= now) {
            open.again = context.now + millis(context.random.range(50, 500));
            let to = Node::Broker(context.random.below(u64::from(BROKERS)) as u8);
            let body = Body::Submit { partition: open.partition, id: *id, batch: open.batch.clone() };
            context.send(Node::Backend, to, body);
        }
    }

    pub(crate) fn receive(&mut self, context: &mut Context, body: Body) {
        if let Body::Submitted { id } = body
            && let Some(open) = self.open.remove(&id)
            && !context.oracle.has_effect(&open.payload)
        {
            context.oracle.fail(Invariant::Once, format!("submit {id} is acknowledged and has had no effect"));
        }
    }

    pub(crate) fn check_rest(&self) -> Result<(), Violation> {
        let left = self.open.len();
        if left == 0 { Ok(()) } else { Err(Violation::rest(format!("{left} submits have no answer"))) }
    }
}
