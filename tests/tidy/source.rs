//! Just enough reading of Rust source for the checkers: text without comments and literals, words, paths.

/// The source with comments and the contents of string and character literals replaced by blanks; lines and
/// columns stay where they are.
pub(crate) fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => block_comment_end(bytes, at),
            b'"' => quoted_end(bytes, at + 1, b'"'),
            b'r' if !follows_word(bytes, at) => raw_string_end(bytes, at).unwrap_or(at),
            b'\'' => character_end(bytes, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            at += 1;
            continue;
        }
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Only whole characters were blanked: comments and literals begin and end at ASCII bytes.
    String::from_utf8(out).unwrap_or_default()
}

/// Every place, as (line from 1, byte offset), where `word` stands with no word character beside it.
pub(crate) fn word_places(code: &str, word: &str) -> Vec<(usize, usize)> {
    let starts_as_word = word.as_bytes().first().is_some_and(|b| is_word(*b));
    let ends_as_word = word.as_bytes().last().is_some_and(|b| is_word(*b));
    code.match_indices(word)
        .filter(|(at, _)| {
            let before = at.checked_sub(1).and_then(|i| code.as_bytes().get(i));
            let after = code.as_bytes().get(at + word.len());
            let goes_on_before = starts_as_word && before.is_some_and(|b| is_word(*b));
            let goes_on_after = ends_as_word && after.is_some_and(|b| is_word(*b));
            !goes_on_before && !goes_on_after
        })
        .map(|(at, _)| (line_of(code, at), at))
        .collect()
}

/// The line, from 1, of a byte offset.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1
}

/// All paths that a use tree or a plain path at the front of `code` names: `a::{b, c::{d, e as f}}` gives
/// `a::b`, `a::c::d`, `a::c::e`.
pub(crate) fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = code;
    take_tree(&mut rest, &mut Vec::new(), &mut found);
    found
}

fn take_tree(rest: &mut &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let depth = prefix.len();
    loop {
        *rest = rest.trim_start();
        if let Some(list) = rest.strip_prefix('{') {
            *rest = list;
            loop {
                *rest = rest.trim_start();
                match rest.chars().next() {
                    None => break,
                    Some('}') => {
                        *rest = &rest[1..];
                        break;
                    }
                    Some(',') => *rest = &rest[1..],
                    Some(_) => {
                        let before = rest.len();
                        take_tree(rest, prefix, found);
                        // `as name` and anything else that is no path: skip to the next item.
                        let skip = rest.find([',', '}']).unwrap_or(rest.len());
                        *rest = &rest[skip..];
                        if rest.len() == before {
                            break;
                        }
                    }
                }
            }
            prefix.truncate(depth);
            return;
        }
        let length = rest.bytes().take_while(|b| is_word(*b)).count();
        if length == 0 {
            break;
        }
        prefix.push(rest[..length].to_owned());
        *rest = rest[length..].trim_start();
        match rest.strip_prefix("::") {
            Some(more) => *rest = more,
            None => break,
        }
    }
    if prefix.len() > depth {
        found.push(prefix.clone());
    }
    prefix.truncate(depth);
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    // `br"` is a raw string too: the `b` before it is no part of a word.
    match at.checked_sub(1).map(|i| bytes[i]) {
        Some(b'b') => at >= 2 && is_word(bytes[at - 2]),
        Some(byte) => is_word(byte),
        None => false,
    }
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < bytes.len() {
        match bytes.get(at..at + 2) {
            Some(b"/*") => {
                depth += 1;
                at += 2;
            }
            Some(b"*/") => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    bytes.len()
}

fn quoted_end(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
    let open = at + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let length = bytes[open + 1..].windows(close.len()).position(|w| w == close)?;
    Some(open + 1 + length + close.len())
}

/// The end of a character literal; `None` when the quote begins a lifetime.
fn character_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        return Some(quoted_end(bytes, at + 1, b'\''));
    }
    let width = match bytes.get(at + 1)? {
        b if b.is_ascii() => 1,
        b if *b >= 0xf0 => 4,
        b if *b >= 0xe0 => 3,
        _ => 2,
    };
    (bytes.get(at + 1 + width) == Some(&b'\'')).then_some(at + 2 + width)
}

#[test]
fn comments_and_literals_are_blanked_and_code_is_kept() {
    let source = "let a = \"unsafe \\\" x\"; // unsafe\n/* unsafe /* deep */ */ let c = 'u'; fn f<'a>() {}\nlet r = r#\"unsafe \" \"#; let b = br\"unsafe\"; let q = '\\''; unsafe {}";
    let code = code_only(source);
    assert_eq!(code.len(), source.len());
    assert_eq!(word_places(&code, "unsafe").len(), 1, "{code}");
    assert_eq!(word_places(&code, "unsafe")[0].0, 3);
    assert!(code.contains("fn f<'a>() {}"), "{code}");
}

#[test]
fn words_are_found_whole() {
    assert_eq!(word_places("tokio tokio_util my_tokio tokio", "tokio"), [(1, 0), (1, 26)]);
    assert_eq!(word_places("a\ntodo!()", "todo!"), [(2, 2)]);
}

#[test]
fn use_trees_are_expanded() {
    let joined: Vec<String> =
        paths("a::{self, b, c::{d, e as f}, g::*}; x::y").iter().map(|p| p.join("::")).collect();
    assert_eq!(joined, ["a::self", "a::b", "a::c::d", "a::c::e", "a::g"]);
    assert_eq!(paths("rpc::Client::new(1)"), [vec!["rpc", "Client", "new"]]);
}
