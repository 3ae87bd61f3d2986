//! What a service method must look like.

#[quorate::service]
pub trait Methods {
    fn not_async(&self) -> u32;
    async fn no_receiver(a: u32);
    async fn exclusive(&mut self);
    async fn by_value(self);
    async fn shared(self: std::sync::Arc<Self>);
    async fn generic<T: Send>(&self, value: T);
    async fn lifetime<'a>(&self, name: &'a str);
    async fn pattern(&self, (a, b): (u32, u32));
    async extern "C" fn foreign(&self);
    async fn connect(&self);
    async fn print(&self);
    async fn print_start(&self);
    async fn seventeen(
        &self, a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, l: u8, m: u8, n: u8, o: u8,
        p: u8, q: u8,
    );
}

fn main() {}
