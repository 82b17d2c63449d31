//! The demo's records: orders of a shop, each a function of its partition and offset alone. So the reader compares with
//! what was sent without anybody having to remember 200 MB.

use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// One record, as the producer sends it and as the consumer has to get it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) key: Option<Vec<u8>>,
    /// `None`: a tombstone.
    pub(crate) value: Option<Vec<u8>>,
    /// In order; a key can come twice.
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) timestamp_ms: i64,
}

impl Order {
    /// Bytes of key, value and headers.
    pub(crate) fn len(&self) -> usize {
        let part = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self
            .headers
            .iter()
            .map(|(key, value)| key.len() + part(value));
        part(&self.key) + part(&self.value) + headers.sum::<usize>()
    }
}

const PRODUCTS: [(&str, &str, u32); 12] = [
    ("Espresso beans, dark roast 1 kg", "coffee", 2190),
    ("Filter paper size 4, 100 pieces", "coffee", 349),
    ("Stoneware mug 0.3 l, blue", "kitchen", 1250),
    ("Chef's knife 20 cm", "kitchen", 7900),
    ("Linen tablecloth 140 x 220 cm", "home", 4590),
    ("Reading lamp, brass", "home", 11900),
    ("Notebook A5, dotted, 192 pages", "office", 1495),
    ("Fountain pen ink, 50 ml", "office", 990),
    ("Merino socks, two pairs", "clothing", 2490),
    ("Rain jacket, unisex", "clothing", 13900),
    ("Bicycle bell", "outdoor", 1190),
    ("Enamel camping pot 1.5 l", "outdoor", 3290),
];
const CITIES: [(&str, &str); 8] = [
    ("Aarhus", "DK"),
    ("Bologna", "IT"),
    ("Coimbra", "PT"),
    ("Debrecen", "HU"),
    ("Ghent", "BE"),
    ("Leipzig", "DE"),
    ("Malmö", "SE"),
    ("Zaragoza", "ES"),
];
const NAMES: [&str; 10] = [
    "Ada", "Bruno", "Chiara", "Dénes", "Elif", "Frida", "Goran", "Hanna", "Ivo", "Júlia",
];
const STATES: [&str; 4] = ["placed", "paid", "packed", "shipped"];

/// Between two orders of a partition, in milliseconds.
const APART_MS: i64 = 5;

/// How far producers' clocks differ, in milliseconds.
const JITTER_MS: i64 = 200;

/// So many records tell how large they are on average.
const SAMPLED: i64 = 500;

/// The time of a partition's first record if `bytes` of records come in it, so that the last one is just before `now_ms`. Both in
/// milliseconds since 1970.
pub(crate) fn start_ms(now_ms: i64, bytes: u64) -> i64 {
    let sample = (0..SAMPLED).map(|offset| order(0, offset, now_ms).len());
    let sampled_bytes = u64::try_from(sample.sum::<usize>()).unwrap_or(u64::MAX);
    let mean_bytes = sampled_bytes / SAMPLED.unsigned_abs();
    let records = i64::try_from(bytes / mean_bytes.max(1)).unwrap_or(i64::MAX);
    now_ms
        .saturating_sub(records.saturating_mul(APART_MS))
        .saturating_sub(JITTER_MS)
}

/// The record at `offset` of `partition`; `start_ms` is the time of the first one.
pub(crate) fn order(partition: i32, offset: i64, start_ms: i64) -> Order {
    let seed = (u64::from(partition.unsigned_abs()) << 48) ^ offset.unsigned_abs();
    let mut random = SmallRng::seed_from_u64(seed);
    let customer: u32 = random.random_range(10_000..90_000);
    // Producers' clocks differ a little, so times are not quite in order.
    let timestamp_ms = start_ms + offset * APART_MS + random.random_range(0..JITTER_MS);
    let mut headers = vec![
        (
            "content-type".to_owned(),
            Some(b"application/json".to_vec()),
        ),
        (
            "trace-id".to_owned(),
            Some(format!("{:032x}", random.random::<u128>()).into_bytes()),
        ),
    ];
    if offset % 50 == 7 {
        // Kafka keeps a header that comes twice and one without a value, and so must we.
        headers.push(("retry".to_owned(), Some(b"1".to_vec())));
        headers.push(("retry".to_owned(), Some(b"2".to_vec())));
        headers.push(("campaign".to_owned(), None));
    }
    let value =
        (offset % 211 != 5).then(|| body(&mut random, partition, offset, customer, timestamp_ms));
    Order {
        key: Some(format!("customer-{customer}").into_bytes()),
        value,
        headers,
        timestamp_ms,
    }
}

