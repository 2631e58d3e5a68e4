//! Tables for people: as wide as the terminal, text from outside escaped.

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};

use super::{escape::escape, out::Out};
use crate::exit::Failure;

/// Characters of one cell.
const CELL_MAX: usize = 512;

/// A line under the header and none between rows: every row that is a line is one less to see.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─'));

/// A table with these columns.
pub(crate) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(columns.iter().map(|column| column.to_string()));
    table
}

/// Adds a row; every cell is escaped.
pub(crate) fn row(table: &mut Table, cells: impl IntoIterator<Item = String>) {
    table.add_row(cells.into_iter().map(|cell| escape(&cell, CELL_MAX)).collect::<Vec<_>>());
}

/// The table, unless it has no rows: then a header would only ask what is missing.
pub(crate) fn print(out: &mut Out, table: &Table) -> Result<(), Failure> {
    if table.is_empty() { Ok(()) } else { out.line(table) }
}

/// Columns of the terminal; `None` if the output is no terminal.
pub(crate) fn terminal_width() -> Option<u16> {
    let table = Table::new();
    if table.is_tty() { table.width() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped() {
        let mut table = table(&["a"]);
        row(&mut table, ["\x1b[31m".to_owned()]);
        assert!(table.to_string().contains("\\u{1b}[31m"));
    }
}
