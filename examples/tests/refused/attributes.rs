//! Attributes that say too much, or something that is not there yet.

#[quorate::service]
pub trait Attributes {
    #[idempotent]
    #[one_way]
    async fn both(&self);
    #[idempotent(always)]
    async fn argued(&self) -> u32;
    #[one_way]
    async fn answered(&self) -> u32;
    #[one_way]
    #[deadline = "1s"]
    async fn impatient(&self);
    #[one_way]
    async fn restoring(&self, list: &mut Vec<u64>);
    #[deadline = "soon"]
    async fn soon(&self);
    #[deadline = "0ms"]
    async fn never(&self);
    #[deadline("1s")]
    async fn called(&self);
    #[exactly_once]
    #[idempotent]
    async fn once_or_more(&self);
    #[at_least_once]
    async fn at_least_once(&self);
    #[streaming(both)]
    async fn streaming(&self);
    #[streaming]
    #[idempotent]
    async fn repeated(&self);
    async fn unmarked(&self, numbers: quorate::rpc::Incoming<u64>);
}

fn main() {}
