//! How the story is told: chapters, commands, proofs, and a table at the end.

use anyhow::Result;

/// What has been shown so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    chapters: Vec<(String, bool)>,
}

impl Report {
    /// Tells a chapter; an error in it is a proof that failed.
    pub(crate) fn chapter(&mut self, title: &str, tell: impl FnOnce(&mut Self) -> Result<()>) {
        println!("\n{}. {title}", self.chapters.len() + 1);
        self.chapters.push((title.to_owned(), true));
        if let Err(error) = tell(self) {
            self.proof(false, &format!("{error:#}"));
        }
    }

    /// What is done, as the user could do it.
    #[expect(
        clippy::unused_self,
        reason = "the report is the only voice of the demo"
    )]
    pub(crate) fn does(&self, what: &str) {
        println!("   $ {what}");
    }

    /// What it shows.
    pub(crate) fn proof(&mut self, holds: bool, what: &str) {
        println!("   {} {what}", if holds { "ok    " } else { "FAILED" });
        if let Some((_, held)) = self.chapters.last_mut() {
            *held &= holds;
        }
    }

    /// Prints the table, and returns whether everything held.
    pub(crate) fn table(&self) -> bool {
        println!("\nShown:");
        for (title, held) in &self.chapters {
            println!("   {} {title}", if *held { "ok    " } else { "FAILED" });
        }
        self.chapters.iter().all(|(_, held)| *held)
    }
}
