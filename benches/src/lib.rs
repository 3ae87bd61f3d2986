//! What the benches share: clocks, histograms, and the printing of one table.
