//! What commands print: where nobody reads on, they end as quietly as other tools do.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write as _};

use kvd::exit;

/// Prints a line, as `println!` does, which would panic when its reader has gone.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;

/// Prints `text`. A command that cannot print has nothing left to do, and ends here.
pub(crate) fn write(text: Arguments<'_>) {
    let Err(error) = io::stdout().write_fmt(text) else {
        return;
    };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(exit::UNREAD);
    }
    eprintln!("kvd: standard output: {error}");
    std::process::exit(exit::IO);
}
