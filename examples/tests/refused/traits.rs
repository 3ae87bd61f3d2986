//! What a service must look like as a whole.

#[quorate::service]
pub trait Generic<T> {
    async fn take(&self, value: T);
}

#[quorate::service(transport = "tcp")]
pub trait Argued {}

#[quorate::service]
pub trait Associated {
    type Item;
    const LIMIT: usize;
}

#[quorate::service]
pub struct NoTrait;

fn main() {}
