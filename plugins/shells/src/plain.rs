//! Terminal output as the text a person would have seen.
//!
//! A terminal of the shell's size takes the output; the result is what scrolled off its top, then
//! what is on its screen. Lines that the terminal wrapped are joined again. While a program uses the
//! alternate screen, as editors do, that screen comes last. Window titles and the like are dropped.

use std::collections::VecDeque;

use avt::observer::Transcript;
use avt::parser::Function;
use avt::{Parser, ScreenKind, Terminal};

/// Characters kept of a rendering; the oldest lines go first. Some sequences fill a screen in a few
/// bytes, so the input's bound does not bound the output.
const MAX_CHARS: usize = 1 << 20;

/// Sizes beyond these are cut to them.
const MAX_COLS: usize = 500;
const MAX_ROWS: usize = 200;

/// Takes output in pieces and renders it.
pub struct Renderer {
    terminal: Terminal,
    parser: Parser,
    transcript: Transcript,
    lines: VecDeque<String>,
    chars: usize,
    dropped: bool,
    cols: usize,
}

/// What a [`Renderer`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    /// Lines joined by `\n`, none at the end.
    pub text: String,
    /// True when the oldest lines were dropped.
    pub dropped: bool,
}

/// Renders text in one go.
pub fn render(text: &str, cols: u32, rows: u32) -> Plain {
    match Renderer::new(cols, rows) {
        Some(mut renderer) => {
            renderer.feed(text);
            renderer.finish()
        }
        // Only a terminal without columns or rows, which the guest agent does not make.
        None => Plain { text: text.to_owned(), dropped: false },
    }
}

impl Renderer {
    /// Returns a renderer for a terminal of this size, or nothing when a side is zero.
    pub fn new(cols: u32, rows: u32) -> Option<Self> {
        let bounded = |size: u32, max: usize| usize::try_from(size).unwrap_or(max).min(max);
        let cols = bounded(cols, MAX_COLS);
        let terminal = Terminal::new(cols, bounded(rows, MAX_ROWS)).ok()?;
        Some(Renderer {
            terminal,
            parser: Parser::new(),
            transcript: Transcript::new(),
            lines: VecDeque::new(),
            chars: 0,
            dropped: false,
            cols,
        })
    }

    /// Takes more output; a control sequence may go on from the last piece.
    pub fn feed(&mut self, text: &str) {
        for character in text.chars() {
            let Some(mut function) = self.parser.feed(character) else {
                continue;
            };
            // One sequence can ask for 65,535 repetitions; a screen line shows `cols` of them.
            if let Function::Rep(count) = &mut function {
                *count = (*count).min(u16::try_from(self.cols).unwrap_or(u16::MAX));
            }
            let lines = self.terminal.execute_with(function, &mut self.transcript);
            self.keep(lines);
        }
    }

    /// Returns what was seen.
    pub fn finish(mut self) -> Plain {
        let transcript = std::mem::take(&mut self.transcript);
        let lines = transcript.finish(&self.terminal);
        self.keep(lines);
        if self.terminal.active_screen_kind() == ScreenKind::Alternate {
            let mut screen: Vec<String> =
                self.terminal.screen().visible_lines().map(|line| line.text().trim_end().to_owned()).collect();
            while screen.last().is_some_and(String::is_empty) {
                screen.pop();
            }
            self.keep(screen);
        }
        let text = Vec::from(self.lines).join("\n");
        Plain { text, dropped: self.dropped }
    }

