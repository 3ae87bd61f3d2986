//! What cannot travel to another process.

#[quorate::service]
pub trait Types {
    async fn borrowed(&self, name: &str);
    async fn borrowed_inside(&self, names: Vec<&'static str>);
    async fn borrowing<'static_is_fine>(&self);
    async fn lent(&self, name: std::borrow::Cow<'_, str>);
    async fn pointer(&self, raw: *const u8);
    async fn any(&self, value: impl Send);
    async fn object(&self, value: Box<dyn std::fmt::Debug>);
    async fn own(&self) -> Self;
    async fn bytes(&self, data: Vec<Vec<u8>>) -> Option<Vec<u8>>;
    async fn added_value(&self, #[added] unit: String);
    async fn added_first(&self, #[added] unit: Option<String>, name: String);
    async fn added_lent(&self, #[added] unit: &mut Option<String>);
    async fn renamed(&self, #[serde(rename = "n")] name: String);
    async fn lent_within(&self, names: Vec<&mut String>);
    async fn alias(&self) -> std::io::Result<u32>;
}

fn main() {}
