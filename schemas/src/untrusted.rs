//! Text that comes from whoever makes pods or files: how it is shown, and what of it is not read.

use std::{borrow::Cow, fmt::Write};

/// A text as a terminal may have it: what would move the cursor, change colours or turn the direction of reading around is
/// shown as JSON has it. Ends of lines and tabs stay.
pub fn shown(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_obeyed(c) && !matches!(c, '\n' | '\t'))
}

/// A name as it may stand within a line: as [`shown`], without ends of lines.
pub fn shown_in_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_obeyed)
}

fn is_obeyed(c: char) -> bool {
    let is_mark = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    is_mark || c.is_control()
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Why YAML is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbounded {
    /// Reading it takes libyaml the square of its depth.
    #[error("it is nested too deeply")]
    Nested,
    /// Reading them takes libyaml the square of their number.
    #[error("it has too many directives")]
    Directives,
}

/// Refuses YAML that looks as if its reader took the square of its length; whether it is YAML at all is not known then.
///
/// # Errors
/// It does.
pub fn check_yaml(text: &str) -> Result<(), Unbounded> {
    let (mut depth, mut begun, mut directives, mut is_start, mut is_indented) = (0usize, 0usize, 0usize, true, true);
    for byte in text.bytes() {
        match byte {
            // What flow style opens and closes.
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            // What block style begins on one line.
            b'-' | b'?' | b':' if is_indented => begun += 1,
            b'\n' => begun = 0,
            b'%' if is_start => directives += 1,
            _ => {}
        }
        is_start = byte == b'\n';
        is_indented = is_start || is_indented && matches!(byte, b'-' | b'?' | b':' | b' ' | b'\t');
        if depth.max(begun) > MOST_DEPTH {
            return Err(Unbounded::Nested);
        }
        if directives > MOST_DIRECTIVES {
            return Err(Unbounded::Directives);
        }
    }
    Ok(())
}

/// How deep a text may seem to be, brackets within texts included: far more than any file of Kubernetes, and soon read.
const MOST_DEPTH: usize = 2000;
/// Nobody writes more than one or two before a document.
const MOST_DIRECTIVES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(shown("web\u{1b}[31m\u{202e}x\r\n\ty\u{9b}"), "web\\u001b[31m\\u202ex\\u000d\n\ty\\u009b");
        assert_eq!(shown("größer → 10 µs\n"), "größer → 10 µs\n");
        assert_eq!(shown_in_line("a\n- all is fine"), "a\\u000a- all is fine");
    }

    #[test]
    fn yaml_that_takes_the_square_of_its_length_is_refused() {
        assert_eq!(check_yaml(&"[".repeat(100_000)), Err(Unbounded::Nested));
        assert_eq!(check_yaml(&"- ".repeat(100_000)), Err(Unbounded::Nested));
        assert_eq!(check_yaml(&"%TAG !a! tag:x\n".repeat(2000)), Err(Unbounded::Directives));
        assert_eq!(check_yaml(&"- a: [b, {c: d}] # 100 %\n".repeat(50_000)), Ok(()));
        assert_eq!(
            check_yaml(&format!("{{{}}}", "\"a-b\": [{\"c\": \"?\"}], ".repeat(50_000))),
            Ok(()),
            "JSON on a line"
        );
    }
}
