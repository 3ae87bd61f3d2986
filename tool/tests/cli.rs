//! The program itself, as it is started in a shell: what it writes, what it reads, and how it ends.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn start(directory: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("--dir")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is built");
    // One that reads nothing may have ended before.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("it ends")
}

/// What it wrote, if it ended well.
fn text(directory: &Path, arguments: &[&str]) -> String {
    piped(directory, arguments, b"")
}

fn piped(directory: &Path, arguments: &[&str], input: &[u8]) -> String {
    let output = start(directory, arguments, input);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn code(directory: &Path, arguments: &[&str]) -> Option<i32> {
    start(directory, arguments, b"").status.code()
}

#[test]
fn q09_lines_go_in_and_come_out_in_their_order_and_are_gone_then() -> Outcome {
    let directory = tempfile::tempdir()?;
    let queues = directory.path().join("queues");
    let lines: String = (0..1000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(piped(&queues, &["put", "work"], lines.as_bytes()), "");
    assert_eq!(text(&queues, &["put", "work", "last but one", "last"]), "");
    assert_eq!(text(&queues, &["tail", "work", "-n", "1"]), "1002\tready\tlast\n");
    assert_eq!(text(&queues, &["get", "work", "-n", "2"]), "line 0\nline 1\n");
    let listed = text(&queues, &["list"]);
    assert!(listed.starts_with("work ") && listed.contains(" 1000 messages"), "{listed}");
    let rest = text(&queues, &["get", "work", "--all"]);
    assert_eq!((rest.lines().count(), rest.lines().last()), (1000, Some("last")));
    assert_eq!(code(&queues, &["get", "work"]), Some(3), "there is nothing any more");
    assert!(text(&queues, &["check"]).starts_with("ok: 1 queues, 0 messages"));
    Ok(())
}

#[test]
fn q09_messages_are_browsed_moved_and_purged() -> Outcome {
    let directory = tempfile::tempdir()?;
    let queues = directory.path();
    text(queues, &["put", "from", "a", "b", "c", "d"]);
    text(queues, &["put", "from", "urgent", "--priority", "9", "--key", "k"]);
    assert_eq!(text(queues, &["browse", "from", "--from", "2", "-n", "2"]), "2\tready\tb\n3\tready\tc\n");
    assert_eq!(text(queues, &["move", "from", "to", "-n", "3"]), "3 moved\n");
    assert_eq!(text(queues, &["get", "to", "--all"]), "urgent\na\nb\n");
    assert_eq!(text(queues, &["purge", "from"]), "2 purged\n");
    assert_eq!(code(queues, &["get", "from"]), Some(3));
    let dump = text(queues, &["dump"]);
    assert!(["put", "acknowledged", "purged before"].iter().all(|what| dump.contains(what)), "{dump}");
    // Later, and not after; a name is put once.
    text(queues, &["put", "timed", "later", "--delay", "3600"]);
    text(queues, &["put", "timed", "too late", "--expires", "0"]);
    assert_eq!(code(queues, &["get", "timed"]), Some(3));
    text(queues, &["put", "named", "once", "--name", "n"]);
    assert!(
        text(queues, &["--json", "put", "named", "once", "--name", "n"]).contains("\"is_repeated\":true")
    );
    assert_eq!(text(queues, &["get", "named", "--all"]), "once\n");
    Ok(())
}

#[test]
fn q09_json_is_one_object_a_line_and_bytes_that_are_no_text_survive() -> Outcome {
    let directory = tempfile::tempdir()?;
    let queues = directory.path();
    piped(queues, &["put", "bytes", "--whole"], &[0xff, 0x00, b'\n']);
    let object = text(queues, &["browse", "bytes", "--json"]);
    assert!(object.contains("\"payload_hex\":\"ff000a\"") && object.lines().count() == 1, "{object}");
    for command in [&["list"][..], &["check"], &["dump"], &["tail", "bytes"]] {
        let written = text(queues, &[command, &["--json"]].concat());
        assert!(!written.is_empty());
        assert!(written.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{written}");
    }
    let output = start(queues, &["get", "bytes"], b"");
    assert_eq!(output.stdout, [0xff, 0x00, b'\n', b'\n']);
    let bench = text(queues, &["--json", "bench", "--messages", "200", "--bytes", "10"]);
    assert!(bench.contains("\"put_per_second\":"), "{bench}");
    Ok(())
}

#[test]
fn q09_the_exit_code_says_what_is_wrong() -> Outcome {
    let directory = tempfile::tempdir()?;
    let queues = directory.path().join("queues");
    assert_eq!(code(&queues, &["list"]), Some(5), "there is no such directory");
    assert_eq!(code(&queues, &["fly"]), Some(2));
    assert_eq!(code(&queues, &["put", "Q", "x"]), Some(1), "no name of a queue");
    text(&queues, &["put", "q", "x"]);
    assert_eq!(code(&queues, &["put", "q", "x", "y", "--name", "n"]), Some(2));
    assert_eq!(code(&queues, &["get", "other"]), Some(3));

    // Another process has it: one whose input has not ended.
    let mut owner = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("--dir")
        .arg(&queues)
        .args(["put", "q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .args(["--json"])
        .spawn()?;
    let mut input = owner.stdin.take().ok_or("piped")?;
    // It has the directory when it tells that it stored what fills its first reading.
    let lines = "line\n".repeat(256);
    input.write_all(lines.as_bytes())?;
    let mut told = [0];
    std::io::Read::read_exact(owner.stdout.as_mut().ok_or("piped")?, &mut told)?;
    let output = start(&queues, &["list"], b"");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    drop(input);
    std::io::Read::read_to_end(owner.stdout.as_mut().ok_or("piped")?, &mut Vec::new())?;
    assert!(owner.wait()?.success());

    // Damaged where it was whole before.
    text(&queues, &["put", "q", &"x".repeat(5000)]);
    text(&queues, &["list"]);
    for entry in std::fs::read_dir(&queues)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            let mut bytes = std::fs::read(&path)?;
            if let Some(at) = bytes.windows(100).position(|window| window == [b'x'; 100]) {
                bytes[at] = b'y';
                std::fs::write(&path, bytes)?;
            }
        }
    }
    let output = start(&queues, &["check"], b"");
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
