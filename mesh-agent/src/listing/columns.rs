//! Text in columns.

/// Rows below their header, each column as wide as its widest cell; a cell that is empty is a dash.
pub(super) fn columns<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut lines = vec![header.map(str::to_owned)];
    lines.extend(rows);
    let mut widths = [0; N];
    for line in &mut lines {
        for (cell, width) in line.iter_mut().zip(&mut widths) {
            if cell.is_empty() {
                cell.push('-');
            }
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}", width = *width));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