/// About 1 KiB of JSON.
fn body(
    random: &mut SmallRng,
    partition: i32,
    offset: i64,
    customer: u32,
    timestamp_ms: i64,
) -> Vec<u8> {
    let pick = |random: &mut SmallRng, names: &[&'static str]| {
        names.choose(random).copied().unwrap_or_default()
    };
    let name = pick(random, &NAMES);
    let (city, country) = CITIES.choose(random).copied().unwrap_or_default();
    let state = pick(random, &STATES);
    let mut text = format!(
        "{{\"order_id\":\"{partition:02}-{offset:09}\",\"placed_at_ms\":{timestamp_ms},\"state\":\"{state}\",\"customer\":\
         {{\"id\":{customer},\"name\":\"{name}\",\"email\":\"{}.{customer}@example.com\",\"city\":\"{city}\",\"country\":\
         \"{country}\"}},\"items\":[",
        name.to_lowercase()
    );
    let mut total_cents: u32 = 0;
    for index in 0..random.random_range(4..8) {
        let (product, category, cents) = PRODUCTS.choose(random).copied().unwrap_or_default();
        let quantity: u32 = random.random_range(1..4);
        total_cents += quantity * cents;
        let comma = if index > 0 { "," } else { "" };
        let sku: u32 = random.random_range(100_000..999_999);
        let _infallible = write!(
            text,
            "{comma}{{\"sku\":\"{sku}\",\"name\":\"{product}\",\"category\":\"{category}\",\"quantity\":{quantity},\
             \"unit_price_cents\":{cents}}}"
        );
    }
    let _infallible = write!(
        text,
        "],\"total_cents\":{total_cents},\"currency\":\"EUR\",\"payment\":{{\"method\":\"card\",\"token\":\"{:016x}\"}},\
         \"note\":null}}",
        random.random::<u64>()
    );
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_function_of_its_place() {
        assert_eq!(order(1, 77, 5), order(1, 77, 5));
        assert_ne!(order(1, 77, 5), order(2, 77, 5));
        assert_ne!(order(1, 77, 5), order(1, 78, 5));
    }

    /// `max(ts)` lay up to some minutes in the future.
    #[test]
    fn the_last_order_is_about_now() {
        let now_ms = 1_700_000_000_000;
        for bytes in [15_000_000, 50_000_000] {
            let start_ms = start_ms(now_ms, bytes);
            let (mut sent, mut last_ms, mut offset) = (0, 0, 0);
            while sent < bytes {
                let order = order(3, offset, start_ms);
                sent += u64::try_from(order.len()).expect("small");
                (last_ms, offset) = (order.timestamp_ms.max(last_ms), offset + 1);
            }
            let before_ms = now_ms - last_ms;
            assert!((-1_000..10_000).contains(&before_ms), "{before_ms}");
        }
    }

    #[test]
    fn orders_are_about_a_kilobyte_of_json_with_some_tombstones() {
        let orders: Vec<Order> = (0..1000).map(|offset| order(0, offset, 0)).collect();
        let mean = orders.iter().map(Order::len).sum::<usize>() / orders.len();
        assert!((800..1300).contains(&mean), "{mean}");
        assert!(orders.iter().any(|order| order.value.is_none()));
        for value in orders.iter().filter_map(|order| order.value.as_ref()) {
            serde_json::from_slice::<serde_json::Value>(value).expect("it is JSON");
        }
    }
}
