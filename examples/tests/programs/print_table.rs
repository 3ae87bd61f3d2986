//! The print server's table is the textbook's.

use super::process::{run, text};

#[test]
fn r07_the_print_servers_table_is_the_textbooks_and_exactly_once_has_no_bad_cell() {
    let output = run("print_server", &[]);
    let table = text(&output.stdout);
    assert!(output.status.success(), "{table}{}", text(&output.stderr));
    let cells: Vec<Vec<&str>> = table
        .lines()
        .skip(1)
        .map(|line| {
            line.split_whitespace().filter(|word| ["OK", "DUP", "ZERO", "MANY"].contains(word)).collect()
        })
        .collect();
    let expected = [
        ["DUP", "OK", "OK", "DUP", "DUP", "OK"],
        ["OK", "ZERO", "ZERO", "OK", "OK", "ZERO"],
        ["DUP", "OK", "ZERO", "DUP", "OK", "ZERO"],
        ["OK", "ZERO", "OK", "OK", "DUP", "OK"],
        ["OK"; 6],
    ];
    assert_eq!(cells, expected, "{table}");
}
