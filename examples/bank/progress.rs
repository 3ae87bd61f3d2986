//! Live progress on standard error: one line that is rewritten on a terminal, one line a second elsewhere.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clients::Hall;

/// Shows the progress until all lines are finished.
pub async fn show(hall: Arc<Hall>, lines: u64) {
    let is_terminal = stderr().is_terminal();
    let mut turns =
        tokio::time::interval(if is_terminal { Duration::from_millis(200) } else { Duration::from_secs(1) });
    let mut finished = hall.finished();
    let (began, before) = (Instant::now(), *finished.borrow());
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            // It never fails: the hall, which is held here, keeps the other end.
            _ = finished.wait_for(|finished| *finished >= lines) => {}
        }
        let done = *finished.borrow();
        let rate = (done - before) as f64 / began.elapsed().as_secs_f64().max(0.001);
        let text = format!("bank: {done} of {lines} lines, {rate:.0} per second");
        // Nobody is helped by a failure to show progress.
        let _ = if is_terminal { write!(stderr(), "\r{text}  ") } else { writeln!(stderr(), "{text}") };
        if done >= lines {
            let _ = if is_terminal { writeln!(stderr()) } else { Ok(()) };
            return;
        }
    }
}
