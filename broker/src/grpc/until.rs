//! A stream of answers that ends when its caller's token is good no more.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio_stream::Stream;
use tonic::Status;

use super::status;
use crate::access::Denied;

/// Answers to one call.
trait Answers<T>: Stream<Item = Result<T, Status>> + Send {}

impl<T, S: Stream<Item = Result<T, Status>> + Send> Answers<T> for S {}

/// See the module's head. What made the answers is dropped with the end.
pub(super) struct Until<T> {
    answers: Option<Pin<Box<dyn Answers<T>>>>,
    revoked: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<T> Until<T> {
    pub(super) fn new(
        answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
        revoked: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Self { answers: Some(Box::pin(answers)), revoked: Box::pin(revoked) }
    }
}

impl<T> Stream for Until<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(answers) = &mut this.answers else { return Poll::Ready(None) };
        if this.revoked.as_mut().poll(context).is_pending() {
            return answers.as_mut().poll_next(context);
        }
        this.answers = None;
        Poll::Ready(Some(Err(status::of_denied(&Denied::Unauthenticated))))
    }
}