    fn keep(&mut self, lines: Vec<String>) {
        for line in lines {
            self.chars += line.len() + 1;
            self.lines.push_back(line);
        }
        while self.chars > MAX_CHARS
            && let Some(line) = self.lines.pop_front()
        {
            self.chars -= line.len() + 1;
            self.dropped = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(text: &str) -> String {
        render(text, 40, 10).text
    }

    #[test]
    fn a_carriage_return_overwrites() {
        assert_eq!(plain("downloading 10%\rdownloading 50%\rdone\x1b[K\r\nnext"), "done\nnext");
        assert_eq!(plain("abc\rX"), "Xbc");
        assert_eq!(plain("abc\x08\x08X"), "aXc");
        assert_eq!(plain("abc\x08 \x08d"), "abd");
    }

    #[test]
    fn pip_and_cargo_bars_end_as_their_last_state() {
        let pip = "Collecting x\r\n\x1b[?25l   \x1b[38;5;237m━━━━\x1b[0m \x1b[32m0.0/1.2 MB\x1b[0m \x1b[31m?\x1b[0m eta \x1b[36m-:--:--\x1b[0m\
                   \r\x1b[2K   \x1b[38;2;114;156;31m━━━━\x1b[0m \x1b[32m1.2/1.2 MB\x1b[0m\r\n\x1b[?25hInstalled x\r\n";
        assert_eq!(plain(pip), "Collecting x\n   ━━━━ 1.2/1.2 MB\nInstalled x");
        let cargo = "\x1b[1m\x1b[32m   Compiling\x1b[0m a v1\r\n\x1b[1m\x1b[36m    Building\x1b[0m [==> ] 1/2\r\x1b[K\
                     \x1b[1m\x1b[32m   Compiling\x1b[0m b v1\r\n\x1b[1m\x1b[36m    Building\x1b[0m [===>] 2/2\r\x1b[K\x1b[1m\x1b[32m    Finished\x1b[0m\r\n";
        assert_eq!(plain(cargo), "   Compiling a v1\n   Compiling b v1\n    Finished");
        // Several bars, redrawn by moving up, as docker pull and npm do.
        assert_eq!(plain("a: 10%\r\nb: 10%\r\n\x1b[2A\x1b[2Ka: 90%\x1b[1B\r\x1b[2Kb: 99%\r\n"), "a: 90%\nb: 99%");
    }

    #[test]
    fn colours_titles_and_other_strings_leave_no_trace() {
        assert_eq!(
            plain("\x1b]0;root@host: ~\x07\x1b[01;34mdir\x1b[0m  file\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\"),
            "dir  filelink"
        );
        assert_eq!(plain("\x1bP1$r0m\x1b\\ok\x1b_apc\x1b\\\x1b^pm\x1b\\!"), "ok!");
        assert_eq!(plain("\x1b[?2004hpyro$ ls\r\n\x1b[?2004la  b\r\n"), "pyro$ ls\na  b");
    }

    #[test]
    fn erasing_and_moving_work_on_the_screen() {
        assert_eq!(plain("abcdef\x1b[3D\x1b[K"), "abc");
        assert_eq!(plain("abcdef\x1b[3D\x1b[1K"), "    ef");
        assert_eq!(plain("abcdef\x1b[2K\rx"), "x");
        assert_eq!(plain("one\r\ntwo\x1b[H\x1b[Jx"), "x");
        assert_eq!(plain("\x1b[5;3Hx\x1b[1;1Hy"), "y\n\n\n\n  x");
        assert_eq!(plain("a\x1b[3@b\x1b[P"), "ab");
        // What a clear takes from the screen is still what was printed.
        assert_eq!(plain("before\r\n\x1b[H\x1b[2J\x1b[3Jafter"), "before\nafter");
    }

    #[test]
    fn an_editor_shows_its_screen_while_it_runs_and_leaves_none() {
        let open = "$ vim x\r\n\x1b[?1049h\x1b[22;0;0t\x1b[1;10r\x1b[H\x1b[2Jhello\r\n\x1b[94m~\r\n~\x1b[0m\x1b[10;1H\"x\" 1L, 6B\x1b[1;1H";
        assert_eq!(plain(open), "$ vim x\nhello\n~\n~\n\n\n\n\n\n\n\"x\" 1L, 6B");
        assert_eq!(plain(&format!("{open}\x1b[?1049l$ ")), "$ vim x\n$");
    }

    #[test]
    fn wide_characters_and_wrapping_keep_their_text() {
        let long = "x".repeat(95);
        assert_eq!(plain(&format!("{long}\r\n日本語 😀 é\r\n")), format!("{long}\n日本語 😀 é"));
    }

    #[test]
    fn scrollback_is_kept() {
        let lines: Vec<String> = (0..1000).map(|n| format!("line {n}")).collect();
        assert_eq!(plain(&lines.join("\r\n")), lines.join("\n"));
    }

    #[test]
    fn sequences_that_multiply_output_are_bounded() {
        let plain = render(&"\x1b#8\x1b[2J".repeat(40), 500, 200);
        assert!(plain.dropped && plain.text.len() <= MAX_CHARS);
        let plain = render(&"x\x1b[65535b".repeat(3_000), 500, 200);
        assert!(plain.text.len() <= MAX_CHARS);
        assert!(Renderer::new(0, 1).is_none());
        assert_eq!(render("x", u32::MAX, u32::MAX).text, "x");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_render_as_the_whole(text in "([a-z ä日\r\n\x08\t]|\x1b\\[[0-9;]{0,5}[A-HJKLMPSTX@bdfghlmnrsu`]|\x1b[78DEHMc#(]|\x1b\\]0;[a-z]{0,3}\x07){0,60}", cut in 0_usize..60) {
            let at = text.char_indices().nth(cut).map_or(text.len(), |(at, _)| at);
            let mut renderer = Renderer::new(20, 5).unwrap();
            renderer.feed(&text[..at]);
            renderer.feed(&text[at..]);
            prop_assert_eq!(renderer.finish(), render(&text, 20, 5));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(prop_oneof![Just(0x1b), Just(b'['), Just(b';'), Just(b'?'), b'0'..=b'9', any::<u8>()], 0..400), cols in 1_u32..90, rows in 1_u32..30) {
            let text = String::from_utf8_lossy(&bytes);
            let _ = render(&text, cols, rows);
            let _ = crate::cursor::take(&bytes, 50, true, false);
        }
    }
}
