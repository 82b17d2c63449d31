//! What the process itself uses, as Linux tells it.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts};

/// Reads `/proc/self/status` whenever somebody scrapes.
pub(crate) struct ProcessMetrics {
    resident: IntGauge,
    build: IntGaugeVec,
}

impl ProcessMetrics {
    pub(crate) fn new() -> Result<ProcessMetrics, prometheus::Error> {
        let build = IntGaugeVec::new(
            Opts::new("everlog_build_info", "Always 1; the label is the version."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let resident = IntGauge::new(
            "everlog_process_resident_memory_bytes",
            "Memory that the process occupies.",
        )?;
        Ok(ProcessMetrics { resident, build })
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        [self.resident.desc(), self.build.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(bytes) = resident_bytes(&status) {
            self.resident.set(bytes);
        }
        [self.resident.collect(), self.build.collect()].concat()
    }
}

fn resident_bytes(status: &str) -> Option<i64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_tells_what_is_resident() {
        assert_eq!(
            resident_bytes("Name:\teverlog\nVmRSS:\t    1234 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(resident_bytes("VmRSS: many"), None);
    }
}
