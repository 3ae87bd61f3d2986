//! One call to many: wait for the first answer, for a majority, for all, or for so many.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

pub use quorate_protocols::rpc::gather::Wanted;

/// Waits until enough of `calls` have been answered; the others are then dropped, and so cancelled. The answers come
/// with the places of their calls, in the order of arrival.
///
/// ```text
/// let asked = clients.iter().map(|client| client.balance(account));
/// let answers = together(Wanted::Majority, asked).await?;
/// ```
///
/// # Errors
/// [`NotEnough`] as soon as too many calls have failed, with what is known of each.
/// # Cancel safety
/// Dropping the future cancels all calls.
/// # Limits
/// Whenever one call moves all are looked at: meant for some dozens, not for thousands.
pub async fn together<T, E, F>(
    wanted: Wanted,
    calls: impl IntoIterator<Item = F>,
) -> Result<Vec<(usize, T)>, NotEnough<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut calls: Vec<Option<Pin<Box<F>>>> = calls.into_iter().map(|call| Some(Box::pin(call))).collect();
    let wanted = wanted.of(calls.len());
    let (mut answers, mut errors) = (Vec::new(), Vec::new());
    std::future::poll_fn(move |cx| {
        for (place, slot) in calls.iter_mut().enumerate() {
            if answers.len() >= wanted {
                break;
            }
            let Some(call) = slot else { continue };
            match call.as_mut().poll(cx) {
                Poll::Pending => continue,
                Poll::Ready(Ok(answer)) => answers.push((place, answer)),
                Poll::Ready(Err(error)) => errors.push((place, error)),
            }
            *slot = None;
        }
        if answers.len() >= wanted {
            return Poll::Ready(Ok(std::mem::take(&mut answers)));
        }
        if calls.len() - errors.len() < wanted {
            let (answers, errors) = (std::mem::take(&mut answers), std::mem::take(&mut errors));
            return Poll::Ready(Err(NotEnough { wanted, answers, errors }));
        }
        Poll::Pending
    })
    .await
}

/// Too many calls have failed for enough to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotEnough<T, E> {
    /// How many answers were wanted.
    pub wanted: usize,
    /// Those that came, with the places of their calls. Calls that are in neither list were cancelled.
    pub answers: Vec<(usize, T)>,
    /// Why the others did not.
    pub errors: Vec<(usize, E)>,
}

impl<T, E> fmt::Display for NotEnough<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, answers, errors } = self;
        write!(f, "{wanted} answers were wanted, {} came, {} calls failed", answers.len(), errors.len())
    }
}

impl<T: fmt::Debug, E: std::error::Error + 'static> std::error::Error for NotEnough<T, E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.errors.first().map(|(_, error)| error as _)
    }
}
