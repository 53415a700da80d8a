//! Publish and subscribe: a lane for each publisher, a cursor for each subscriber. The model for the other patterns.

mod batch;
mod frame;
mod loan;
mod pace;
mod publisher;
mod receiver;
mod sender;
mod sources;
mod subscriber;

pub use batch::{Batch, BatchIter};
pub use frame::Frame;
pub use loan::Loan;
pub use publisher::Publisher;
pub use receiver::Start;
pub use subscriber::{Messages, Subscriber, SubscriptionBuilder};

pub(crate) use subscriber::Kept;
