//! The benchmark: `everlog-bench [--json] [GROUP...]`. Started by `tests/bench`.

use anyhow::Result;

fn main() -> Result<()> {
    let mut json = false;
    let mut groups = Vec::new();
    for word in std::env::args().skip(1) {
        if word == "--json" {
            json = true;
        } else {
            groups.push(word);
        }
    }
    everlog_tests::run_bench(&everlog_tests::BenchOptions::from_environment(
        groups, json,
    )?)
}
