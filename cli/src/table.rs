//! Aligned columns for people; programs get JSON.

/// A table: numbers to the right, text to the left.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    is_number: Vec<bool>,
}

impl Table {
    /// `columns` are headings; one that starts with `>` is of a column of numbers.
    pub(crate) fn new(columns: &[&str]) -> Table {
        Table {
            rows: vec![
                columns
                    .iter()
                    .map(|column| column.trim_start_matches('>').to_owned())
                    .collect(),
            ],
            is_number: columns
                .iter()
                .map(|column| column.starts_with('>'))
                .collect(),
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let count = self.is_number.len();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|c| c.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..count)
            .map(|column| width(column).unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells =
                row.iter()
                    .zip(&widths)
                    .zip(&self.is_number)
                    .map(|((cell, width), is_number)| {
                        if *is_number {
                            format!("{cell:>width$}")
                        } else {
                            format!("{cell:width$}")
                        }
                    });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 hole`, `1,234 holes`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    let noun = if number == 1 { one } else { many };
    format!("{} {noun}", grouped(number))
}

/// Bytes with three digits or so, for reading only.
pub(crate) fn short_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scale: u64 = 1;
    while unit + 1 < UNITS.len() && bytes / scale >= 1024 {
        scale *= 1024;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10 / u128::from(scale)) as f64 / 10.0;
    format!("{tenths:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["topic", ">records"]);
        table.row(vec!["orders".to_owned(), grouped(1_234_567)]);
        table.row(vec!["a".to_owned(), "9".to_owned()]);
        assert_eq!(
            table.render(),
            "topic     records\norders  1,234,567\na               9\n"
        );
    }

    #[test]
    fn one_is_not_many() {
        let told = [0, 1, 2, 1234].map(|number| counted(number, "hole", "holes"));
        assert_eq!(told, ["0 holes", "1 hole", "2 holes", "1,234 holes"]);
    }

    #[test]
    fn bytes_are_short() {
        assert_eq!(short_bytes(0), "0 B");
        assert_eq!(short_bytes(1023), "1023 B");
        assert_eq!(short_bytes(1536), "1.5 KiB");
        assert_eq!(short_bytes(200 << 20), "200.0 MiB");
    }
}
