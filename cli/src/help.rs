//! `buslane completions` and `buslane man`: what clap knows, in other forms.

use std::io::Write;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::Cli;
use crate::failure::Failure;
use crate::output::stdout;
use crate::signals::Stop;

/// Print a completion script for a shell
///
/// For bash: buslane completions bash > ~/.local/share/bash-completion/completions/buslane
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Print the manual
///
/// To read it: buslane man | man -l -
#[derive(clap::Args)]
pub struct ManArgs {}

/// Prints the completion script.
pub fn completions(args: &CompletionsArgs, stop: &Stop) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "buslane", &mut script);
    print(&script, stop)
}

/// Prints the manual: a page for the program, and one for each command.
pub fn man(stop: &Stop) -> Result<(), Failure> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    render(root, &mut pages).map_err(Failure::stdout)?;
    print(&pages, stop)
}

fn render(command: Command, pages: &mut Vec<u8>) -> std::io::Result<()> {
    Man::new(command.clone()).render(pages)?;
    command
        .get_subcommands()
        .cloned()
        .try_for_each(|sub| render(sub, pages))
}

fn print(text: &[u8], stop: &Stop) -> Result<(), Failure> {
    let mut out = stdout(stop)?;
    out.write_all(text)
        .and_then(|()| out.flush())
        .map_err(Failure::stdout)
}
